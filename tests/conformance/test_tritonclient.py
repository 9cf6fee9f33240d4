"""NVIDIA's client, its blocking and its asyncio side, as it comes."""

import asyncio
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as aio
from tritonclient.utils import InferenceServerException

from tests.service.bundles import affine_log_density

Z = np.random.default_rng(0).normal(size=(200, 2)).astype(np.float32)
LABEL = np.arange(200, dtype=np.int64).reshape(-1, 1) % 3
COMPRESSIONS = [None, "gzip", "deflate"]


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[triton.InferenceServerClient]:
    client = triton.InferenceServerClient(address)
    yield client
    client.close()


def tensor(
    module: ModuleType, name: str, values: npt.NDArray[Any], *, binary: bool = True
) -> triton.InferInput:
    datatype = {"f": "FP32", "i": "INT64", "u": "UINT8"}[values.dtype.kind]
    item = module.InferInput(name, list(values.shape), datatype)
    item.set_data_from_numpy(values, binary_data=binary)
    return item


def test_server_and_models_are_found_ready(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tiles.decode")
    assert client.is_model_ready("tiles.decode", model_version="1")
    assert not client.is_model_ready("tiles.decode", model_version="2")
    assert not client.is_model_ready("nothing.decode")


def test_what_is_served_is_described(client: triton.InferenceServerClient) -> None:
    said = client.get_server_metadata()
    assert said["name"] == "pushforward"
    assert {"statistics", "model_configuration", "model_repository"} <= set(said["extensions"])
    metadata = client.get_model_metadata("tiles.decode")
    assert [each["name"] for each in metadata["inputs"]] == ["z", "label"]
    configuration = client.get_model_config("tiles.decode", model_version="1")
    assert configuration["max_batch_size"] > 0
    index = client.get_model_repository_index()
    assert {"name": "ppca.elbo", "version": "1", "state": "READY", "reason": ""} in index


def test_statistics_rise_by_what_was_asked(client: triton.InferenceServerClient) -> None:
    def rows() -> tuple[int, int]:
        (said,) = client.get_inference_statistics("affine.encode")["model_stats"]
        return said["inference_count"], said["inference_stats"]["success"]["count"]

    before = rows()
    client.infer("affine.encode", [tensor(triton, "x", Z)])
    assert rows() == (before[0] + 200, before[1] + 1)
    assert len(client.get_inference_statistics()["model_stats"]) > 10


@pytest.mark.parametrize("sent", COMPRESSIONS)
@pytest.mark.parametrize("returned", COMPRESSIONS)
@pytest.mark.parametrize("binary_out", [True, False])
@pytest.mark.parametrize("binary_in", [True, False])
def test_every_form_gives_the_same_images(
    client: triton.InferenceServerClient,
    binary_in: bool,
    binary_out: bool,
    sent: str | None,
    returned: str | None,
) -> None:
    answer = client.infer(
        "tiles.decode",
        [tensor(triton, "z", Z, binary=binary_in), tensor(triton, "label", LABEL)],
        outputs=[
            triton.InferRequestedOutput("x", binary_data=binary_out),
            triton.InferRequestedOutput("pixels", binary_data=True),
        ],
        request_id="17",
        request_compression_algorithm=sent,
        response_compression_algorithm=returned,
    )
    assert answer.get_response()["id"] == "17"
    x, pixels = answer.as_numpy("x"), answer.as_numpy("pixels")
    assert (x.dtype, pixels.dtype) == (np.float32, np.uint8)
    plain = client.infer("tiles.decode", [tensor(triton, "z", Z), tensor(triton, "label", LABEL)])
    np.testing.assert_array_equal(x, plain.as_numpy("x"))
    np.testing.assert_array_equal(pixels, plain.as_numpy("pixels"))


def test_samples_need_no_input_and_tell_their_seed(client: triton.InferenceServerClient) -> None:
    first = client.infer("affine.sample", [], parameters={"n": 5})
    seed = first.get_response()["parameters"]["seed"]
    rows = np.zeros((5, 1), np.uint8)
    again = client.infer("affine.sample", [tensor(triton, "rows", rows)], parameters={"seed": seed})
    np.testing.assert_array_equal(first.as_numpy("x"), again.as_numpy("x"))
    assert first.as_numpy("x").shape == (5, 2)


@pytest.mark.parametrize("binary", [True, False])
def test_impossible_event_has_minus_infinity(
    client: triton.InferenceServerClient, binary: bool
) -> None:
    x = np.array([[3e38, 0], [1, -1]], np.float32)
    outputs = [triton.InferRequestedOutput("log_density", binary_data=binary)]
    answer = client.infer("affine.log_density", [tensor(triton, "x", x)], outputs=outputs)
    found = answer.as_numpy("log_density")
    assert np.isneginf(found[0])
    np.testing.assert_allclose(found[1:], affine_log_density(x[1:].astype(np.float64)), rtol=1e-5)


def test_reserved_words_of_the_client_are_understood(client: triton.InferenceServerClient) -> None:
    client.infer("affine.decode", [tensor(triton, "z", Z)], priority=1, timeout=5_000_000)


@pytest.mark.parametrize(
    ("model", "item", "reason"),
    [
        ("nothing.decode", ("z", Z), "There is no model 'nothing.decode'"),
        ("affine.decode", ("y", Z), "input 'y': unknown here"),
        ("affine.decode", ("z", LABEL), "expected datatype FP32; got INT64"),
        ("affine.decode", ("z", Z * np.float32(np.inf)), "must be finite"),
        ("tiles.decode", ("z", Z), "input 'label': it is missing"),
    ],
)
def test_refusal_is_told_as_the_client_can_read_it(
    client: triton.InferenceServerClient,
    model: str,
    item: tuple[str, npt.NDArray[Any]],
    reason: str,
) -> None:
    with pytest.raises(InferenceServerException, match=reason) as caught:
        client.infer(model, [tensor(triton, *item)])
    assert caught.value.status() in ("400", "404")


def test_loading_on_request_is_refused(client: triton.InferenceServerClient) -> None:
    for change in (client.load_model, client.unload_model):
        with pytest.raises(InferenceServerException, match="the folder of models decides"):
            change("affine.decode")


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_asyncio_side_gives_the_same(
    client: triton.InferenceServerClient, address: str, compression: str | None
) -> None:
    async def ask() -> list[aio.InferResult]:
        async with aio.InferenceServerClient(address) as client:
            assert await client.is_server_live()
            assert await client.is_server_ready()
            assert await client.is_model_ready("affine.decode")
            assert (await client.get_server_metadata())["name"] == "pushforward"
            return await asyncio.gather(
                *(
                    client.infer(
                        "affine.decode",
                        [tensor(aio, "z", Z, binary=binary)],
                        request_compression_algorithm=compression,
                        response_compression_algorithm=compression,
                    )
                    for binary in (True, False)
                )
            )

    expected = client.infer("affine.decode", [tensor(triton, "z", Z)]).as_numpy("x")
    for answer in asyncio.run(ask()):
        np.testing.assert_array_equal(answer.as_numpy("x"), expected)
