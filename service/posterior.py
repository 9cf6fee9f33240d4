"""Gaussian posteriors q(z|x) of some events, as an encoder or a refinement answers them.

A draw is z = mean + L eps, with eps from N(0, I). What is known of it in closed form is computed
here in float64.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from service.tensors import Array

Floats = npt.NDArray[np.float64]
Events = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Gaussian(ABC):
    """q(z|x) of n events.

    Args:
        mean: float32 (n, *latent).
    """

    mean: Array

    @property
    @abstractmethod
    def parameters(self) -> dict[str, Array]:
        """By the names of the graphs' inputs."""

    @property
    @abstractmethod
    def row_values(self) -> int:
        """How many numbers say what an event's covariance is."""

    @abstractmethod
    def draw(self, eps: Array, event: Events) -> Array:
        """Return z = mean + L eps of some events, float32.

        The arithmetic is by the element: a draw's bytes do not depend on those beside it.

        Args:
            eps: Shape (rows, draws, *latent).
            event: Whose each row is.
        """

    @abstractmethod
    def log_det(self) -> Floats:
        """Return log |det L| of each event, shape (n,)."""

    @abstractmethod
    def trace(self) -> Floats:
        """Return the trace of each event's covariance L L', shape (n,)."""

    def kl(self) -> Floats:
        """Return KL(q(z|x) || N(0, I)) in nats: 1/2 (tr L L' + m'm - d) - log |det L|."""
        mean = _flat(self.mean, axes=1)
        squares = self.trace() + (mean**2).sum(axis=1)
        return np.asarray(0.5 * (squares - mean.shape[1]) - self.log_det())


@dataclass(frozen=True)
class Diagonal(Gaussian):
    """Independent latents.

    Args:
        mean: float32 (n, *latent).
        scale: Standard deviations, likewise.
    """

    scale: Array

    @property
    def parameters(self) -> dict[str, Array]:
        """Mean and scale."""
        return {"mean": self.mean, "scale": self.scale}

    @property
    def row_values(self) -> int:
        """One for each latent."""
        return int(np.prod(self.scale.shape[1:]))

    def draw(self, eps: Array, event: Events) -> Array:
        """Return z = mean + scale eps."""
        drawn: Array = self.mean[event, None] + self.scale[event, None] * eps
        return drawn

    def log_det(self) -> Floats:
        """Return the sum of log scale."""
        return np.asarray(_log(_flat(self.scale, axes=1)).sum(axis=1))

    def trace(self) -> Floats:
        """Return the sum of scale^2."""
        return np.asarray((_flat(self.scale, axes=1) ** 2).sum(axis=1))


@dataclass(frozen=True)
class Full(Gaussian):
    """Latents that depend on each other.

    Args:
        mean: float32 (n, *latent).
        scale_tril: L, float32 (n, size, size); what is above its diagonal is not read.
    """

    scale_tril: Array

    @property
    def parameters(self) -> dict[str, Array]:
        """Mean and scale_tril."""
        return {"mean": self.mean, "scale_tril": self.scale_tril}

    @property
    def row_values(self) -> int:
        """One for each pair of latents."""
        return int(np.prod(self.scale_tril.shape[1:]))

    def draw(self, eps: Array, event: Events) -> Array:
        """Return z = mean + L eps, column by column of L, in float64."""
        flat, factor = _flat(eps, axes=2), self.scale_tril[event]
        z = _flat(self.mean[event], axes=1)[:, None] + np.zeros_like(flat)
        for column in range(flat.shape[2]):
            z[:, :, column:] += factor[:, None, column:, column] * flat[:, :, column, None]
        drawn: Array = z.astype(np.float32).reshape(eps.shape)
        return drawn

    def log_det(self) -> Floats:
        """Return the sum of the logarithms of L's diagonal."""
        diagonal = np.diagonal(self.scale_tril, axis1=1, axis2=2)
        return np.asarray(_log(diagonal.astype(np.float64)).sum(axis=1))

    def trace(self) -> Floats:
        """Return the sum of L's squares."""
        lower = np.tril(self.scale_tril).astype(np.float64)
        return np.asarray((lower**2).sum(axis=(1, 2)))


def gaussian(parameters: Mapping[str, Array]) -> Gaussian:
    """Return the posterior that a graph answered: `mean`, and `scale` or `scale_tril`."""
    if "scale" in parameters:
        return Diagonal(parameters["mean"], parameters["scale"])
    return Full(parameters["mean"], parameters["scale_tril"])


def _flat(array: Array, *, axes: int) -> Floats:
    """Return it in float64, all but the first axes in one."""
    return array.reshape(*array.shape[:axes], -1).astype(np.float64)


def _log(values: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):  # a scale of nothing is a graph's fault
        return np.asarray(np.log(values))
