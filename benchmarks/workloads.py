"""What is asked of every server, and one record for everything that is measured."""

from dataclasses import dataclass, field
from typing import Literal

Task = Literal["sample", "log-density"]
Format = Literal["json", "bytes", "png"]

ROWS = (1, 16, 64)
CONNECTIONS = (1, 32)
POINTS = 64
"""Rows of a log-density request."""


@dataclass(frozen=True)
class Workload:
    """One kind of request, sent by so many connections without a pause.

    Args:
        task: Images of a GAN, or log-densities under a flow.
        rows: Images or points in one request.
        format: Of the answer, and of the points that are sent.
        connections: How many requests are under way at any time.
    """

    task: Task
    rows: int
    format: Format
    connections: int

    @property
    def name(self) -> str:
        """Return what tables and files call it."""
        return f"{self.task} n={self.rows} {self.format} x{self.connections}"

    @property
    def seconds_factor(self) -> int:
        """Return how much longer than others it runs: a slow answer needs a longer look."""
        rows_under_way = self.rows * self.connections if self.task == "sample" else 0
        return 4 if rows_under_way > 1024 else 2 if rows_under_way > 256 else 1


def closed_loops(*, pictures: bool) -> list[Workload]:
    """Return the closed-loop workloads; PNG only for a server that answers pictures."""
    formats: list[Format] = ["json", "bytes", "png"] if pictures else ["json", "bytes"]
    sampling = [
        Workload("sample", rows, form, connections)
        for rows in ROWS
        for form in formats
        for connections in CONNECTIONS
    ]
    plain: tuple[Format, ...] = ("json", "bytes")
    density = [
        Workload("log-density", POINTS, form, connections)
        for form in plain
        for connections in CONNECTIONS
    ]
    return sampling + density


OPEN_LOOP = Workload("sample", 16, "bytes", 32)
"""Its closed-loop rate is the capacity; requests of its kind then arrive at random."""
OPEN_LOADS = (0.5, 0.9)
"""Shares of that capacity."""


@dataclass(frozen=True)
class Record:
    """One measurement.

    Args:
        round: Ratios are taken within one.
        server: Which; `raw` for none.
        workload: Which.
        figures: By name, with the unit at its end (`_s`, `_ms`, `_mb`, `_per_s`, `_cores`).
        problem: Why it does not count, or "".
    """

    round: int
    server: str
    workload: str
    figures: dict[str, float] = field(default_factory=dict)
    problem: str = ""
