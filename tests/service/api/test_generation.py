"""GET and POST /sample: addresses, formats, caching."""

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from service import noise
from tests.service.bundles import AFFINE, MIX, SHIFT, affine_log_density
from tests.service.conftest import Client, MakeClient
from tests.service.test_proof import claiming

PNG = {"Accept": "image/png"}
NPY = {"Accept": "application/x-npy"}


def picture(body: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(body)))


def test_answer_says_what_it_is(client: Client) -> None:
    answer = client.post("/sample", json={"model": "affine", "n": 3, "seed": 5, "start": 2})
    assert answer.status_code == 200
    said = answer.json()
    assert {key: said[key] for key in ("model", "version", "seed", "start")} == {
        "model": "affine",
        "version": 1,
        "seed": 5,
        "start": 2,
    }
    assert set(said) == {"model", "version", "seed", "start", "x"}
    assert answer.headers["pushforward-model"] == "affine"
    assert answer.headers["pushforward-version"] == "1"
    assert answer.headers["pushforward-seed"] == "5"
    assert answer.headers["pushforward-start"] == "2"
    assert answer.headers["vary"] == "Accept"


def test_samples_are_the_documented_noise_pushed_forward(client: Client) -> None:
    said = client.post("/sample", json={"model": "affine", "n": 100, "seed": 9, "start": 40}).json()
    z = noise.normal(9, noise.Stream.LATENT, start=40, rows=100, size=2)
    np.testing.assert_allclose(said["x"], z @ MIX + SHIFT, atol=1e-5)


def test_get_and_post_and_npy_give_the_same_rows(client: Client) -> None:
    query = {"model": "affine", "n": 5, "seed": 1}
    by_get = client.get("/sample", params=query)
    by_post = client.post("/sample", json=query)
    npy = client.get("/sample", params=query, headers=NPY)
    assert by_get.content == by_post.content
    assert npy.headers["content-type"] == "application/x-npy"
    array = np.load(io.BytesIO(npy.content))
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, np.float32(by_get.json()["x"]))


@settings(max_examples=40)
@given(
    seed=st.integers(0, noise.SEEDS - 1),
    whole=st.integers(1, 150),
    start=st.integers(0, 2**40),
    data=st.data(),
)
@pytest.mark.parametrize("model", ["affine", "tiles"])
def test_any_slice_is_the_slice_of_the_whole(
    client: Client, model: str, seed: int, whole: int, start: int, data: st.DataObject
) -> None:
    first = data.draw(st.integers(0, whole - 1))
    n = data.draw(st.integers(1, whole - first))

    def rows(start: int, n: int) -> np.ndarray:
        query = {"model": model, "seed": seed, "start": start, "n": n}
        return read_npy(client.get("/sample", params=query, headers=NPY).content)

    np.testing.assert_array_equal(rows(start, whole)[first : first + n], rows(start + first, n))


def test_service_draws_a_seed_that_repeats_the_answer(client: Client) -> None:
    first = client.get("/sample", params={"model": "tiles"})
    second = client.get("/sample", params={"model": "tiles"})
    seed = first.json()["seed"]
    assert 0 <= seed < 2**53
    assert seed != second.json()["seed"]
    assert first.headers["cache-control"] == "no-store"
    assert "etag" not in first.headers
    again = client.get("/sample", params={"model": "tiles", "seed": seed})
    assert again.content == first.content


def test_largest_seed_and_last_row_are_served(client: Client) -> None:
    query = {"model": "affine", "seed": 2**63 - 1, "start": 2**53 - 2, "n": 2}
    assert client.get("/sample", params=query).status_code == 200
    beyond = client.get("/sample", params=query | {"n": 3})
    assert (beyond.status_code, beyond.json()["field"]) == (422, "start")


def test_include_returns_what_lies_behind_x(client: Client) -> None:
    query = {"model": "affine", "n": 4, "seed": 1, "include": "z,log_density"}
    said = client.get("/sample", params=query).json()
    np.testing.assert_allclose(np.array(said["z"]) @ MIX + SHIFT, said["x"], atol=1e-5)
    np.testing.assert_allclose(said["log_density"], affine_log_density(np.array(said["x"])), 1e-4)
    body = {"model": "tiles", "n": 3, "seed": 1, "include": ["label"]}
    labels = client.post("/sample", json=body).json()["label"]
    assert labels == noise.labels(1, start=0, rows=3, classes=3).tolist()


def test_include_has_no_room_in_other_formats(client: Client) -> None:
    query = {"model": "affine", "include": "z"}
    answer = client.get("/sample", params=query, headers=NPY)
    assert (answer.status_code, answer.json()["field"]) == (422, "include")


def test_include_of_a_density_that_is_not_exact_is_a_missing_capability(client: Client) -> None:
    answer = client.get("/sample", params={"model": "ppca", "include": "log_density"})
    assert (answer.status_code, answer.json()["code"]) == (409, "capability_missing")


def test_include_of_labels_that_a_model_has_not_is_a_missing_capability(client: Client) -> None:
    answer = client.get("/sample", params={"model": "ppca", "include": "label"})
    assert (answer.status_code, answer.json()["code"]) == (409, "capability_missing")
    assert answer.json()["detail"] == "ppca has no labels to include."


def test_labels_are_one_for_all_or_one_for_each(client: Client) -> None:
    query = {"model": "tiles", "n": 3, "seed": 2, "include": "label"}
    assert client.get("/sample", params=query | {"label": 2}).json()["label"] == [2, 2, 2]
    assert client.get("/sample", params=query | {"label": "0,1,2"}).json()["label"] == [0, 1, 2]
    body = {"model": "tiles", "n": 2, "seed": 2, "label": [1, 0], "include": ["label"]}
    assert client.post("/sample", json=body).json()["label"] == [1, 0]


def test_labels_may_be_named(client: Client) -> None:
    query = {"model": "tiles", "n": 3, "seed": 2, "include": "label"}
    light = client.get("/sample", params=query | {"label": "light"}).json()
    assert light == client.get("/sample", params=query | {"label": 2}).json()
    said = client.get("/sample", params=query | {"label": "dark,1,light"})
    assert said.json()["label"] == [0, 1, 2]
    body = {"model": "tiles", "n": 2, "seed": 2, "label": ["grey", 0], "include": ["label"]}
    assert client.post("/sample", json=body).json()["label"] == [1, 0]
    z = {"model": "tiles", "z": [[0, 0], [1, 1]]}
    by_name = client.post("/decode", json=z | {"label": "grey"}).json()
    assert by_name == client.post("/decode", json=z | {"label": 1}).json()
    sampled = client.post(
        "/v2/models/tiles.sample/infer", json={"parameters": {"label": "grey", "seed": 1}}
    )
    assert sampled.status_code == 200, sampled.text


@pytest.mark.parametrize(
    "label", [3, -1, [0], [0, 1, 3], "one", ["dark", "one", 1], "", 1.5, True, [[0]], 2**70]
)
def test_bad_labels_are_named(client: Client, label: object) -> None:
    answer = client.post("/sample", json={"model": "tiles", "n": 3, "label": label})
    assert answer.status_code == 422
    assert answer.json()["field"] == "label"


def test_label_is_the_same_in_query_and_body(client: Client) -> None:
    for query, label in (("1", 1), ("1", "1"), ("0,2", [0, 2]), ("grey", "grey")):
        call = {"model": "tiles", "n": 2, "seed": 1, "label": label}
        whole = client.post("/sample", json=call)
        twice = client.post(f"/sample?label={query}", json=call)
        assert (whole.status_code, twice.content) == (200, whole.content)


def test_labels_that_there_are_are_told_to_who_asks_for_another(client: Client) -> None:
    address = "/sample?model=tiles&label="
    for asked, got in (("one", "'one'"), ("99999999999", "'99999999999'"), ("-1", "'-1'")):
        detail = client.get(address + asked).json()["detail"]
        assert detail == f"field 'label': expected 0 to 2 (dark, grey, light); got {got}."


def test_label_of_a_model_without_labels_is_refused(client: Client) -> None:
    answer = client.get("/sample", params={"model": "affine", "label": 1})
    assert (answer.status_code, answer.json()["field"]) == (422, "label")


def test_temperature_scales_the_noise(client: Client) -> None:
    query = {"model": "affine", "n": 2, "seed": 3}
    cold = client.get("/sample", params=query | {"temperature": 0}).json()["x"]
    np.testing.assert_allclose(cold, [SHIFT, SHIFT], atol=1e-6)
    half = client.get("/sample", params=query | {"temperature": 0.5}).json()["x"]
    whole = client.get("/sample", params=query).json()["x"]
    np.testing.assert_allclose(np.array(half) - SHIFT, (np.array(whole) - SHIFT) / 2, atol=1e-5)


def test_observation_is_a_mean_or_a_draw(client: Client) -> None:
    query = {"model": "ppca", "n": 2000, "seed": 4}
    default = client.get("/sample", params=query).json()["x"]
    mean = client.get("/sample", params=query | {"observation": "mean"}).json()["x"]
    draw = client.get("/sample", params=query | {"observation": "draw"}).json()["x"]
    assert default == mean
    apart = np.array(draw) - np.array(mean)
    assert abs(apart.std() - 0.5) < 0.02


def test_observation_of_a_model_without_one_is_a_missing_capability(client: Client) -> None:
    answer = client.get("/sample", params={"model": "affine", "observation": "draw"})
    assert (answer.status_code, answer.json()["code"]) == (409, "capability_missing")


def test_one_image_is_one_picture(client: Client) -> None:
    answer = client.get("/sample", params={"model": "tiles", "seed": 7}, headers=PNG)
    assert answer.headers["content-type"] == "image/png"
    json = client.get("/sample", params={"model": "tiles", "seed": 7}).json()
    assert picture(answer.content).shape == (4, 4)
    np.testing.assert_array_equal(
        picture(answer.content), np.rint(255 * np.array(json["x"], dtype=np.float32)[0, 0])
    )


def test_second_row_of_the_grid_is_the_next_slice(client: Client) -> None:
    query = {"model": "tiles", "seed": 7}
    grid = picture(client.get("/sample", params=query | {"n": 16}, headers=PNG).content)
    line = picture(client.get("/sample", params=query | {"n": 8, "start": 8}, headers=PNG).content)
    assert grid.shape == (8, 32)
    np.testing.assert_array_equal(grid[4:], line)


def test_grid_takes_columns_and_fills_its_last_row_with_black(client: Client) -> None:
    query = {"model": "grains", "seed": 7, "n": 5, "columns": 3}
    grid = picture(client.get("/sample", params=query, headers=PNG).content)
    assert grid.shape == (4, 6, 3)
    assert not grid[2:, 4:].any()
    few = picture(client.get("/sample", params=query | {"n": 2}, headers=PNG).content)
    assert few.shape == (2, 4, 3)


def test_picture_of_vectors_is_not_acceptable_and_says_why(client: Client) -> None:
    answer = client.get("/sample", params={"model": "affine"}, headers=PNG)
    assert answer.status_code == 406
    assert "vectors, and that is no picture" in answer.json()["detail"]


def test_limit_names_n_and_the_most(make_client: MakeClient) -> None:
    client = make_client(max_values=1024)
    answer = client.get("/sample", params={"model": "tiles", "n": 65})
    assert (answer.status_code, answer.json()["field"]) == (422, "n")
    assert "at most 64 rows of tiles" in answer.json()["detail"]
    assert client.get("/sample", params={"model": "tiles", "n": 64}).status_code == 200
    assert client.get("/models/tiles").json()["limits"]["n"] == 64


def test_address_with_model_version_and_seed_may_be_kept_for_ever(client: Client) -> None:
    query = {"model": "tiles", "seed": 7, "version": 1}
    answer = client.get("/sample", params=query)
    assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
    tag = answer.headers["etag"]
    assert tag.startswith('"')
    only_seed = client.get("/sample", params={"model": "tiles", "seed": 7})
    assert only_seed.headers["cache-control"] == "no-cache"
    assert only_seed.headers["etag"] == tag


def test_tag_is_weak_where_bytes_depend_on_the_batch(
    make_client: MakeClient, tmp_path: Path
) -> None:
    claiming(AFFINE, None, tmp_path)
    client = make_client(models=tmp_path)
    query = {"seed": 7, "version": 1}
    answer = client.get("/sample", params=query)
    tag = answer.headers["etag"]
    assert tag.startswith('W/"')
    again = client.get("/sample", params=query, headers={"If-None-Match": tag})
    assert again.status_code == 304
    assert client.get("/models/affine").json()["rows_exact_at"]["decode"] is None


def test_address_without_its_model_is_to_be_revalidated(make_client: MakeClient) -> None:
    client = make_client(default_model="tiles")
    answer = client.get("/sample", params={"seed": 7, "version": 1})
    assert answer.headers["cache-control"] == "no-cache"
    assert "etag" in answer.headers


@pytest.mark.parametrize("accept", ["image/png", "application/json"])
def test_head_has_the_headers_of_get(client: Client, accept: str) -> None:
    query = {"model": "tiles", "seed": 7, "version": 1, "n": 4}
    headers = {"Accept": accept, "X-Request-Id": "the-same"}
    head = client.request("HEAD", "/sample", params=query, headers=headers)
    get = client.get("/sample", params=query, headers=headers)
    assert head.status_code == 200
    assert head.headers == get.headers
    known = headers | {"If-None-Match": get.headers["etag"]}
    assert client.request("HEAD", "/sample", params=query, headers=known).status_code == 304


def test_tag_differs_with_whatever_changes_the_bytes(client: Client) -> None:
    query = {"model": "tiles", "seed": 7}
    changes: list[dict[str, float]] = [
        {},
        {"n": 2},
        {"start": 1},
        {"label": 1},
        {"temperature": 0.5},
        {"seed": 8},
    ]
    tags = {client.get("/sample", params=query | change).headers["etag"] for change in changes}
    tags |= {
        client.get("/sample", params=query, headers=each).headers["etag"] for each in [NPY, PNG]
    }
    assert len(tags) == len(changes) + 2


def test_known_tag_is_answered_without_running_the_graph(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    query = {"model": "tiles", "seed": 7, "version": 1}
    tag = client.get("/sample", params=query).headers["etag"]

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the graph ran")

    monkeypatch.setattr("service.sampling.sample", refuse)
    for known in (tag, f'"other", W/{tag}', "*"):
        answer = client.get("/sample", params=query, headers={"If-None-Match": known})
        assert (answer.status_code, answer.content) == (304, b"")
        assert answer.headers["etag"] == tag
        assert answer.headers["cache-control"].endswith("immutable")


def test_other_tag_is_answered_in_full(client: Client) -> None:
    query = {"model": "tiles", "seed": 7}
    answer = client.get("/sample", params=query, headers={"If-None-Match": '"other"'})
    assert answer.status_code == 200


def test_post_without_a_body_takes_its_parameters_from_the_query(client: Client) -> None:
    answer = client.post("/sample", params={"model": "affine", "n": 2, "seed": 3})
    assert len(answer.json()["x"]) == 2


def test_only_model_is_its_own_default(make_client: MakeClient) -> None:
    assert make_client(default_model="affine").get("/sample").json()["model"] == "affine"


def test_decode_pushes_z_forward(client: Client) -> None:
    z = np.random.default_rng(0).normal(size=(70, 2))
    answer = client.post("/decode", json={"model": "affine", "z": z.tolist()})
    assert answer.headers["pushforward-version"] == "1"
    assert set(answer.json()) == {"model", "version", "x"}
    np.testing.assert_allclose(answer.json()["x"], z @ MIX + SHIFT, atol=1e-5)


def test_decode_reads_and_writes_npy(client: Client) -> None:
    z = np.random.default_rng(0).normal(size=(3, 2))
    answer = client.post(
        "/decode?model=affine",
        content=npy(z),
        headers=NPY | {"Content-Type": "application/x-npy"},
    )
    np.testing.assert_allclose(np.load(io.BytesIO(answer.content)), z @ MIX + SHIFT, atol=1e-5)


def test_decode_of_a_model_with_labels_wants_one(client: Client) -> None:
    body = {"model": "tiles", "z": [[0, 0], [1, 1]]}
    answer = client.post("/decode", json=body)
    assert (answer.status_code, answer.json()["field"]) == (422, "label")
    assert client.post("/decode", json=body | {"label": 1}).status_code == 200
    assert client.post("/decode", json=body | {"label": [0, 2]}).status_code == 200
    assert client.post("/decode", json=body | {"label": [0]}).status_code == 422


def test_decode_answers_a_picture(client: Client) -> None:
    body = {"model": "tiles", "z": [[0, 0]] * 3, "label": [0, 1, 2], "columns": 2}
    assert picture(client.post("/decode", json=body, headers=PNG).content).shape == (8, 8)


def test_decode_counts_the_values_of_its_answer(make_client: MakeClient) -> None:
    client = make_client(max_values=1024)
    answer = client.post("/decode", json={"model": "tiles", "z": [[0, 0]] * 65, "label": 0})
    assert (answer.status_code, answer.json()["field"]) == (422, "z")


@pytest.mark.parametrize("z", [[0, 0], [[0, 0, 0]], [], [[None, 0]], [["0", "0"]], "0", 1, None])
def test_decode_names_a_bad_z(client: Client, z: object) -> None:
    answer = client.post("/decode", json={"model": "affine", "z": z})
    assert (answer.status_code, answer.json()["field"]) == (422, "z")


def test_picture_is_no_z(client: Client) -> None:
    answer = client.post(
        "/decode?model=tiles&label=0", content=b"\x89PNG", headers={"Content-Type": "image/png"}
    )
    assert answer.status_code == 415


def read_npy(body: bytes) -> np.ndarray:
    return np.asarray(np.load(io.BytesIO(body)))


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()
