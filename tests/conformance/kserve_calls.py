"""Asks a service what a KServe client asks, and prints the answers as JSON.

A program and no test: it runs in an environment of its own (test_kserve.py).
"""

import asyncio
import sys

import httpx
import numpy as np
import orjson
from kserve import InferInput, InferRequest, InferResponse, RESTConfig
from kserve.inference_client import InferenceRESTClient
from kserve.protocol.infer_type import RequestedOutput

X = np.array([[1.0, -1.0], [3e38, 0.0]], np.float32)


async def ask(url: str) -> dict[str, object]:
    """Return what every call of the client says."""
    client = InferenceRESTClient(RESTConfig(protocol="v2"))
    try:
        said: dict[str, object] = {
            "live": await client.is_server_live(url),
            "ready": await client.is_server_ready(url),
            "model_ready": await client.is_model_ready(url, "affine.log_density"),
            "nothing_ready": await client.is_model_ready(url, "nothing.decode"),
        }
        for binary in (True, False):
            answer = await client.infer(url, densities(binary), model_name="affine.log_density")
            # As text: JSON has no infinities.
            said[f"binary {binary}"] = [str(each) for each in numbers(answer, "log_density")]
        sampled = await client.infer(
            url,
            InferRequest("affine.sample", [], parameters={"n": 3, "seed": 7}),
            model_name="affine.sample",
        )
        said["seed"] = sampled.parameters["seed"]
        said["sample"] = numbers(sampled, "x").tolist()
        try:
            await client.infer(url, densities(True), model_name="affine.decode")
        except httpx.HTTPStatusError as error:
            said["refusal"] = str(error)
        return said
    finally:
        await client.close()


def densities(binary: bool) -> InferRequest:
    """Return a request by bytes both ways, or by JSON both ways."""
    x = InferInput("x", list(X.shape), "FP32")
    x.set_data_from_numpy(X, binary_data=binary)
    wanted = RequestedOutput("log_density", parameters={"binary_data": binary})
    return InferRequest("affine.log_density", [x], request_outputs=[wanted])


def numbers(answer: InferResponse, name: str) -> np.ndarray:
    """Return an output as an array."""
    (output,) = [each for each in answer.outputs if each.name == name]
    array: np.ndarray = output.as_numpy()
    return array


if __name__ == "__main__":
    sys.stdout.buffer.write(orjson.dumps(asyncio.run(ask(sys.argv[1]))))
