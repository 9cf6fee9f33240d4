"""The batcher's threads, on a lane that runs when a test lets it."""

import asyncio
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing

import pytest

from service.batching import Batcher
from service.errors import Draining, EngineFailed
from service.lanes import Job, Piece
from tests.service.lanes import ALL_THE_SAME, Graph, Running


@pytest.fixture
def batcher() -> Iterator[Batcher]:
    with closing(Batcher(devices=1)) as running:
        yield running


def test_cancelled_caller_leaves_batch_mates_alone(batcher: Batcher) -> None:
    lane = Graph(ALL_THE_SAME)

    async def callers() -> list[object]:
        lane.may_run.clear()
        blocking = asyncio.create_task(batcher.run(Job(lane, 1, "blocking")))
        await asyncio.to_thread(lane.is_running.wait)
        tasks = [asyncio.create_task(batcher.run(Job(lane, 1, name))) for name in "abcd"]
        await asyncio.sleep(0)
        tasks[1].cancel()
        await asyncio.sleep(0)
        lane.may_run.set()
        return await asyncio.gather(blocking, *tasks, return_exceptions=True)

    answers = asyncio.run(callers())
    assert [type(answer) for answer in answers] == [
        type(None), type(None), asyncio.CancelledError, type(None), type(None),
    ]  # fmt: skip
    assert {name for name, *_ in lane.ran} == {"blocking", "a", "c", "d"}


def test_timed_out_caller_leaves_batch_mates_alone_while_the_batch_runs(batcher: Batcher) -> None:
    lane = Graph(ALL_THE_SAME)

    async def callers() -> list[object]:
        lane.may_run.clear()
        impatient = asyncio.create_task(batcher.run(Job(lane, 1, "impatient")))
        await asyncio.to_thread(lane.is_running.wait)
        patient = asyncio.create_task(batcher.run(Job(lane, 1, "patient")))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(impatient, 0.01)
        lane.may_run.set()
        return [*await asyncio.gather(patient, return_exceptions=True)]

    assert asyncio.run(callers()) == [None]


def test_failure_reaches_its_caller_and_the_worker_goes_on(batcher: Batcher) -> None:
    lane = Graph()
    lane.fails_on = "bad"

    async def callers() -> None:
        with pytest.raises(EngineFailed, match="it failed"):
            await batcher.run(Job(lane, 3, "bad"))
        await batcher.run(Job(lane, 3, "good"))

    asyncio.run(callers())
    assert {name for name, *_ in lane.ran} == {"good"}


def test_closing_serves_what_waits_first() -> None:
    lane, batcher = Graph(), Batcher(devices=2)

    async def callers() -> list[None]:
        lane.may_run.clear()
        runs = [asyncio.create_task(batcher.run(Job(lane, 5, str(i)))) for i in range(20)]
        await asyncio.to_thread(lane.is_running.wait)
        closing = asyncio.create_task(asyncio.to_thread(batcher.close))
        lane.may_run.set()
        await closing
        with pytest.raises(Draining):
            await batcher.run(Job(lane, 1, "late"))
        return await asyncio.gather(*runs)

    assert asyncio.run(callers()) == [None] * 20


def test_one_batch_is_ready_while_the_device_runs_another() -> None:
    lane, prepared = Graph(), threading.Semaphore(0)
    prepare = lane.prepare

    def count(pieces: Sequence[Piece[str]], bucket: int) -> Running:
        prepared.release()
        return prepare(pieces, bucket)

    lane.prepare = count  # type: ignore[method-assign]
    with closing(Batcher(devices=1, ahead=1)) as batcher:

        async def callers() -> None:
            lane.may_run.clear()
            runs = [asyncio.create_task(batcher.run(Job(lane, 16, str(i)))) for i in range(3)]
            for _ in range(2):
                assert await asyncio.to_thread(prepared.acquire, timeout=10)
            assert not prepared.acquire(blocking=False)  # the third waits in the queue
            lane.may_run.set()
            await asyncio.gather(*runs)

        asyncio.run(callers())


def test_short_job_that_is_alone_is_run_where_it_is(batcher: Batcher) -> None:
    lane, threads = Graph(), list[str]()
    prepare = lane.prepare

    def watch(pieces: Sequence[Piece[str]], bucket: int) -> Running:
        threads.append(threading.current_thread().name)
        return prepare(pieces, bucket)

    lane.prepare = watch  # type: ignore[method-assign]

    async def callers() -> None:
        job = Job(lane, 1, "short")
        await batcher.run(job)
        assert (job.returned, job.run_s > 0) == (1, True)
        await batcher.run(Job(lane, 16, "long"))
        await asyncio.gather(*(batcher.run(Job(lane, 1, name)) for name in "ab"))

    asyncio.run(callers())
    here = threading.current_thread().name
    assert threads[:2] == [here, "worker-0"]
    assert sorted(name for name, *_ in lane.ran) == ["a", "b", "long", "short"]


def test_others_are_served_between_the_runs_of_one_that_is_alone(batcher: Batcher) -> None:
    lane, turns = Graph(), list[str]()

    async def steps() -> None:
        for left in (2, 1, 0):
            await batcher.run(Job(lane, 1, "step", begun=left < 2, follows=left))
            turns.append("step")

    async def other() -> None:
        for _ in range(3):
            turns.append("other")
            await asyncio.sleep(0)

    async def both() -> None:
        await asyncio.gather(steps(), other())

    asyncio.run(both())
    assert turns == ["other", "step"] * 3


def test_failure_of_one_that_is_alone_is_its_own(batcher: Batcher) -> None:
    lane = Graph()
    lane.fails_on = "bad"

    async def callers() -> None:
        with pytest.raises(EngineFailed, match="it failed"):
            await batcher.run(Job(lane, 1, "bad"))
        await batcher.run(Job(lane, 1, "good"))

    asyncio.run(callers())
    assert {name for name, *_ in lane.ran} == {"good"}


def test_event_loop_runs_nothing_of_a_device_that_may_be_held() -> None:
    lane = Graph()
    with closing(Batcher(devices=1, ahead=1)) as batcher, batcher.hold(0):

        async def caller() -> None:
            task = asyncio.create_task(batcher.run(Job(lane, 1, "a")))
            await asyncio.sleep(0.01)
            assert not task.done()  # and the event loop went on
            task.cancel()

        asyncio.run(caller())
