"""The networks of couplings: what a spline looks like, given the channels that do not move.

They may be told a context besides, the same for all channels and pixels of an event.
"""

from collections.abc import Sequence
from typing import TypedDict

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Sizes(TypedDict):
    """Of each network of a flow."""

    width: int
    depth: int
    dropout: float
    context: int


class Residual(nn.Module):
    """x + inner(x)."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.inner = nn.Sequential(*layers)

    def forward(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        """Return the sum."""
        answer: Tensor = self.inner(x)
        return x + answer


class Positions(nn.Module):
    """Add a learned constant to each channel of each pixel.

    A convolution treats all places alike. A digit does not: its corners are always black.
    """

    def __init__(self, channels: int, height: int, width: int) -> None:
        super().__init__()
        self.constant = nn.Parameter(0.02 * torch.randn(channels, height, width))

    def forward(
        self, x: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, "batch channel height width"]:
        """Return x plus the constants."""
        return x + self.constant


class Mix(nn.Module):
    """Let every pixel of a channel see all others of that channel, at once.

    Source:
        Tolstikhin et al. 2021, arXiv:2105.01601 (token mixing).
    """

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(height * width, height * width)

    def forward(
        self, x: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, "batch channel height width"]:
        """Return a linear map of the pixels, the same for each channel."""
        mixed: Tensor = self.linear(x.flatten(2))
        return mixed.reshape(x.shape)


class Conditioner(nn.Module):
    """A residual network from the known channels to the free numbers of the splines.

    Its last layer starts at zero, so that every spline starts as the identity.

    Args:
        first: From the known channels to `width` of them.
        blocks: What changes those.
        last: From them to the free numbers.
        width: How many channels are between.
        context: Numbers of the context; 0 if there is none.
    """

    def __init__(
        self,
        first: nn.Module,
        blocks: Sequence[nn.Module],
        last: nn.Module,
        *,
        width: int,
        context: int,
    ) -> None:
        super().__init__()
        self.first = first
        self.blocks = nn.Sequential(*blocks)
        self.last = last
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
        if context:
            self.told = nn.Linear(context, width)

    def forward(
        self,
        known: Float[Tensor, "batch known ..."],
        context: Float[Tensor, "batch context"] | None = None,
    ) -> Float[Tensor, "batch free ..."]:
        """Return free numbers, moved channel by moved channel."""
        hidden: Tensor = self.first(known)
        if context is not None:
            told: Tensor = self.told(context)
            hidden = hidden + told.reshape(*told.shape, *[1] * (hidden.ndim - 2))
        answer: Tensor = self.last(self.blocks(hidden))
        return answer


def dense(
    *, known: int, free: int, width: int, depth: int, dropout: float, context: int = 0
) -> Conditioner:
    """Return a network of `depth` residual blocks on rows of features."""
    blocks = [
        Residual(
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Dropout(dropout),
            nn.Linear(width, width),
        )
        for _ in range(depth)
    ]
    return Conditioner(
        nn.Linear(known, width),
        blocks,
        nn.Sequential(nn.SiLU(), nn.Linear(width, free)),
        width=width,
        context=context,
    )


def convolutional(
    *,
    known: int,
    free: int,
    side: tuple[int, int],
    width: int,
    depth: int,
    dropout: float,
    context: int = 0,
) -> Conditioner:
    """Return a network of `depth` residual blocks on images of this height and width.

    Each block looks at the neighbourhood (a convolution), then at the whole picture (a `Mix`).
    """
    blocks: list[nn.Module] = []
    for _ in range(depth):
        blocks.append(
            Residual(
                nn.ReLU(),
                nn.Conv2d(width, width, 3, padding=1),
                nn.ReLU(),
                nn.Dropout(dropout),
                nn.Conv2d(width, width, 3, padding=1),
            )
        )
        blocks.append(Residual(nn.ReLU(), Mix(*side), nn.ReLU(), nn.Conv2d(width, width, 1)))
    first = nn.Sequential(nn.Conv2d(known, width, 3, padding=1), Positions(width, *side))
    last = nn.Sequential(nn.ReLU(), nn.Conv2d(width, free, 1))
    return Conditioner(first, blocks, last, width=width, context=context)
