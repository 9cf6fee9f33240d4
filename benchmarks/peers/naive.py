"""The server that one writes in ten minutes: FastAPI, `def` endpoints, one run a request.

FastAPI runs `def` endpoints in a pool of threads, and ONNX Runtime frees the GIL, so both cores
work. Answers are written by orjson: FastAPI's own way is slower by far, and JSON is not what is
compared here.
"""

import os
import sys
from typing import Annotated

import numpy as np
import uvicorn
from fastapi import Body, FastAPI, Response
from pydantic import BaseModel

from benchmarks.peers.graphs import Density, Generator, to_json

app = FastAPI()
generator, density = Generator(), Density()
BYTES = "application/octet-stream"


class Asked(BaseModel):
    """So many images of a seed."""

    seed: int
    n: int


class Points(BaseModel):
    """Points in the plane."""

    x: list[list[float]]


@app.get("/ready")
def ready() -> None:
    """Answer once the graphs are loaded."""


@app.post("/sample/json")
def sample_json(asked: Asked) -> Response:
    """Return images as nested lists."""
    (x,) = generator.images([(asked.seed, asked.n)])
    return Response(to_json("x", x), media_type="application/json")


@app.post("/sample/bytes")
def sample_bytes(asked: Asked) -> Response:
    """Return images as float32."""
    (x,) = generator.images([(asked.seed, asked.n)])
    return Response(x.tobytes(), media_type=BYTES)


@app.post("/log-density/json")
def log_density_json(points: Points) -> Response:
    """Return log-densities as a list."""
    (value,) = density.log_density([np.array(points.x, dtype=np.float32)])
    return Response(to_json("log_density", value), media_type="application/json")


@app.post("/log-density/bytes")
def log_density_bytes(body: Annotated[bytes, Body(media_type=BYTES)]) -> Response:
    """Return log-densities as float32."""
    (value,) = density.log_density([np.frombuffer(body, np.float32).reshape(-1, 2)])
    return Response(value.tobytes(), media_type=BYTES)


if __name__ == "__main__":
    uvicorn.run(
        "benchmarks.peers.naive:app",
        host="127.0.0.1",
        port=int(sys.argv[1]),
        workers=int(os.environ["PEER_WORKERS"]),
        log_level="warning",
        access_log=False,
    )
