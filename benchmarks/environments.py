"""The peers' environments: one each, with pinned versions, made when it is first needed."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = Path(__file__).parent / ".environments"
DEBIANS_PYTHON = "/usr/bin/python3"
"""Triton's Python backend loads the system's libpython, which other builds do not ship."""


class InstallFailed(Exception):
    """An environment cannot be made. The text says why, in a few words."""


def python(name: str) -> Path:
    """Return the interpreter of a peer's environment, made if it is not there or out of date.

    Raises:
        InstallFailed: Its packages cannot be had here.
    """
    wanted = (Path(__file__).parent / "peers" / f"{name}.txt").read_text()
    folder = FOLDER / name
    stamp, interpreter = folder / ".installed", folder / "bin" / "python"
    if stamp.exists() and stamp.read_text() == wanted:
        return interpreter
    print(f"Making the environment of {name}: some minutes, once", flush=True)
    base = DEBIANS_PYTHON if name == "triton" else getattr(sys, "_base_executable", sys.executable)
    _run([base, "-m", "venv", str(folder)])
    file = str(Path(__file__).parent / "peers" / f"{name}.txt")
    _run([str(interpreter), "-m", "pip", "install", "--quiet", "--requirement", file])
    stamp.write_text(wanted)
    return interpreter


def _run(command: list[str]) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=900)
    except FileNotFoundError as error:
        raise InstallFailed(f"there is no {command[0]}") from error
    except subprocess.TimeoutExpired as error:
        raise InstallFailed("installing took too long") from error
    except subprocess.CalledProcessError as error:
        said = (error.stderr or error.stdout).strip().splitlines() or ["no reason given"]
        raise InstallFailed(said[-1][:200]) from error
