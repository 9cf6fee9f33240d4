"""BentoML, as its pages say: workers, and adaptive batching where a request is rows of an array.

An API that BentoML batches cannot write its own response. So the log-densities that are asked for
as JSON are batched by it, as its pages show; images, and bytes, which its arrays would not become,
are one run a request. (Its way around, a batched service behind another, dropped connections.)
Run by `bentoml serve`.
"""

import os
from pathlib import Path
from typing import Annotated

import bentoml
import numpy as np
from bentoml.validators import ContentType, DType, Shape
from starlette.responses import Response

from benchmarks.peers.graphs import Density, Generator, to_json

BYTES = "application/octet-stream"


@bentoml.service(
    workers=int(os.environ["PEER_WORKERS"]),
    threads=int(os.environ["PEER_THREADS"]),
    traffic={"timeout": 30},
    logging={"access": {"enabled": False}},
)
class Peer:
    """Images of seeds and log-densities."""

    def __init__(self) -> None:
        self.generator, self.density = Generator(), Density()

    @bentoml.api(route="/sample/json")
    def sample_json(self, seed: int, n: int) -> object:
        """Return images as nested lists."""
        (x,) = self.generator.images([(seed, n)])
        return Response(to_json("x", x), media_type="application/json")

    @bentoml.api(route="/sample/bytes")
    def sample_bytes(self, seed: int, n: int) -> object:
        """Return images as float32."""
        (x,) = self.generator.images([(seed, n)])
        return Response(x.tobytes(), media_type=BYTES)

    @bentoml.api(
        route="/log-density/json", batchable=True, max_batch_size=1024, max_latency_ms=10_000
    )
    def log_density_json(
        self, x: Annotated[np.ndarray, DType("float32"), Shape((-1, 2))]
    ) -> Annotated[np.ndarray, DType("float32"), Shape((-1,))]:
        """Return log-densities, which BentoML cuts apart again and writes as a list."""
        return self.density.log_density([x])[0]

    @bentoml.api(route="/log-density/bytes")
    def log_density_bytes(self, x: Annotated[Path, ContentType(BYTES)], /) -> object:
        """Return log-densities as float32."""
        points = np.frombuffer(x.read_bytes(), np.float32).reshape(-1, 2)
        (value,) = self.density.log_density([points])
        return Response(value.tobytes(), media_type=BYTES)
