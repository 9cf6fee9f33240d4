"""Layers of a flow one after the other, as a recipe lists them; images at several scales.

At each scale an image is squeezed, so that pixels become channels, and the layers move those.
Then half of the channels are done, and the other half go on to the next scale. Undone at the end,
all squeezes put the parts of the code back to their places.

Source:
    Dinh et al. 2017, arXiv:1605.08803, section 3.6 (scales); Kingma & Dhariwal 2018,
    arXiv:1807.03039 (Glow: `ActNorm`, `LinearMix` and a coupling, over and over).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from training.conditioner import Sizes, convolutional
from training.coupling import Bijection, Chain, Coupling, First, Squeeze, Unsqueeze, halves
from training.elementwise import Elementwise
from training.linear import ActNorm, LinearMix
from training.masked import Masked
from training.triangular import Inverted, Reverse, Triangular

Moving = Literal["coupling", "autoregressive", "inverse-autoregressive"]
"""Layers with a network, which move what they move given the rest."""
Kind = Literal[Moving, "actnorm", "mix", "reverse"]


@dataclass(frozen=True)
class Step:
    """A layer that is to be made.

    Args:
        kind: Which.
        transform: How it moves values, where it has a network.
    """

    kind: Kind
    transform: Elementwise


def of_features(steps: Sequence[Step], features: int, sizes: Sizes) -> Iterator[Bijection]:
    """Yield layers of rows of features, two or more. Draws from torch's global generator."""
    transforms = [step.transform for step in steps if step.kind == "coupling"]
    couplings = halves(features, transforms=transforms, **sizes) if transforms else iter(())
    for step in steps:
        if step.kind in ("autoregressive", "inverse-autoregressive"):
            network = Masked(inputs=features, free=step.transform.free, **sizes)
            triangle = Triangular(step.transform, network)
            yield triangle if step.kind == "autoregressive" else Inverted(triangle)
        else:
            yield _layer(step.kind, features, couplings, axes=0)


def of_channels(
    steps: Sequence[Step], channels: int, *, side: tuple[int, int], sizes: Sizes
) -> Iterator[Bijection]:
    """Yield layers of the channels of an image, an even number. Draws as `of_features`.

    Args:
        steps: Which; triangular maps are none of them.
        channels: Of the image.
        side: Its height and width.
        sizes: Of each network.
    """
    couplings = _channel_halves(steps, channels, side=side, sizes=sizes)
    for step in steps:
        yield _layer(step.kind, channels, couplings, axes=2)


def multi_scale(
    steps: Sequence[Step], shape: tuple[int, ...], *, scales: int, sizes: Sizes
) -> Chain:
    """Return the flow of an image of this shape, with the same layers at each scale.

    Args:
        steps: Of each scale; triangular maps are none of them.
        shape: (channels, height, width).
        scales: How many.
        sizes: Of each network.

    Raises:
        ValueError: A step is for vectors only, or the sides cannot be halved so often.
    """
    for step in steps:
        if step.kind in ("autoregressive", "inverse-autoregressive"):
            raise ValueError(
                f"model.layer: {step.kind} sees an image as one row, which a list does at several "
                f'scales; take layer = "{step.kind}", or coupling, actnorm, mix and reverse'
            )
    channels, height, width = shape
    if height % 2**scales or width % 2**scales:
        raise ValueError(
            f"model.scales: {scales} scales need image sides that are multiples of {2**scales}; "
            f"got {height} x {width}. Take fewer scales, or resize the images."
        )
    side = (height // 2, width // 2)
    layers = [*of_channels(steps, 4 * channels, side=side, sizes=sizes)]
    if scales > 1:
        rest = multi_scale(steps, (2 * channels, *side), scales=scales - 1, sizes=sizes)
        layers.append(First(2 * channels, rest))
    return Chain([Squeeze(), *layers, Unsqueeze()])


def _layer(kind: Kind, channels: int, couplings: Iterator[Coupling], *, axes: int) -> Bijection:
    """Return a layer, or the next coupling, of channels that have so many axes of space."""
    match kind:
        case "actnorm":
            return ActNorm(channels, axes=axes)
        case "mix":
            return LinearMix(channels)
        case "reverse":
            return Reverse()
        case _:
            return next(couplings)


def _channel_halves(
    steps: Sequence[Step], channels: int, *, side: tuple[int, int], sizes: Sizes
) -> Iterator[Coupling]:
    """Yield couplings that move one half of the channels and the other in turn.

    The last one moves what the next scale does not get, given what it gets: that is the
    conditional distribution which Glow calls a learned prior.
    """
    transforms = [step.transform for step in steps if step.kind == "coupling"]
    first, second = tuple(range(channels // 2)), tuple(range(channels // 2, channels))
    for left, transform in zip(range(len(transforms) - 1, -1, -1), transforms, strict=True):
        known, moved = (second, first) if left % 2 else (first, second)
        network = convolutional(
            known=len(known), free=len(moved) * transform.free, side=side, **sizes
        )
        yield Coupling(
            channels=channels, known=known, moved=moved, network=network, transform=transform
        )
