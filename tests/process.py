"""The real service, in a process of its own, on a free port of loopback."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx

START_S = 60
"""Guess: far more than a start takes, so that only a hang is one."""


class Process:
    """A service in a process of its own, and where its log is.

    Args:
        models: Folder of bundles.
        log: File for all that it prints.
        settings: Of the service, by their names in the environment without the prefix.
    """

    def __init__(self, models: Path, log: Path, **settings: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log
        said = {"MODELS": str(models), "PORT": str(self.port), "DEVICE": "cpu", "THREADS": "1"}
        said |= settings
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "service"],
                env=os.environ | {f"PUSHFORWARD_{key}": value for key, value in said.items()},
                stdout=file,
                stderr=file,
            )

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_S
        while True:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            try:
                if httpx.get(f"{self.url}/readyz").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.05)

    @property
    def resident_bytes(self) -> int:
        """What it has in memory now (Linux)."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=15)
