"""What a figure is worth nothing without: the machine, the versions, the date."""

import datetime
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

from benchmarks.environments import ROOT

PACKAGES = ("numpy", "onnxruntime", "fastapi", "uvicorn", "orjson")


def describe() -> dict[str, str]:
    """Return the host and the versions of what serves and of what loads it."""
    return {
        **host(),
        "wrk": _output("wrk", "-v").partition(" [")[0].removeprefix("wrk "),
        **{name: version(name) for name in PACKAGES},
    }


def host() -> dict[str, str]:
    """Return the machine, the commit and the load of others before the run."""
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": _cpu(),
        "cores": str(len(os.sched_getaffinity(0))),
        "system": platform.platform(),
        "python": platform.python_version(),
        "load_before": f"{os.getloadavg()[0]:.2f}",
        "commit": _output("git", "-C", str(ROOT), "describe", "--always", "--dirty"),
    }


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    found = {name.strip(): value.strip() for name, _, value in (x.partition(":") for x in lines)}
    model = found.get("model name", platform.machine())
    return f"{model}, family {found.get('cpu family')} model {found.get('model')}"


def _output(*command: str) -> str:
    run = subprocess.run(command, capture_output=True, text=True)
    return (run.stdout.strip() or run.stderr.strip()).partition("\n")[0]
