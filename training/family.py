"""What a generative model must be able to do to be trained, judged and exported.

A family (`vae.py`, `flow.py`, `gan.py`) is one `torch.nn.Module` that inherits from `Family`.
The loop asks it for turns, the evaluation for nats, the export for graphs; none of them knows
which family it holds.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from service.interface import Interface, Role, TensorSpec
from service.manifest import Figure, Rejection
from training.data import Batch, Data


@dataclass(frozen=True)
class Turn:
    """One player's move in a training step. Most families have one turn, a GAN has two.

    Args:
        name: What the logs call it.
        parameters: What this move changes.
        loss: Maps a batch to named scalars; "loss" is minimised, the others are logged.
        rate: Factor on the recipe's learning rate.
        times: How often it is made in a step, each time on other rows.
        bound: The largest magnitude of each parameter: those beyond it are put back after a move.
    """

    name: str
    parameters: tuple[nn.Parameter, ...]
    loss: Callable[[Batch], Mapping[str, Float[Tensor, ""]]]
    rate: float = 1.0
    times: int = 1
    bound: float | None = None


@dataclass(frozen=True)
class Score:
    """What validation says of a model, to be minimised.

    Args:
        value: A number.
        standard_error: By the choice of the rows, where it is known. Scores of two epochs are of
            the same rows and the same noise, so they differ by less than their errors say.
    """

    value: float
    standard_error: float | None = None

    @classmethod
    def mean(cls, values: Float[Tensor, "batch ..."]) -> "Score":
        """Return the mean of what is said of each row, perhaps by several draws, with its error.

        Example:
            >>> Score.mean(torch.tensor([1.0, 3.0]))
            Score(value=2.0, standard_error=1.0)
        """
        rows = values.flatten(1).double().mean(1) if values.ndim > 1 else values.double()
        error = rows.std().item() / math.sqrt(len(rows)) if len(rows) > 1 else None
        return cls(values.mean().item(), error)


@dataclass(frozen=True)
class Nats:
    """A test figure of each event, in nats.

    Args:
        values: One for each event.
        note: In which way their mean is less than exact; "" where it is exact.
    """

    values: Float[Tensor, " batch"]
    note: str = ""


@dataclass(frozen=True)
class Inexactness:
    """By how much samples miss what they are meant to be: what a finer computation would give.

    Args:
        squares: Of each sample, the mean over its dimensions of the squared differences.
        name: Of the figure that the root of their mean is.
        unit: Of that root.
        note: How it was found.
    """

    squares: Float[Tensor, " batch"]
    name: str
    unit: str
    note: str


class Family(nn.Module, ABC):
    """A generative model of one family, with its objective."""

    usual_draws: int = 1
    """Draws of each event that `nats` takes where nobody says otherwise."""

    @property
    @abstractmethod
    def interface(self) -> Interface:
        """What is served: event, latent, labels, density."""

    def prepare(self, batch: Batch) -> None:
        """Set what begins with what the first batch is like, before the first step.

        Called in training mode, and with torch's global generator seeded.
        """

    def release(self) -> None:
        """Leave out what only training wants. Called by `finish`, and before weights are restored.

        What is computed stays the same.
        """

    def finish(self, data: Data) -> None:
        """Fit what is fitted once the model makes the samples that it will be published for.

        Called before anything is judged or exported, and leaves what makes samples as it is.
        """

    @abstractmethod
    def turns(self) -> tuple[Turn, ...]:
        """Return the moves of one training step, in order.

        Losses may draw from torch's global generator, which the loop seeds and checkpoints.
        """

    @abstractmethod
    def score(self, batch: Batch) -> Score:
        """Return the validation score of a batch.

        Called in evaluation mode, without gradients, and with torch's global generator seeded
        alike each time, so that two scores differ by the weights alone.
        """

    @abstractmethod
    def decode(
        self, z: Float[Tensor, "batch ..."], condition: Tensor | None = None
    ) -> Float[Tensor, "batch ..."]:
        """Push noise z forward to events x (for a VAE: to the mean of p(x|z)).

        Args:
            z: Noise.
            condition: Of a conditional model what it is told of each row, see `condition`.
        """

    def condition(self, batch: Batch) -> Tensor | None:
        """Return what the model is told of rows: their labels, their contexts, or nothing."""
        if self.interface.context:
            return batch.context
        return batch.label if self.interface.labels else None

    def nats(self, batch: Batch, draws: int) -> dict[str, Nats]:
        """Return per-event test figures in nats, by name. None where there is no density.

        They are of the event that `interface` describes: where it has grey levels, of images on
        those. What is estimated is so from as many `draws` of each event.
        """
        return {}

    def own_figures(self, test: Batch) -> tuple[Figure, ...]:
        """Return what is judged of a model besides what its samples and density are worth.

        Called in evaluation mode, without gradients and with seeded generators.
        """
        return ()

    def inexactness(
        self, z: Float[Tensor, "batch ..."], condition: Tensor | None = None
    ) -> Inexactness | None:
        """Return how far `decode` of this noise is from its limit. None where it has none."""
        return None

    def rejection(self) -> Rejection | None:
        """Return what its samples are rejected by. None where nothing rejects them."""
        return None

    @abstractmethod
    def graphs(self) -> dict[Role, nn.Module]:
        """Return one module per role that can be served.

        Its forward takes the inputs of `interface.signature(role)` in that order and returns a
        tuple of the outputs in that order. It draws no random numbers and works in any dtype.
        Roles of the same inputs may have one module, which returns the outputs of all of them,
        see `outputs_of`.
        """


def outputs_of(
    graphs: Mapping[Role, nn.Module], interface: Interface, role: Role
) -> tuple[TensorSpec, ...]:
    """Return what a role's module returns: the outputs of every role that has this module."""
    sharing = (other for other, module in graphs.items() if module is graphs[role])
    return tuple(spec for other in sharing for spec in interface.signature(other)[1])


class Call(nn.Module):
    """One method of a model as a graph of its own: inputs to a tuple of outputs."""

    def __init__(self, model: nn.Module, method: str) -> None:
        super().__init__()
        self.model = model
        self.method = method

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return what the method does, as a tuple also where it is one tensor."""
        answer: Tensor | tuple[Tensor, ...] = getattr(self.model, self.method)(*inputs)
        return answer if isinstance(answer, tuple) else (answer,)


class Pixels(nn.Module):
    """A graph whose one output is images, with their pixels as the contract wants them."""

    def __init__(self, graph: nn.Module) -> None:
        super().__init__()
        self.graph = graph

    def forward(
        self, *inputs: Tensor
    ) -> tuple[Float[Tensor, "batch channel height width"], Tensor]:
        """Return x and the same image as uint8 (batch, height, width, channel)."""
        (x,) = self.graph(*inputs)
        pixels = (x * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
        return x, pixels
