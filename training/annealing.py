r"""Annealed importance sampling: log p(x) along a path from the prior to the posterior.

    f_t(z) = p(z) p(x|z)^{b_t},                0 = b_0 < b_1 < ... < b_T = 1
    log w  = sum_t (b_t - b_{t-1}) log p(x|z_{t-1}),    z_0 ~ p(z),    z_t ~ K_t(. | z_{t-1})

K_t is Hamiltonian Monte Carlo that leaves f_t invariant, so that E[w] = p(x) whatever the number
of temperatures, and the mean of log w is a lower bound of log p(x). The same path walked back
from an exact sample of p(z|x), which a simulated x comes with, gives an upper bound.

The moves must not depend on the chains that they move: a step size that follows a chain's own
acceptance no longer leaves f_t invariant, and E[w] is another number. So pilot chains find the
step sizes, and are thrown away.

Source:
    Neal 2001, "Annealed importance sampling". Wu et al. 2017, arXiv:1611.04273 (of decoders, and
    the sandwich). Neal 2011, arXiv:1206.1901 (the moves).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

LogLikelihood = Callable[[Float[Tensor, "batch chains latent"]], Float[Tensor, "batch chains"]]
"""log p(x|z) of some events, each under its own chains."""

ACCEPTANCE = 0.65
"""Share of moves to accept: Neal 2011, section 4.4; Wu et al. aim at the same."""
PACE = 0.2
"""How far a pilot's acceptance moves the log of its step from one temperature to the next."""
PILOTS = 4
"""Pilot chains of each event."""
JITTER = 0.2
"""Steps are up to so much shorter or longer by chance, or else a trajectory that closes a circle
would close it each time (Neal 2011, section 3.2)."""
STEEPNESS = 4.0
"""Of the sigmoid: Wu et al. 2017, section 4."""


@dataclass(frozen=True)
class Effort:
    """How much is spent on an event.

    Args:
        temperatures: T, the steps of the path.
        chains: Independent runs of it.
        leapfrogs: Steps of each move.
    """

    temperatures: int = 500
    chains: int = 16
    leapfrogs: int = 10

    @property
    def evaluations(self) -> int:
        """Evaluations of log p(x|z) for each event, pilots included; each with its gradient."""
        return (self.chains + PILOTS) * (self.leapfrogs * (self.temperatures - 1) + 1)


def schedule(temperatures: int) -> list[float]:
    """Return b_0, ..., b_T: a sigmoid, dense at both ends, from exactly 0 to exactly 1.

    Example:
        >>> schedule(2)
        [0.0, 0.5, 1.0]
    """
    inputs = torch.linspace(-STEEPNESS, STEEPNESS, temperatures + 1, dtype=torch.float64)
    levels = torch.sigmoid(inputs)
    levels = (levels - levels[0]) / (levels[-1] - levels[0])
    return [float(level) for level in levels]


class _Point(NamedTuple):
    """Where the chains are, with log p(x|z) and its gradient there."""

    z: Float[Tensor, "batch chains latent"]
    value: Float[Tensor, "batch chains"]
    gradient: Float[Tensor, "batch chains latent"]

    def slope(self, level: float) -> Float[Tensor, "batch chains latent"]:
        """Return the gradient of log f."""
        return level * self.gradient - self.z

    def log_f(self, level: float) -> Float[Tensor, "batch chains"]:
        """Return log f but for a constant, in float64: moves are accepted by its differences."""
        return level * self.value.double() - 0.5 * self.z.double().square().sum(-1)

    def moved(self, there: "_Point", accepted: Bool[Tensor, "batch chains"]) -> "_Point":
        """Return the points of `there` where accepted, else these."""
        far = accepted.unsqueeze(-1)
        return _Point(
            torch.where(far, there.z, self.z),
            torch.where(accepted, there.value, self.value),
            torch.where(far, there.gradient, self.gradient),
        )


class Path:
    """The way from the prior of some events' latents to their posteriors, with tuned moves.

    Draws from torch's global generator.

    Args:
        log_likelihood: log p(x|z); best differentiable in z.
        pilots: Draws of the prior, which find the step sizes.
        effort: What may be spent.
    """

    def __init__(
        self,
        log_likelihood: LogLikelihood,
        pilots: Float[Tensor, "batch pilots latent"],
        *,
        effort: Effort,
    ) -> None:
        self._log_likelihood = log_likelihood
        self._leapfrogs = effort.leapfrogs
        self._levels = schedule(effort.temperatures)
        self._steps: list[Float[Tensor, " batch"]] = []
        """Of the moves at b_1, ..., b_{T-1}."""
        self.acceptance = self._tune(pilots)
        """Mean share of the pilots' moves that were accepted, of each event."""

    def _tune(self, z: Float[Tensor, "batch pilots latent"]) -> Float[Tensor, " batch"]:
        """Walk the path once, and note the step of each temperature."""
        # The scaling of the optimal step with the dimension (Neal 2011, section 4.4).
        log_step = torch.full_like(z[:, 0, 0], -0.25 * math.log(z.shape[-1]))
        total = torch.zeros_like(log_step)
        point = self._look(z)
        for level in self._levels[1:-1]:
            self._steps.append(log_step.exp())
            point, acceptance = self._move(point, level, self._steps[-1])
            acceptance = acceptance.mean(1).to(z.dtype)
            log_step = log_step + PACE * (acceptance - ACCEPTANCE)
            total = total + acceptance
        return total / max(1, len(self._steps))

    def forward(self, z: Float[Tensor, "batch chains latent"]) -> Float[Tensor, "batch chains"]:
        """Return log w of each chain, in float64: the mean of w is p(x).

        Args:
            z: Draws of the prior.
        """
        point, log_weight = (
            self._look(z),
            torch.zeros(z.shape[:2], dtype=torch.float64).to(z.device),
        )
        levels = self._levels
        for t in range(1, len(levels)):
            log_weight += (levels[t] - levels[t - 1]) * point.value.double()
            if t < len(levels) - 1:
                point, _ = self._move(point, levels[t], self._steps[t - 1])
        return log_weight

    def back(self, z: Float[Tensor, "batch chains latent"]) -> Float[Tensor, "batch chains"]:
        """Return log w of each chain that walks back, in float64: the mean of 1 / w is 1 / p(x).

        Args:
            z: Exact draws of p(z|x). The z that a simulated x was made from is one; chains that
                share it are not independent of each other.
        """
        point, log_weight = (
            self._look(z),
            torch.zeros(z.shape[:2], dtype=torch.float64).to(z.device),
        )
        levels = self._levels
        for t in range(len(levels) - 1, 0, -1):
            log_weight += (levels[t] - levels[t - 1]) * point.value.double()
            if t > 1:
                point, _ = self._move(point, levels[t - 1], self._steps[t - 2])
        return log_weight

    def _look(self, z: Float[Tensor, "batch chains latent"]) -> _Point:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            value = self._log_likelihood(z)
            # Of signs alone there is none: nothing to differentiate, or nothing but the decoder's
            # weights. Moves are then accepted by p(x|z), and not led by it.
            gradient = torch.zeros_like(z)
            if value.requires_grad:
                (gradient,) = torch.autograd.grad(value.sum(), z, materialize_grads=True)
        return _Point(z.detach(), value.detach(), gradient)

    def _move(
        self, here: _Point, level: float, step: Float[Tensor, " batch"]
    ) -> tuple[_Point, Float[Tensor, "batch chains"]]:
        """Return the chains after a move at a temperature, and each one's chance of acceptance."""
        jitter = 1 + JITTER * (2 * torch.rand_like(here.value) - 1)
        size = (step.unsqueeze(1) * jitter).unsqueeze(2)
        start = torch.randn_like(here.z)
        there, end = self._leap(here, start, level, size)
        energy = 0.5 * (start.double().square() - end.double().square()).sum(-1)
        gain = there.log_f(level) - here.log_f(level) + energy
        # A trajectory that left all numbers is NaN: it is not accepted.
        chance = gain.clamp(max=0).exp().nan_to_num(0.0)
        return here.moved(there, torch.rand_like(chance) < chance), chance

    def _leap(
        self,
        point: _Point,
        momentum: Float[Tensor, "batch chains latent"],
        level: float,
        size: Float[Tensor, "batch chains 1"],
    ) -> tuple[_Point, Float[Tensor, "batch chains latent"]]:
        """Return the end of a trajectory: with its momentum turned round it leads back."""
        momentum = momentum + 0.5 * size * point.slope(level)
        for left in range(self._leapfrogs - 1, -1, -1):
            point = self._look(point.z + size * momentum)
            momentum = momentum + (size if left else 0.5 * size) * point.slope(level)
        return point, momentum
