"""zuko's flows of the structure and the weights of ours: to check ours by, and to race with.

Everything in them is zuko's own: masks, networks, splines, inverses, densities. Put in from outside
is what zuko has otherwise or not at all:

- activations before each layer of a residual block, and in couplings, whose networks have no
  residual blocks in zuko, those blocks themselves;
- the standardisation of the events.

The weights are carried without our masks: where zuko masks others than we do, nothing agrees.
"""

import math
from functools import partial
from typing import Any

import torch
import zuko
from torch import Tensor, nn
from torch.nn.functional import softplus
from zuko.flows.autoregressive import MaskedAutoregressiveTransform
from zuko.flows.coupling import GeneralCouplingTransform
from zuko.transforms import MonotonicAffineTransform, MonotonicRQSTransform

from training.coupling import Chain, Coupling
from training.flow import Flow
from training.networks import LOG_BOUND
from training.splines import MIN_SHARE, MIN_SLOPE
from training.triangular import Inverted, Reverse


def like(flow: Flow) -> zuko.lazy.Flow:
    """Return zuko's flow of the same layers and weights, which zuko reads in its own way.

    Ways to bound the free numbers of a map differ, so that it is not quite the same density.

    Args:
        flow: Of vectors and one kind of layers. Triangular networks need a `width` that its
            features less one divide: zuko deals hidden units out to the features in turn, and only
            then are as many to each as ours are.
    """
    standardise, *rest = layers_of(flow)
    ours = [each for each in rest if not isinstance(each, Reverse)]
    features = flow.event.size
    first = zuko.lazy.UnconditionalTransform(
        torch.distributions.AffineTransform,
        -standardise.mean / standardise.std,
        1 / standardise.std,
        event_dim=1,
        buffer=True,
    )
    base = zuko.lazy.UnconditionalDistribution(
        zuko.distributions.DiagNormal, torch.zeros(features), torch.ones(features), buffer=True
    )
    theirs = [_layer(flow, each, turned=index % 2 == 1) for index, each in enumerate(ours)]
    return zuko.lazy.Flow([first, *theirs], base).to(standardise.mean.dtype)


def equal_to(flow: Flow) -> zuko.lazy.Flow:
    """Return zuko's flow of the same density.

    That is `like` with the clamp of what a spline's network sees, and with what turns our free
    numbers into the raw parameters of zuko's maps, so that both mean the same knots, slopes and
    scales.
    """
    other = like(flow)
    bound = flow.config.map(flow.config.transform).bound
    for lazy in map(inner, list(other.transform.transforms)[1:]):
        lazy.hyper.insert(0, nn.Hardtanh(-bound, bound))
        affine = flow.config.transform == "affine"
        lazy.univariate = _same_affine if affine else partial(_same_spline, bound=bound)
    return other


def layers_of(flow: Flow) -> list[Any]:
    """Return the layers of a flow of ours.

    Raises:
        TypeError: It has none.
    """
    if not isinstance(flow.network, Chain):
        raise TypeError(f"expected a flow of vectors; got {type(flow.network).__name__}")
    return list(flow.network.layers)


def inner(layer: Any) -> Any:  # noqa: ANN401 - any layer of ours or zuko's
    """Return what a layer goes by, which may be the other way round."""
    if isinstance(layer, Inverted):
        return layer.inner
    return layer.transform if isinstance(layer, zuko.lazy.LazyInverse) else layer


def linears(network: nn.Module) -> list[Any]:
    """Return the linear layers, masked or not, in the order in which they are gone through."""
    return [each for each in network.modules() if isinstance(each, nn.Linear | zuko.nn.Linear)]


def _layer(flow: Flow, layer: Any, *, turned: bool) -> zuko.lazy.LazyTransform:  # noqa: ANN401
    """Return zuko's layer of the same kind and weights.

    zuko leaves the features where they are and turns the order of every second layer round; ours
    is turned by `Reverse`. A coupling's features stand in zuko's in their order.
    """
    config, features = flow.config, flow.event.size
    kind: dict[str, Any] = {"univariate": _affine, "shapes": [(), ()]}
    if config.transform == "spline":
        kind["univariate"] = partial(MonotonicRQSTransform, bound=config.bound, slope=MIN_SLOPE)
        kind["shapes"] = [(config.bins,), (config.bins,), (config.bins - 1,)]
    own = inner(layer)
    if isinstance(own, Coupling):
        is_known = torch.zeros(features, dtype=torch.bool)
        is_known[own.known] = True
        lazy = GeneralCouplingTransform(features, mask=is_known, **kind)
        free = len(own.moved) * lazy.total
        lazy.hyper = _residual(len(own.known), free, width=config.width, depth=config.depth)
        places = (each.argsort().argsort() for each in (own.known, own.moved))
        _carry(own.network, lazy.hyper, *places)
        return lazy
    hidden = {"hidden_features": [config.width] * config.depth, "activation": nn.SiLU}
    order = torch.arange(features)
    order = order.flip(0) if turned else order
    lazy = MaskedAutoregressiveTransform(features, order=order, **kind, **hidden, residual=True)
    _preactivate(lazy.hyper)
    _carry(own.network, lazy.hyper, order, order)
    return zuko.lazy.LazyInverse(lazy) if own is not layer else lazy


def _residual(known: int, free: int, *, width: int, depth: int) -> nn.Sequential:
    """Return a network of zuko's plain layers that has residual blocks."""
    linear = zuko.nn.Linear
    blocks = (
        zuko.nn.Residual(nn.SiLU(), linear(width, width), nn.SiLU(), linear(width, width))
        for _ in range(depth)
    )
    return nn.Sequential(linear(known, width), *blocks, nn.SiLU(), linear(width, free))


def _preactivate(hyper: nn.Sequential) -> None:
    """Put activations where ours are."""
    for block in (each for each in hyper if isinstance(each, zuko.nn.Residual)):
        block.insert(0, nn.SiLU())
    hyper.insert(len(hyper) - 1, nn.SiLU())


def _carry(network: nn.Module, hyper: nn.Module, known: Tensor, moved: Tensor) -> None:
    """Give zuko's network the weights of ours.

    Args:
        network: Ours.
        hyper: zuko's, whose hidden units of one degree do not stand next to each other.
        known: Where each of our inputs stands in zuko's.
        moved: Likewise each feature that the outputs are of.
    """
    ours, theirs = linears(network), linears(hyper)
    units = torch.arange(len(theirs[0].weight))
    if isinstance(theirs[0], zuko.nn.MaskedLinear):
        units = theirs[0].mask.sum(1).argsort(stable=True)
    free = len(theirs[-1].weight) // len(moved)
    last = (moved[:, None] * free + torch.arange(free)).flatten()
    places = [known, *[units] * (len(ours) - 1), last]
    for own, other, columns, rows in zip(ours, theirs, places, places[1:], strict=False):
        nn.init.zeros_(other.weight)
        with torch.no_grad():
            other.weight[rows[:, None], columns] = own.weight.to(other.weight)
            other.bias[rows] = own.bias.to(other.bias)


def _affine(scale: Tensor, shift: Tensor) -> MonotonicAffineTransform:
    """Return zuko's map, whose parameters come the other way round."""
    return MonotonicAffineTransform(shift, scale)


def _same_affine(scale: Tensor, shift: Tensor) -> MonotonicAffineTransform:
    """Return zuko's map of our free numbers: the log of its scale is b tanh(scale / b)."""
    limit = 2 * LOG_BOUND  # any that is greater than b
    log_scale = LOG_BOUND * torch.tanh(scale / LOG_BOUND)
    return MonotonicAffineTransform(shift, _unclipped(log_scale, limit), slope=math.exp(-limit))


def _same_spline(
    widths: Tensor, heights: Tensor, slopes: Tensor, *, bound: float
) -> MonotonicRQSTransform:
    """Return zuko's spline of our free numbers, by way of the knots that they stand for.

    zuko keeps the ratio of two widths within a thousand, which ours never leave: none is below a
    thousandth of the box. Likewise the slopes, whose least is a thousandth here and there.
    """
    limit = -math.log(MIN_SLOPE)
    left = 1 - widths.shape[-1] * MIN_SHARE
    shares = [MIN_SHARE + left * each.softmax(-1) for each in (widths, heights)]
    slope = MIN_SLOPE + softplus(slopes + math.log(math.expm1(1 - MIN_SLOPE)))
    sizes = [_unclipped(_centred(each.log()), limit / 2) for each in shares]
    return MonotonicRQSTransform(
        *sizes, _unclipped(slope.log(), limit), bound=bound, slope=MIN_SLOPE
    )


def _centred(logs: Tensor) -> Tensor:
    """Return logarithms of the same shares, as near to 0 as they can be."""
    return logs - (logs.amin(-1, keepdim=True) + logs.amax(-1, keepdim=True)) / 2


def _unclipped(value: Tensor, limit: float) -> Tensor:
    """Return what zuko makes `value` of, by v / (1 + |v| / limit)."""
    return value / (1 - value.abs() / limit)
