"""Batches without a timer: when a device is free, it takes what waits.

No ONNX and no HTTP. The queue decides (`service.queue`); here are the threads that empty it, and
the way back to asyncio.
"""

import asyncio
import contextlib
import math
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from service.errors import EngineFailed
from service.lanes import SPENT, Batch, Job, Observer
from service.queue import Queue


class Batcher:
    """A queue, and the threads that empty it: the *workers*.

    A device runs one batch at a time. On a device of its own memory a second worker has the next
    batch ready meanwhile, its noise drawn and its rows in place; on a CPU that work would take
    the very cores that it is to relieve, so there each core has one worker.

    Args:
        devices: How many runs at once: cores, or GPUs.
        ahead: Batches kept ready for each device beside the one that runs, 0 or 1.
        max_wait_s: As of the queue.
        observer: As of the queue.
    """

    def __init__(
        self,
        *,
        devices: int,
        ahead: int = 0,
        max_wait_s: float = math.inf,
        observer: Observer | None = None,
    ) -> None:
        self.devices = devices
        # A GPU may be held, for a capture, and nobody waits for that on the event loop.
        self._runs_alone = not ahead
        self.observer: Observer = observer or Observer()
        self.queue = Queue(max_wait_s=max_wait_s, devices=devices, observer=self.observer)
        self._free = [threading.Lock() for _ in range(devices)]
        self._threads = [
            threading.Thread(
                target=self._work, args=(device,), name=f"worker-{device}", daemon=True
            )
            for device in range(devices)
            for _ in range(1 + ahead)
        ]
        for thread in self._threads:
            thread.start()

    async def run(self, job: Job[Any]) -> None:
        """Wait until every row of a job was run.

        Cancelling the caller drops the rows that no batch has taken, and what the others
        answer; the jobs that share a batch with it are served as if nothing had happened.

        Raises:
            QueueFull: It was refused.
            Draining: The service is shutting down.
            EngineFailed: A batch that it had rows in failed.
        """
        job.over = asyncio.get_running_loop().create_future()
        if batch := self.queue.put(job, runs_alone=self._runs_alone):
            self._serve(batch, 0)
            if job.begun or job.follows:  # its caller has more to run: others are heard meanwhile
                await asyncio.sleep(0)
        else:
            try:
                await job.over
            except asyncio.CancelledError:
                self.queue.abandon(job)
                raise
        if spent := SPENT.get():
            spent.add(job)
        if job.error:  # one for each: a trace that many requests share tells of none of them
            detail = getattr(job.error, "detail", f"{'.'.join(job.lane.name)} failed: {job.error}")
            raise EngineFailed(detail) from job.error

    @contextlib.contextmanager
    def hold(self, device: int) -> Iterator[None]:
        """Keep a device to oneself. A graph cannot be captured while another one runs."""
        with self._free[device]:
            yield

    def close(self) -> None:
        """Serve what waits, and end the threads."""
        self.queue.close()
        for thread in self._threads:
            thread.join()

    def _work(self, device: int) -> None:
        while batch := self.queue.take():
            _wake(self._serve(batch, device))

    def _serve(self, batch: Batch, device: int) -> list[Job[Any]]:
        """Return the jobs that are over once a batch was run."""
        lane, run_s = batch.lane, 0.0
        error: Exception | None = None
        taken = time.perf_counter()
        try:
            run = lane.prepare(batch.pieces, lane.bucket(batch.rows))
            with self._free[device]:
                began = time.perf_counter()
                run.execute(device)
                run_s = time.perf_counter() - began
            run.deliver()
        except Exception as failure:  # whatever it is, callers wait for it and not the thread
            error = failure
        whole_s = time.perf_counter() - taken
        return self.queue.finish(batch, run_s=run_s, whole_s=whole_s, error=error)


def _wake(jobs: Sequence[Job[Any]]) -> None:
    """Let the callers of some jobs go on, with one call for each of their event loops."""
    waiting = [job.over for job in jobs if job.over]
    for loop in {over.get_loop() for over in waiting}:
        mine = [over for over in waiting if over.get_loop() is loop]
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(_resolve, mine)


def _resolve(futures: Sequence["asyncio.Future[None]"]) -> None:
    for over in futures:
        if not over.done():
            over.set_result(None)
