"""Masked networks: the i-th answer depends on the inputs before the i-th, and on no other.

Source:
    Germain et al. 2015, arXiv:1502.03509 (MADE); Nash & Durkan 2019, arXiv:1904.05626 (residual
    blocks, which keep the degree of each unit).
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import linear

from training.conditioner import Residual


class MaskedLinear(nn.Linear):
    """A linear layer, some of whose weights are held at 0."""

    mask: Tensor

    def __init__(self, mask: Float[Tensor, "output input"]) -> None:
        super().__init__(mask.shape[1], mask.shape[0])
        self.register_buffer("mask", mask.clone())  # one of its own, as a module's state is

    def forward(self, input: Float[Tensor, "... input"]) -> Float[Tensor, "... output"]:
        """Return the masked weights times the input, plus the bias."""
        return linear(input, self.weight * self.mask, self.bias)


def degrees(inputs: int, width: int) -> Int[Tensor, " width"]:
    """Return for each hidden unit the last input that it may see.

    They are spread evenly, so that with a few units the last inputs still matter.

    Example:
        >>> degrees(3, 4).tolist()
        [0, 0, 1, 1]
    """
    return ((torch.arange(width) + 1) * max(1, inputs - 1) - 1) // width


class Masked(nn.Module):
    """A residual network with so many free numbers for each input, read off the inputs before it.

    Its last layer starts at zero, as that of `Conditioner` does.

    Args:
        inputs: How many.
        free: Numbers for each.
        width: Hidden units.
        depth: Residual blocks.
        dropout: Share of hidden units dropped.
        context: Numbers that every unit may see besides; 0 if there are none.
    """

    def __init__(
        self,
        *,
        inputs: int,
        free: int,
        width: int,
        depth: int,
        dropout: float = 0.0,
        context: int = 0,
    ) -> None:
        super().__init__()
        self.inputs = inputs
        place, degree = torch.arange(inputs), degrees(inputs, width)
        among = (degree[:, None] >= degree).float()
        self.first = MaskedLinear((degree[:, None] >= place).float())
        self.blocks = nn.Sequential(
            *(
                Residual(
                    nn.SiLU(),
                    MaskedLinear(among),
                    nn.SiLU(),
                    nn.Dropout(dropout),
                    MaskedLinear(among),
                )
                for _ in range(depth)
            )
        )
        self.activation = nn.SiLU()
        seen = (place[:, None] > degree).float()
        self.last = MaskedLinear(seen.repeat_interleave(free, 0))
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)
        if context:
            self.told = nn.Linear(context, width)

    def forward(
        self,
        x: Float[Tensor, "batch input"],
        context: Float[Tensor, "batch context"] | None = None,
    ) -> Float[Tensor, "batch input free"]:
        """Return the free numbers of every input."""
        free: Tensor = self.last(self._hidden(x, context))
        return torch.unflatten(free, 1, (self.inputs, -1))

    def at(
        self,
        x: Float[Tensor, "batch input"],
        place: Tensor,
        context: Float[Tensor, "batch context"] | None = None,
    ) -> Float[Tensor, "batch 1 free"]:
        """Return the free numbers of one input, whose index is a tensor without axes.

        For that the last layer, which is the widest, is computed in part only.
        """
        each = (self.inputs, -1)
        weight = (self.last.weight * self.last.mask).unflatten(0, each)
        index = place.reshape(1)
        weight = weight.index_select(0, index).squeeze(0)
        bias = self.last.bias.unflatten(0, each).index_select(0, index).squeeze(0)
        return linear(self._hidden(x, context), weight, bias).unsqueeze(1)

    def _hidden(self, x: Tensor, context: Tensor | None) -> Tensor:
        first: Tensor = self.first(x)
        if context is not None:
            first = first + self.told(context)
        hidden: Tensor = self.activation(self.blocks(first))
        return hidden
