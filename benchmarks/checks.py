"""One answer of each kind, held against session.run before anything is timed."""

import functools

import numpy as np

from benchmarks.peers import graphs
from benchmarks.servers import Server
from benchmarks.wire import FIRST_SEED, Array, fetch, points, with_seed
from benchmarks.workloads import Workload

TOLERANCE = {"json": 1e-4, "bytes": 1e-4, "png": 1 / 255}
"""Of pixels from 0 to 1: what another batch size may change, and a picture's rounding."""


@functools.cache
def _generator() -> graphs.Generator:
    return graphs.Generator()


@functools.cache
def _density() -> graphs.Density:
    return graphs.Density()


def wrong(server: Server, port: int, workload: Workload) -> tuple[str, int]:
    """Return what is wrong with an answer, "" if it is right, and how many bytes it has."""
    seed = FIRST_SEED
    request = server.wire.requests(workload)[0]
    try:
        status, body = fetch(port, with_seed(request, seed))
    except OSError as error:
        return f"no answer: {error}", 0
    if status != 200:
        return f"status {status}", len(body)
    try:
        answer = server.wire.read(workload, body)
    except Exception as error:  # whatever a strange body makes a reader trip over
        return f"unreadable: {type(error).__name__}", len(body)
    return _differs(answer, _expected(server, workload, seed), workload), len(body)


def _expected(server: Server, workload: Workload, seed: int) -> Array:
    if workload.task == "log-density":
        return _density().log_density([points(0)])[0]
    z, label = server.wire.noise(seed, workload.rows)
    return _generator().decode(z, label)


def _differs(answer: Array, expected: Array, workload: Workload) -> str:
    if answer.size != expected.size:
        return f"{answer.size} numbers, not {expected.size}"
    error = float(np.abs(answer.ravel() - expected.ravel()).max())
    sampled = workload.task == "sample"
    allowed = TOLERANCE[workload.format] if sampled else 1e-4 * float(np.abs(expected).max())
    return "" if error <= allowed else f"off by {error:.2g}"
