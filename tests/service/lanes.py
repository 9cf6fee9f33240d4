"""Lanes that run nothing, with costs that a test can choose, and an observer that remembers."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from service.errors import EngineFailed
from service.lanes import Lane, Observer, Piece

BY_THE_ROW = {rows: 0.001 * rows for rows in (1, 2, 4, 8, 16)}
ALL_THE_SAME = dict.fromkeys((1, 2, 4, 8, 16), 0.01)


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Recorder(Observer):
    """What an observer heard."""

    waits_s: list[float] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    dropped_rows: int = 0
    failed_rows: int = 0
    runs: list[tuple[int, int]] = field(default_factory=list)

    def ran(
        self, lane: "Lane[str]", *, rows: int, bucket: int, run_s: float, waits_s: Sequence[float]
    ) -> None:
        self.runs.append((rows, bucket))
        self.waits_s += waits_s

    def failed(self, lane: "Lane[str]", *, rows: int) -> None:
        self.failed_rows += rows

    def refused(self, lane: "Lane[str]", *, rows: int, reason: str) -> None:
        self.reasons.append(reason)

    def dropped(self, lane: "Lane[str]", *, rows: int) -> None:
        self.dropped_rows += rows

    def non_finite(self, lane: "Lane[str]", *, rows: int) -> None:
        raise AssertionError


class Graph(Lane[str]):
    """A lane whose runs write down what they were given."""

    def __init__(self, seconds: dict[int, float] | None = None) -> None:
        super().__init__(("model", "decode"), dict(seconds or BY_THE_ROW))
        self.ran: list[tuple[str, int, int]] = []
        self.may_run = threading.Event()
        self.may_run.set()
        self.is_running = threading.Event()
        self.fails_on: str | None = None

    def prepare(self, pieces: Sequence[Piece[str]], bucket: int) -> "Running":
        assert sum(piece.rows for piece in pieces) <= bucket
        return Running(self, pieces)


@dataclass
class Running:
    lane: Graph
    pieces: Sequence[Piece[str]]

    def execute(self, device: int) -> None:
        self.lane.is_running.set()
        self.lane.may_run.wait()
        if any(piece.job.content == self.lane.fails_on for piece in self.pieces):
            raise EngineFailed("it failed")

    def deliver(self) -> None:
        self.lane.ran += [(piece.job.content, piece.first, piece.stop) for piece in self.pieces]
