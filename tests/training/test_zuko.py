"""Whole flows against zuko's MAF and NSF, which are given the same weights, in float64.

Everything in between is zuko's own: masks, networks, splines, inverses, densities. Three things are
put in from outside, because zuko's flows have them otherwise or not at all:

- activations before each layer of a residual block, and the clamp of what a spline's network sees;
- what turns the free numbers of a map into the raw parameters of zuko's, so that both mean the same
  knots, slopes and scales (zuko bounds them by other functions, see `_spline` and `_affine`);
- the standardisation of the events.

The weights are carried without our masks: where zuko masks others than we do, nothing agrees.
"""

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
import zuko
from torch import Tensor, nn
from torch.nn.functional import softplus

from tests.training.cases import of, shaken
from training.coupling import Chain, Coupling
from training.flow import Flow, FlowConfig
from training.networks import LOG_BOUND
from training.splines import MIN_SHARE, MIN_SLOPE
from training.triangular import Inverted, Reverse

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
    sizes = {"layers": LAYERS, "width": WIDTH, "depth": DEPTH, "bound": BOUND}
    bins = {"bins": BINS} if transform == "spline" else {}
    config = FlowConfig.model_validate({"layer": layer, "transform": transform, **sizes, **bins})
    torch.manual_seed(0)
    flow = Flow(config, of(2 + 3 * torch.randn(64, FEATURES)))
    # Affine maps have no box that holds what stronger ones make of each other.
    return shaken(flow, 0.5 if bins else 0.15).eval().requires_grad_(False).double()


def zuko_of(flow: Flow) -> zuko.lazy.Flow:
    """Return zuko's flow of the same structure and weights."""
    standardise, *layers = _layers(flow)
    ours = [each for each in layers if not isinstance(each, Reverse)]
    theirs = _bare(flow, ours)
    for index, (each, lazy) in enumerate(zip(ours, theirs, strict=True)):
        lazy.univariate = _spline if flow.config.transform == "spline" else _affine
        _carry(each, lazy.hyper, turned=index % 2 == 1)
        # Last, so that the modules that have weights are those that zuko made.
        bound = flow.config.map(flow.config.transform).bound
        _preactivate(lazy.hyper, bound=bound)
    first = zuko.lazy.UnconditionalTransform(
        torch.distributions.AffineTransform,
        -standardise.mean / standardise.std,
        1 / standardise.std,
        event_dim=1,
        buffer=True,
    )
    if flow.config.layer == "inverse-autoregressive":
        theirs = [zuko.lazy.LazyInverse(each) for each in theirs]
    base = zuko.lazy.UnconditionalDistribution(
        zuko.distributions.DiagNormal, torch.zeros(FEATURES), torch.ones(FEATURES), buffer=True
    )
    return zuko.lazy.Flow([first, *theirs], base).double().requires_grad_(False)


def _layers(flow: Flow) -> list[Any]:
    assert isinstance(flow.network, Chain)
    return list(flow.network.layers)


def _bare(flow: Flow, ours: list[Any]) -> list[Any]:
    """Return the layers of zuko's MAF or NSF, with weights of their own.

    A coupling is to zuko an autoregressive map of two steps, whose first moves by constants: here
    by zeros, which are the identity.
    """
    kind = partial(zuko.flows.NSF, bins=BINS)
    if flow.config.transform == "affine":
        kind = zuko.flows.MAF
    network = {"hidden_features": [WIDTH] * DEPTH, "activation": nn.SiLU, "residual": True}
    if flow.config.layer != "coupling":
        return list(kind(FEATURES, transforms=LAYERS, **network).transform.transforms)
    layers: list[Any] = []
    for coupling in ours:
        seen = torch.eye(FEATURES, dtype=torch.bool)
        seen[coupling.moved[:, None], coupling.known] = True
        layers += kind(FEATURES, transforms=1, adjacency=seen, **network).transform.transforms
    return layers


def _carry(layer: Any, hyper: nn.Module, *, turned: bool) -> None:  # noqa: ANN401 - any layer
    """Give zuko's network the weights of ours.

    zuko leaves the features where they are and turns the order of every second layer round; ours
    is turned by `Reverse`. Its hidden units of one degree do not stand next to each other.
    """
    layer = layer.inner if isinstance(layer, Inverted) else layer
    ours, theirs = _linears(layer.network), _linears(hyper)
    known = moved = torch.arange(FEATURES).flip(0) if turned else torch.arange(FEATURES)
    if isinstance(layer, Coupling):
        known, moved = layer.known, layer.moved
    units = theirs[0].mask.sum(1).argsort(stable=True)
    free = theirs[-1].out_features // FEATURES
    last = (moved[:, None] * free + torch.arange(free)).flatten()
    places = [known, *[units] * (len(ours) - 1), last]
    for own, other, columns, rows in zip(ours, theirs, places, places[1:], strict=False):
        nn.init.zeros_(other.weight)
        nn.init.zeros_(other.bias)
        with torch.no_grad():
            other.weight[rows[:, None], columns] = own.weight.float()
            other.bias[rows] = own.bias.float()


def _linears(network: nn.Module) -> list[Any]:
    return [each for each in network.modules() if isinstance(each, nn.Linear)]


def _preactivate(hyper: nn.Sequential, *, bound: float) -> None:
    """Put activations where ours are, and the clamp before all."""
    for block in (each for each in hyper if isinstance(each, zuko.nn.Residual)):
        block.insert(0, nn.SiLU())
    hyper.insert(len(hyper) - 1, nn.SiLU())
    hyper.insert(0, nn.Hardtanh(-bound, bound))


def _affine(scale: Tensor, shift: Tensor) -> zuko.transforms.MonotonicAffineTransform:
    """Return zuko's map of our free numbers: the log of its scale is b tanh(scale / b)."""
    limit = 2 * LOG_BOUND  # any that is greater than b
    log_scale = LOG_BOUND * torch.tanh(scale / LOG_BOUND)
    return zuko.transforms.MonotonicAffineTransform(
        shift, _unclipped(log_scale, limit), slope=math.exp(-limit)
    )


def _spline(
    widths: Tensor, heights: Tensor, slopes: Tensor
) -> zuko.transforms.MonotonicRQSTransform:
    """Return zuko's spline of our free numbers, by way of the knots that they stand for.

    zuko keeps the ratio of two widths within a thousand, which ours never leave: none is below a
    thousandth of the box. Likewise the slopes, whose least is a thousandth here and there.
    """
    limit = -math.log(MIN_SLOPE)
    shares = [MIN_SHARE + (1 - BINS * MIN_SHARE) * each.softmax(-1) for each in (widths, heights)]
    slope = MIN_SLOPE + softplus(slopes + math.log(math.expm1(1 - MIN_SLOPE)))
    sizes = [_unclipped(_centred(each.log()), limit / 2) for each in shares]
    return zuko.transforms.MonotonicRQSTransform(
        *sizes, _unclipped(slope.log(), limit), bound=BOUND, slope=MIN_SLOPE
    )


def _centred(logs: Tensor) -> Tensor:
    """Return logarithms of the same shares, as near to 0 as they can be."""
    return logs - (logs.amin(-1, keepdim=True) + logs.amax(-1, keepdim=True)) / 2


def _unclipped(value: Tensor, limit: float) -> Tensor:
    """Return what zuko makes `value` of, by v / (1 + |v| / limit)."""
    return value / (1 - value.abs() / limit)


def hard_events(flow: Flow, other: zuko.lazy.Flow) -> Tensor:
    """Return events inside, in the tails, far outside, and on knots and edges of every layer."""
    torch.manual_seed(1)
    inside = torch.randn(200, FEATURES, dtype=torch.float64)
    tails = torch.cat([inside * spread for spread in (1, 5, 30, 1000)])
    edges = torch.tensor([BOUND, BOUND - 1e-9, BOUND + 1e-9, 0.0, 1.0], dtype=torch.float64)
    corners = edges[torch.randint(5, (200, FEATURES))] * inside.sign()
    standardise = _layers(flow)[0]
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
        spline = lazy.transform if isinstance(lazy, zuko.lazy.LazyInverse) else lazy
        place = torch.randint(BINS + 1, (100, FEATURES, 1))
        w = torch.zeros(100, FEATURES, dtype=torch.float64)
        for _ in range(FEATURES):
            w = spline.meta(None, w).base.horizontal.gather(-1, place).squeeze(-1)
        # The knots of an inverse are where it leads to.
        arrived = lazy().inv(w) if spline is not lazy else w
        for transform in reversed(before):
            arrived = transform.inv(arrived)
        yield arrived
        before.append(lazy())


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
    assert (z - _layers(flow)[0](x)[0]).abs().mean() > 0.1


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
    matrices = [each.weight for each in _linears(other)]
    assert len(matrices) == LAYERS * (2 + 2 * DEPTH)
    for matrix in matrices:
        kept = matrix.clone()
        matrix.mul_(1.01)
        assert (other().log_prob(x) - expected).abs().max() > 2 * WANTED
        matrix.copy_(kept)
