"""Requests as bytes, and what their answers hold: one class for each way of talking.

A request is built once. Where it holds a seed stands a mark of the same length, which the load
tools replace, so that no two requests are alike and no cache is measured.
"""

import base64
import http.client
import io
import json
import socket
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from benchmarks.peers import graphs
from benchmarks.workloads import POINTS, Workload
from service import noise
from service.noise import Stream

Array = npt.NDArray[Any]

SEED = "SEEDSEEDSE"
"""Stands for a seed of ten digits."""
FIRST_SEED = 1_000_000_000
BODIES = 8
"""So many different sets of points are sent in turn."""

JSON = "application/json"
BYTES = "application/octet-stream"


def points(index: int) -> npt.NDArray[np.float32]:
    """Return a set of points, shape (64, 2)."""
    return np.random.default_rng(index).normal(size=(POINTS, 2)).astype(np.float32)


def message(method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> bytes:
    """Return an HTTP/1.1 request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1"]
    if body or method == "POST":
        headers = {**headers, "Content-Length": str(len(body))}
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def with_seed(request: bytes, seed: int) -> bytes:
    """Return the request with a seed in the place of its mark."""
    return request.replace(SEED.encode(), str(seed).encode())


def fetch(port: int, request: bytes, *, timeout_s: float = 30) -> tuple[int, bytes]:
    """Return status and body of one request on a connection of its own."""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout_s) as connection:
        connection.sendall(request)
        response = http.client.HTTPResponse(connection)
        response.begin()
        return response.status, response.read()


class Wire:
    """How the peers that are plain HTTP are asked: JSON in, JSON or float32 out."""

    def requests(self, workload: Workload) -> list[bytes]:
        """Return what is sent, in turn."""
        if workload.task == "sample":
            return [self.sample(workload)]
        return [self.log_density(workload, points(index)) for index in range(BODIES)]

    def sample(self, workload: Workload) -> bytes:
        """Return a request for images."""
        body = f'{{"seed":{SEED},"n":{workload.rows}}}'.encode()
        return message("POST", f"/sample/{workload.format}", {"Content-Type": JSON}, body)

    def log_density(self, workload: Workload, x: Array) -> bytes:
        """Return a request for log-densities."""
        path = f"/log-density/{workload.format}"
        if workload.format == "bytes":
            return message("POST", path, {"Content-Type": BYTES}, x.tobytes())
        return message("POST", path, {"Content-Type": JSON}, json.dumps({"x": x.tolist()}).encode())

    def read(self, workload: Workload, body: bytes) -> Array:
        """Return the array in an answer."""
        if workload.format == "bytes":
            return np.frombuffer(body, np.float32)
        name = "x" if workload.task == "sample" else "log_density"
        return np.array(json.loads(body)[name], dtype=np.float32)

    def noise(self, seed: int, rows: int) -> tuple[Array, Array]:
        """Return the latents and labels that the server makes of a seed."""
        return graphs.noise(seed, rows)


class Ours(Wire):
    """Pushforward: a sample has an address."""

    _ACCEPT: ClassVar = {"json": JSON, "bytes": "application/x-npy", "png": "image/png"}

    def sample(self, workload: Workload) -> bytes:
        """Return a request for images."""
        path = f"/sample?model=mnist-gan&version=1&n={workload.rows}&seed={SEED}"
        return message("GET", path, {"Accept": self._ACCEPT[workload.format]})

    def log_density(self, workload: Workload, x: Array) -> bytes:
        """Return a request for log-densities."""
        media_type = self._ACCEPT[workload.format]
        headers = {"Accept": media_type, "Content-Type": media_type}
        if workload.format == "json":
            body = json.dumps({"model": "moons-flow", "x": x.tolist()}).encode()
            return message("POST", "/log-density", headers, body)
        stream = io.BytesIO()
        np.save(stream, x)
        return message("POST", "/log-density?model=moons-flow", headers, stream.getvalue())

    def read(self, workload: Workload, body: bytes) -> Array:
        """Return the array in an answer; of a picture, its images in the order of their rows."""
        if workload.format == "bytes":
            return np.asarray(np.load(io.BytesIO(body)))
        if workload.format == "json":
            return super().read(workload, body)
        from PIL import Image

        grid = np.asarray(Image.open(io.BytesIO(body)), dtype=np.float32) / 255
        tiles = grid.reshape(grid.shape[0] // 28, 28, grid.shape[1] // 28, 28).swapaxes(1, 2)
        return tiles.reshape(-1, 1, 28, 28)[: workload.rows]

    def noise(self, seed: int, rows: int) -> tuple[Array, Array]:
        """Return the latents and labels of Pushforward's own noise."""
        z = noise.normal(seed, Stream.LATENT, start=0, rows=rows, size=graphs.LATENT)
        labels = noise.labels(seed, start=0, rows=rows, classes=graphs.LABELS)
        return z.astype(np.float32), labels


class BentoML(Wire):
    """BentoML: a batched API answers a bare list."""

    def read(self, workload: Workload, body: bytes) -> Array:
        """Return the array in an answer."""
        if workload.task == "log-density" and workload.format == "json":
            return np.array(json.loads(body), dtype=np.float32)
        return super().read(workload, body)


class LitServe(Wire):
    """LitServe: one path a model, bytes in as base64."""

    def sample(self, workload: Workload) -> bytes:
        """Return a request for images."""
        body = f'{{"seed":{SEED},"n":{workload.rows},"format":"{workload.format}"}}'
        return message("POST", "/sample", {"Content-Type": JSON}, body.encode())

    def log_density(self, workload: Workload, x: Array) -> bytes:
        """Return a request for log-densities."""
        value = x.tolist() if workload.format == "json" else base64.b64encode(x.tobytes()).decode()
        body = json.dumps({"x": value, "format": workload.format}).encode()
        return message("POST", "/log-density", {"Content-Type": JSON}, body)


class Ray(LitServe):
    """Ray Serve: one path a model; a body of points says by its type what it is."""

    def log_density(self, workload: Workload, x: Array) -> bytes:
        """Return a request for log-densities."""
        if workload.format == "bytes":
            return message("POST", "/log-density", {"Content-Type": BYTES}, x.tobytes())
        return super().log_density(workload, x)


class Triton(Wire):
    """Triton: the Open Inference Protocol, with its binary extension where bytes are asked for."""

    def sample(self, workload: Workload) -> bytes:
        """Return a request for images. The two integers are JSON in both."""
        asked: dict[str, Any] = {
            "inputs": [
                {"name": name, "shape": [1, 1], "datatype": "INT64", "data": [value]}
                for name, value in (("seed", 0), ("n", workload.rows))
            ]
        }
        if workload.format == "bytes":
            asked["parameters"] = {"binary_data_output": True}
        body = json.dumps(asked).replace('"data": [0]', f'"data": [{SEED}]').encode()
        return message("POST", "/v2/models/generator/infer", {"Content-Type": JSON}, body)

    def log_density(self, workload: Workload, x: Array) -> bytes:
        """Return a request for log-densities."""
        path = "/v2/models/density/infer"
        tensor: dict[str, Any] = {"name": "x", "shape": [1, *x.shape], "datatype": "FP32"}
        if workload.format == "json":
            body = json.dumps({"inputs": [{**tensor, "data": x.ravel().tolist()}]}).encode()
            return message("POST", path, {"Content-Type": JSON}, body)
        tensor["parameters"] = {"binary_data_size": x.nbytes}
        asked = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
        head = json.dumps(asked).encode()
        headers = {"Content-Type": BYTES, "Inference-Header-Content-Length": str(len(head))}
        return message("POST", path, headers, head + x.tobytes())

    def read(self, workload: Workload, body: bytes) -> Array:
        """Return the array in an answer: its last bytes, or its JSON data."""
        size = workload.rows * (784 if workload.task == "sample" else 1)
        if workload.format == "bytes":
            return np.frombuffer(body[-4 * size :], np.float32)
        return np.array(json.loads(body)["outputs"][0]["data"], dtype=np.float32)
