"""/v2 beside inference: what is served, whether it is ready, what it was asked."""

from pathlib import Path
from typing import Any

import pytest

from service.errors import EngineFailed
from tests.service.bundles import AFFINE
from tests.service.conftest import Client, MakeClient

NAMES = {
    "affine.sample", "affine.decode", "affine.encode", "affine.log_density",
    "grains.sample", "grains.decode", "grains.encode", "grains.log_density",
    "ppca.sample", "ppca.decode", "ppca.observe", "ppca.encode", "ppca.elbo",
    "ppca.likelihood", "ppca.refine",
    "tiles.sample", "tiles.decode",
}  # fmt: skip


@pytest.mark.parametrize("path", ["/v2", "/v2/"])
def test_server_says_what_it_is_without_a_detour(client: Client, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 200
    said = answer.json()
    assert said["name"] == "pushforward"
    assert set(said) == {"name", "version", "extensions"}
    assert "binary_tensor_data" in said["extensions"]


def test_health_is_what_both_readings_of_the_specification_want(client: Client) -> None:
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"live": True, "ready": True}
    ready = client.get("/v2/models/affine.decode/ready")
    assert ready.json() == {"name": "affine.decode", "ready": True}


def test_every_graph_is_a_model_and_sampling_is_one(client: Client) -> None:
    assert set(client.get("/v2/models").json()["models"]) == NAMES


def test_metadata_are_the_tensors_of_the_graph(client: Client) -> None:
    said = client.get("/v2/models/tiles.decode").json()
    assert said == {
        "name": "tiles.decode",
        "versions": ["1"],
        "platform": "onnx_onnxv1",
        "inputs": [
            {"name": "z", "datatype": "FP32", "shape": [-1, 2]},
            {"name": "label", "datatype": "INT64", "shape": [-1, 1]},
        ],
        "outputs": [
            {"name": "x", "datatype": "FP32", "shape": [-1, 1, 4, 4]},
            {"name": "pixels", "datatype": "UINT8", "shape": [-1, 4, 4, 1]},
        ],
    }
    assert client.get("/v2/models/tiles.decode/versions/1").json() == said
    elbo = client.get("/v2/models/ppca.elbo").json()
    assert [each["shape"] for each in elbo["inputs"]] == [[-1, 3], [-1, -1, 2]]
    sample = client.get("/v2/models/tiles.sample").json()
    assert [each["name"] for each in sample["outputs"]] == ["x", "pixels", "z", "label"]


def test_configuration_says_what_may_be_left_out(client: Client) -> None:
    said = client.get("/v2/models/ppca.elbo/config").json()
    assert said["max_batch_size"] == 2**22 // 3
    assert said["input"] == [
        {"name": "x", "data_type": "TYPE_FP32", "dims": [3], "optional": False},
        {"name": "noise", "data_type": "TYPE_FP32", "dims": [-1, 2], "optional": True},
    ]
    assert said["output"][1] == {"name": "kl", "data_type": "TYPE_FP32", "dims": []}
    assert said["instance_group"][0]["kind"] == "KIND_CPU"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/nowhere", 404),
        ("GET", "/v2/models/nothing.decode", 404),
        ("GET", "/v2/models/affine", 404),
        ("GET", "/v2/models/affine.elbo/ready", 404),
        ("GET", "/v2/models/tiles.encode/config", 404),
        ("GET", "/v2/models/affine.decode/versions/7/ready", 404),
        ("POST", "/v2/models/affine.elbo/infer", 404),
        ("GET", "/v2/models/affine.decode/infer", 405),
        ("DELETE", "/v2", 405),
        ("POST", "/v2/models/affine.decode/infer", 400),
        ("POST", "/v2/repository/models/affine.decode/load", 400),
        ("POST", "/v2/repository/models/affine.decode/unload", 400),
    ],
)
def test_error_is_what_clients_of_the_protocol_read(
    client: Client, method: str, path: str, status: int
) -> None:
    answer = client.request(method, path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    assert list(answer.json()) == ["error"]


def test_name_without_a_task_is_told_the_tasks(client: Client) -> None:
    text = client.get("/v2/models/affine").json()["error"]
    assert "affine.sample, affine.decode, affine.encode, affine.log_density" in text
    text = client.get("/v2/models/affine.elbo").json()["error"]
    assert text.endswith("affine has: affine.sample, affine.decode, affine.encode, "
                         "affine.log_density.")  # fmt: skip


def test_neighbours_of_the_address_keep_their_own_errors(client: Client) -> None:
    answer = client.get("/v2nowhere")
    assert answer.headers["content-type"] == "application/problem+json"


def test_failure_is_counted_logged_and_not_leaked(
    make_client: MakeClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client = make_client()

    async def fail(*args: object, **kwargs: object) -> None:
        raise EngineFailed("/secret/decode.onnx failed")

    monkeypatch.setattr("service.engine.Engine.run", fail)
    body = {"inputs": [{"name": "z", "datatype": "FP32", "shape": [1, 2], "data": [0, 0]}]}
    answer = client.post("/v2/models/affine.decode/infer", json=body)
    assert (answer.status_code, list(answer.json())) == (500, ["error"])
    assert "secret" not in answer.text
    assert "secret" in caplog.text
    stats = statistics(client, "affine.decode")
    assert (stats["success"]["count"], stats["fail"]["count"]) == (0, 1)


def test_bug_is_answered_in_the_same_form(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr("service.api.oip.models.metadata", fail)
    answer = client.get("/v2/models/affine.decode")
    assert (answer.status_code, list(answer.json())) == (500, ["error"])
    assert "secret" not in answer.text


def statistics(client: Client, model: str) -> dict[str, Any]:
    (said,) = client.get(f"/v2/models/{model}/stats").json()["model_stats"]
    stats: dict[str, Any] = said["inference_stats"]
    return stats


def test_statistics_count_requests_rows_and_time(make_client: MakeClient) -> None:
    client = make_client()
    (before,) = client.get("/v2/models/affine.sample/stats").json()["model_stats"]
    assert (before["inference_count"], before["last_inference"]) == (0, 0)
    for n in (3, 4):
        client.post("/v2/models/affine.sample/infer", json={"parameters": {"n": n}})
    client.post("/v2/models/affine.sample/infer", json={"parameters": {"n": 0}})
    (after,) = client.get("/v2/models/affine.sample/versions/1/stats").json()["model_stats"]
    assert (after["inference_count"], after["execution_count"]) == (7, 2)
    assert after["last_inference"] > 1.6e12
    stats = after["inference_stats"]
    assert (stats["success"]["count"], stats["fail"]["count"]) == (2, 1)
    assert stats["queue"]["count"] == 2  # what perf_analyzer finds the version by
    parts = [stats[f"compute_{part}"]["ns"] for part in ("input", "infer", "output")]
    assert min(parts) > 0
    assert sum(parts) + stats["queue"]["ns"] == stats["success"]["ns"]
    every = client.get("/v2/models/stats").json()["model_stats"]
    assert {each["name"] for each in every} == NAMES
    assert sum(each["execution_count"] for each in every) == 2


def test_index_lists_what_serves_and_what_does_not(make_client: MakeClient, tmp_path: Path) -> None:
    AFFINE.publish(tmp_path)
    AFFINE.publish(tmp_path, version=2)
    (tmp_path / "affine/2/decode.onnx").write_bytes(b"broken")
    client = make_client(models=tmp_path)
    index = client.post("/v2/repository/index").json()
    assert [each["name"] for each in index if each["state"] == "READY"] == [
        "affine.sample", "affine.decode", "affine.encode", "affine.log_density",
    ]  # fmt: skip
    (broken,) = [each for each in index if each["state"] != "READY"]
    assert (broken["version"], broken["state"]) == ("2", "UNAVAILABLE")
    assert "decode.onnx" in broken["reason"]
    ready = client.post("/v2/repository/index", json={"ready": True}).json()
    assert len(ready) == 4
    assert client.post("/v2/repository/index", content=b"{").status_code == 400
    assert client.post("/v2/repository/index", content=b" " * 2000).status_code == 413


def test_older_version_is_served_when_it_is_named(make_client: MakeClient, tmp_path: Path) -> None:
    AFFINE.publish(tmp_path)
    AFFINE.publish(tmp_path, version=2)
    client = make_client(models=tmp_path)
    address = "/v2/models/affine.sample"
    assert client.get(address).json()["versions"] == ["1", "2"]
    index = client.post("/v2/repository/index").json()
    (older,) = [each for each in index if each["version"] == "1"]
    assert (older["state"], older["reason"]) == ("UNAVAILABLE", "It is not loaded now.")
    for version in ("1", "2"):
        assert client.get(f"{address}/versions/{version}/ready").status_code == 200
        answer = client.post(f"{address}/versions/{version}/infer", json={}).json()
        assert answer["model_version"] == version
    index = client.post("/v2/repository/index", json={"ready": True}).json()
    assert {each["version"] for each in index} == {"1", "2"}
    said = client.get("/v2/models/stats").json()["model_stats"]
    counts = {each["version"]: each["inference_count"] for each in said
              if each["name"] == "affine.sample"}  # fmt: skip
    assert counts == {"1": 1, "2": 1}
    alone = make_client(models=tmp_path, old_versions=0)
    assert alone.get(address).json()["versions"] == ["2"]


def test_nothing_is_ready_where_nothing_is_served(make_client: MakeClient, tmp_path: Path) -> None:
    (tmp_path / "empty/1").mkdir(parents=True)
    client = make_client(models=tmp_path)
    for path in ("/v2/health/ready",):
        answer = client.get(path)
        assert (answer.status_code, list(answer.json())) == (503, ["error"])
        assert answer.headers["retry-after"]
    assert client.get("/v2/health/live").status_code == 200
    assert client.get("/v2/models").json() == {"models": []}
