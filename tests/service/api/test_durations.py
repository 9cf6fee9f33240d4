"""Where a request's time went is told in the access log and in the statistics of /v2."""

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import closing

import pytest

from service.batching import Batcher
from service.lanes import SPENT, Job, Spent
from service.session import Limit, Session
from service.tensors import Array
from tests.service.conftest import Client, MakeClient
from tests.service.lanes import ALL_THE_SAME, Graph

SLOW_S = 0.02


@pytest.fixture
def slow_client(make_client: MakeClient, monkeypatch: pytest.MonkeyPatch) -> Client:
    """A client of a service with one worker, whose runs take long."""
    client = make_client(access_log="json")
    run = Session.run

    def dawdle(
        session: Session,
        feeds: Mapping[str, Array],
        outputs: Sequence[str] | None = None,
        *,
        limit: Limit | None = None,
    ) -> dict[str, Array]:
        time.sleep(SLOW_S)
        return run(session, feeds, outputs, limit=limit)

    monkeypatch.setattr(Session, "run", dawdle)
    monkeypatch.setattr("service.queue.ALONE_S", 0.0)  # it is not long by what it was measured
    return client


def entries(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_log_says_what_a_request_waited_and_ran(
    slow_client: Client, capfd: pytest.CaptureFixture[str]
) -> None:
    slow_client.get("/sample?model=affine&n=2&seed=1")
    slow_client.get("/sample?model=nothing")
    deadline, text = time.monotonic() + 10, ""
    while text.count("\n") < 2 and time.monotonic() < deadline:
        text += capfd.readouterr().out
    sampled, refused = entries(text)
    assert 1000 * SLOW_S <= float(str(sampled["run_ms"])) <= float(str(sampled["duration_ms"]))
    assert 0 <= float(str(sampled["wait_ms"])) < 1000 * SLOW_S
    assert "run_ms" not in refused


def test_statistics_of_the_protocol_tell_queue_from_run(slow_client: Client) -> None:
    z = {"name": "z", "datatype": "FP32", "shape": [1, 2], "data": [0, 0]}
    address = "/v2/models/affine.decode"

    def stats() -> dict[str, dict[str, int]]:
        found: dict[str, dict[str, int]] = slow_client.get(f"{address}/stats").json()[
            "model_stats"
        ][0]["inference_stats"]
        return found

    before = stats()
    assert slow_client.post(f"{address}/infer", json={"inputs": [z]}).status_code == 200
    after = stats()
    assert after["queue"]["count"] == before["queue"]["count"] + 1
    assert after["queue"]["ns"] > before["queue"]["ns"]
    assert after["compute_infer"]["ns"] - before["compute_infer"]["ns"] >= SLOW_S * 1e9


def test_jobs_of_a_request_are_added_up_and_those_of_others_are_not() -> None:
    async def ask() -> tuple[Spent, Spent]:
        with closing(Batcher(devices=1)) as batcher:
            mine, other = Spent(), Spent()

            async def run(spent: Spent, jobs: int) -> None:
                SPENT.set(spent)
                lane = Graph(ALL_THE_SAME)
                await asyncio.gather(*(batcher.run(Job(lane, 1, "")) for _ in range(jobs)))

            await asyncio.gather(run(mine, 3), run(other, 1))
            return mine, other

    mine, other = asyncio.run(ask())
    assert (mine.jobs, other.jobs) == (3, 1)
    assert mine.run_s > 0
    assert mine.wait_s > 0
