"""Whole flows against zuko's MAF, NSF and RealNVP, which are given the same weights, in float64.

What of zuko's is left as it is, and what is not, says `benchmarks/zuko_flows.py`.
"""

from collections.abc import Iterator

import pytest
import torch
import zuko
from torch import Tensor
from zuko.flows.coupling import GeneralCouplingTransform

from benchmarks.zuko_flows import equal_to, inner, layers_of, linears
from tests.training.cases import of, shaken
from training.flow import Flow
from training.flow_config import FlowConfig

FEATURES, LAYERS, DEPTH, BINS, BOUND = 5, 3, 2, 8, 4.0
WIDTH = 4 * (FEATURES - 1)
"""zuko deals hidden units out to the features in turn: as many to each, as ours are, only so."""
WANTED = 1e-5
"""Nats, and units of x and z."""

KINDS = [
    (layer, transform)
    for layer in ("autoregressive", "inverse-autoregressive", "coupling")
    for transform in ("affine", "spline")
]
every_kind = pytest.mark.parametrize(("layer", "transform"), KINDS)


def flow_of(layer: str, transform: str) -> Flow:
    """Return a flow whose weights are random, those behind the masks too."""
    sizes = {"layers": LAYERS, "width": WIDTH, "depth": DEPTH}
    bins = {"bins": BINS, "bound": BOUND} if transform == "spline" else {}
    config = FlowConfig.model_validate({"layer": layer, "transform": transform, **sizes, **bins})
    torch.manual_seed(0)
    flow = Flow(config, of(2 + 3 * torch.randn(64, FEATURES)))
    # Affine maps have no box that holds what stronger ones make of each other.
    return shaken(flow, 0.5 if bins else 0.15).eval().requires_grad_(False).double()


def zuko_of(flow: Flow) -> zuko.lazy.Flow:
    """Return zuko's flow of the same density."""
    return equal_to(flow).requires_grad_(False)


def hard_events(flow: Flow, other: zuko.lazy.Flow) -> Tensor:
    """Return events inside, in the tails, far outside, and on knots and edges of every layer."""
    torch.manual_seed(1)
    inside = torch.randn(200, FEATURES, dtype=torch.float64)
    tails = torch.cat([inside * spread for spread in (1, 5, 30, 1000)])
    edges = torch.tensor([BOUND, BOUND - 1e-9, BOUND + 1e-9, 0.0, 1.0], dtype=torch.float64)
    corners = edges[torch.randint(5, (200, FEATURES))] * inside.sign()
    standardise = layers_of(flow)[0]
    return torch.cat([standardise.inverse(torch.cat((tails, corners))), *_on_knots(flow, other)])


def _on_knots(flow: Flow, other: zuko.lazy.Flow) -> Iterator[Tensor]:
    """Yield for each layer events that come to lie on its knots, in every feature.

    A feature's knots follow from the features before it: after as many rounds as there are
    features all are in place.
    """
    if flow.config.transform == "affine":
        return
    first, *layers = other.transform.transforms
    before = [first()]
    for lazy in layers:
        spline = inner(lazy)
        place = torch.randint(BINS + 1, (100, FEATURES, 1))
        w = torch.zeros(100, FEATURES, dtype=torch.float64)
        for _ in range(FEATURES):
            w = _at(spline, place, w)
        # The knots of an inverse are where it leads to.
        arrived = lazy().inv(w) if spline is not lazy else w
        for transform in reversed(before):
            arrived = transform.inv(arrived)
        yield arrived
        before.append(lazy())


def _at(lazy: zuko.lazy.LazyTransform, place: Tensor, w: Tensor) -> Tensor:
    """Return the knots at these places of the splines that w leads to."""
    if isinstance(lazy, GeneralCouplingTransform):
        splines = lazy.meta(None, w[:, lazy.mask]).base
        w[:, ~lazy.mask] = splines.horizontal.gather(-1, place[:, ~lazy.mask]).squeeze(-1)
        return w
    knots: Tensor = lazy.meta(None, w).base.horizontal
    return knots.gather(-1, place).squeeze(-1)


def agree(ours: Tensor, theirs: Tensor) -> None:
    """Far outside, affine maps reach 1e12 and more, of which float64 knows no more digits."""
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=WANTED)


@every_kind
def test_same_weights_give_the_same_density_and_codes(layer: str, transform: str) -> None:
    flow = flow_of(layer, transform)
    other = zuko_of(flow)
    x = hard_events(flow, other)
    z, log_abs_det, log_density = flow.encode_and_log_density(x)
    agree(z, other().transform(x))
    agree(log_abs_det, other().transform.call_and_ladj(x)[1])
    agree(log_density, other().log_prob(x))
    assert (z - layers_of(flow)[0](x)[0]).abs().mean() > 0.1


@every_kind
def test_same_weights_give_the_same_events(layer: str, transform: str) -> None:
    flow = flow_of(layer, transform)
    torch.manual_seed(2)
    z = torch.cat([each * torch.randn(200, FEATURES).double() for each in (1, 5, 30)])
    agree(flow.decode(z), zuko_of(flow)().transform.inv(z))


@every_kind
def test_a_hundredth_of_any_weight_matrix_would_be_seen(layer: str, transform: str) -> None:
    """The comparison can fail: each matrix of each of zuko's networks decides something."""
    flow = flow_of(layer, transform)
    x = 2 + 3 * torch.randn(50, FEATURES, dtype=torch.float64)
    expected = flow.log_density(x)
    other = zuko_of(flow)
    matrices = [each.weight for each in linears(other)]
    assert len(matrices) == LAYERS * (2 + 2 * DEPTH)
    for matrix in matrices:
        kept = matrix.clone()
        matrix.mul_(1.01)
        assert (other().log_prob(x) - expected).abs().max() > 2 * WANTED
        matrix.copy_(kept)
