"""The queue by hand, with a clock of its own: who goes next, who is refused, who is dropped."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from service.errors import Draining, EngineFailed, QueueFull
from service.lanes import Batch, Job
from service.queue import BULK_SHARE, MAX_WAITING, Queue
from tests.service.lanes import ALL_THE_SAME, BY_THE_ROW, Clock, Graph, Recorder


def taken(batch: Batch | None) -> dict[str, int]:
    """Return how many rows of each job a batch has."""
    assert batch is not None
    return {piece.job.content: piece.rows for piece in batch.pieces}


def put(queue: Queue, lane: Graph, **rows: int) -> dict[str, Job[str]]:
    jobs = {name: Job(lane, count, name) for name, count in rows.items()}
    for job in jobs.values():
        queue.put(job)
    return jobs


def test_whoever_is_free_takes_what_waits_and_nobody_waits_for_company() -> None:
    queue, lane = Queue(), Graph()
    put(queue, lane, a=1)
    assert taken(queue.take()) == {"a": 1}
    put(queue, lane, b=2, c=3, d=3)
    assert taken(queue.take()) == {"b": 2, "c": 3, "d": 3}


def test_rows_are_counted_and_not_requests() -> None:
    queue, lane = Queue(), Graph()
    put(queue, lane, a=10, b=4, c=10)
    assert taken(queue.take()) == {"a": 10, "b": 4, "c": 2}
    assert taken(queue.take()) == {"c": 8}


@pytest.mark.parametrize(
    ("seconds", "waiting", "takes"),
    [
        (BY_THE_ROW, 5, 4),  # 4 rows in 4 ms are more a second than 5 in 8
        (ALL_THE_SAME, 5, 5),  # padding up costs nothing
        (BY_THE_ROW, 16, 16),
        (BY_THE_ROW, 100, 16),
        ({8: 0.001, 16: 0.002}, 3, 3),  # less than the least bucket
    ],
)
def test_as_many_are_taken_as_make_the_most_rows_a_second(
    seconds: dict[int, float], waiting: int, takes: int
) -> None:
    assert Graph(seconds).best(waiting) == takes


def test_free_devices_divide_a_long_run_and_not_a_short_one() -> None:
    queue, lane = Queue(devices=2), Graph()
    put(queue, lane, long=16)
    assert [taken(queue.take()), taken(queue.take())] == [{"long": 8}, {"long": 8}]
    queue, lane = Queue(devices=2), Graph({rows: 1e-5 * rows for rows in (1, 2, 4, 8, 16)})
    put(queue, lane, short=16)
    assert taken(queue.take()) == {"short": 16}


def test_a_device_that_is_busy_has_no_part_in_the_division() -> None:
    queue, lane = Queue(devices=2), Graph()
    put(queue, lane, first=1)
    queue.take()
    put(queue, lane, second=16)
    assert taken(queue.take()) == {"second": 16}


def test_one_image_does_not_wait_for_a_million() -> None:
    queue, lane = Queue(), Graph(ALL_THE_SAME)
    put(queue, lane, million=1_000_000)
    assert taken(queue.take()) == {"million": 16}
    put(queue, lane, image=1)
    assert taken(queue.take()) == {"image": 1, "million": 15}


def test_a_million_does_not_wait_for_all_the_images() -> None:
    queue, lane = Queue(), Graph(ALL_THE_SAME)
    put(queue, lane, million=1_000_000)
    put(queue, lane, **{f"image{i}": 1 for i in range(100)})
    shares = [taken(queue.take()).get("million", 0) for _ in range(4)]
    assert shares == [16 // BULK_SHARE] * 4


def test_what_is_kept_for_the_large_adds_up_where_a_batch_has_a_single_row() -> None:
    queue, lane = Queue(), Graph({1: 0.01})
    put(queue, lane, large=50)
    put(queue, lane, **{f"small{i}": 1 for i in range(50)})
    turns = ["large" in taken(queue.take()) for _ in range(40)]
    assert sum(turns) == 40 // BULK_SHARE


def test_jobs_that_are_soon_done_are_done_one_after_the_other() -> None:
    queue, lane = Queue(), Graph(ALL_THE_SAME)
    put(queue, lane, a=64, b=64)
    assert [taken(queue.take()) for _ in range(4)] == [{"a": 16}] * 4


def test_large_jobs_take_turns() -> None:
    queue, lane = Queue(), Graph(ALL_THE_SAME)
    put(queue, lane, a=1000, b=1000, c=1000)
    rows = {"a": 0, "b": 0, "c": 0}
    for _ in range(30):
        for name, count in taken(queue.take()).items():
            rows[name] += count
    assert max(rows.values()) - min(rows.values()) <= 16


def test_run_counts_once_for_a_job_that_has_two_places_in_it() -> None:
    queue, lane = Queue(), Graph(ALL_THE_SAME)
    jobs = put(queue, lane, a=1000, b=1000, c=1000)
    batch = queue.take()
    assert batch
    assert len(batch.pieces) > len(jobs)
    queue.finish(batch, run_s=1.0)
    assert [job.run_s for job in jobs.values()] == [1.0, 1.0, 1.0]


def test_lanes_take_turns() -> None:
    queue, one, other = Queue(), Graph(), Graph()
    put(queue, one, a=40)
    put(queue, other, b=40)
    order = [next(iter(taken(queue.take()))) for _ in range(4)]
    assert order == ["a", "b", "a", "b"]


def test_job_is_over_when_its_last_rows_are_back_in_whatever_order() -> None:
    queue, lane = Queue(), Graph()
    job = put(queue, lane, a=32)["a"]
    first, last = queue.take(), queue.take()
    assert first
    assert last
    assert queue.finish(last, run_s=0.01) == []
    assert queue.finish(first, run_s=0.01) == [job]


def test_gone_caller_is_left_out_when_the_batch_forms() -> None:
    recorder = Recorder()
    queue, lane = Queue(observer=recorder), Graph()
    jobs = put(queue, lane, a=3, gone=4, b=5)
    queue.abandon(jobs["gone"])
    assert recorder.dropped_rows == 4
    assert taken(queue.take()) == {"a": 3, "b": 5}


def test_gone_caller_is_left_out_when_the_batch_answers_and_its_mates_are_not() -> None:
    recorder = Recorder()
    queue, lane = Queue(observer=recorder), Graph()
    jobs = put(queue, lane, a=3, gone=4, b=1)
    batch = queue.take()
    assert batch
    queue.abandon(jobs["gone"])
    assert queue.finish(batch, run_s=0.01) == [jobs["a"], jobs["b"]]
    assert recorder.dropped_rows == 4


def test_rest_of_a_large_job_is_dropped_with_its_caller() -> None:
    recorder = Recorder()
    queue, lane = Queue(observer=recorder), Graph()
    job = put(queue, lane, large=100)["large"]
    batch = queue.take()
    assert batch
    queue.abandon(job)
    assert (queue.waiting, queue.waiting_rows) == (0, 0)
    assert queue.finish(batch, run_s=0.01) == []
    assert recorder.dropped_rows == 100


def test_failed_run_fails_its_own_jobs_and_drops_what_they_had_waiting() -> None:
    recorder = Recorder()
    queue, lane = Queue(observer=recorder), Graph()
    jobs = put(queue, lane, large=20, later=4)
    batch = queue.take()
    assert batch
    failure = EngineFailed("it failed")
    ended = queue.finish(batch, run_s=0.0, error=failure)
    assert jobs["large"] in ended
    assert all(job.error is failure for job in ended)
    assert (recorder.failed_rows, recorder.runs) == (batch.rows, [])
    assert recorder.dropped_rows == sum(job.rows for job in ended) - batch.rows > 0
    rest = [job for job in jobs.values() if job not in ended]
    assert queue.waiting == len(rest)


def test_observer_that_fails_costs_nobody_an_answer(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(Recorder):
        def ran(self, *args: object, **said: object) -> None:
            raise RuntimeError("no room for a metric")

    queue, lane = Queue(observer=Failing()), Graph()
    job = put(queue, lane, a=2)["a"]
    batch = queue.take()
    assert batch
    assert queue.finish(batch, run_s=0.01) == [job]
    assert "no room for a metric" in caplog.text


def test_full_queue_refuses_at_once_and_says_when_to_come_back() -> None:
    recorder = Recorder()
    queue, lane = Queue(max_wait_s=0.95, observer=recorder), Graph()
    put(queue, lane, **{f"job{i}": 16 for i in range(60)})  # 0.96 s; 0.95 may be waited for
    with pytest.raises(QueueFull, match=r"60 requests wait.* about 1\.0 s") as refused:
        put(queue, lane, one_more=100)
    assert refused.value.retry_after_s == 1
    assert recorder.reasons == ["too_long"]
    assert queue.waiting == 60


def test_retry_after_grows_with_the_queue() -> None:
    queue, lane = Queue(max_wait_s=6.0), Graph()
    for i in range(430):
        queue.put(Job(lane, 16, f"job{i}", begun=True))
    with pytest.raises(QueueFull) as refused:
        put(queue, lane, one_more=1000)
    assert refused.value.retry_after_s == 7


def test_no_job_is_too_large_for_an_empty_queue() -> None:
    queue, lane = Queue(max_wait_s=1.0), Graph()
    put(queue, lane, giant=1_000_000)
    assert queue.waiting == 1


def test_size_of_a_job_is_not_held_against_it() -> None:
    queue, lane = Queue(max_wait_s=1.0), Graph()
    put(queue, lane, small=1, giant=1_000_000)
    assert queue.waiting == 2


def test_giant_in_the_queue_does_not_shut_out_the_small() -> None:
    queue, lane = Queue(max_wait_s=1.0), Graph()
    put(queue, lane, giant=1_000_000, small=1)
    assert queue.waiting == 2
    with pytest.raises(QueueFull):
        put(queue, lane, second_giant=1_000_000)


def test_what_has_begun_is_not_refused_and_does_not_go_first() -> None:
    queue, lane = Queue(max_wait_s=0.001), Graph(ALL_THE_SAME)
    put(queue, lane, large=1000)
    queue.put(Job(lane, 4, "window", begun=True))
    put_now = Job(lane, 1, "image")
    lane.seconds.update(dict.fromkeys(lane.buckets, 1e-6))
    queue.put(put_now)
    assert next(iter(taken(queue.take()))) == "image"


def test_steps_that_will_follow_are_counted_where_others_are_admitted() -> None:
    queue, lane = Queue(max_wait_s=1.0), Graph(ALL_THE_SAME)
    queue.put(Job(lane, 8, "first", follows=8 * 319))
    assert queue.wait_s() == pytest.approx(1.6)
    with pytest.raises(QueueFull, match=r"about 1\.6 s"):
        queue.put(Job(lane, 8, "as many steps", follows=8 * 319))
    put(queue, lane, image=1)  # which needs not wait for them
    assert taken(queue.take()) == {"image": 1, "first": 8}  # nor do they go before it
    assert queue.wait_s() == 0
    queue.put(Job(lane, 8, "next", begun=True, follows=8 * 318))
    assert queue.wait_s() == pytest.approx(319 / 320 * 1.6)


def test_steps_that_would_have_followed_go_with_their_caller() -> None:
    queue, lane = Queue(), Graph()
    job = Job(lane, 30, "gone", follows=3000)
    queue.put(job)
    queue.take()
    queue.abandon(job)
    assert (queue.wait_s(), lane.following_rows) == (0, 0)


def test_no_more_than_so_many_may_wait() -> None:
    recorder = Recorder()
    queue, lane = Queue(observer=recorder), Graph()
    for _ in range(MAX_WAITING):
        queue.put(Job(lane, 1, "one"))
    with pytest.raises(QueueFull):
        queue.put(Job(lane, 1, "one more"))
    assert recorder.reasons == ["too_many"]


def test_waits_are_told_by_the_clock_that_was_given() -> None:
    clock, recorder = Clock(), Recorder()
    queue, lane = Queue(observer=recorder, clock=clock), Graph()
    put(queue, lane, a=1)
    clock.now += 0.25
    put(queue, lane, b=1)
    clock.now += 0.5
    batch = queue.take()
    assert batch
    queue.finish(batch, run_s=0.01)
    assert recorder.waits_s == [0.75, 0.5]
    assert recorder.runs == [(2, 2)]


def test_costs_follow_what_runs_take() -> None:
    queue, lane = Queue(), Graph()
    for _ in range(50):
        put(queue, lane, a=16)
        batch = queue.take()
        assert batch
        queue.finish(batch, run_s=0.32)
    assert lane.row_s == pytest.approx(0.02, rel=0.01)


def test_closed_queue_takes_nothing_new_and_gives_out_what_waits() -> None:
    queue, lane = Queue(), Graph()
    put(queue, lane, a=16, b=16)
    queue.close()
    with pytest.raises(Draining):
        put(queue, lane, c=1)
    assert [taken(queue.take()), taken(queue.take()), queue.take()] == [{"a": 16}, {"b": 16}, None]


class Traffic(RuleBasedStateMachine):
    """Jobs that come and go while batches are taken and answered, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = Queue(devices=2)
        self.lanes = [Graph(), Graph(ALL_THE_SAME)]
        self.jobs: list[Job[str]] = []
        self.flying: list[Batch] = []
        self.slices: dict[Job[str], list[tuple[int, int]]] = {}
        self.over: list[Job[str]] = []

    @rule(
        lane=st.integers(0, 1),
        rows=st.integers(1, 70),
        begun=st.booleans(),
        follows=st.sampled_from([0, 0, 7, 700]),
    )
    def put(self, lane: int, rows: int, begun: bool, follows: int) -> None:
        self.jobs.append(Job(self.lanes[lane], rows, "job", begun, follows))
        self.queue.put(self.jobs[-1])

    @precondition(lambda self: self.queue.waiting)
    @rule()
    def take(self) -> None:
        batch = self.queue.take()
        assert batch
        assert 0 < batch.rows <= batch.lane.most
        for piece in batch.pieces:
            self.slices.setdefault(piece.job, []).append((piece.first, piece.stop))
        self.flying.append(batch)

    @precondition(lambda self: self.flying)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        batch = self.flying.pop(data.draw(st.integers(0, len(self.flying) - 1)))
        self.over += self.queue.finish(batch, run_s=0.01)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def abandon(self, data: st.DataObject) -> None:
        self.queue.abandon(data.draw(st.sampled_from(self.jobs)))

    def teardown(self) -> None:
        while self.queue.waiting:
            self.take()
        for batch in self.flying:
            self.over += self.queue.finish(batch, run_s=0.01)
        assert (self.queue.waiting_rows, self.queue.wait_s()) == (0, 0)
        assert [lane.following_rows for lane in self.lanes] == [0, 0]
        wanted = [job for job in self.jobs if not job.abandoned]
        assert sorted(map(id, self.over)) == sorted(map(id, wanted))
        for job in wanted:
            slices = sorted(self.slices[job])
            assert [first for first, _ in slices] == [0, *[stop for _, stop in slices[:-1]]]
            assert slices[-1][1] == job.rows


class TestEveryRowRunsOnceWhateverComesAndGoes(Traffic.TestCase):  # type: ignore[valid-type, misc]
    """Hypothesis plays the traffic."""
