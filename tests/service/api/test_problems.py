"""Errors on the wire: one table, one form, nothing leaked."""

import asyncio
import logging
from collections.abc import Iterator

import pytest

from service.api import problems
from service.errors import (
    BundleInvalid,
    DeviceUnavailable,
    EngineFailed,
    NotANumber,
    ServiceError,
)
from tests.service.conftest import Client, MakeClient


def tree(error: type[ServiceError]) -> Iterator[type[ServiceError]]:
    for child in error.__subclasses__():
        yield child
        yield from tree(child)


WITHOUT_REQUEST = {NotANumber, BundleInvalid, DeviceUnavailable}
"""Met while loading or starting, or made into another error before any answer."""


def test_table_covers_exactly_the_tree_of_errors() -> None:
    assert set(problems.STATUS) == set(tree(ServiceError)) - WITHOUT_REQUEST


def test_every_error_has_a_code_of_its_own() -> None:
    codes = [error.code for error in problems.STATUS]
    assert len(set(codes)) == len(codes)


def test_problem_has_the_form_of_rfc_9457(client: Client) -> None:
    answer = client.get("/sample?model=nothing")
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["cache-control"] == "no-store"
    detail = "There is no model 'nothing'. There are: affine, grains, ppca, tiles."
    assert answer.json() == {
        "type": "urn:pushforward:problem:model_not_found",
        "title": "Model not found",
        "status": 404,
        "detail": detail,
        "code": "model_not_found",
        "field": "model",
        "instance": "/sample",
    }


def test_unknown_address_is_a_problem(client: Client) -> None:
    for path in ("/nowhere", "/web/nowhere.js", "/models/affine/nowhere"):
        answer = client.get(path)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
        assert path in answer.json()["detail"]


def test_wrong_method_is_told_the_right_ones(client: Client) -> None:
    answer = client.request("DELETE", "/sample")
    assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed")
    assert answer.headers["allow"] == "GET, HEAD, POST"
    assert client.get("/encode").headers["allow"] == "POST"
    assert client.post("/livez").headers["allow"] == "GET, HEAD"
    assert client.post("/web/index.html").headers["allow"] == "GET"


def test_model_must_be_named_where_several_are_served(client: Client) -> None:
    answer = client.get("/sample")
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed")
    assert "affine, grains, ppca, tiles" in answer.json()["detail"]


def test_version_that_is_not_served_is_not_found(client: Client) -> None:
    answer = client.get("/sample?model=affine&version=9")
    assert (answer.status_code, answer.json()["field"]) == (404, "version")


def test_accept_of_nothing_we_have_is_not_acceptable(client: Client) -> None:
    answer = client.get("/sample?model=tiles", headers={"Accept": "text/csv"})
    assert (answer.status_code, answer.json()["code"]) == (406, "not_acceptable")


def test_failure_of_a_graph_is_logged_and_not_leaked(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(*args: object, **kwargs: object) -> None:
        raise EngineFailed("/secret/path/decode.onnx failed: it is broken")

    monkeypatch.setattr("service.sampling.sample", fail)
    answer = client.get("/sample?model=affine")
    assert (answer.status_code, answer.json()["code"]) == (500, "engine_failed")
    assert "secret" not in answer.text
    (record,) = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert record.exc_info
    assert "secret" in str(record.exc_info[1])


def test_bug_is_answered_and_not_leaked(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr("service.sampling.sample", fail)
    answer = client.get("/sample?model=affine")
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert "secret" not in answer.text
    assert client.get("/livez").status_code == 200


def test_client_that_leaves_in_mid_body_is_no_error(make_client: MakeClient) -> None:
    app = make_client().app
    sent = []
    messages: list[dict[str, object]] = [
        {"type": "http.request", "body": b"{", "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def receive() -> dict[str, object]:
        return messages.pop(0)

    async def send(message: object) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": "/sample", "raw_path": b"/sample",
        "query_string": b"", "headers": [(b"content-type", b"application/json")],
        "http_version": "1.1", "scheme": "http", "server": ("service", 80), "root_path": "",
        "client": None,
    }  # fmt: skip
    asyncio.run(app(scope, receive, send))
    assert messages == []
