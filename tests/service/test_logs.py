"""Lines for people and lines for programs, with the id of the request that they are about."""

import json
import logging
import sys
from collections.abc import Iterator
from typing import Any, Literal

import pytest

from service import logs
from service.logs import REQUEST_ID, JsonFormatter, TextFormatter


@pytest.fixture
def request_id() -> Iterator[str]:
    token = REQUEST_ID.set("mine")
    yield "mine"
    REQUEST_ID.reset(token)


def record(*, fails: bool = False) -> logging.LogRecord:
    error = None
    if fails:
        try:
            raise ZeroDivisionError("never")
        except ZeroDivisionError:
            error = sys.exc_info()
    return logging.LogRecord(
        "service.test", logging.WARNING, __file__, 1, "%d rows", (3,), error
    )  # fmt: skip


@pytest.mark.parametrize(("form", "formatter"), [("text", TextFormatter), ("json", JsonFormatter)])
def test_all_that_is_severe_enough_goes_to_stderr_in_the_form_asked_for(
    form: Literal["text", "json"],
    formatter: type[logging.Formatter],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: dict[str, Any] = {}
    monkeypatch.setattr(logging, "basicConfig", said.update)
    logs.set_up("warning", form)
    (handler,) = said["handlers"]
    assert said["level"] == "WARNING"
    assert handler.stream is sys.stderr
    assert type(handler.formatter) is formatter


def test_text_has_time_level_and_name() -> None:
    line = TextFormatter().format(record())
    assert line.endswith(" WARNING service.test: 3 rows")


def test_text_has_the_id_of_its_request(request_id: str) -> None:
    assert TextFormatter().format(record()).endswith(": 3 rows [mine]")
    first, *_, last = TextFormatter().format(record(fails=True)).splitlines()
    assert first.endswith(": 3 rows [mine]")
    assert last == "ZeroDivisionError: never"


def test_json_is_one_object_a_line(request_id: str) -> None:
    line = JsonFormatter().format(record(fails=True))
    assert "\n" not in line
    entry = json.loads(line)
    assert entry.pop("time").endswith("Z")
    assert entry.pop("trace").endswith("ZeroDivisionError: never")
    assert entry == {
        "level": "warning", "logger": "service.test", "message": "3 rows", "request_id": "mine",
    }  # fmt: skip


def test_json_without_a_request_has_no_id() -> None:
    assert "request_id" not in json.loads(JsonFormatter().format(record()))
