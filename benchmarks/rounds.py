"""One round: every server started, checked, put under each load, and ended."""

import functools
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks import checks, stream
from benchmarks.environments import FOLDER, ROOT, InstallFailed
from benchmarks.load import LoadFailed, closed_loop
from benchmarks.poisson import open_loop
from benchmarks.processes import Process, StartFailed, serving
from benchmarks.servers import OURS, SERVING, Server
from benchmarks.wire import FIRST_SEED
from benchmarks.workloads import OPEN_LOADS, OPEN_LOOP, Record, Workload, closed_loops

SEEDS_OF_A_LOOP = 1_000_000
"""Each loop begins its seeds so far from the last one's that none comes twice."""


@dataclass
class Round:
    """What is measured once over.

    Args:
        number: From 0.
        seconds: Length of a closed loop; some workloads and the open loops take a multiple.
    """

    number: int
    seconds: int
    _loops: int = 0

    def raw(self) -> Record:
        """Return what session.run does without any HTTP, in an interpreter of its own."""
        command = [str(SERVING), "-m", "benchmarks.raw", str(0.4 * self.seconds)]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        figures = json.loads(run.stdout)
        settings = {f"{name} rows_per_s": rate for name, rate in figures.pop("rates").items()}
        return Record(self.number, "raw", figures.pop("best"), {**figures, **settings})

    def server(self, server: Server) -> Iterator[Record]:
        """Yield the records of one server."""
        FOLDER.mkdir(exist_ok=True)
        log = FOLDER / f"{server.name}.log"
        log.write_bytes(b"")
        try:
            with serving(
                server.command(), environment=server.environment(), ready=server.ready,
                folder=ROOT, log=log,
            ) as process:  # fmt: skip
                yield self._record(server, "start", {"start_s": process.start_s})
                yield from self._loads(server, process)
        except (InstallFailed, StartFailed) as error:
            yield self._record(server, "start", {}, problem=str(error))

    def _loads(self, server: Server, process: Process) -> Iterator[Record]:
        ours = server.name == OURS
        capacity = 0.0
        self._warm(server, process)
        for workload in closed_loops(pictures=ours):
            closed = functools.partial(self._closed, server, process, workload)
            record = self._measure(server, workload.name, process, closed)
            if workload == OPEN_LOOP and not record.problem:
                capacity = record.figures["requests_per_s"]
            yield record
        for load in OPEN_LOADS if capacity else ():
            opened = functools.partial(self._open, server, process, load * capacity)
            name = f"{OPEN_LOOP.task} n={OPEN_LOOP.rows} {OPEN_LOOP.format} at {load:.0%}"
            yield self._measure(server, name, process, opened)
        if ours:
            yield self._measure(
                server, "beside a stream", process,
                lambda: stream.beside_a_stream(process, seconds=8 * self.seconds),
            )  # fmt: skip

    def _measure(
        self,
        server: Server,
        name: str,
        process: Process,
        measure: Callable[[], dict[str, float]],
    ) -> Record:
        """Return the record of one load, with the processor time that the server took for it."""
        used, began = process.used_s(), time.perf_counter()
        try:
            figures = measure()
        except (LoadFailed, stream.StreamFailed, OSError) as error:
            return self._record(server, name, {}, problem=str(error))
        figures["server_cores"] = (process.used_s() - used) / (time.perf_counter() - began)
        problem = f"{figures['failed']:.0f} not answered well" if figures.get("failed") else ""
        return self._record(server, name, figures, problem=problem)

    def _closed(self, server: Server, process: Process, workload: Workload) -> dict[str, float]:
        problem, size = checks.wrong(server, process.port, workload)
        if problem:
            raise LoadFailed(problem)
        figures = closed_loop(
            process.port,
            server.wire.requests(workload),
            connections=workload.connections,
            seconds=self.seconds * workload.seconds_factor,
            first_seed=self._seeds(),
            slow=workload.seconds_factor > 1,
        )
        if figures["bytes_per_answer"] < 0.7 * size:  # JSON of other images may be shorter
            raise LoadFailed(f"answers of {figures['bytes_per_answer']:.0f} bytes, not {size}")
        figures["rows_per_s"] = figures["requests_per_s"] * workload.rows
        return figures

    def _open(self, server: Server, process: Process, rate_per_s: float) -> dict[str, float]:
        (request,) = server.wire.requests(OPEN_LOOP)
        return open_loop(
            process.port,
            request,
            rate_per_s=rate_per_s,
            seconds=3 * self.seconds,
            first_seed=self._seeds(),
        )

    def _warm(self, server: Server, process: Process) -> None:
        """Send each kind of request for a moment, so that first uses are not timed."""
        for workload in (OPEN_LOOP, Workload("log-density", 64, "bytes", 32)):
            try:
                closed_loop(
                    process.port, server.wire.requests(workload), connections=32, seconds=1,
                    first_seed=self._seeds(),
                )  # fmt: skip
            except LoadFailed:
                continue  # it fails again where it counts

    def _seeds(self) -> int:
        """Return a first seed that no other loop of this round is near."""
        self._loops += 1
        return FIRST_SEED + self._loops * SEEDS_OF_A_LOOP

    def _record(
        self, server: Server, workload: str, figures: dict[str, float], *, problem: str = ""
    ) -> Record:
        return Record(self.number, server.name, workload, figures, problem)


def read_records(file: Path) -> list[Record]:
    """Return the records of a results file."""
    return [Record(**each) for each in json.loads(file.read_text())["records"]]
