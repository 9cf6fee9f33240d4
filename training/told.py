"""What a conditional network is told beside each event: numbers made of a label or of a context."""

from jaxtyping import Float
from torch import Tensor, nn

from service.interface import Context
from training.data import Data, told_labels
from training.networks import one_hot


class Told(nn.Module):
    """1 at an event's class and 0 elsewhere, or its context standardised; nothing, if not asked.

    Args:
        data: Whose labels, or whose context if there is one, are told.
        conditional: Whether anything is.

    Raises:
        ValueError: It is, and the data has nothing to tell.
    """

    def __init__(self, data: Data, *, conditional: bool) -> None:
        super().__init__()
        self.context: Context | None = data.context if conditional else None
        self.labels: tuple[str, ...] | None = None
        if self.context is None:
            self.labels = told_labels(data.labels, conditional=conditional)
        elif data.train.context is not None:
            known = data.train.context.double()
            self.register_buffer("mean", known.mean(0).float())
            self.register_buffer("std", known.std(0, correction=0).float())
        self.size = len(self.labels or (self.context.names if self.context else ()))
        """How many numbers a network is told."""

    @property
    def what(self) -> str:
        """Of whose density it makes one of a condition, in words."""
        if self.context:
            return ", given its context"
        return ", given its label" if self.labels else ""

    def forward(
        self, condition: Tensor | None, *, like: Tensor
    ) -> Float[Tensor, "batch told"] | None:
        """Return what a network is told.

        Args:
            condition: Labels (batch,), or contexts (batch, numbers) in their own units.
            like: Of whose type and device it shall be.
        """
        if condition is None:
            return None
        if self.context is None:
            return one_hot(condition, self.size, like=like)
        mean, std = self.get_buffer("mean"), self.get_buffer("std")
        told: Tensor = (condition - mean.to(condition)) / std.to(condition)
        return told.to(like)
