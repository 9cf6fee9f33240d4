"""Triton: the binary of the wheel nvidia-pytriton, on the model repository beside this file.

The wheel has Triton's Python backend and no ONNX Runtime backend, so ONNX Runtime runs in two
Python processes that Triton batches for. Nothing of pytriton itself stands between.
"""

import os
import shutil
import sys
from pathlib import Path

import pytriton

HERE = Path(__file__).parent


def backends(wheel: Path, folder: Path) -> Path:
    """Return a folder with the Python backend and the stub of this version of Python."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    shutil.rmtree(folder, ignore_errors=True)
    python = folder / "python"
    python.mkdir(parents=True)
    stub = wheel / "python_backend_stubs" / version / "triton_python_backend_stub"
    for file in (*(wheel / "backends" / "python").glob("*.*"), stub):
        (python / file.name).symlink_to(file)
    return folder


def main(port: int) -> None:
    """Become tritonserver, which serves on the loopback until SIGTERM."""
    wheel = Path(pytriton.__file__).parent / "tritonserver"
    binary = wheel / "bin" / "tritonserver"
    folder = backends(wheel, Path(sys.prefix) / "backends")
    arguments = {
        "model-repository": HERE / "triton",
        "backend-directory": folder,
        "http-address": "127.0.0.1",
        "http-port": port,
        "http-thread-count": 2,
        "allow-grpc": "false",
        "allow-metrics": "false",
        "log-info": "false",
        "exit-timeout-secs": 5,
    }
    # The stub embeds Python, which finds its packages by the `python3` that comes first here.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    command = [str(binary), *(f"--{name}={value}" for name, value in arguments.items())]
    os.execve(binary, command, {**os.environ, "PATH": path})


if __name__ == "__main__":
    main(int(sys.argv[1]))
