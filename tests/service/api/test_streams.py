"""Answers that are longer than memory: the same rows, as they come."""

import io
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from service import sampling
from service.api import streams
from service.calls import Answer
from service.session import Session
from service.tensors import Array
from tests.service.conftest import Client, MakeClient

NPY = {"Accept": "application/x-npy"}
NDJSON = {"Accept": "application/x-ndjson"}


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a window hold so little that a few thousand rows need many."""
    monkeypatch.setattr(sampling, "WINDOW_BYTES", 4096)


def address(n: int, *, start: int = 0, seed: int = 7, model: str = "affine") -> dict[str, object]:
    return {"model": model, "n": n, "start": start, "seed": seed}


def load(body: bytes) -> np.ndarray:
    array: np.ndarray = np.load(io.BytesIO(body))
    return array


def lines(body: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in body.splitlines()]


@pytest.mark.usefixtures("small_windows")
def test_stream_of_npy_is_one_array_whose_length_is_known_in_advance(client: Client) -> None:
    answer = client.get("/sample", params=address(5000), headers=NPY)
    assert answer.status_code == 200
    assert int(answer.headers["content-length"]) == len(answer.content)
    whole = load(answer.content)
    assert whole.shape == (5000, 2)
    assert whole.dtype == np.float32
    parts = [
        client.post("/sample", json=address(100, start=start)).json()["x"]
        for start in (0, 512, 4900)
    ]
    for start, part in zip((0, 512, 4900), parts, strict=True):
        np.testing.assert_array_equal(np.float32(part), whole[start : start + 100])


@pytest.mark.usefixtures("small_windows")
def test_stream_that_was_cut_goes_on_where_it_ended(client: Client) -> None:
    whole = load(client.get("/sample", params=address(3000), headers=NPY).content)
    rest = load(client.get("/sample", params=address(1999, start=1001), headers=NPY).content)
    np.testing.assert_array_equal(rest, whole[1001:])


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize("model", ["affine", "tiles"])
def test_stream_of_lines_has_a_line_a_row_with_its_number(client: Client, model: str) -> None:
    where = address(1500, start=10, model=model)
    answer = client.post("/sample", json=where, headers=NDJSON)
    assert answer.headers["content-type"] == "application/x-ndjson"
    found = lines(answer.content)
    assert [line["row"] for line in found] == list(range(10, 1510))
    array = load(client.get("/sample", params=where, headers=NPY).content)
    np.testing.assert_array_equal(np.array([line["x"] for line in found], np.float32), array)


@pytest.mark.usefixtures("small_windows")
def test_lines_have_room_for_what_is_included(client: Client) -> None:
    body = address(700) | {"include": ["z", "log_density"]}
    found = lines(client.post("/sample", json=body, headers=NDJSON).content)
    plain = client.post("/sample", json=body).json()
    for name in ("x", "z", "log_density"):
        column = np.array([line[name] for line in found], np.float32)
        np.testing.assert_allclose(column, np.float32(plain[name]), rtol=1e-6)


@pytest.mark.usefixtures("small_windows")
def test_labels_that_were_named_stay_with_their_rows(client: Client) -> None:
    labels = [row % 3 for row in range(900)]
    body = address(900, model="tiles") | {"label": labels, "include": ["label"]}
    found = lines(client.post("/sample", json=body, headers=NDJSON).content)
    assert [line["label"] for line in found] == labels


def test_what_is_wrong_with_a_stream_is_said_by_its_status(client: Client) -> None:
    for change, code in (
        ({"n": 100_000_001}, "input_invalid"),
        ({"label": 1}, "input_invalid"),
        ({"observation": "draw"}, "capability_missing"),
    ):
        answer = client.post("/sample", json=address(10_000_000) | change, headers=NPY)
        assert answer.json()["code"] == code
    assert client.get("/sample", params=address(10), headers=NDJSON).status_code == 200


def test_head_of_a_stream_says_its_length_and_computes_nothing(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Session, "run", None)
    answer = client.request("HEAD", "/sample", params=address(100_000_000), headers=NPY)
    assert answer.status_code == 200
    assert int(answer.headers["content-length"]) == 128 + 100_000_000 * 8
    assert answer.headers["pushforward-seed"] == "7"
    lines_of_unknown_length = client.request("HEAD", "/sample", params=address(5), headers=NDJSON)
    assert "content-length" not in lines_of_unknown_length.headers


@pytest.mark.parametrize(
    ("change", "status"),
    [({"label": 0}, 422), ({"include": "label"}, 409), ({"observation": "draw"}, 409)],
)
def test_head_of_a_stream_says_what_get_would(
    client: Client, change: dict[str, str | int], status: int
) -> None:
    query = address(1000) | change
    answers = [
        client.request(method, "/sample", params=query, headers=NDJSON)
        for method in ("HEAD", "GET")
    ]
    assert [answer.status_code for answer in answers] == [status, status]


@pytest.mark.usefixtures("small_windows")
def test_stream_is_cut_with_a_last_line_that_says_where_to_go_on(
    make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = make_client(drain_s=1e-6)
    lines_of = streams._lines

    def drain_then(answer: Answer, first: int) -> bytes:
        if first >= 1024:
            client.app.state.context.drain.begin()
        return lines_of(answer, first)

    monkeypatch.setattr(streams, "_lines", drain_then)
    *rows, last = lines(client.get("/sample", params=address(50_000), headers=NDJSON).content)
    assert last["problem"]["code"] == "draining"
    assert last["start"] == len(rows) == rows[-1]["row"] + 1
    assert 1024 < len(rows) < 50_000


@contextmanager
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Let runs wait until the end of the context; yield what says that one has begun."""
    begun, go = threading.Event(), threading.Event()
    run = Session.run

    def wait(self: Session, feeds: Mapping[str, Array], outputs: Sequence[str]) -> object:
        begun.set()
        assert go.wait(30)
        return run(self, feeds, outputs)

    monkeypatch.setattr(Session, "run", wait)
    monkeypatch.setattr("service.queue.ALONE_S", 0.0)  # the event loop would wait
    try:
        yield begun
    finally:
        go.set()


def test_full_queue_is_429_with_the_time_to_come_back(
    make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = make_client(max_wait_s=1e-9)
    ask = [threading.Thread(target=client.get, args=("/sample?model=affine",)) for _ in range(2)]
    with held(monkeypatch) as begun:
        ask[0].start()
        assert begun.wait(10)
        ask[1].start()
        queue = client.app.state.context.repository.batcher.queue
        while not queue.waiting:
            pass
        answer = client.get("/sample", params=address(5))
        assert answer.status_code == 429
        assert answer.json()["code"] == "queue_full"
        assert int(answer.headers["retry-after"]) >= 1
        assert client.get("/livez").status_code == 200
    for thread in ask:
        thread.join()
    assert client.get("/sample", params=address(5)).status_code == 200


@pytest.mark.parametrize("path", ["/sample?model=affine", "/elbo?model=ppca"])
def test_deadline_is_504_and_drops_the_rows(
    client: Client, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    headers = {"Pushforward-Timeout-Ms": "50"}
    with held(monkeypatch):
        if path.startswith("/sample"):
            answer = client.get(path, headers=headers)
        else:
            answer = client.post(path, json={"x": [[0, 0, 0]]}, headers=headers)
        assert answer.status_code == 504
        assert answer.json()["code"] == "deadline_exceeded"
        assert "0.05 s" in answer.json()["detail"]
    assert client.app.state.context.repository.batcher.queue.waiting == 0


@pytest.mark.parametrize("text", ["soon", "-1", "0", "1.5", ""])
def test_deadline_that_is_no_number_is_refused(client: Client, text: str) -> None:
    headers = {"Pushforward-Timeout-Ms": text}
    answer = client.get("/sample", params=address(1), headers=headers)
    assert answer.status_code == 422
    assert answer.json()["field"] == "Pushforward-Timeout-Ms"
