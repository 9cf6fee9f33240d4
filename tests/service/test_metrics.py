"""What is counted: each kind of request and each event of the queue moves what it should."""

import asyncio
import re
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from prometheus_client import parser
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import parser as openmetrics

from service.batching import Batcher
from service.errors import EngineFailed, QueueFull
from service.lanes import Job, Lane, Piece
from service.metrics import METHODS, PREFIX, Metrics, ModelState
from service.queue import Queue
from tests.service.bundles import AFFINE
from tests.service.conftest import Client, MakeClient
from tests.service.ppca import PPCA

LANE = {"model": "model", "role": "decode"}


class Work(Lane[str]):
    """A lane whose runs do nothing, a millisecond a row as it believes."""

    def __init__(self) -> None:
        super().__init__(("model", "decode"), {rows: 0.001 * rows for rows in (1, 2, 4, 8)})

    def prepare(self, pieces: Sequence[Piece[str]], bucket: int) -> "Work":
        return self

    def execute(self, device: int) -> None:
        pass

    def deliver(self) -> None:
        pass


def of(client: Client) -> Metrics:
    metrics: Metrics = client.app.state.metrics
    return metrics


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(f"{PREFIX}{name}", labels) or 0.0


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.mark.parametrize(
    ("method", "path", "route", "status", "outcome"),
    [
        ("GET", "/sample?model=affine&seed=1", "/sample", "200", "ok"),
        ("HEAD", "/sample?model=affine&seed=1", "/sample", "200", "ok"),
        ("POST", "/sample", "/sample", "400", "malformed"),
        ("GET", "/sample?model=affine&n=-1", "/sample", "422", "input_invalid"),
        ("GET", "/sample?model=none", "/sample", "404", "model_not_found"),
        ("PUT", "/sample", "/sample", "405", "method_not_allowed"),
        ("BREW", "/sample", "/sample", "405", "method_not_allowed"),
        ("GET", "/models", "/models", "200", "ok"),
        ("GET", "/models/affine", "/models/{name}", "200", "ok"),
        ("GET", "/models/none", "/models/{name}", "404", "model_not_found"),
        ("GET", "/v2/models/none", "/v2/models/{name}", "404", "model_not_found"),
        ("GET", "/livez", "/livez", "200", "ok"),
        ("GET", "/openapi.json", "/openapi.json", "200", "ok"),
        ("GET", "/", "/", "200", "ok"),
        ("GET", "/web/api.js", "/web/{file}", "200", "ok"),
        ("GET", "/web/none.js", "/web/{file}", "404", "not_found"),
        ("GET", "/none/of/these", "unmatched", "404", "not_found"),
    ],
)
def test_request_is_counted_once_under_its_route_and_its_outcome(
    client: Client, method: str, path: str, route: str, status: str, outcome: str
) -> None:
    metrics = of(client)
    counted = {"route": route, "status": status, "outcome": outcome}
    counted["method"] = method if method in METHODS else "other"

    def counts() -> tuple[float, float, float]:
        return (
            value(metrics, "requests_total", **counted),
            sum_of(metrics, "requests"),
            value(metrics, "request_duration_seconds_count", route=route),
        )

    before = counts()
    assert client.request(method, path).status_code == int(status)
    assert counts() == tuple(count + 1 for count in before)


def sum_of(metrics: Metrics, name: str) -> float:
    return sum(
        sample.value
        for family in metrics.registry.collect()
        if family.name == f"{PREFIX}{name}"
        for sample in family.samples
    )


def test_bytes_of_answers_are_those_that_came(client: Client) -> None:
    metrics = of(client)
    before = value(metrics, "response_bytes_total", route="/models")
    body = client.get("/models").content
    client.request("HEAD", "/models")
    assert value(metrics, "response_bytes_total", route="/models") == before + len(body)


def test_rows_and_runs_are_those_of_the_model_and_its_role(client: Client) -> None:
    metrics = of(client)
    moved = {
        "rows_total": 5.0, "executions_total": 1.0, "batch_rows_sum": 5.0,
        "batch_padded_rows_sum": 8.0, "run_duration_seconds_count": 1.0,
        "queue_wait_seconds_count": 1.0,
    }  # fmt: skip

    def counts(model: str) -> dict[str, float]:
        return {name: value(metrics, name, model=model, role="decode") for name in moved}

    before, others = counts("ppca"), counts("affine")
    client.get("/sample?model=ppca&n=5")
    assert counts("ppca") == {name: before[name] + by for name, by in moved.items()}
    assert counts("affine") == others


def test_rows_that_come_out_infinite_are_counted(client: Client) -> None:
    metrics = of(client)
    before = value(metrics, "non_finite_rows_total", model="affine", role="decode")
    z = [[3e38, 0.0], [0.0, 0.0], [3e38, 0.0]]
    client.post("/decode", json={"model": "affine", "z": z})
    assert value(metrics, "non_finite_rows_total", model="affine", role="decode") == before + 2


def test_rows_of_a_stream_are_counted_as_they_are_sent(client: Client) -> None:
    metrics = of(client)
    streams = {"route": "/sample", "outcome": "ok"}
    before = [
        value(metrics, "streams_total", **streams),
        value(metrics, "stream_rows_total", model="affine"),
    ]
    client.get("/sample?model=affine&n=300", headers={"Accept": "application/x-ndjson"})
    client.get("/sample?model=affine&n=300")
    assert value(metrics, "streams_total", **streams) == before[0] + 1
    assert value(metrics, "stream_rows_total", model="affine") == before[1] + 300


def test_refused_job_is_counted_with_its_reason_and_its_rows(metrics: Metrics) -> None:
    queue, lane = Queue(max_wait_s=0.004, observer=metrics), Work()
    queue.put(Job(lane, 8, ""))
    with pytest.raises(QueueFull):
        queue.put(Job(lane, 5, ""))
    assert value(metrics, "refusals_total", **LANE, reason="too_long") == 1
    assert value(metrics, "refused_rows_total", **LANE) == 5


def test_abandoned_rows_are_counted(metrics: Metrics) -> None:
    queue, lane = Queue(observer=metrics), Work()
    job = Job(lane, 3, "")
    queue.put(job)
    queue.abandon(job)
    assert value(metrics, "dropped_rows_total", **LANE) == 3


def test_failed_run_is_counted_apart_from_those_that_answered(metrics: Metrics) -> None:
    queue, lane = Queue(observer=metrics), Work()
    queue.put(Job(lane, 5, ""))
    batch = queue.take()
    assert batch
    queue.finish(batch, run_s=0.0, error=EngineFailed("it failed"))
    assert value(metrics, "failed_rows_total", **LANE) == batch.rows
    assert value(metrics, "executions_total", **LANE) == 0


def test_queue_is_read_when_somebody_scrapes(metrics: Metrics) -> None:
    queue, lane = Queue(observer=metrics), Work()
    watch(metrics, queue)

    def gauges() -> list[float]:
        names = ("queue_jobs", "queue_rows", "queue_expected_wait_seconds")
        return [value(metrics, name) for name in names]

    assert gauges() == [0, 0, 0]
    queue.put(Job(lane, 8, ""))
    queue.put(Job(lane, 2, ""))
    assert gauges() == pytest.approx([2, 10, 0.01])
    queue.take()
    assert gauges() == pytest.approx([1, 2, 0.002])


def watch(metrics: Metrics, queue: Queue, states: Sequence[ModelState] = ()) -> None:
    metrics.watch(
        queue=queue, models=lambda: states, device={"kind": "cpu", "reason": ""}, runtime="1.2.3"
    )


def test_nothing_is_lost_between_threads(metrics: Metrics) -> None:
    batcher = Batcher(devices=4, observer=metrics)
    lane = Work()

    async def ask() -> None:
        await asyncio.gather(*(batcher.run(Job(lane, rows, "")) for rows in range(1, 50)))

    asyncio.run(ask())
    batcher.close()
    asked = sum(range(1, 50))
    assert value(metrics, "rows_total", **LANE) == asked
    assert value(metrics, "batch_rows_sum", **LANE) == asked
    assert value(metrics, "queue_wait_seconds_count", **LANE) == 49
    assert value(metrics, "executions_total", **LANE) == value(
        metrics, "run_duration_seconds_count", **LANE
    )


def test_version_has_one_state(metrics: Metrics) -> None:
    states = [
        ModelState("a", 1, "ready"),
        ModelState("a", 2, "failed"),
        ModelState("b", 1, "loading"),
    ]
    watch(metrics, Queue(), states)
    for each in states:
        found = {
            state: value(
                metrics, "model_state", model=each.model, version=str(each.version), state=state
            )
            for state in ("loading", "ready", "failed")
        }
        assert found == {"loading": 0, "ready": 0, "failed": 0} | {each.state: 1}


def test_refused_bundle_shows(make_client: MakeClient, tmp_path: Path) -> None:
    AFFINE.publish(tmp_path)
    (PPCA.publish(tmp_path) / "decode.onnx").write_bytes(b"")
    metrics = of(make_client(models=tmp_path))
    states = {
        (name, state): value(metrics, "model_state", model=name, version="1", state=state)
        for name in ("affine", "ppca")
        for state in ("ready", "failed")
    }
    assert states == {
        ("affine", "ready"): 1, ("affine", "failed"): 0,
        ("ppca", "ready"): 0, ("ppca", "failed"): 1,
    }  # fmt: skip
    assert value(metrics, "bundles_refused_total", model="ppca") == 1
    assert value(metrics, "bundles_refused_total", model="affine") == 0
    assert value(metrics, "model_load_seconds", model="affine", version="1") > 0
    assert value(metrics, "model_load_seconds", model="ppca", version="1") == 0


def test_observer_of_the_repository_keeps_what_serves() -> None:
    metrics = Metrics(clock=lambda: 1000.0)
    metrics.models.loaded("a", 1, 2.5)
    metrics.models.refused("a", 2, "it is broken")
    assert value(metrics, "model_load_seconds", model="a", version="1") == 2.5
    assert value(metrics, "model_loaded_timestamp_seconds", model="a", version="1") == 1000
    assert value(metrics, "bundles_refused_total", model="a") == 1
    metrics.models.unloaded("a", 1)
    assert sum_of(metrics, "model_load_seconds") == 0


def test_two_apps_do_not_share_their_counts(client: Client, make_client: MakeClient) -> None:
    other = of(make_client())
    before = sum_of(of(client), "requests")
    client.get("/models")
    assert sum_of(of(client), "requests") == before + 1
    assert sum_of(other, "requests") == 0


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("*/*", "text/plain; version=0.0.4"),
        ("text/plain", "text/plain; version=0.0.4"),
        ("application/openmetrics-text;version=1.0.0,text/plain;q=0.5",
         "application/openmetrics-text; version=1.0.0"),
    ],
)  # fmt: skip
def test_page_is_in_the_format_that_is_asked_for(
    client: Client, accept: str, media_type: str
) -> None:
    client.get("/sample?model=affine")
    answer = client.get("/metrics", headers={"Accept": accept})
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith(media_type)
    assert answer.headers["cache-control"] == "no-store"
    is_text = media_type.startswith("text/plain")
    families: list[Metric] = list(
        parser.text_string_to_metric_families(answer.text)
        if is_text
        else openmetrics.text_string_to_metric_families(answer.text)
    )
    assert {family.name for family in families} == {
        family.name for family in of(client).registry.collect()
    }
    assert "process_resident_memory_bytes" in {family.name for family in families}


def test_names_have_the_prefix_and_a_unit_and_a_meaning(client: Client) -> None:
    for family in of(client).registry.collect():
        if family.name.startswith("process_"):
            continue
        assert re.fullmatch(rf"{PREFIX}[a-z_]+[a-z]", family.name)
        assert not family.name.endswith(("_ms", "_us", "_total"))
        assert family.documentation.endswith(".")


def test_scrapes_go_on_while_workers_count(metrics: Metrics) -> None:
    stop = threading.Event()
    lane = Work()

    def count() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            lane.name = ("model", f"role{number % 50}")
            metrics.ran(lane, rows=1, bucket=1, run_s=0.001, waits_s=[0.001])

    worker = threading.Thread(target=count)
    worker.start()
    try:
        for _ in range(20):
            assert b"pushforward_rows_total" in metrics.exposition("*/*")[0]
    finally:
        stop.set()
        worker.join()
