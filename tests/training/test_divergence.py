"""Divergences against traces of Jacobians."""

import math

import pytest
import torch
from torch import Tensor

from tests.training.cases import shaken
from training.divergence import estimated, exact
from training.velocity import Velocity

FIELD = torch.tensor([[0.3, -1.2, 0.1], [0.8, -0.5, 0.4], [0.2, 0.6, 0.1]], dtype=torch.float64)


def network(*shape: int, told: int = 0) -> Velocity:
    torch.manual_seed(0)
    return shaken(Velocity(shape, width=4, depth=1, told=told)).double()


def traces(field: Velocity, w: Tensor, t: Tensor, *told: Tensor) -> Tensor:
    """The trace of each row's Jacobian, one after the other."""
    found = []
    for row in range(len(w)):
        others = [each[row : row + 1] for each in (t, *told)]
        jacobian = torch.autograd.functional.jacobian(
            lambda at, others=others: field(at[None], *others)[0], w[row], create_graph=True
        )
        found.append(jacobian.reshape(w[row].numel(), -1).trace())
    return torch.stack(found)


@pytest.mark.parametrize("shape", [(1,), (5,), (1, 8, 8), (3, 4, 5)])
def test_exact_divergence_is_the_trace_of_the_jacobian(shape: tuple[int, ...]) -> None:
    field = network(*shape, told=3)
    w, t = torch.randn(4, *shape, dtype=torch.float64), torch.rand(4, dtype=torch.float64)
    told = torch.randn(4, 3, dtype=torch.float64)
    velocity, divergence = exact(field, w, t, told, shape=shape)
    assert (velocity - field(w, t, told)).abs().max() <= 1e-12
    assert (divergence - traces(field, w, t, told)).abs().max() <= 1e-10


def test_exact_divergence_has_the_gradient_of_the_trace() -> None:
    field = network(3)
    w, t = torch.randn(4, 3, dtype=torch.float64), torch.rand(4, dtype=torch.float64)
    weights = [each for each in field.parameters() if each.ndim == 2]
    ours, theirs = (
        torch.autograd.grad(found.sum(), weights)
        for found in (exact(field, w, t, shape=(3,))[1], traces(field, w, t))
    )
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).abs().max() <= 1e-10


def test_nothing_is_left_to_differentiate_where_gradients_are_off() -> None:
    field = network(3)
    with torch.no_grad():
        found = exact(field, torch.zeros(2, 3).double(), torch.zeros(2).double(), shape=(3,))
    assert not any(each.requires_grad for each in found)


def test_mean_over_probes_is_the_trace() -> None:
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(20_000, 3, generator=generator, dtype=torch.float64)
    _, found = estimated(lambda w: w @ FIELD.T, torch.zeros_like(probe), probe=probe)
    standard_error = found.std().item() / math.sqrt(len(found))
    assert abs(found.mean().item() - FIELD.trace().item()) <= 4.5 * standard_error
    # The variance of signs is that of the off-diagonal numbers alone.
    both = FIELD + FIELD.T
    assert found.var().item() == pytest.approx(both.triu(1).square().sum().item(), rel=0.05)


def test_one_probe_is_exact_where_the_jacobian_is_diagonal() -> None:
    w, probe = torch.randn(2, 50, 6, dtype=torch.float64)
    _, found = estimated(torch.sin, w, probe=probe)
    assert (found - w.cos().sum(1)).abs().max() <= 1e-12
