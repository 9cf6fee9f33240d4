"""ONNX Runtime, imported in one place, so that it is never imported with its telemetry on.

It reports to its makers, and keeps an id in the home folder to do so, unless the environment
says otherwise before it is imported; `disable_telemetry_events()` comes too late for that. It is
the one import here that sets anything.
"""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime

__all__ = ["onnxruntime"]
