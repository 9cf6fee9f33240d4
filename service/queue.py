"""Who waits for a device, who goes next, and who is refused.

Whoever is free takes a batch of the lane whose turn it is, of as many rows as make the device do
the most rows a second by what its runs were measured to take. Nobody waits for company, and
nobody waits for a giant: a job that is soon done goes first, larger ones share what is left, a
quarter at least, in turn. A short job that is alone is run by its caller.

No thread of its own, and no clock but the one that is given: its tests drive it by hand.
"""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from itertools import chain
from typing import Any

from service.errors import Draining, QueueFull
from service.lanes import CALLER, WORTH_DIVIDING_S, Batch, Job, Lane, Observer, Piece

log = logging.getLogger(__name__)

MAX_WAITING = 4096
"""Jobs that may wait, whatever they cost: each holds a connection and its memory."""
ALONE_S = 2e-3
"""What a job may take that the event loop runs itself, as nobody else is there. Two hand-overs
between threads are saved, and a core's caches that the graph's weights are in: of an answer of one
image of mnist-gan, whose graph takes 1.2 ms, 0.25 of 2.05 ms (measured 2026-11-28)."""
COMPANY_S = 0.01
"""For how long after one caller another one is not alone. A guess: several times `ALONE_S`."""
BULK_SHARE = 4
"""One row in so many is kept for the large jobs, if any wait."""


class Queue:
    """Who waits, and who goes next. Safe to use from several threads.

    Args:
        max_wait_s: A job that others would hold up for longer than this is refused.
        devices: How many runs are under way at once when all are busy.
        observer: Who is told.
        clock: Seconds that never go back.
    """

    def __init__(
        self,
        *,
        max_wait_s: float = math.inf,
        devices: int = 1,
        observer: Observer | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_wait_s = max_wait_s
        self._devices = devices
        self._observer: Observer = observer or Observer()
        self._clock = clock
        self._changed = threading.Condition()
        self._lanes: deque[Lane[Any]] = deque()
        self._jobs = 0
        self._caller: object = None
        self._asked = self._company = -math.inf
        self._running = 0
        self._closed = False

    def put(self, job: Job[Any], *, runs_alone: bool = False) -> Batch | None:
        """Let a job wait for its turn, or return it as a batch that its caller is to run.

        Args:
            job: Of a caller.
            runs_alone: Whether he would run it himself, if it is short and nobody else is there.

        Raises:
            QueueFull: Too many wait, or they would hold it up for too long. Nothing was queued.
            Draining: The queue is closed.
        """
        with self._changed:
            if self._closed:
                raise Draining("The service is shutting down. Ask another replica.")
            if not job.begun:
                self._admit(job)
            lane = job.lane
            job.since = self._clock()
            if self._is_alone(job.since) and runs_alone and _is_short(job):
                self._running += 1
                job.taken = job.rows
                return Batch(lane, (Piece(job, 0, job.rows),), job.since)
            (lane.prompt if job.is_prompt else lane.bulk).append(job)
            if not lane.waiting_rows:
                self._lanes.append(lane)
            lane.waiting_rows += job.rows
            lane.following_rows += job.follows
            self._jobs += 1
            self._changed.notify()
        return None

    def take(self) -> Batch | None:
        """Return the next batch, as soon as anything waits; None once closed and empty."""
        with self._changed:
            while True:
                if self._lanes:
                    batch = self._form()
                    self._running += 1
                    if self._lanes:
                        self._changed.notify()
                    return batch
                if self._closed:
                    return None
                self._changed.wait()

    def finish(
        self, batch: Batch, *, run_s: float, whole_s: float = 0.0, error: Exception | None = None
    ) -> list[Job[Any]]:
        """Return the jobs that are over with this batch, for better or worse.

        Args:
            batch: What was run.
            run_s: What it took.
            whole_s: The same with what came before and after it, if that was measured.
            error: Why it failed, if it did: all its jobs then fail.
        """
        lane, ended, dropped = batch.lane, [], 0
        with self._changed:
            self._running -= 1
            if error is None:
                lane.learn(lane.bucket(batch.rows), run_s, max(run_s, whole_s))
            for job in {piece.job: None for piece in batch.pieces}:
                job.run_s += run_s  # once, of however many pieces
            for piece in batch.pieces:
                job = piece.job
                if job.abandoned or job.error:
                    continue
                job.returned += piece.rows
                if piece.first == 0:
                    job.wait_s = batch.formed - job.since
                job.error = error
                if error:
                    dropped += job.left
                    self._forget(job)
                if error or job.returned == job.rows:
                    ended.append(job)
        dropped += sum(piece.rows for piece in batch.pieces if piece.job.abandoned)
        if dropped:
            self._tell(self._observer.dropped, lane, rows=dropped)
        if error:
            self._tell(self._observer.failed, lane, rows=batch.rows)
            return ended
        self._tell(
            self._observer.ran,
            lane,
            rows=batch.rows,
            bucket=lane.bucket(batch.rows),
            run_s=run_s,
            waits_s=[batch.formed - p.job.since for p in batch.pieces if p.first == 0],
        )
        return ended

    def abandon(self, job: Job[Any]) -> None:
        """Drop what is left of a job. Whoever shares a batch with it does not notice."""
        with self._changed:
            if job.returned == job.rows or job.error or job.abandoned:
                return
            job.abandoned = True
            left = job.left
            self._forget(job)
        if left:
            self._tell(self._observer.dropped, job.lane, rows=left)

    def close(self) -> None:
        """Take no more jobs. Those that wait are still served."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def waiting(self) -> int:
        """Jobs of which a part is still to be taken."""
        return self._jobs

    @property
    def waiting_rows(self) -> int:
        """Rows that no batch has taken yet."""
        with self._changed:
            return sum(lane.waiting_rows for lane in self._lanes)

    def wait_s(self) -> float:
        """Return how long it would take to serve all that waits, and what follows it."""
        with self._changed:
            return self._backlog_s()

    def _backlog_s(self) -> float:
        costs = ((lane.waiting_rows + lane.following_rows) * lane.row_s for lane in self._lanes)
        return sum(costs) / self._devices

    def _is_alone(self, now: float) -> bool:
        """Return whether nothing else runs or waits, and nobody else has asked for a while.

        Two connections that ask by turns are not alone, though neither ever finds the other's job:
        the event loop would have served both one after the other, on one core.
        """
        caller = CALLER.get()
        if caller != self._caller:
            self._caller, self._company = caller, self._asked
        self._asked = now
        return not (self._lanes or self._running) and now - self._company > COMPANY_S

    def _tell(self, tell: Callable[..., None], lane: Lane[Any], **said: object) -> None:
        """Tell the observer. Callers wait for their rows, whatever becomes of that."""
        try:
            tell(lane, **said)
        except Exception:
            log.exception("the batcher's observer failed")

    def _admit(self, job: Job[Any]) -> None:
        """Pass if others would not hold the job up for too long; its own size is its own matter.

        Slices are served in turn, so what is ahead of a job is at most its own size of every
        other: a small job does not wait for a giant to end.
        """
        backlog = self._backlog_s()
        reason = "too_many" if self._jobs >= MAX_WAITING else ""
        if not reason and backlog > self._max_wait_s:
            waiting = chain.from_iterable((*lane.prompt, *lane.bulk) for lane in self._lanes)
            ahead = sum(min(each.left_s, job.left_s) for each in waiting)
            reason = "too_long" if ahead / self._devices > self._max_wait_s else ""
        if not reason:
            return
        self._tell(self._observer.refused, job.lane, rows=job.rows, reason=reason)
        raise QueueFull(
            f"The queue is full: {self._jobs} requests wait, and serving them takes about "
            f"{backlog:.1f} s. Ask again then, or for fewer rows.",
            retry_after_s=max(1, math.ceil(backlog)),
        )

    def _form(self) -> Batch:
        """Return a batch of the lane whose turn it is."""
        lane = self._lanes.popleft()
        free = self._devices - self._running
        pieces = self._slice(lane, lane.best(lane.waiting_rows, devices=free))
        if lane.waiting_rows:
            self._lanes.append(lane)
        return Batch(lane, tuple(pieces), self._clock())

    def _slice(self, lane: Lane[Any], room: int) -> list[Piece[Any]]:
        """Take rows: jobs that go first in the order they came, then the others in turn."""
        pieces: list[Piece[Any]] = []
        kept = 0
        if lane.bulk and lane.prompt:
            lane.owed += room / BULK_SHARE
            kept = min(room, int(lane.owed))
            lane.owed -= kept
        while lane.prompt and room > kept:
            room -= self._cut(lane.prompt[0], room - kept, pieces)
        share = max(1, room // len(lane.bulk)) if lane.bulk else 0
        while lane.bulk and room:
            job = lane.bulk[0]
            room -= self._cut(job, min(share, room), pieces)
            if job.left:
                lane.bulk.rotate(-1)
        while lane.prompt and room:
            room -= self._cut(lane.prompt[0], room, pieces)
        return pieces

    def _cut(self, job: Job[Any], most: int, pieces: list[Piece[Any]]) -> int:
        """Take up to so many rows off a job that stands first in its line; return how many."""
        rows = min(job.left, most)
        before = pieces[-1] if pieces else None
        if before and before.job is job:  # its second turn in this batch
            pieces[-1] = Piece(job, before.first, before.stop + rows)
        else:
            pieces.append(Piece(job, job.taken, job.taken + rows))
        job.taken += rows
        job.lane.waiting_rows -= rows
        if not job.left:
            (job.lane.prompt if job.is_prompt else job.lane.bulk).popleft()
            job.lane.following_rows -= job.follows
            self._jobs -= 1
        return rows

    def _forget(self, job: Job[Any]) -> None:
        """Take a job that has rows left out of its line."""
        if not job.left:
            return
        lane = job.lane
        (lane.prompt if job.is_prompt else lane.bulk).remove(job)
        lane.waiting_rows -= job.left
        lane.following_rows -= job.follows
        self._jobs -= 1
        job.taken = job.rows
        if not lane.waiting_rows and lane in self._lanes:
            self._lanes.remove(lane)


def _is_short(job: Job[Any]) -> bool:
    """Return whether a job is one run, which several devices would not divide, and soon over."""
    lane = job.lane
    if job.rows > lane.most:
        return False
    bucket = lane.bucket(job.rows)
    would_be_divided = job.rows > 1 and lane.seconds[bucket] > WORTH_DIVIDING_S
    return lane.whole_s[bucket] <= ALONE_S and not would_be_divided
