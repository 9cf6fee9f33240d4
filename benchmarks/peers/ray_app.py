"""Ray Serve, as its pages on dynamic request batching say: `serve.batch`, and replicas."""

import os
import signal
import sys
import threading
from typing import Any

import numpy as np
import orjson
import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from benchmarks.peers.graphs import Array, Density, Generator, to_json

REPLICA: dict[str, Any] = {
    "num_replicas": int(os.environ["PEER_WORKERS"]),
    "max_ongoing_requests": 64,
    "ray_actor_options": {"num_cpus": 0.5},
    "logging_config": {"enable_access_log": False, "log_level": "WARNING"},
}
BATCHING: dict[str, Any] = {
    "max_batch_size": int(os.environ["PEER_BATCH"]),
    "batch_wait_timeout_s": float(os.environ["PEER_WAIT_S"]),
}


@serve.deployment(**REPLICA)
class Sample:
    """Images of seeds."""

    def __init__(self) -> None:
        self.generator = Generator()

    @serve.batch(**BATCHING)
    async def images(self, asked: list[tuple[int, int]]) -> list[Array]:
        """Return the images of each (seed, n)."""
        return self.generator.images(asked)

    async def __call__(self, request: Request) -> Response:
        """Return the images in the format that was asked for."""
        asked = orjson.loads(await request.body())
        return _response("x", await self.images((asked["seed"], asked["n"])), asked["format"])


@serve.deployment(**REPLICA)
class LogDensity:
    """Log-densities of points."""

    def __init__(self) -> None:
        self.density = Density()

    @serve.batch(**BATCHING)
    async def values(self, asked: list[Array]) -> list[Array]:
        """Return the log-densities of each x."""
        return self.density.log_density(asked)

    async def __call__(self, request: Request) -> Response:
        """Return the numbers in the format of the points; nothing to who asks whether it is up."""
        if request.method == "GET":
            return Response()
        body = await request.body()
        if request.headers["content-type"] == "application/json":
            x, form = np.array(orjson.loads(body)["x"], dtype=np.float32), "json"
        else:
            x, form = np.frombuffer(body, np.float32).reshape(-1, 2), "bytes"
        return _response("log_density", await self.values(x), form)


def _response(name: str, array: Array, form: str) -> Response:
    if form == "json":
        return Response(to_json(name, array), media_type="application/json")
    return Response(array.tobytes(), media_type="application/octet-stream")


def main(port: int) -> None:
    """Serve on the loopback until SIGTERM."""
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    ray.init(
        address="local", num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.1",
        log_to_driver=False,
    )  # fmt: skip
    serve.start(
        http_options={"host": "127.0.0.1", "port": port},
        logging_config={"enable_access_log": False, "log_level": "WARNING"},
    )
    serve.run(Sample.bind(), name="sample", route_prefix="/sample")
    serve.run(LogDensity.bind(), name="log-density", route_prefix="/log-density")
    ended.wait()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]))
