r"""Variational autoencoders: p(x) = ∫ p(x|z) p(z) dz, trained by a lower bound.

    log p(x) >= ELBO(x) = E_q(z|x)[log p(x|z)] - KL(q(z|x) || p(z))

The module is put together from parts that know nothing of each other: a posterior q(z|x), an
observation model p(x|z), the two networks that parametrise them, a prior p(z), and the objective.

Source:
    Kingma & Welling 2014, arXiv:1312.6114. Rezende et al. 2014, arXiv:1401.4082.
"""

from collections.abc import Callable
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from service.interface import Density, Interface, Latent, Role
from training.autoregressive import InverseAutoregressive
from training.bounds import (
    Terms,
    doubly_reparametrised,
    log_mean,
    negative_elbo,
    negative_iwae,
)
from training.data import Batch, Data, told_labels
from training.encoder import Encoder
from training.family import Call, Nats, Score, Turn
from training.latent import LatentConfig, LatentModel
from training.networks import bounded_log
from training.posterior import DiagonalGaussian, FlowPosterior, FullGaussian, Posterior
from training.posterior import Gaussian as GaussianPosterior
from training.prior import FlowPrior, Prior, StandardNormal
from training.refine import Refine

SCORE_DRAWS = 8
"""Draws of the validation score, at most; fewer where the objective has fewer."""

Draws = Annotated[int, Field(ge=1, le=1024)]
From = tuple[Annotated[int, Field(ge=0)], Draws]


class VAEConfig(LatentConfig):
    """What a recipe says of a VAE."""

    family: Literal["vae"] = Field("vae", description="Selects this family.")
    posterior: Literal["diagonal", "full", "flow"] = Field(
        "diagonal",
        description="q(z|x): a Gaussian of independent latents, one of full covariance, or a "
        "diagonal one behind an inverse autoregressive flow.",
    )
    flow_layers: int = Field(4, ge=1, description="Of a flow posterior: its steps.")
    flow_width: int = Field(
        256, ge=1, description="Of a flow posterior: hidden units of each step's network."
    )
    flow_context: int = Field(
        64, ge=1, description="Of a flow posterior: numbers that the encoder tells it of x."
    )
    prior: Literal["normal", "flow"] = Field(
        "normal",
        description="p(z): a standard normal, or a spline flow of one, which learns where the "
        "codes of events lie.",
    )
    prior_layers: int = Field(4, ge=1, description="Of a flow prior: its couplings.")
    prior_width: int = Field(
        64, ge=1, description="Of a flow prior: units of each coupling's network."
    )
    objective: Literal["elbo", "iwae", "dreg"] = Field(
        "elbo",
        description="What is maximised: the mean of the log-weights, or the log of the mean "
        "weight, which is a tighter bound; dreg is the latter with the doubly reparametrised "
        "gradient of the encoder, whose noise does not grow with the draws.",
    )
    draws: Draws | tuple[From, ...] = Field(
        1,
        description="Draws of z for each event and step. Or a list of pairs, from which step on "
        "how many: [[0, 1], [20000, 50]] begins with 1.",
    )
    beta: float = Field(
        1.0, gt=0, description="Factor on the divergence of q from the prior. 1 is the bound."
    )
    kl_warmup_steps: int = Field(
        0, ge=0, description="Steps in which that factor rises from 0 in a line."
    )
    free_bits: float = Field(
        0.0,
        ge=0,
        description="Nats of divergence that each latent has for nothing, on average over a "
        "batch. With the objective elbo, a diagonal posterior and a normal prior.",
    )
    conditional: bool = Field(
        False, description="Tell the encoder and the decoder the label: p(x|z, label)."
    )

    @model_validator(mode="after")
    def _options_fit(self) -> "VAEConfig":
        needed = ("elbo", "diagonal", "normal")
        if self.free_bits and (self.objective, self.posterior, self.prior) != needed:
            raise ValueError(
                'free_bits: needs objective = "elbo", posterior = "diagonal" and prior = "normal"'
            )
        if self.objective == "dreg" and self.posterior not in ("diagonal", "full"):
            raise ValueError('objective: dreg needs a Gaussian posterior; with a flow say "iwae"')
        for part, options in (
            ("posterior", {"flow_layers", "flow_width", "flow_context"}),
            ("prior", {"prior_layers", "prior_width"}),
        ):
            idle = options & self.model_fields_set
            if idle and getattr(self, part) != "flow":
                raise ValueError(f'{min(idle)}: is of {part} = "flow"; leave it out')
        if isinstance(self.draws, tuple):
            steps = [step for step, _ in self.draws]
            if steps[:1] != [0] or steps != sorted(set(steps)):
                raise ValueError(f"draws: the steps begin with 0 and rise; got {steps}")
        return self

    def draws_at(self, step: int) -> int:
        """Return how many draws of z an event has in a training step."""
        if isinstance(self.draws, int):
            return self.draws
        return next(draws for since, draws in reversed(self.draws) if step >= since)

    @property
    def last_draws(self) -> int:
        """Draws of z at the end of training."""
        return self.draws if isinstance(self.draws, int) else self.draws[-1][1]


class VAE(LatentModel):
    """A VAE: convolutional for images, an MLP for vectors.

    Raises:
        ValueError: The observation model does not fit the events, or there are no labels to be
            told.
    """

    step: Tensor

    def __init__(self, config: VAEConfig, data: Data) -> None:
        super().__init__(
            config, data, labels=told_labels(data.labels, conditional=config.conditional)
        )
        self.config = config
        self.encoder = _encoder(config, data, classes=len(self.labels or ()))
        if config.posterior == "flow":
            self.flow = InverseAutoregressive(
                layers=config.flow_layers,
                latent=config.latent,
                context=config.flow_context,
                width=config.flow_width,
            )
        # The last that is drawn: published bundles are restored by the same draws in this order.
        self.prior = _prior(config)
        # How far training is: the warm-up and the number of draws go by it.
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    @property
    def interface(self) -> Interface:
        """A bounded density, estimated by importance sampling of q(z|x)."""
        return Interface(
            family="vae",
            event=self.event,
            latent=Latent(shape=(self.latent,), distribution=self.prior.distribution),
            labels=self.labels,
            observation=self.observation.name,
            posterior=self.config.posterior,
            density=Density(
                kind="estimate",
                estimator="importance",
                measure=self.observation.measure + (", given its label" if self.labels else ""),
            ),
        )

    def posterior(
        self, x: Float[Tensor, "batch ..."], label: Int[Tensor, " batch"] | None = None
    ) -> Posterior:
        """Return q(z|x), or q(z|x, label)."""
        raw = self.encoder(self.standardise(x), label).to(x.dtype)
        mean, raw = raw[:, : self.latent], raw[:, self.latent :]
        log_scale = bounded_log(raw[:, : self.latent])
        rest = raw[:, self.latent :]
        match self.config.posterior:
            case "diagonal":
                return DiagonalGaussian(mean, log_scale)
            case "full":
                return FullGaussian(mean, _lower_triangular(log_scale.exp(), rest))
            case "flow":
                return FlowPosterior(DiagonalGaussian(mean, log_scale), self.flow, rest)

    def gaussian(
        self, x: Float[Tensor, "batch ..."], label: Int[Tensor, " batch"] | None = None
    ) -> GaussianPosterior:
        """Return q(z|x) of a model whose posterior is normal.

        Raises:
            TypeError: It is a flow.
        """
        posterior = self.posterior(x, label)
        if not isinstance(posterior, GaussianPosterior):
            raise TypeError("this model's posterior is a flow")
        return posterior

    def terms(
        self,
        x: Float[Tensor, "batch ..."],
        noise: Float[Tensor, "batch draws latent"],
        label: Int[Tensor, " batch"] | None = None,
    ) -> Terms:
        """Return the terms of the bound, in nats, for x as the observation model takes it."""
        return self._terms(self.posterior(x, label), x, noise, label)[1]

    def _terms(
        self,
        posterior: Posterior,
        x: Tensor,
        noise: Tensor,
        label: Tensor | None,
        *,
        still: bool = False,
    ) -> tuple[Tensor, Terms]:
        """Return the draws, and their terms; with log q's own parameters held still, or not."""
        z, log_q = posterior.draw(noise)
        if still:
            if not isinstance(posterior, GaussianPosterior):
                raise TypeError("only of a Gaussian is log q known at any z")
            log_q = posterior.detach().log_prob(z)
        divergence = log_q - self.prior.log_prob(z)
        # Of two normals it is known; of a learned prior draws alone tell.
        kl = posterior.kl() if self.prior.distribution == "normal" else None
        return z, Terms(self.log_likelihood(x, z, label), divergence, kl)

    def weigh(
        self, x: Float[Tensor, "batch ..."], label: Int[Tensor, " batch"] | None = None
    ) -> Callable[[Tensor], Tensor]:
        """Return what makes log p(x|z) p(z) / q(z|x) of noise, z ~ q(z|x)."""
        return lambda noise: self.terms(x, noise, label).log_weight

    def encode(self, x: Float[Tensor, "batch ..."], *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return q(z|x) for the event that a request means by x, given [label] [and noise].

        Mean and scale, mean and scale_tril, or of a flow the draws that the noise makes.
        """
        posterior, rest = self._asked(x, inputs)
        match posterior:
            case DiagonalGaussian():
                return posterior.mean, posterior.scale
            case FullGaussian():
                return posterior.mean, posterior.scale_tril
            case _:
                return (posterior.draw(rest[0])[0],)

    def _asked(self, x: Tensor, inputs: tuple[Tensor, ...]) -> tuple[Posterior, tuple[Tensor, ...]]:
        label, rest = (inputs[0], inputs[1:]) if self.labels else (None, inputs)
        return self.posterior(self.observation.settle(x), label), rest

    def elbo(self, x: Float[Tensor, "batch ..."], *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return reconstruction, kl and log_weight, given [label and] noise.

        For the event that a request means by x. The kl is of each event where it is known, else
        of each draw.
        """
        label, noise = self.conditioned(inputs)
        terms = self.terms(self.observation.settle(x), noise, label)
        kl = terms.divergence if terms.kl is None else terms.kl
        return terms.reconstruction, kl, terms.log_weight

    def turns(self) -> tuple[Turn, ...]:
        """Return the one turn: everything follows the bound."""
        return (Turn(self.config.objective, tuple(self.parameters()), self._loss),)

    def _loss(self, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        config, step = self.config, int(self.step)
        self.step += 1
        beta = config.beta
        if config.kl_warmup_steps:
            beta *= min(1.0, (step + 1) / config.kl_warmup_steps)
        x, label = self.observation.resample(batch.x), self._label(batch)
        posterior = self.posterior(x, label)
        noise = self._noise(x, draws=config.draws_at(step))
        still = config.objective == "dreg"
        z, terms = self._terms(posterior, x, noise, label, still=still)
        if config.objective == "dreg":
            loss = doubly_reparametrised(terms, z, beta=beta)
        elif config.objective == "iwae":
            loss = negative_iwae(terms, beta=beta)
        elif config.free_bits and isinstance(posterior, DiagonalGaussian):
            free = posterior.kl_by_latent()
            loss = negative_elbo(terms, beta=beta, kl_by_latent=free, free=config.free_bits)
        else:
            loss = negative_elbo(terms, beta=beta)
        divergence = terms.divergence if terms.kl is None else terms.kl
        return {
            "loss": loss,
            "distortion": -terms.reconstruction.mean(),
            "kl": divergence.mean(),
        }

    def _label(self, batch: Batch) -> Tensor | None:
        return batch.label if self.labels else None

    def _noise(self, x: Tensor, *, draws: int) -> Float[Tensor, "batch draws latent"]:
        return torch.randn(len(x), draws, self.latent, dtype=x.dtype, device=x.device)

    def score(self, batch: Batch) -> Score:
        """Return the mean negative bound in nats, of a few draws per event."""
        x = self.observation.resample(batch.x)
        noise = self._noise(x, draws=min(SCORE_DRAWS, self.config.last_draws))
        terms = self.terms(x, noise, self._label(batch))
        if self.config.objective == "elbo":
            return Score.mean(-terms.elbo)
        return Score.mean(-log_mean(terms.log_weight))

    def nats(self, batch: Batch, draws: int) -> dict[str, Nats]:
        """Return the negative ELBO and -log p(x), see `figures`."""
        x, label = self.observation.resample(batch.x), self._label(batch)
        return self.figures(
            lambda draws: self.terms(x, self._noise(x, draws=draws), label),
            rows=len(x),
            draws=draws,
        )

    def graphs(self) -> dict[Role, nn.Module]:
        """Return those of every latent model, encode, elbo; of a Gaussian posterior also refine."""
        graphs = super().graphs() | {"encode": Call(self, "encode"), "elbo": Call(self, "elbo")}
        if self.config.posterior != "flow":
            graphs["refine"] = Refine(self, full=self.config.posterior == "full")
        return graphs


def _lower_triangular(
    diagonal: Float[Tensor, "batch latent"], below: Float[Tensor, "batch entries"]
) -> Float[Tensor, "batch latent latent"]:
    """Return the matrices of this diagonal, with these entries below it, row by row."""
    size = diagonal.shape[1]
    row, column = torch.tril_indices(size, size, -1, device=diagonal.device)
    matrix = torch.diag_embed(diagonal)
    matrix[:, row, column] = below
    return matrix


def _encoder(config: VAEConfig, data: Data, *, classes: int) -> Encoder:
    latent = config.latent
    more = {"diagonal": 0, "full": latent * (latent - 1) // 2, "flow": config.flow_context}
    outputs = 2 * latent + more[config.posterior]
    return Encoder(
        data.event, width=config.width, depth=config.depth, outputs=outputs, classes=classes
    )


def _prior(config: VAEConfig) -> Prior:
    match config.prior:
        case "normal":
            return StandardNormal()
        case "flow":
            return FlowPrior(
                latent=config.latent, layers=config.prior_layers, width=config.prior_width
            )
