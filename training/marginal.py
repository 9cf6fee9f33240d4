"""log p(x) of a latent-variable model by each of its estimators, for any number of events."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from training.annealing import PILOTS, Effort, Path
from training.data import Batch
from training.evidence import Evidence, Weigh, estimate, from_weights, joined
from training.latent import LatentModel

PART_DRAWS = 2**17
"""Draws of all events of a part together: how often progress is told."""
PART_CHAINS = 1024
"""Chains likewise. A part's gradients lie in memory together, all layers of them."""

Advance = Callable[[int], None]
"""Told of events that are done."""


@dataclass(frozen=True)
class Events:
    """Events as the observation model takes them, the same for every estimator.

    Args:
        model: Whose.
        batch: On its device.
    """

    model: LatentModel
    batch: Batch

    @classmethod
    def of(cls, model: LatentModel, batch: Batch) -> "Events":
        """Return the events that rows of the data stand for, with torch's global generator."""
        x = batch.x.to(next(model.parameters()).device)
        label = batch.label if model.labels else None
        label = None if label is None else label.to(x.device)
        return cls(model, Batch(model.observation.resample(x), label))

    def prior(self) -> Weigh:
        """Return what weighs draws of the prior, given their noise."""

        def weigh(noise: Float[Tensor, "batch draws latent"]) -> Float[Tensor, "batch draws"]:
            z = self.model.prior.push(noise.flatten(0, 1)).view_as(noise)
            return self.model.log_likelihood(self.batch.x, z, self.batch.label)

        return weigh

    def posterior(self) -> Weigh:
        """Return what weighs draws of q(z|x), given their noise.

        Raises:
            TypeError: The model has no encoder.
        """
        weigh = self.model.weigh(self.batch.x, self.batch.label)
        if weigh is None:
            raise TypeError("this model has no encoder")
        return weigh

    def noise(self, draws: int) -> Float[Tensor, "batch draws latent"]:
        """Return standard normal noise for draws of each event."""
        x = self.batch.x
        return torch.randn(len(x), draws, self.model.latent, dtype=x.dtype, device=x.device)

    def parts(self, draws: int, *, at_once: int = PART_DRAWS) -> Iterator["Events"]:
        """Yield these events, so few of them at a time that all their draws are `at_once`."""
        for rows in torch.arange(len(self.batch)).split(max(1, at_once // draws)):
            yield Events(self.model, self.batch[rows.to(self.batch.x.device)])


def by_prior(events: Events, draws: int, advance: Advance) -> Evidence:
    """Return the naive estimate: the mean of p(x|z) over draws of the prior."""
    return _sampled(events, Events.prior, draws, advance)


def by_posterior(events: Events, draws: int, advance: Advance) -> Evidence:
    """Return the importance-weighted estimate, whose draws the encoder proposes."""
    return _sampled(events, Events.posterior, draws, advance)


def _sampled(
    events: Events, weigh: Callable[[Events], Weigh], draws: int, advance: Advance
) -> Evidence:
    found = []
    for part in events.parts(draws):
        found.append(estimate(weigh(part), part.batch.x, latent=events.model.latent, draws=draws))
        advance(len(part.batch))
    return joined(found)


def by_annealing(events: Events, effort: Effort, advance: Advance) -> Evidence:
    """Return the estimate of annealed importance sampling, among the noise that z is made of."""
    found = []
    for part in events.parts(effort.chains, at_once=PART_CHAINS):
        path = Path(part.prior(), part.noise(PILOTS), effort=effort)
        found.append(from_weights(path.forward(part.noise(effort.chains))))
        advance(len(part.batch))
    return joined(found)


def sandwich(
    model: LatentModel, rows: int, effort: Effort, advance: Advance
) -> tuple[Float[Tensor, " rows"], Float[Tensor, " rows"]]:
    """Return bounds of log p(x) from below and from above, in expectation, of simulated events.

    The noise that an event was made from is an exact draw of its posterior, from which the way
    back to the prior begins.

    Source:
        Grosse et al. 2015, arXiv:1511.02543 (bidirectional Monte Carlo).
    """
    events, noise = _simulated(model, rows)
    low, high = [], []
    for part, start in zip(
        events.parts(effort.chains, at_once=PART_CHAINS),
        noise.split(max(1, PART_CHAINS // effort.chains)),
        strict=True,
    ):
        path = Path(part.prior(), part.noise(PILOTS), effort=effort)
        low.append(from_weights(path.forward(part.noise(effort.chains))).log_p)
        back = path.back(start.unsqueeze(1).repeat(1, effort.chains, 1))
        high.append(-from_weights(-back).log_p)
        advance(len(start))
    return torch.cat(low), torch.cat(high)


def _simulated(model: LatentModel, rows: int) -> tuple[Events, Float[Tensor, "rows latent"]]:
    """Return events drawn from the model, and the noise that the z of each was made of."""
    parameter = next(model.parameters())
    noise = torch.randn(rows, model.latent, device=parameter.device, dtype=parameter.dtype)
    draw = torch.rand if model.observation.name != "normal" else torch.randn
    chance = draw(rows, *model.event.shape, device=noise.device, dtype=noise.dtype)
    label = torch.arange(rows, device=noise.device) % len(model.labels) if model.labels else None
    inputs = (chance,) if label is None else (label, chance)
    with torch.no_grad():
        x = torch.cat(
            [
                model.observe(model.prior.push(noise[part]), *(each[part] for each in inputs))
                for part in torch.arange(rows, device=noise.device).split(PART_CHAINS)
            ]
        )
    return Events(model, Batch(x, label)), noise
