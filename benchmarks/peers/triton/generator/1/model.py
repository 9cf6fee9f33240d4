"""Images of seeds, in Triton's Python backend."""

from typing import Any

import triton_python_backend_utils as triton

from benchmarks.peers.graphs import Generator


class TritonPythonModel:
    """One of the two processes that Triton batches for."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the graph."""
        self.generator = Generator()

    def execute(self, requests: list[Any]) -> list[Any]:
        """Return x (1, n, 1, 28, 28) for each request, all computed together."""
        asked = [
            tuple(
                int(triton.get_input_tensor_by_name(request, name).as_numpy()[0, 0])
                for name in ("seed", "n")
            )
            for request in requests
        ]
        images = self.generator.images(asked)
        return [triton.InferenceResponse([triton.Tensor("x", x[None])]) for x in images]
