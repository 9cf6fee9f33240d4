"""Gradients written out as plain operators are those that autograd gives."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from training.unrolled import _index_add, _scatter_add, unrolled

X = torch.randn(4, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
ORDER = torch.tensor([4, 1, 1, 0])
PLACES = torch.randint(6, (4, 3, 5), generator=torch.Generator().manual_seed(1))
SCATTERS = ("scatter", "index_put", "index_add")


class Slope(nn.Module):
    """The gradient of a number, asked for in a forward pass."""

    differentiates = True

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.take: Callable[[Tensor], Tensor] | None = None

    def part(self, x: Tensor) -> Tensor:
        """Take some numbers of each row."""
        if self.take:
            return self.take(x)
        match self.kind:
            case "index":
                return x.index_select(1, ORDER)
            case "gather":
                return x.gather(1, PLACES[:1].expand(x.shape[0], -1, -1))
            case "gather at the end":
                return x.gather(-1, PLACES[:1, :1].expand(x.shape[0], 6, -1).clamp(max=4))
            case _:
                return x[:, 1:-2].sum((1, 2), keepdim=True) * x.narrow(2, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.part(x).square().sum(), x)
        return slope


@pytest.mark.parametrize("kind", ["index", "gather", "gather at the end", "slice"])
def test_gradient_of_taking_parts_scatters_nothing_and_is_right(kind: str) -> None:
    slope = Slope(kind)
    graph = unrolled(slope, [X])
    operators = {str(node.target) for node in graph.graph.nodes if node.op == "call_function"}
    assert not [name for name in operators if any(each in name for each in SCATTERS)], operators
    torch.testing.assert_close(graph(X), slope(X), rtol=1e-14, atol=1e-14)
    assert graph(X[:1]).shape == (1, 6, 5)


def test_numbers_that_are_not_finite_stay_where_they_are() -> None:
    source = torch.tensor([[torch.inf, 1.0]])
    found = _index_add(torch.zeros(1, 3), 1, torch.tensor([0, 1]), source)
    assert found.tolist() == [[torch.inf, 1.0, 0.0]]


def test_slices_from_the_end_are_as_long_as_they_were() -> None:
    kinds: tuple[Callable[[Tensor], Tensor], ...] = (
        lambda x: x.narrow(-1, 1, 2),
        lambda x: x[:, -9:],
        lambda x: x[..., -2:],
    )
    for take in kinds:
        slope = Slope("slice")
        slope.take = take
        torch.testing.assert_close(unrolled(slope, [X])(X), slope(X), rtol=1e-14, atol=1e-14)


def test_gradient_of_a_gather_of_some_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="gather of all"):
        _scatter_add(torch.zeros(2, 5), 1, torch.tensor([[0, 1, 1]]), torch.ones(1, 3))


def test_gradient_of_every_other_number_is_refused() -> None:
    class Jump(Slope):
        def part(self, x: Tensor) -> Tensor:
            return x[:, ::2]

    with pytest.raises(ValueError, match="every 2th number"):
        unrolled(Jump("jump"), [X])
