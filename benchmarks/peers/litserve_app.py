"""LitServe, as its pages on batching say: some workers, a batch of requests for each.

Its workers are processes that get one JSON request each, so bytes go in as base64 (its pages show
images that way) and come out as a response of their own.
"""

import base64
import os
import sys
from typing import Any

import litserve
import numpy as np
from fastapi import Response

from benchmarks.peers.graphs import Array, Density, Generator, to_json


class Sample(litserve.LitAPI):
    """Images of seeds."""

    def setup(self, device: str) -> None:
        """Load the graph into this worker."""
        self.generator = Generator()

    def decode_request(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return what was asked for."""
        return request

    def batch(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the requests as they are: they have different lengths."""
        return inputs

    def predict(self, asked: list[dict[str, Any]]) -> list[tuple[Array, str]]:
        """Return the images of each request and its format."""
        images = self.generator.images([(each["seed"], each["n"]) for each in asked])
        return [(x, each["format"]) for x, each in zip(images, asked, strict=True)]

    def unbatch(self, output: list[tuple[Array, str]]) -> list[tuple[Array, str]]:
        """Return one answer a request."""
        return output

    def encode_response(self, output: tuple[Array, str]) -> Response:
        """Return the images in the format that was asked for."""
        return _response("x", *output)


class LogDensity(litserve.LitAPI):
    """Log-densities of points."""

    def setup(self, device: str) -> None:
        """Load the graph into this worker."""
        self.density = Density()

    def decode_request(self, request: dict[str, Any]) -> tuple[Array, str]:
        """Return the points and the format of the answer."""
        if request["format"] == "json":
            return np.array(request["x"], dtype=np.float32), "json"
        return np.frombuffer(base64.b64decode(request["x"]), np.float32).reshape(-1, 2), "bytes"

    def batch(self, inputs: list[tuple[Array, str]]) -> list[tuple[Array, str]]:
        """Return the requests as they are."""
        return inputs

    def predict(self, asked: list[tuple[Array, str]]) -> list[tuple[Array, str]]:
        """Return the log-densities of each request and its format."""
        values = self.density.log_density([x for x, _ in asked])
        return [(value, form) for value, (_, form) in zip(values, asked, strict=True)]

    def unbatch(self, output: list[tuple[Array, str]]) -> list[tuple[Array, str]]:
        """Return one answer a request."""
        return output

    def encode_response(self, output: tuple[Array, str]) -> Response:
        """Return the numbers in the format that was asked for."""
        return _response("log_density", *output)


def _response(name: str, array: Array, form: str) -> Response:
    if form == "json":
        return Response(to_json(name, array), media_type="application/json")
    return Response(array.tobytes(), media_type="application/octet-stream")


if __name__ == "__main__":
    batching = {
        "max_batch_size": int(os.environ["PEER_BATCH"]),
        "batch_timeout": float(os.environ["PEER_WAIT_S"]),
    }
    server = litserve.LitServer(
        [Sample(api_path="/sample", **batching), LogDensity(api_path="/log-density", **batching)],
        accelerator="cpu",
        workers_per_device=int(os.environ["PEER_WORKERS"]),
        fast_queue=True,
    )
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[1]),
        num_api_servers=1,
        log_level="warning",
        generate_client_file=False,
        access_log=False,
    )
