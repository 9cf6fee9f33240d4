"""Tries settings of a peer, so that it is measured at its best.

    python -m benchmarks.tune litserve BATCH=16 BATCH=32 WORKERS=1,BATCH=32

Each argument after the name is one variant: settings of the peer, by the names in `servers.py`. The
variants take turns. What comes out best goes into `servers.py` by hand.
"""

import dataclasses
import sys
from collections.abc import Sequence
from statistics import median

from benchmarks.environments import FOLDER, ROOT
from benchmarks.load import LoadFailed, closed_loop
from benchmarks.processes import Process, StartFailed, serving
from benchmarks.servers import SERVERS, Server
from benchmarks.wire import FIRST_SEED
from benchmarks.workloads import Workload

ROUNDS, SECONDS = 3, 3
TRIED = (
    Workload("sample", 1, "bytes", 1),
    Workload("sample", 1, "bytes", 32),
    Workload("sample", 16, "bytes", 32),
    Workload("log-density", 64, "json", 32),
)


def main(name: str, variants: Sequence[str]) -> None:
    """Print requests/s and processor time of each variant for each workload."""
    (server,) = (each for each in SERVERS if each.name == name)
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for _ in range(ROUNDS):
        for variant in variants:
            try:
                for tried, figures in _measure(_with(server, variant)).items():
                    found.setdefault((tried, variant), []).append(figures)
            except StartFailed as error:
                print(f"{variant}: {error}", file=sys.stderr)
    print("| workload | variant | requests/s | processor ms a request |\n| --- | --- | --- | --- |")
    for workload in TRIED:
        for variant in variants:
            if figures_of := found.get((workload.name, variant)):
                rate, used = (median(column) for column in zip(*figures_of, strict=True))
                print(f"| {workload.name} | {variant} | {rate:.1f} | {used:.2f} |")


def _with(server: Server, variant: str) -> Server:
    pairs = (each.split("=") for each in variant.split(","))
    changed = {f"PEER_{name}": value for name, value in pairs}
    return dataclasses.replace(server, settings={**server.settings, **changed})


def _measure(server: Server) -> dict[str, tuple[float, float]]:
    """Return requests/s and processor ms a request by workload; those that failed are left out."""
    figures = {}
    log = FOLDER / f"tune-{server.name}.log"
    log.write_bytes(b"")
    with serving(
        server.command(), environment=server.environment(), ready=server.ready, folder=ROOT, log=log
    ) as process:
        for workload in TRIED:
            try:
                _loop(server, process, workload, seconds=1)
                used_s = process.used_s()
                loop = _loop(server, process, workload, seconds=SECONDS)
                used_ms = (process.used_s() - used_s) * 1e3 / loop["answers"]
                figures[workload.name] = (loop["requests_per_s"], used_ms)
            except LoadFailed as error:
                print(f"{server.name} {workload.name}: {error}", file=sys.stderr)
    return figures


def _loop(
    server: Server, process: Process, workload: Workload, *, seconds: int
) -> dict[str, float]:
    return closed_loop(
        process.port,
        server.wire.requests(workload),
        connections=workload.connections,
        seconds=seconds,
        first_seed=FIRST_SEED,
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
