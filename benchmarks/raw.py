"""What the graph alone can do: session.run in a loop, no HTTP. Prints JSON for the benchmark.

    python -m benchmarks.raw 0.4        # seconds for each of its settings

Run in the environment that serves, so that the runtime is the same.
"""

import json
import os
import sys
import threading
import time

import numpy as np

from benchmarks.peers.graphs import Array, InferenceSession, noise, session

GRAPH = "mnist-gan/1/decode.onnx"
BATCHES = (1, 8, 16, 32, 64)


def feeds(rows: int) -> dict[str, Array]:
    """Return inputs of so many rows."""
    z, label = noise(1, rows)
    return {"z": z, "label": label}


def rows_per_s(running: InferenceSession, rows: int, *, threads: int, seconds: float) -> float:
    """Return the rate of so many threads that run batches of so many rows in a loop."""
    inputs = feeds(rows)
    counts = [0] * threads
    began = time.perf_counter()

    def work(index: int) -> None:
        while time.perf_counter() - began < seconds:
            running.run(["x"], inputs)
            counts[index] += rows

    workers = [threading.Thread(target=work, args=(index,)) for index in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(counts) / (time.perf_counter() - began)


def run_ms(running: InferenceSession, rows: int, *, seconds: float) -> float:
    """Return the median time of one run of so many rows, in ms, with nothing beside it."""
    inputs = feeds(rows)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 5:
        began = time.perf_counter()
        running.run(["x"], inputs)
        times.append(time.perf_counter() - began)
    return float(np.median(times)) * 1e3


def measure(seconds: float) -> dict[str, object]:
    """Return rates by setting, the best of them, and the time of one run at 1 and at 64 rows."""
    cores = len(os.sched_getaffinity(0))
    narrow, wide = session(GRAPH), session(GRAPH, threads=cores)
    settings = {
        "1 thread": (narrow, 1),
        f"{cores} threads": (narrow, cores),
        f"1 thread, intra_op={cores}": (wide, 1),
    }
    rates = {
        f"{name}, batches of {rows}": rows_per_s(running, rows, threads=threads, seconds=seconds)
        for name, (running, threads) in settings.items()
        for rows in BATCHES
    }
    best = max(rates, key=lambda name: rates[name])
    return {
        "rates": rates,
        "best": best,
        "rows_per_s": rates[best],
        "run_1_ms": run_ms(narrow, 1, seconds=2 * seconds),
        "run_64_ms": run_ms(narrow, 64, seconds=2 * seconds),
    }


if __name__ == "__main__":
    print(json.dumps(measure(float(sys.argv[1]))))
