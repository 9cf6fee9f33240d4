"""/livez and /readyz, before, while and after models are loaded."""

import threading
from pathlib import Path

import pytest

from service.repository import Repository
from tests.service.conftest import Client, MakeClient


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_ready_service_is_alive_and_ready(client: Client, method: str) -> None:
    for path in ("/livez", "/readyz"):
        answer = client.request(method, path)
        assert answer.status_code == 200
        assert answer.headers["cache-control"] == "no-store"


def test_service_is_alive_and_not_ready_while_it_loads(
    make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()
    load = Repository.load

    def wait_and_load(self: Repository) -> None:
        assert go.wait(10)
        load(self)

    monkeypatch.setattr(Repository, "load", wait_and_load)
    client = make_client(wait=False)
    assert client.get("/livez").status_code == 200
    for path in ("/readyz", "/sample?model=affine", "/models/affine/card"):
        answer = client.get(path)
        assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
        assert int(answer.headers["retry-after"]) > 0
    assert client.get("/models/affine").json()["state"] == "loading"
    go.set()


def test_service_without_a_model_is_alive_and_never_ready(
    make_client: MakeClient, tmp_path: Path
) -> None:
    client = make_client(models=tmp_path)
    assert client.get("/livez").status_code == 200
    answer = client.get("/readyz")
    assert answer.status_code == 503
    assert "No model is served" in answer.json()["detail"]
    assert client.get("/models").json()["models"] == []
    assert client.get("/sample").status_code == 400
