"""Log-densities of points, in Triton's Python backend."""

from typing import Any

import triton_python_backend_utils as triton

from benchmarks.peers.graphs import Density


class TritonPythonModel:
    """One of the two processes that Triton batches for."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the graph."""
        self.density = Density()

    def execute(self, requests: list[Any]) -> list[Any]:
        """Return log p (1, n) for each request, all computed together."""
        asked = [triton.get_input_tensor_by_name(each, "x").as_numpy()[0] for each in requests]
        values = self.density.log_density(asked)
        return [triton.InferenceResponse([triton.Tensor("log_density", v[None])]) for v in values]
