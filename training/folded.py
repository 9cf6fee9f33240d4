"""Constants in place of computations: what a graph need not work out, because no input changes it.

ONNX has neither inverses of matrices nor solvers of triangular systems. A part of a model that
needs one of its own weights is exported as another module, which knows the result.
"""

import copy
from abc import abstractmethod
from typing import TypeVar

from torch import nn

Model = TypeVar("Model", bound=nn.Module)


class Foldable(nn.Module):
    """A part of a model that is exported as constants."""

    @abstractmethod
    def folded(self) -> nn.Module:
        """Return a module that computes the same from constants, worked out in float64.

        They are its buffers, and a graph keeps their names.
        """

    @abstractmethod
    def unfold(self, folded: nn.Module) -> None:
        """Set the parameters to those that `folded` was made of."""


def parts(module: nn.Module) -> dict[str, Foldable]:
    """Return all that can be folded within a module, by its place."""
    return {
        name: part
        for name, part in module.named_modules(remove_duplicate=False)
        if isinstance(part, Foldable)
    }


def folded(module: Model) -> Model:
    """Return a copy of a module in which all that can be folded is."""
    ready = copy.deepcopy(module)
    for name, part in parts(ready).items():
        ready.set_submodule(name, part.folded())
    return ready
