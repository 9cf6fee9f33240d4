"""What the serving runtime makes of a graph: from how many rows on it is exact."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from service.interface import TensorSpec
from service.manifest import Graph, Tolerance
from service.session import Limit, Session
from service.tensors import Array
from training.measure import rows_exact_at


class Imprecise(Session):
    """A session whose rows are off by a bit in a batch smaller than `least`, at some draws."""

    def __init__(self, *, least: int, draws: tuple[int, ...]) -> None:
        noise = TensorSpec(name="noise", shape=("batch", "draws", 2), noise="normal")
        kl = TensorSpec(name="kl", shape=("batch",))
        self.role = "elbo"
        self.graph = Graph(
            file="elbo.onnx",
            sha256="0" * 64,
            inputs=(noise,),
            outputs=(kl,),
            tolerance={"kl": Tolerance(absolute=1)},
        )
        self.least, self.draws = least, draws
        self.seen: set[int] = set()

    def run(
        self,
        feeds: Mapping[str, Array],
        outputs: Sequence[str] | None = None,
        *,
        limit: Limit | None = None,
    ) -> dict[str, Array]:
        rows, draws = feeds["noise"].shape[:2]
        self.seen.add(draws)
        off = 1e-6 if draws in self.draws and rows < self.least else 0.0
        return {"kl": feeds["noise"].sum((1, 2), dtype=np.float64) + off}


GOLDEN = {"elbo.noise": np.zeros((16, 8, 2), np.float32)}


@pytest.mark.parametrize(("least", "expected"), [(1, 1), (5, 8), (64, None)])
def test_rows_are_exact_from_where_no_batch_changes_them(least: int, expected: int | None) -> None:
    session = Imprecise(least=least, draws=(4, 16))
    assert rows_exact_at(session, GOLDEN) == expected


def test_graph_with_draws_is_measured_at_those_that_the_engine_runs() -> None:
    session = Imprecise(least=5, draws=(16,))
    assert rows_exact_at(session, GOLDEN) == 8
    assert session.seen == {4, 16}
