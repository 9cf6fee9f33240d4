"""Servers as processes: started on a free port of the loopback, ended by their ids."""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.wire import fetch, message

READY_S = 60
"""A server that is not ready by then has failed to start."""
STOP_S = 20
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_PAGE_MB = os.sysconf("SC_PAGE_SIZE") / 1e6


class StartFailed(Exception):
    """The server ended, or was not ready in time. The text is the end of what it said."""


@dataclass(frozen=True)
class Process:
    """A server that answers.

    Args:
        pid: The process that was started; it may have others below it.
        port: Where it listens.
        start_s: From the start of the process to its first answer that says it is ready.
    """

    pid: int
    port: int
    start_s: float

    def used_s(self) -> float:
        """Return the processor seconds that it and all below it have used."""
        return sum(_times(pid) for pid in family(self.pid))

    def resident_mb(self) -> float:
        """Return the resident memory of it and all below it; shared pages count twice."""
        return sum(_resident(pid) for pid in family(self.pid))


@contextlib.contextmanager
def serving(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    ready: str,
    folder: Path,
    log: Path,
) -> Iterator[Process]:
    """Yield the server of a command, once it is ready, and end it afterwards.

    Args:
        command: With {port} where the port belongs.
        environment: Beside this process's own, likewise.
        ready: Path that answers 200 when it is ready.
        folder: Where it runs.
        log: File for what it says.

    Raises:
        StartFailed: It did not become ready.
    """
    port = _free_port()
    filled = {name: value.replace("{port}", str(port)) for name, value in environment.items()}
    arguments = [each.replace("{port}", str(port)) for each in command]
    with log.open("ab") as file:
        began = time.perf_counter()
        process = subprocess.Popen(
            arguments, cwd=folder, env={**os.environ, **filled}, stdout=file, stderr=file,
            start_new_session=True,
        )  # fmt: skip
    try:
        _wait(process, port, ready, began=began, log=log)
        yield Process(process.pid, port, time.perf_counter() - began)
    finally:
        _stop(process)


def _wait(
    process: subprocess.Popen[bytes], port: int, ready: str, *, began: float, log: Path
) -> None:
    request = message("GET", ready, {"Connection": "close"})
    while time.perf_counter() - began < READY_S:
        if process.poll() is not None:
            said = log.read_text(errors="replace").strip().splitlines() or ["nothing"]
            raise StartFailed(f"it ended: {said[-1][:200]}")
        with contextlib.suppress(OSError):
            if fetch(port, request, timeout_s=2)[0] == 200:
                return
        time.sleep(0.01)
    raise StartFailed(f"not ready after {READY_S} s")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a server and what it started: politely, then what is left of its own ids."""
    started = {pid: _began(pid) for pid in family(process.pid)}
    process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_S)
    for pid, began in started.items():
        if began and _began(pid) == began:  # the same process still, not a new one of that id
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    process.wait()


def family(pid: int) -> list[int]:
    """Return a process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for each in Path("/proc").iterdir():
        if each.name.isdecimal() and (stat := _stat(int(each.name))):
            children.setdefault(int(stat[1]), []).append(int(each.name))
    found = [pid]
    for each_pid in found:  # grows while it is walked
        found += children.get(each_pid, [])
    return found


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the state on, or none if it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _times(pid: int) -> float:
    stat = _stat(pid)
    return (int(stat[11]) + int(stat[12])) * _TICK_S if stat else 0.0


def _resident(pid: int) -> float:
    stat = _stat(pid)
    return int(stat[21]) * _PAGE_MB if stat else 0.0


def _began(pid: int) -> str:
    stat = _stat(pid)
    return stat[19] if stat and stat[0] != "Z" else ""


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])
