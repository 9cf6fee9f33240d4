"""The closed loop: wrk, one thread, so many connections that ask again as soon as they hear."""

import re
import resource
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

SCRIPT = Path(__file__).with_name("closed_loop.lua")
TIMEOUT_S = 20
"""An answer that takes longer counts as none."""


class LoadFailed(Exception):
    """The load tool said nothing that counts, or the server did not answer well."""


def closed_loop(
    port: int,
    requests: Sequence[bytes],
    *,
    connections: int,
    seconds: int,
    first_seed: int,
    slow: bool = False,
) -> dict[str, float]:
    """Return what a closed loop measured.

    Args:
        port: Of a server on this machine.
        requests: Sent in turn, each with a seed of its own.
        connections: How many are open.
        seconds: How long it lasts.
        first_seed: Seeds are counted up from here.
        slow: Whether an answer takes so much of that time that the rate is to be taken from the
            answers after the first of each connection. A server that works on all requests at
            once gives those late and together.

    Raises:
        LoadFailed: An answer had a status above 399, a connection broke, or nothing came.
    """
    settle = connections if slow else 0
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for index, request in enumerate(requests):
            files.append(Path(folder, str(index)))
            files[-1].write_bytes(request)
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", f"--timeout={TIMEOUT_S}s"]
        command += ["-s", str(SCRIPT), f"http://127.0.0.1:{port}", "--", str(first_seed)]
        command.append(str(settle))
        used, began = _children_s(), time.perf_counter()
        run = subprocess.run(
            [*command, *map(str, files)], capture_output=True, text=True, timeout=seconds + 60
        )
        wall_s = time.perf_counter() - began
    figures = parse(run.stdout, settle=settle)
    figures["client_cores"] = (_children_s() - used) / wall_s
    return figures


def parse(text: str, *, settle: int = 0) -> dict[str, float]:
    """Return the figures in what wrk and its script print.

    Args:
        text: What they print.
        settle: After how many answers the rate begins to count.

    Raises:
        LoadFailed: There is no result in it, an answer was missing, broken or an error, or there
            were too few for a rate.
    """
    found = re.search(r"^RESULT (.+)$", text, re.MULTILINE)
    if not found:
        raise LoadFailed(f"wrk said: {text.strip()[-200:] or 'nothing'}")
    raw = {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", found[1])}
    failed = {name: raw[name] for name in ("refused", "broken", "timeouts") if raw[name]}
    if failed or not raw["answers"]:
        told = ", ".join(f"{count} {name}" for name, count in failed.items())
        raise LoadFailed(f"{told or 'no answer'} beside {raw['answers']} answers")
    counted, counted_us = raw["answers"], raw["duration_us"]
    if settle:
        counted, counted_us = raw["answers_seen"] - settle, raw["settled_for_us"]
        if counted <= 0 or counted_us < raw["duration_us"] / 4:
            raise LoadFailed(
                f"only {raw['answers']} answers, too few for a rate; longer loops help"
            )
    return {
        "answers": raw["answers"],
        "requests_per_s": counted / counted_us * 1e6,
        "bytes_per_answer": raw["bytes"] / raw["answers"],
        "p50_ms": raw["p50_us"] / 1e3,
        "p99_ms": raw["p99_us"] / 1e3,
    }


def _children_s() -> float:
    """Return the processor seconds of the children that have ended: wrk, and not the servers."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
