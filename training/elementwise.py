"""Monotone maps of single values, whose shape a network reads off other values.

Values are (batch, channel, ...) and the free numbers of their maps (batch, channel, free, ...).
Zeros are the identity.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from training.networks import bounded_log
from training.splines import AXIS, inverse_spline, knots, parameters_per_spline, spline


class Elementwise(ABC):
    """A kind of such maps."""

    bound: float
    """Where the network may look: it sees the nearest place within ±bound."""

    @property
    @abstractmethod
    def free(self) -> int:
        """How many free numbers a map has."""

    @abstractmethod
    def forward(
        self, x: Float[Tensor, "batch channel *space"], free: Float[Tensor, "batch channel ..."]
    ) -> tuple[Float[Tensor, "batch channel *space"], Float[Tensor, "batch channel *space"]]:
        """Return y and log dy/dx."""

    @abstractmethod
    def inverse(
        self, y: Float[Tensor, "batch channel *space"], free: Float[Tensor, "batch channel ..."]
    ) -> Float[Tensor, "batch channel *space"]:
        """Return x."""


@dataclass(frozen=True)
class Spline(Elementwise):
    """Rational-quadratic splines in a box, the identity outside.

    Args:
        bins: Of each.
        bound: Half the side of the box.

    Source:
        Durkan et al. 2019, arXiv:1906.04032.
    """

    bins: int
    bound: float

    @property
    def free(self) -> int:
        """Widths, heights and slopes."""
        return parameters_per_spline(self.bins)

    def forward(self, x: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
        """Return y and log dy/dx."""
        return spline(x, knots(free, self.bound))

    def inverse(self, y: Tensor, free: Tensor) -> Tensor:
        """Return x."""
        return inverse_spline(y, knots(free, self.bound))[0]


@dataclass(frozen=True)
class Affine(Elementwise):
    """y = exp(s) x + t, with s within ±`LOG_BOUND`.

    Source:
        Dinh et al. 2017, arXiv:1605.08803 (RealNVP); Papamakarios et al. 2017, arXiv:1705.07057.
    """

    bound: float = math.inf

    @property
    def free(self) -> int:
        """A scale and a shift."""
        return 2

    def forward(self, x: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
        """Return y and log dy/dx."""
        log_scale, shift = self._read(free)
        return x * log_scale.exp() + shift, log_scale

    def inverse(self, y: Tensor, free: Tensor) -> Tensor:
        """Return x."""
        log_scale, shift = self._read(free)
        return (y - shift) * (-log_scale).exp()

    def _read(self, free: Tensor) -> tuple[Tensor, Tensor]:
        return bounded_log(free.select(AXIS, 0)), free.select(AXIS, 1)


@dataclass(frozen=True)
class Additive(Elementwise):
    """y = x + t, which stretches nothing.

    Source:
        Dinh et al. 2015, arXiv:1410.8516 (NICE).
    """

    bound: float = math.inf

    @property
    def free(self) -> int:
        """A shift."""
        return 1

    def forward(self, x: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
        """Return y and log dy/dx, which is 0."""
        return x + free.select(AXIS, 0), x.new_zeros(x.shape)

    def inverse(self, y: Tensor, free: Tensor) -> Tensor:
        """Return x."""
        return y - free.select(AXIS, 0)
