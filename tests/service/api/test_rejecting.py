"""Rejection over HTTP: where it may be asked for, and what is then answered."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from service.api import schemas
from service.bundle import read
from service.interface import ATTEMPTS
from service.proof import replay
from service.session import Device, Session
from tests.service.api.test_oip_inference import arrays, infer, refused, tensor
from tests.service.bundles import WIDE, wide_log_ratio
from tests.service.conftest import Client, ask

ADDRESS = "/sample?model=wide&version=1&n=40&seed=7&rejection=true"
NPY = {"Accept": "application/x-npy"}


def test_models_say_whether_they_reject(rejecting: Client) -> None:
    said = rejecting.get("/models/wide").json()
    assert said["rejection"] == {
        "log_bound": pytest.approx(1.3862944), "acceptance": 0.25, "rows": 10_000,
        "attempts": ATTEMPTS,
    }  # fmt: skip
    assert said["rows_exact_at"].keys() == {"decode", "critic"}
    assert rejecting.get("/models/tiles").json()["rejection"] is None


def test_query_and_body_give_the_same_and_say_what_was_included(rejecting: Client) -> None:
    by_get = rejecting.get(f"{ADDRESS}&include=attempts,log_ratio,label").json()
    schemas.Sampled.model_validate(by_get)
    body = {"model": "wide", "n": 40, "seed": 7, "rejection": True}
    by_post = ask(rejecting, "sample", **body, include=["attempts", "log_ratio", "label"])
    assert by_get == by_post
    x, label = np.array(by_get["x"]), np.array(by_get["label"])
    np.testing.assert_allclose(by_get["log_ratio"], wide_log_ratio(x, label), atol=1e-5)
    assert min(by_get["attempts"]) == 1
    plain = ask(rejecting, "sample", model="wide", n=40, seed=7)
    assert plain["x"] != by_get["x"]
    assert plain == ask(rejecting, "sample", model="wide", n=40, seed=7, rejection=False)


def test_every_format_has_the_same_rows(rejecting: Client) -> None:
    said = rejecting.get(ADDRESS).json()
    assert set(said) == {"model", "version", "seed", "start", "x"}
    array = np.load(io.BytesIO(rejecting.get(ADDRESS, headers=NPY).content))
    np.testing.assert_array_equal(array, np.float32(said["x"]))
    lines = rejecting.get(f"{ADDRESS}&include=attempts", headers={"Accept": "application/x-ndjson"})
    rows = [json.loads(line) for line in lines.iter_lines()]
    assert [row["x"] for row in rows] == said["x"]
    assert all(1 <= row["attempts"] <= ATTEMPTS for row in rows)
    part = rejecting.get("/sample?model=wide&n=3&seed=7&start=20&rejection=true").json()
    assert part["x"] == said["x"][20:23]


def test_pictures_are_of_accepted_candidates(rejecting: Client) -> None:
    address = "/sample?model=kept-tiles&n=4&seed=1&label=1&rejection=true"
    picture = rejecting.get(f"{address}&columns=4", headers={"Accept": "image/png"})
    pixels = np.asarray(Image.open(io.BytesIO(picture.content)))
    x = np.array(rejecting.get(address).json()["x"])
    wanted = np.rint(255 * x[:, 0]).swapaxes(0, 1).reshape(4, 16)
    np.testing.assert_array_equal(pixels, wanted)


def test_the_tag_knows_of_rejection(rejecting: Client) -> None:
    tagged = rejecting.get(ADDRESS)
    assert tagged.headers["Cache-Control"] == "public, max-age=31536000, immutable"
    assert tagged.headers["ETag"] != rejecting.get(ADDRESS[:-4] + "false").headers["ETag"]
    again = rejecting.get(ADDRESS, headers={"If-None-Match": tagged.headers["ETag"]})
    assert again.status_code == 304


def test_an_answer_says_how_many_rows_were_never_accepted(rejecting: Client) -> None:
    assert rejecting.get(ADDRESS).headers["Pushforward-Unaccepted"] == "0"
    assert rejecting.get(ADDRESS, headers=NPY).headers["Pushforward-Unaccepted"] == "0"
    assert "Pushforward-Unaccepted" not in rejecting.get("/sample?model=wide").headers
    said = rejecting.get("/sample?model=strict&n=6&rejection=true&include=attempts")
    assert said.headers["Pushforward-Unaccepted"] == "6"
    assert said.json()["attempts"] == [0] * 6


@pytest.mark.parametrize(
    ("query", "status", "code", "field"),
    [
        ("model=tiles&rejection=true", 409, "capability_missing", "rejection"),
        ("model=tiles&include=log_ratio", 409, "capability_missing", "include"),
        ("model=wide&include=attempts", 422, "input_invalid", "include"),
        ("model=wide&rejection=true&temperature=0.5", 422, "input_invalid", "temperature"),
        ("model=wide&rejection=perhaps", 422, "input_invalid", "rejection"),
    ],
)
def test_what_cannot_be_is_refused_by_its_field(
    rejecting: Client, query: str, status: int, code: str, field: str
) -> None:
    answer = rejecting.get(f"/sample?{query}")
    said = answer.json()
    assert (answer.status_code, said["code"], said["field"]) == (status, code, field)


def test_the_other_protocol_has_the_critic_and_the_parameter(rejecting: Client) -> None:
    x = np.array([[0.0, 0.5], [2.0, 1.0]], np.float32)
    label = np.array([[0], [1]])
    asked = tensor("x", x), tensor("label", label, "INT64")
    told = arrays(infer(rejecting, "wide.critic", *asked))
    known = wide_log_ratio(x.astype(float), label[:, 0])
    np.testing.assert_allclose(told["log_ratio"], known, atol=1e-5)
    said: dict[str, Any] = {"n": 5, "seed": 7, "rejection": True}
    found = arrays(infer(rejecting, "wide.sample", parameters=said))
    native = ask(rejecting, "sample", model="wide", n=5, seed=7, rejection=True, include=["z"])
    np.testing.assert_array_equal(np.float32(found["x"]), np.float32(native["x"]))
    np.testing.assert_array_equal(np.float32(found["z"]), np.float32(native["z"]))
    text = refused(rejecting, "tiles.sample", parameters={"rejection": True})
    assert "has no critic" in text


def test_a_critic_is_held_to_its_golden_vectors(tmp_path: Path) -> None:
    bundle = read(WIDE.publish(tmp_path))
    errors = replay(bundle, ["critic"], Session(bundle, "critic", Device("cpu")))
    assert errors["critic"]["log_ratio"] < 1e-4
