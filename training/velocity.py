"""The networks of continuous flows: dw/dt at a place and a time, of what is told or of nothing.

Smooth throughout, because a solver's error depends on derivatives of what it solves; and no row
depends on its neighbours. Every network starts as v = 0.
"""

import math
from collections.abc import Sequence
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Discriminator, Field, Tag
from torch import Tensor, nn
from torch.nn.functional import silu

from training.conditioner import dense
from training.networks import ResidualBlock, halvings, pyramid

FREQUENCIES = 8
"""Waves in which a network sees the time: half a wave to four. A guess; more of them, of which no
velocity needs so many, would make it wiggle in between."""
GROUPS = 8
"""Groups of channels that are normalised together, or fewer where they do not divide them."""
CODE = 64
"""Numbers that tell each block of an image's network the time and the rest. A guess."""


def _form(value: object) -> str:
    """Return how a number for each size is written, or one for all. No word that could be a key."""
    return "a list" if isinstance(value, list | tuple) else "a number"


Positive = Annotated[int, Field(ge=1)]
PerSize = Annotated[
    Annotated[Positive, Tag("a number")] | Annotated[tuple[Positive, ...], Tag("a list")],
    Discriminator(_form),
]
"""A number for all sizes of an image, or one for each, the finest first."""


def waves(t: Float[Tensor, " batch"]) -> Float[Tensor, "batch waves"]:
    """Return cos(pi k t) and sin(pi k t) for k from 1 to `FREQUENCIES`.

    Example:
        >>> waves(torch.zeros(1))[0, [0, -1]].tolist()
        [1.0, 0.0]
    """
    # No products with integers, so that it works in any dtype.
    angle = torch.stack([math.pi * k * t for k in range(1, FREQUENCIES + 1)], dim=1)
    return torch.cat((angle.cos(), angle.sin()), dim=1)


class Velocity(nn.Module):
    """v(w, t): a network that is told the time and, if there is more to tell, that.

    Args:
        shape: Of one w: a number of features, or (channels, height, width) of an image.
        width: Hidden units, or channels, see `UNet`.
        depth: Residual blocks, see there.
        told: How many numbers it is told beside the time.
        waves: Of features: in how many `PlaneWaves` it sees w besides.
        frequency: Of those; 0 if there are none.

    Raises:
        ValueError: Features have one width and one depth; or see `UNet`.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        width: PerSize,
        depth: PerSize,
        told: int,
        waves: int = 0,
        frequency: float = 0.0,
    ) -> None:
        super().__init__()
        context = 2 * FREQUENCIES + told
        self.waves = PlaneWaves(shape[0], waves, frequency) if waves else None
        if len(shape) == 1:
            self.network: nn.Module = dense(
                known=shape[0] + 2 * waves,
                free=shape[0],
                width=_only("width", width),
                depth=_only("depth", depth),
                dropout=0.0,
                context=context,
            )
        else:
            self.network = UNet(shape, width=width, depth=depth, context=context)

    def forward(
        self,
        w: Float[Tensor, "batch ..."],
        t: Float[Tensor, " batch"],
        told: Float[Tensor, "batch told"] | None = None,
    ) -> Float[Tensor, "batch ..."]:
        """Return dw/dt."""
        context = waves(t)
        if told is not None:
            context = torch.cat((context, told.to(context)), dim=1)
        seen = w if self.waves is None else torch.cat((w, self.waves(w)), dim=1)
        velocity: Tensor = self.network(seen, context)
        return velocity.to(w.dtype)


class PlaneWaves(nn.Module):
    """cos(F w) and sin(F w) of rows w, with frequencies F that are drawn once and stay.

    A network of smooth units learns a steep edge late or never; of waves it is a short sum.

    Args:
        features: Of a row.
        count: How many waves.
        frequency: Standard deviation of each entry of F, in radians per unit of w.

    Source:
        Tancik et al. 2020, arXiv:2006.10739 (random Fourier features).
    """

    frequencies: Tensor

    def __init__(self, features: int, count: int, frequency: float) -> None:
        super().__init__()
        self.register_buffer("frequencies", frequency * torch.randn(features, count))

    def forward(self, w: Float[Tensor, "batch feature"]) -> Float[Tensor, "batch waves"]:
        """Return all cosines, then all sines."""
        # bfloat16 has no tenths of a radian left where the angle is large.
        with torch.autocast(w.device.type, enabled=False):
            angle = w @ self.frequencies.to(w.dtype)
        return torch.cat((angle.cos(), angle.sin()), dim=1)


class Steered(ResidualBlock):
    """A residual block whose hidden channels are scaled and shifted by a code.

    Each image is normalised by itself, in groups of its channels: after 1,250 steps on MNIST the
    squared miss was 0.183 and without 0.196, at the same cost a step (measured 2026-11-28).

    Args:
        channels: Of the image.
        code: Numbers of the code.

    Source:
        Wu and He 2018, arXiv:1803.08494; Dhariwal and Nichol 2021, arXiv:2105.05233, section 3
        (scale and shift behind the normalisation).
    """

    def __init__(self, channels: int, code: int) -> None:
        super().__init__(channels)
        groups = math.gcd(channels, GROUPS)
        self.before = nn.GroupNorm(groups, channels)
        self.between = nn.GroupNorm(groups, channels)
        self.code = nn.Linear(code, 2 * channels)
        with torch.no_grad():
            self.code.weight[:channels].mul_(self.START)
            self.code.bias[:channels].zero_()

    def forward(  # type: ignore[override]
        self, x: Float[Tensor, "batch channel height width"], code: Float[Tensor, "batch code"]
    ) -> Float[Tensor, "batch channel height width"]:
        """Return x + f(x, code)."""
        scale, shift = self.code(code)[..., None, None].chunk(2, dim=1)
        hidden = self.between(self.first(self.activation(self.before(x))))
        change: Tensor = self.second(self.activation(hidden * (1 + scale) + shift))
        return x + change


class Level(nn.Module):
    """Blocks at one size, the coarser levels between them.

    What comes from below is joined to what the first blocks made, so that edges need not pass
    through the coarse image.

    Args:
        widths: Channels of this level and of those below.
        depths: Blocks before and after the coarser levels, likewise.
        code: Numbers of the code that steers them.
    """

    def __init__(self, widths: Sequence[int], depths: Sequence[int], *, code: int) -> None:
        super().__init__()
        here, *below = widths
        blocks, *deeper = depths
        self.before = nn.ModuleList(Steered(here, code) for _ in range(blocks))
        self.after = nn.ModuleList(Steered(here, code) for _ in range(blocks))
        self.inner = Level(below, deeper, code=code) if below else None
        if below:
            self.shrink = nn.Conv2d(here, below[0], 4, stride=2, padding=1)
            self.enlarge = nn.ConvTranspose2d(below[0], here, 4, stride=2, padding=1)
            self.join = nn.Conv2d(2 * here, here, 1)

    def forward(
        self, x: Float[Tensor, "batch channel height width"], code: Float[Tensor, "batch code"]
    ) -> Float[Tensor, "batch channel height width"]:
        """Return the image refined, with what all coarser levels see of it."""
        for block in self.before:
            x = block(x, code)
        if self.inner is not None:
            coarse = self.enlarge(self.inner(self.shrink(x), code))
            x = self.join(torch.cat((x, coarse), dim=1))
        for block in self.after:
            x = block(x, code)
        return x


class UNet(nn.Module):
    """A network from images to images that sees them at every size that `halvings` allows.

    Args:
        shape: (channels, height, width) of an image.
        width: Channels at full size, coarser sizes then have more, see `pyramid`; or those of
            each size, the finest first.
        depth: Residual blocks on the way down and as many on the way up, at every size; or those
            of each. Coarse ones cost least: at 7 x 7 a block of four times the channels takes as
            long as one at 28 x 28 (measured), and has sixteen times the weights.
        context: Numbers that each block is told, by way of a code.

    Raises:
        ValueError: There are more or fewer widths or depths than sizes.

    Source:
        Ronneberger et al. 2015, arXiv:1505.04597; Ho et al. 2020, arXiv:2006.11239, appendix B
        (residual blocks that are told the time).
    """

    def __init__(
        self, shape: tuple[int, ...], *, width: PerSize, depth: PerSize, context: int
    ) -> None:
        super().__init__()
        channels, height, columns = shape
        sizes = halvings(height, columns) + 1
        widths = pyramid(width, sizes) if isinstance(width, int) else _each("width", width, sizes)
        depths = [depth] * sizes if isinstance(depth, int) else _each("depth", depth, sizes)
        self.told = nn.Sequential(nn.Linear(context, CODE), nn.SiLU(), nn.Linear(CODE, CODE))
        self.first = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.levels = Level(widths, depths, code=CODE)
        self.last = nn.Conv2d(widths[0], channels, 3, padding=1)
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)

    def forward(
        self,
        x: Float[Tensor, "batch channel height width"],
        context: Float[Tensor, "batch context"],
    ) -> Float[Tensor, "batch channel height width"]:
        """Return an image of the same shape."""
        code = silu(self.told(context))
        answer: Tensor = self.last(silu(self.levels(self.first(x), code)))
        return answer


def _each(name: str, given: tuple[int, ...], sizes: int) -> tuple[int, ...]:
    """Return what is given if it is as many numbers as an image has sizes.

    Raises:
        ValueError: It is not.
    """
    if len(given) != sizes:
        raise ValueError(
            f"model.{name}: these images are seen at {sizes} sizes; got {len(given)} numbers"
        )
    return given


def _only(name: str, given: PerSize) -> int:
    """Return what is given if it is one number.

    Raises:
        ValueError: It is several.
    """
    if not isinstance(given, int):
        raise ValueError(f"model.{name}: one number for each size is of images; give one")
    return given
