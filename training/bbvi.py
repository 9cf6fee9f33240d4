r"""Black-box variational inference: every training event has a q(z|λ) of its own, and no encoder.

    log p(x) >= ELBO(λ, θ) = E_q(z|λ)[log p_θ(x|z)] - KL(q(z|λ) || p(z))

A training step has two parts. Step 1: some steps of ascent in the λ of each row of the batch, by
one of the estimators of `gradients.py`. Step 2: one step of the loop's optimiser in θ, at those λ.
A row's λ is kept until the row comes up again and goes on from there; an event that is not a
training row begins at the prior.

Latents are normal or binary. A binary one is the sign of a standard normal, so that the trained
model is a pushforward of N(0, I) like any other.

Source:
    Ranganath et al. 2014, arXiv:1401.0118. Hoffman et al. 2013, arXiv:1206.7051.
"""

from functools import partial
from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor

from service.interface import Density, Interface, Latent
from training.bounds import Terms
from training.data import Batch, Data
from training.family import Nats, Score, Turn
from training.gradients import ESTIMATORS, Bernoulli, Gradient, MeanField, Normal
from training.latent import LatentConfig, LatentModel


class BBVIConfig(LatentConfig):
    """What a recipe says of a model trained by black-box variational inference."""

    family: Literal["bbvi"] = Field("bbvi", description="Selects this family.")
    latents: Literal["normal", "binary"] = Field(
        "normal",
        description="z and its q: normal, with a mean and a scale for each latent; or binary, with "
        "a probability for each.",
    )
    gradient: Gradient = Field(
        "reinforce-baseline",
        description="How the gradient in q's parameters is estimated: by the score function, by "
        "that with the other draws' mean as its baseline, or along z = mean + scale * noise, "
        "which binary latents do not have.",
    )
    draws: int = Field(8, ge=1, description="Draws of z for each event and step, in q and θ alike.")
    steps: int = Field(
        4, ge=1, description="Steps in q's parameters before each step of the decoder."
    )
    rate: float = Field(
        0.2,
        gt=0,
        le=1,
        description="Step size in q's parameters, of the natural gradient. Over the steps of a "
        "visit it falls to 0 in a line.",
    )
    score_steps: int = Field(
        50,
        ge=1,
        description="Steps from the prior for an event that is not trained on: when the model is "
        "validated and judged.",
    )

    @model_validator(mode="after")
    def _the_gradient_is_there(self) -> "BBVIConfig":
        if self.latents == "binary" and self.gradient == "reparametrization":
            raise ValueError(
                "gradient: reparametrization needs normal latents, binary ones jump; say "
                '"reinforce-baseline"'
            )
        if self.gradient == "reinforce-baseline" and self.draws < 2:
            raise ValueError("draws: a baseline is the mean of the other draws; give 2 or more")
        return self


class BBVI(LatentModel):
    """A decoder, an observation model, and a row of λ for each training event.

    Raises:
        ValueError: The observation model does not fit the events.
    """

    inferred: Tensor
    """λ of each training row, (rows, parameters): state that training keeps, and serves to none."""

    def __init__(self, config: BBVIConfig, data: Data) -> None:
        super().__init__(config, data)
        self.config = config
        self.q: MeanField = Normal() if config.latents == "normal" else Bernoulli()
        self.register_buffer("inferred", self.first(len(data.train)))

    @property
    def interface(self) -> Interface:
        """A density that draws from p(z) estimate: what is served has no q."""
        return Interface(
            family="vae",
            event=self.event,
            latent=Latent(shape=(self.latent,)),
            observation=self.observation.name,
            density=Density(kind="estimate", estimator="prior", measure=self.observation.measure),
        )

    def output(
        self, z: Float[Tensor, "rows latent"], label: Int[Tensor, " rows"] | None
    ) -> Float[Tensor, "rows ..."]:
        """Return what the decoder says of p(x|z); of a binary latent it is told the sign alone."""
        if self.config.latents == "binary":
            z = 2 * (z > 0).to(z) - 1
        return super().output(z, label)

    def first(self, rows: int) -> Float[Tensor, "rows parameters"]:
        """Return the λ with which q is the prior."""
        return torch.zeros(rows, self.latent * self.q.per_latent)

    def infer(
        self,
        x: Float[Tensor, "batch ..."],
        parameters: Float[Tensor, "batch parameters"],
        *,
        steps: int,
    ) -> Float[Tensor, "batch parameters"]:
        """Return each event's λ after so many steps of ascent of its ELBO: step 1.

        The rate falls to 0 in a line, so that what is left at the end is little of the noise.

        Args:
            x: As the observation model takes it.
            parameters: λ to begin with.
            steps: How many; each has `draws` fresh draws.
        """
        estimate = ESTIMATORS[self.config.gradient]
        log_likelihood = partial(self.log_likelihood, x)
        for step in range(steps):
            gradient = estimate(self.q, parameters, log_likelihood, self.config.draws).mean(1)
            rate = self.config.rate * (1 - step / steps)
            parameters = self.q.ascend(parameters, gradient, rate=rate)
        return parameters

    def terms(
        self,
        x: Float[Tensor, "batch ..."],
        parameters: Float[Tensor, "batch parameters"],
        *,
        draws: int,
    ) -> Terms:
        """Return the terms of the bound under q(z|λ), in nats."""
        z = self.q.draw(parameters, draws)
        divergence = self.q.log_ratio(parameters, z)
        return Terms(self.log_likelihood(x, z), divergence, self.q.kl(parameters))

    def turns(self) -> tuple[Turn, ...]:
        """Return the one turn, of the decoder; what precedes it is a part of its loss."""
        return (Turn("elbo", tuple(self.parameters()), self._loss),)

    def _loss(self, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        if batch.row is None:
            raise ValueError("expected rows of the training split; this batch does not say which")
        x = self.observation.resample(batch.x)
        parameters = self.infer(x, self.inferred[batch.row], steps=self.config.steps)
        self.inferred[batch.row] = parameters
        terms = self.terms(x, parameters, draws=self.config.draws)
        return {
            "loss": -terms.elbo.mean(),
            "distortion": -terms.reconstruction.mean(),
            "kl": self.q.kl(parameters).mean(),
        }

    def _afresh(self, batch: Batch) -> tuple[Tensor, Float[Tensor, "batch parameters"]]:
        """Return events that the batch stands for, and their λ, from the prior on."""
        x = self.observation.resample(batch.x)
        return x, self.infer(x, self.first(len(x)).to(x), steps=self.config.score_steps)

    def score(self, batch: Batch) -> Score:
        """Return the mean negative ELBO in nats, after inference from the prior on."""
        x, parameters = self._afresh(batch)
        return Score.mean(-self.terms(x, parameters, draws=self.config.draws).elbo)

    def nats(self, batch: Batch, draws: int) -> dict[str, Nats]:
        """Return the negative ELBO and -log p(x), under the q that inference ends with."""
        x, parameters = self._afresh(batch)
        return self.figures(
            lambda draws: self.terms(x, parameters, draws=draws),
            rows=len(x),
            draws=draws,
            how=f"after {self.config.score_steps} steps of inference from the prior on",
        )
