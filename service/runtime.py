"""ONNX Runtime, imported in one place, so that it is never imported with its telemetry on.

It reports to its makers, and keeps an id in the home folder to do so, unless the environment
says otherwise before it is imported; `disable_telemetry_events()` comes too late for that. It is
the one import here that sets anything. The other thing set is that it logs errors alone: on CUDA it
warns of each session and each scatter, in colours, on the standard error (ORT 1.31).
"""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime

onnxruntime.set_default_logger_severity(3)

__all__ = ["onnxruntime"]
