"""What the benchmark reads, counts and divides, without a server."""

import numpy as np
import pytest

from benchmarks import ratios, wire
from benchmarks.load import LoadFailed, parse
from benchmarks.poisson import arrivals
from benchmarks.servers import OURS, SERVERS, Server
from benchmarks.workloads import Record, Workload, closed_loops

SAID = """Running 1s test @ http://127.0.0.1:9000
  1 threads and 32 connections
  500 requests in 2.00s, 1.00MB read

RESULT answers=500 duration_us=2000000 bytes=1000000 refused=0 broken=0 timeouts=0 p50_us=1500 p99_us=9000 answers_seen=500 settled_for_us=1800000
"""  # noqa: E501


def test_what_wrk_prints_is_read_in_its_units() -> None:
    assert parse(SAID) == {
        "answers": 500,
        "requests_per_s": 250.0,
        "bytes_per_answer": 2000.0,
        "p50_ms": 1.5,
        "p99_ms": 9.0,
    }


def test_the_rate_of_slow_answers_is_that_after_the_first_ones() -> None:
    assert parse(SAID, settle=32)["requests_per_s"] == pytest.approx((500 - 32) / 1.8)
    with pytest.raises(LoadFailed, match="only 500 answers"):
        parse(SAID, settle=500)
    all_at_the_end = SAID.replace("settled_for_us=1800000", "settled_for_us=9000")
    with pytest.raises(LoadFailed, match="only 500 answers"):
        parse(all_at_the_end, settle=32)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (SAID.replace("refused=0", "refused=3"), "3 refused beside 500 answers"),
        (SAID.replace("timeouts=0", "timeouts=1"), "1 timeouts"),
        (SAID.replace("answers=500", "answers=0"), "no answer"),
        ("unable to connect", "wrk said: unable to connect"),
    ],
)
def test_a_loop_with_errors_has_no_rate(text: str, told: str) -> None:
    with pytest.raises(LoadFailed, match=told):
        parse(text)


def test_arrivals_are_a_poisson_process() -> None:
    rate, seconds = 50.0, 200.0
    times = arrivals(rate, seconds, seed=1)
    gaps = np.diff(times, prepend=0)
    expected = rate * seconds
    assert abs(len(times) - expected) < 4.5 * np.sqrt(expected)
    assert (gaps > 0).all()
    assert times[-1] < seconds
    # An exponential's standard deviation is its mean, to about 1 / sqrt(n) relative.
    assert abs(gaps.std() / gaps.mean() - 1) < 4.5 / np.sqrt(expected)
    assert (arrivals(rate, seconds, seed=1) == times).all()
    assert len(arrivals(rate, seconds, seed=2)) != len(times)


def records(server: str, *rates: float) -> list[Record]:
    return [
        Record(index, server, "sample n=1 bytes x32", {"requests_per_s": rate})
        for index, rate in enumerate(rates)
    ]


def test_ratios_are_taken_within_a_round() -> None:
    found = [*records(OURS, 100, 10), *records("naive", 50, 2), *records("ray", 20, 5)]
    best = ratios.best_peer(found, "sample n=1 bytes x32", "requests_per_s")
    assert best == {0: 50, 1: 5}
    ours = ratios.by_round(found, OURS, "sample n=1 bytes x32", "requests_per_s")
    assert ratios.ratio(ours, best) == {0: 2.0, 1: 2.0}


def test_a_failed_round_is_no_figure() -> None:
    broken = Record(0, OURS, "sample n=1 bytes x32", {"requests_per_s": 1e9}, "it lied")
    assert ratios.by_round([broken], OURS, broken.workload, "requests_per_s") == {}


@pytest.mark.parametrize(
    ("values", "at_least", "verdict"),
    [
        ({0: 0.8, 1: 0.95, 2: 1.0}, True, "pass"),
        ({0: 0.8, 1: 0.85, 2: 1.0}, True, "falls short"),
        ({0: 0.8, 1: 0.85, 2: 1.0}, False, "pass"),
        ({}, True, "not measured"),
    ],
)
def test_the_median_decides(values: dict[int, float], at_least: bool, verdict: str) -> None:
    assert ratios.Promise("", 0.9, at_least, "", values).verdict == verdict


@pytest.mark.parametrize("server", SERVERS, ids=lambda server: server.name)
def test_a_seed_changes_a_request_and_not_its_length(server: Server) -> None:
    for workload in closed_loops(pictures=server.name == OURS):
        first, *others = server.wire.requests(workload)
        if workload.task == "sample":
            one, two = (wire.with_seed(first, wire.FIRST_SEED + i) for i in (1, 2))
            assert len(first) == len(one) == len(two)
            assert one != two
        else:
            assert len({first, *others}) == wire.BODIES
        head, _, body = first.partition(b"\r\n\r\n")
        assert (b"Content-Length: %d" % len(body) in head) == bool(body)


def test_workloads_have_names_of_their_own() -> None:
    names = [each.name for each in closed_loops(pictures=True)]
    assert len(set(names)) == len(names)
    assert Workload("sample", 16, "bytes", 32).name == "sample n=16 bytes x32"
