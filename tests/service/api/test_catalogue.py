"""/models and what lies under it."""

from pathlib import Path

import numpy as np
import pytest

from service.interface import Density, Event, Interface, Latent
from tests.service.bundles import AFFINE, TILES
from tests.service.conftest import Client, MakeClient
from tests.service.tiny import Tiny


def test_list_says_in_short_what_every_model_is(client: Client) -> None:
    said = client.get("/models").json()
    assert said["default"] is None  # several, and no setting
    assert [model["name"] for model in said["models"]] == ["affine", "grains", "ppca", "tiles"]
    affine, _, ppca, tiles = said["models"]
    assert affine["device"] == client.get("/models/affine").json()["device"]
    assert (affine["state"], affine["version"], affine["versions"]) == ("ready", 1, [1])
    assert affine["event"]["features"] == ["left", "right"]
    assert affine["capabilities"] == ["sample", "decode", "encode", "log-density"]
    assert ppca["capabilities"] == ["sample", "decode", "encode", "log-density", "elbo"]
    assert (ppca["observation"], ppca["density"]["estimator"]) == ("normal", "importance")
    assert tiles["labels"] == ["dark", "grey", "light"]
    assert (tiles["capabilities"], tiles["density"]["kind"]) == (["sample", "decode"], "none")
    assert tiles["event"]["shape"] == [1, 4, 4]
    assert tiles["evaluation"][0]["standard_error"] == 0.1


def test_model_says_everything_of_itself(client: Client) -> None:
    said = client.get("/models/affine").json()
    assert said["latent"]["shape"] == [2]
    assert said["device"]["kind"] == "cpu"
    assert said["device"]["nodes"]["decode"].keys() == {"cpu"}
    assert 0 <= said["golden"]["errors"]["decode"]["x"] < 1e-4
    assert said["golden"]["tolerance"]["decode"]["x"] == {"absolute": 1e-4, "relative": 1e-5}
    assert said["rows_exact_at"] == {"decode": 8, "encode": 8, "log_density": 8}
    assert said["provenance"]["data"].startswith("none")
    assert said["licence"] == "Apache-2.0"
    assert said["limits"] == {
        "n": 2**21, "draws": 100_000, "refine": 200, "steps": 200, "columns": 64,
        "body_bytes": 32 * 2**20,
    }  # fmt: skip


@pytest.mark.parametrize("path", ["", "/card", "/samples.png"])
def test_unknown_model_is_not_found(client: Client, path: str) -> None:
    answer = client.get(f"/models/nothing{path}")
    assert (answer.status_code, answer.json()["code"]) == (404, "model_not_found")


def test_card_is_served_and_a_missing_picture_is_not_found(client: Client) -> None:
    card = client.get("/models/affine/card")
    assert card.headers["content-type"].startswith("text/markdown")
    assert card.text == "# A tiny model\n"
    answer = client.get("/models/affine/samples.png")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize("path", ["/models", "/models/affine"])
def test_head_has_the_headers_of_get(client: Client, path: str) -> None:
    named = {"X-Request-Id": "the-same"}
    head, get = (client.request(method, path, headers=named) for method in ("HEAD", "GET"))
    assert (head.status_code, head.headers) == (200, get.headers)


@pytest.mark.parametrize("file", ["samples.png", "curves.png", "diagnostics.png"])
def test_pictures_of_a_card_are_served(make_client: MakeClient, tmp_path: Path, file: str) -> None:
    (AFFINE.publish(tmp_path) / file).write_bytes(file.encode())
    answer = make_client(models=tmp_path).get(f"/models/affine/{file}")
    assert (answer.content, answer.headers["content-type"]) == (file.encode(), "image/png")


@pytest.mark.parametrize(("path", "file"), [("card", "card.md"), ("samples.png", "samples.png")])
def test_link_that_leads_out_of_the_folder_is_not_followed(
    make_client: MakeClient, tmp_path: Path, path: str, file: str
) -> None:
    folder = AFFINE.publish(tmp_path / "models")
    secret = tmp_path / "secret"
    secret.write_text("for the operator alone")
    (folder / file).unlink(missing_ok=True)
    (folder / file).symlink_to(secret)
    answer = make_client(models=tmp_path / "models").get(f"/models/affine/{path}")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


def test_default_is_the_model_that_is_used_without_a_name(
    make_client: MakeClient, models: Path, tmp_path: Path
) -> None:
    AFFINE.publish(tmp_path)
    for client in (make_client(models=tmp_path), make_client(models=models, default_model="ppca")):
        default = client.get("/models").json()["default"]
        assert default == client.get("/sample").json()["model"]


def test_limit_of_rows_counts_whichever_of_x_and_z_has_more_values(
    make_client: MakeClient, tmp_path: Path
) -> None:
    weight = np.ones((64, 1), np.float32)
    sums = Tiny(
        name="sums",
        interface=Interface(
            family="gan",
            event=Event(kind="vector", shape=(1,)),
            latent=Latent(shape=(64,)),
            density=Density(kind="none", estimator=None),
        ),
        nodes={"decode": "x = MatMul(z, weight)"},
        constants={"weight": weight},
        references={"decode": lambda z: {"x": z.astype(float) @ weight}},
    )
    sums.publish(tmp_path)
    client = make_client(models=tmp_path, max_values=1024)
    assert client.get("/models/sums").json()["limits"]["n"] == 16


def test_refused_versions_are_told_with_their_reasons(
    make_client: MakeClient, tmp_path: Path
) -> None:
    AFFINE.publish(tmp_path)
    broken = AFFINE.publish(tmp_path, version=2)
    (broken / "decode.onnx").write_bytes(b"")
    lost = TILES.publish(tmp_path)
    (lost / "manifest.json").unlink()
    client = make_client(models=tmp_path)
    said = client.get("/models/affine").json()
    assert (said["state"], said["version"], said["versions"]) == ("ready", 1, [2, 1])
    assert "SHA-256" in said["problems"]["2"]
    said = client.get("/models/tiles").json()
    assert (said["state"], said["version"]) == ("failed", None)
    assert "no manifest.json" in said["problems"]["1"]
    answer = client.get("/sample?model=tiles")
    assert (answer.status_code, answer.json()["code"]) == (404, "model_not_found")
    assert client.get("/readyz").status_code == 200
    assert client.get("/models/tiles/card").status_code == 404
