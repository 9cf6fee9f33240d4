"""Estimates of log p(x) of a latent-variable model, from any number of draws in constant memory.

All of them average weights w whose mean is p(x), in float64 and relative to the largest so far:

- of the prior: z ~ p(z), w = p(x|z). Hopeless once x tells much about z: no draw comes near.
- of the posterior: z ~ q(z|x), w = p(x|z) p(z) / q(z|x), which needs an encoder.
- of annealed importance sampling, whose weights `annealing.py` makes.

The log of the mean is too low on average, the less the more draws there are.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from service.estimates import LogMean

BLOCK_ROWS = 256
"""Draws that are weighed at once, of all events together: rows of the decoder. Bounds the memory;
what 1,024 make fits the cache less well, and takes 1.4 times as long (measured, mnist-vae)."""

Weigh = Callable[[Float[Tensor, "batch draws latent"]], Float[Tensor, "batch draws"]]
"""From standard normal noise to log-weights, whose exponentials average to p(x)."""


@dataclass(frozen=True)
class Evidence:
    """What some draws say of log p(x), of each event, in nats and float64 on the CPU.

    Args:
        log_p: The log of the mean weight.
        standard_error: Of that, by the delta method. Too small where few draws carry all weight.
        effective: Kish's effective number of draws, (sum w)^2 / sum w^2.
        draws: How many there were.
    """

    log_p: Float[Tensor, " batch"]
    standard_error: Float[Tensor, " batch"]
    effective: Float[Tensor, " batch"]
    draws: int

    @property
    def mean(self) -> tuple[float, float]:
        """The mean of log p(x) over the events, and its standard error as a mean of the data's."""
        error = self.log_p.std() / math.sqrt(len(self.log_p))
        return self.log_p.mean().item(), error.item()

    @property
    def chance(self) -> float:
        """The share of the draws in the error of the mean: what more of them could take away."""
        return self.standard_error.square().sum().sqrt().item() / len(self.log_p)


def from_weights(log_weight: Float[Tensor, "batch draws"]) -> Evidence:
    """Return what log-weights that lie in memory say.

    Example:
        >>> from_weights(torch.tensor([[0.0, 0.0], [1e4, 1e4]])).log_p.tolist()
        [0.0, 10000.0]
    """
    total = LogMean(len(log_weight))
    total.add(_array(log_weight))
    return _evidence(total, log_weight.shape[1])


def joined(parts: Sequence[Evidence]) -> Evidence:
    """Return what is known of all events of these parts, whose numbers of draws are the same."""
    log_p, standard_error, effective = (
        torch.cat([getattr(part, name) for part in parts])
        for name in ("log_p", "standard_error", "effective")
    )
    return Evidence(log_p, standard_error, effective, parts[0].draws)


def blocks(events: int, draws: int) -> Iterator[int]:
    """Yield how many draws of each event to weigh at once, until there were so many.

    Example:
        >>> list(blocks(80, 8))
        [3, 3, 2]
    """
    width = max(1, BLOCK_ROWS // events)
    for start in range(0, draws, width):
        yield min(width, draws - start)


@torch.no_grad()
def estimate(weigh: Weigh, x: Float[Tensor, "batch ..."], *, latent: int, draws: int) -> Evidence:
    """Return what so many draws say of log p(x).

    Args:
        weigh: Weighs draws of these events. Of a model with p(x|z): of the prior
            `lambda z: model.log_likelihood(x, z)`, of the posterior
            `lambda noise: model.terms(x, noise).log_weight`.
        x: The events. Its precision and device are those of the noise.
        latent: Dimensions of z.
        draws: Of each event, from torch's global generator.
    """
    total = LogMean(len(x))
    for block in blocks(len(x), draws):
        noise = torch.randn(len(x), block, latent, dtype=x.dtype, device=x.device)
        total.add(_array(weigh(noise)))
    return _evidence(total, draws)


def _array(log_weight: Float[Tensor, "batch draws"]) -> Float[np.ndarray, "batch draws"]:
    array: np.ndarray = log_weight.detach().double().cpu().numpy()
    return array


def _evidence(total: LogMean, draws: int) -> Evidence:
    value, error, effective = (
        torch.from_numpy(each.copy())
        for each in (total.value, total.standard_error, total.effective_sample_size)
    )
    return Evidence(value, error, effective, draws)
