"""The real process on a real socket: large bodies, leaving clients, signals."""

import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.process import Process

TOO_LARGE = 100_000_000


@pytest.fixture(scope="module")
def server(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    server = Process(models, tmp_path_factory.mktemp("server") / "log")
    server.wait_until_ready()
    yield server
    if server.process.poll() is None:
        assert server.stop() == 0
    assert "Traceback" not in server.log.read_text()


@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_sender_of_a_huge_body_hears_that_it_is_too_large(server: Process, framing: str) -> None:
    piece = b"0" * 1_000_000

    def chunks() -> Iterator[bytes]:
        for _ in range(TOO_LARGE // len(piece)):
            yield piece

    headers = {"Content-Type": "application/json"}
    if framing == "length":
        headers["Content-Length"] = str(TOO_LARGE)
    answer = httpx.post(f"{server.url}/encode", content=chunks(), headers=headers, timeout=60)
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")
    assert answer.headers["connection"] == "close"
    assert httpx.get(f"{server.url}/livez").status_code == 200


@pytest.mark.parametrize("expect", ["Expect: 100-continue", "Expect:"])
def test_curl_hears_that_its_huge_body_is_too_large(
    server: Process, expect: str, tmp_path: Path
) -> None:
    huge = tmp_path / "huge"
    with huge.open("wb") as file:
        file.truncate(TOO_LARGE)
    answer = subprocess.run(
        ["curl", "--silent", "--show-error", "--write-out", "%{http_code}", "--header", expect,
         "--header", "Content-Type: application/json", "--data-binary", f"@{huge}",
         f"{server.url}/encode"],
        capture_output=True, check=True, text=True, timeout=60,
    )  # fmt: skip
    assert answer.stdout.endswith("413")
    assert "body_too_large" in answer.stdout


def test_client_that_leaves_in_mid_body_leaves_no_trace(server: Process) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as leaving:
        leaving.sendall(
            b"POST /encode?model=ppca HTTP/1.1\r\nHost: service\r\n"
            b"Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
        )
    assert httpx.get(f"{server.url}/sample?model=affine").status_code == 200
    assert "Traceback" not in server.log.read_text()


def test_log_has_requests_and_no_probes(server: Process) -> None:
    httpx.get(f"{server.url}/sample?model=affine&n=3&seed=12345")
    httpx.get(f"{server.url}/livez")
    log = server.log.read_text()
    assert "seed=12345" in log
    assert "/livez" not in log


def test_same_address_gives_the_same_bytes_in_another_process(
    server: Process, models: Path, tmp_path: Path
) -> None:
    other = Process(models, tmp_path / "log")
    other.wait_until_ready()
    path = "/sample?model=tiles&n=16&seed=7"
    first, second = (
        httpx.get(f"{each.url}{path}", headers={"Accept": "image/png"}) for each in (server, other)
    )
    assert first.content == second.content
    assert first.headers["etag"] == second.headers["etag"]
    assert other.stop() == 0
    assert "Traceback" not in other.log.read_text()


@pytest.mark.parametrize("after_s", [0.3, 0.5, 0.7])
def test_signal_while_starting_ends_the_process(
    models: Path, tmp_path: Path, after_s: float
) -> None:
    starting = Process(models, tmp_path / "log")
    time.sleep(after_s)
    assert starting.stop() in (0, -signal.SIGTERM)
    assert "Traceback" not in starting.log.read_text()
