"""BentoML, as its pages on adaptive batching say: a batchable service behind one that talks.

Run by `bentoml serve`, which it needs to be named to.
"""

from pathlib import Path
from typing import Annotated

import bentoml
import numpy as np
from bentoml.validators import ContentType
from starlette.responses import Response

from benchmarks.peers.graphs import Density, Generator, to_json

BYTES = "application/octet-stream"


@bentoml.service(
    workers=2, threads=4, traffic={"timeout": 30}, logging={"access": {"enabled": False}}
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

    @bentoml.api(route="/log-density/json")
    def log_density_json(self, x: list[list[float]]) -> object:
        """Return log-densities as a list."""
        (value,) = self.density.log_density([np.array(x, dtype=np.float32)])
        return Response(to_json("log_density", value), media_type="application/json")

    @bentoml.api(route="/log-density/bytes")
    def log_density_bytes(self, x: Annotated[Path, ContentType(BYTES)], /) -> object:
        """Return log-densities as float32."""
        points = np.frombuffer(x.read_bytes(), np.float32).reshape(-1, 2)
        (value,) = self.density.log_density([points])
        return Response(value.tobytes(), media_type=BYTES)
