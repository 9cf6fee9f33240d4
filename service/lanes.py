"""What is batched: jobs of rows, on lanes whose rows may share a run.

The unit is the row. A *job* is one caller's rows on one *lane*, and what shares a lane may share
a run. A *batch* is slices of the jobs of one lane, padded to the next *bucket*. No ONNX here: a
lane says what a run is.
"""

import asyncio
import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

Content = TypeVar("Content")

SMOOTHING = 0.2
"""Weight of the newest run in the moving average of what a bucket costs."""
PROMPT_S = 0.1
"""Work that is done as soon as this goes before larger work, in the order it comes: of equals that
take turns, all are late. A guess at what nobody minds waiting for."""
WORTH_DIVIDING_S = 1e-3
"""A run shorter than this stays whole: waking another worker takes a tenth of it (a guess)."""


class Run(Protocol):
    """One run of a graph, with all that it needs."""

    def execute(self, device: int) -> None:
        """Run it. The device is nobody else's meanwhile."""

    def deliver(self) -> None:
        """Hand each job its rows of the answer. The device is free again."""


class Lane(ABC, Generic[Content]):
    """What may share a run: one graph at one shape of a row.

    Args:
        name: For people and for metrics: model and role.
        seconds: By row count of a run, in rising order: what it was measured to take. These
            counts are the *buckets*; a batch is padded to the next one.
    """

    def __init__(self, name: tuple[str, ...], seconds: dict[int, float]) -> None:
        self.name = name
        self.seconds = seconds
        self.whole_s = dict(seconds)
        """Likewise, with the making of its inputs and the handing out of its answers."""
        self.buckets = tuple(seconds)
        self.prompt: deque[Job[Content]] = deque()
        self.bulk: deque[Job[Content]] = deque()
        self.waiting_rows = 0
        self.following_rows = 0
        """Rows that callers will ask for as soon as what waits of them is answered."""
        self.owed = 0.0
        """Rows that the bulk has a right to, and that were too few yet to be given."""

    @abstractmethod
    def prepare(self, pieces: Sequence["Piece[Content]"], bucket: int) -> "Run":
        """Return a run of some pieces, padded to a bucket. No device is held meanwhile."""

    @property
    def most(self) -> int:
        """Most rows of one run."""
        return self.buckets[-1]

    @property
    def row_s(self) -> float:
        """What a row costs in a full batch, in seconds of one device."""
        return self.seconds[self.most] / self.most

    def bucket(self, rows: int) -> int:
        """Return the row count that so many rows are padded to."""
        return next(size for size in self.buckets if size >= rows)

    def best(self, waiting: int, *, devices: int = 1) -> int:
        """Return how many of the waiting rows to run now: the most rows a second.

        Between padding all of them up and leaving some for the next run: a run that costs the
        same for 20 rows as for 32 takes all 20, one that costs by the row takes 16. If more
        devices than one are free, a run that is long enough is divided among them.
        """
        waiting = min(waiting, self.most)
        if devices > 1 and self.seconds[self.bucket(waiting)] > WORTH_DIVIDING_S:
            waiting = math.ceil(waiting / devices)
        up = self.bucket(waiting)
        below = [size for size in self.buckets if size <= waiting]
        if not below or below[-1] / self.seconds[below[-1]] <= waiting / self.seconds[up]:
            return waiting
        return below[-1]

    def learn(self, bucket: int, seconds: float, whole_s: float) -> None:
        """Remember what a run took, alone and with all that is around it."""
        self.seconds[bucket] += SMOOTHING * (seconds - self.seconds[bucket])
        self.whole_s[bucket] += SMOOTHING * (whole_s - self.whole_s[bucket])


@dataclass(eq=False)
class Job(Generic[Content]):
    """One caller's rows on one lane.

    Args:
        lane: Where they run.
        rows: How many, at least one.
        content: What the lane needs to run them; nothing here looks into it.
        begun: Whether it is a part of something that has begun to be answered. It is then not
            refused, and it does not go first.
        follows: Rows that its caller will ask for on this lane once it is answered, step by step.
    """

    lane: Lane[Content]
    rows: int
    content: Content
    begun: bool = False
    follows: int = 0
    is_prompt: bool = field(init=False)
    """Whether it goes first: it is soon done, and no part of something larger."""
    taken: int = field(default=0, init=False)
    returned: int = field(default=0, init=False)
    error: Exception | None = field(default=None, init=False)
    abandoned: bool = field(default=False, init=False)
    since: float = field(default=0.0, init=False)
    wait_s: float = field(default=0.0, init=False)
    """From its arrival to its first batch."""
    run_s: float = field(default=0.0, init=False)
    """What the batches took that it had rows in, its batch mates' included."""
    over: "asyncio.Future[None] | None" = field(default=None, init=False)

    def __post_init__(self) -> None:
        rows = self.rows + self.follows
        fits = rows <= self.lane.most or rows * self.lane.row_s <= PROMPT_S
        self.is_prompt = fits and not self.begun

    @property
    def left(self) -> int:
        """Rows that no batch has taken yet."""
        return self.rows - self.taken

    @property
    def left_s(self) -> float:
        """What these and those that follow take, in seconds of one device."""
        return (self.left + self.follows) * self.lane.row_s


@dataclass
class Spent:
    """Where the time of one request went: the waits and the runs of its jobs, added up."""

    jobs: int = 0
    wait_s: float = 0.0
    run_s: float = 0.0

    def add(self, job: Job[Any]) -> None:
        """Take in a job that is over."""
        self.jobs += 1
        self.wait_s += job.wait_s
        self.run_s += job.run_s


SPENT: ContextVar[Spent | None] = ContextVar("spent", default=None)
"""Of the request that is being worked on, if anybody wants to know."""
CALLER: ContextVar[object] = ContextVar("caller", default=None)
"""Whose request is being worked on: his connection."""


@dataclass(frozen=True)
class Piece(Generic[Content]):
    """Rows first .. stop - 1 of a job."""

    job: Job[Content]
    first: int
    stop: int

    @property
    def rows(self) -> int:
        """How many there are."""
        return self.stop - self.first


@dataclass(frozen=True)
class Batch:
    """What one run computes.

    Args:
        lane: Whose graph.
        pieces: Of which jobs.
        formed: When, by the queue's clock.
    """

    lane: Lane[Any]
    pieces: tuple[Piece[Any], ...]
    formed: float

    @property
    def rows(self) -> int:
        """Rows that somebody asked for; the padding is not counted."""
        return sum(piece.rows for piece in self.pieces)


class Observer:
    """Who is told what happens, from any thread, and must be quick about it. It does nothing."""

    def ran(
        self, lane: Lane[Any], *, rows: int, bucket: int, run_s: float, waits_s: Sequence[float]
    ) -> None:
        """A batch was run. `waits_s`: how long each of its jobs that began in it had waited."""

    def failed(self, lane: Lane[Any], *, rows: int) -> None:
        """A batch failed, and all its jobs with it."""

    def refused(self, lane: Lane[Any], *, rows: int, reason: str) -> None:
        """A job was refused at the door."""

    def dropped(self, lane: Lane[Any], *, rows: int) -> None:
        """Rows that nobody wants any more were left out of a batch, or thrown away after it."""

    def non_finite(self, lane: Lane[Any], *, rows: int) -> None:
        """Rows came out infinite or NaN."""
