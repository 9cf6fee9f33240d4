"""Who runs a short job himself: he who is alone, by a queue driven by hand."""

import pytest

from service.lanes import CALLER, Batch, Job
from service.queue import ALONE_S, COMPANY_S, Queue
from tests.service.lanes import Clock, Graph
from tests.service.test_queue import taken


def ask(queue: Queue, lane: Graph, caller: str, rows: int = 1) -> Batch | None:
    """Put a job of a connection that would run it itself, and return it if it may."""
    token = CALLER.set(caller)
    try:
        return queue.put(Job(lane, rows, caller), runs_alone=True)
    finally:
        CALLER.reset(token)


def test_who_is_alone_runs_a_short_job_himself() -> None:
    queue, lane = Queue(devices=2), Graph()
    batch = ask(queue, lane, "a")
    assert taken(batch) == {"a": 1}
    assert batch is not None
    assert not queue.waiting
    # Meanwhile he is company to whoever comes, and to himself.
    assert ask(queue, lane, "a") is None
    assert taken(queue.take()) == {"a": 1}
    assert [job.content for job in queue.finish(batch, run_s=0.001)] == ["a"]
    assert batch.pieces[0].job.wait_s == 0


def test_two_connections_by_turns_are_not_alone() -> None:
    """Neither ever finds the other's job, and yet they would be served on one core."""
    clock = Clock()
    queue, lane = Queue(clock=clock), Graph()

    def is_alone(caller: str) -> bool:
        batch = ask(queue, lane, caller)
        queue.finish(batch or queue.take(), run_s=0.001)  # type: ignore[arg-type]  # it waits
        return batch is not None

    assert [is_alone(caller) for caller in "aabaab"] == [True, True, *[False] * 4]
    clock.now += 0.9 * COMPANY_S
    assert not is_alone("b")
    clock.now += 0.2 * COMPANY_S  # since "a" asked it has been longer than that
    assert is_alone("b")
    clock.now += 1.1 * COMPANY_S
    assert is_alone("a")


@pytest.mark.parametrize(
    ("rows", "seconds", "is_short"),
    [
        (1, {1: 0.9 * ALONE_S}, True),
        (1, {1: 1.1 * ALONE_S}, False),
        (2, {1: 0.0004, 2: 0.0008}, True),
        (2, {1: 0.0008, 2: 0.0016}, False),  # two devices would divide it
        (3, {1: 0.0001, 2: 0.0001}, False),  # it is more than one run
    ],
)
def test_only_one_short_run_is_done_by_the_caller(
    rows: int, seconds: dict[int, float], is_short: bool
) -> None:
    assert (ask(Queue(devices=2), Graph(seconds), "a", rows) is not None) is is_short


def test_what_is_around_a_run_counts_where_its_caller_would_wait_for_it() -> None:
    queue, lane = Queue(), Graph({1: 0.0001})
    batch = ask(queue, lane, "a")
    assert batch is not None
    queue.finish(batch, run_s=0.0001, whole_s=10 * ALONE_S)  # its inputs take long to make
    assert lane.seconds[1] == pytest.approx(0.0001)
    assert ask(queue, lane, "a") is None
