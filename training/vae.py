r"""Variational autoencoders: p(x) = ∫ p(x|z) N(z; 0, I) dz, trained by a lower bound.

    log p(x) >= ELBO(x) = E_q(z|x)[log p(x|z)] - KL(q(z|x) || N(0, I))

The module is put together from three parts that know nothing of each other: a posterior
q(z|x), an observation model p(x|z), and the two networks that parametrise them.

Source:
    Kingma & Welling 2014, arXiv:1312.6114. Rezende et al. 2014, arXiv:1401.4082.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from service.manifest import Density, Event, Frozen, Interface, Latent, Role
from training.data import Batch, Data
from training.family import Call, Family, Nats, Pixels, Turn
from training.networks import (
    Rescale,
    bounded_log,
    image_decoder,
    image_encoder,
    mlp,
    normal_log_prob,
)
from training.observation import Bernoulli, Gaussian, Observation

DRAWS = 256
"""Draws per event in the importance-weighted likelihood of the evaluation."""
CHUNK_ROWS = 4096
"""Decoder rows evaluated at once there: bounds the memory, changes no number."""


class VAEConfig(Frozen):
    """What a recipe says of a VAE."""

    family: Literal["vae"] = Field("vae", description="Selects this family.")
    observation: Literal["bernoulli", "normal"] = Field(
        "bernoulli",
        description="p(x|z): bernoulli for images, binarised afresh at every step; normal for "
        "images or vectors as they are.",
    )
    scale: Literal["global", "per-feature"] = Field(
        "global",
        description="Of a normal p(x|z): one learned scale, or one per pixel or feature.",
    )
    minimum_scale: float = Field(
        0.05,
        gt=0,
        description="Of a normal p(x|z): floor of the scale, in units of the standardised event "
        "(half the range of an image, one standard deviation of a feature). Without one the "
        "density of a pixel that is always black grows without bound.",
    )
    latent: int = Field(16, ge=1, description="Dimensions of z.")
    width: int = Field(
        32, ge=1, description="Channels of the finest level, or units of each layer of an MLP."
    )
    depth: int = Field(
        1, ge=1, description="Residual blocks per level, or hidden layers of an MLP."
    )


@dataclass(frozen=True)
class DiagonalGaussian:
    """The posterior q(z|x) = N(mean, diag(scale^2)) of a batch of events."""

    mean: Float[Tensor, "batch latent"]
    log_scale: Float[Tensor, "batch latent"]

    @property
    def scale(self) -> Float[Tensor, "batch latent"]:
        """Standard deviation of each latent, positive and finite."""
        return self.log_scale.exp()

    def draw(
        self, noise: Float[Tensor, "batch draws latent"]
    ) -> Float[Tensor, "batch draws latent"]:
        """Return mean + scale * noise: reparametrised, so that gradients reach both."""
        return self.mean.unsqueeze(1) + self.scale.unsqueeze(1) * noise

    def log_prob(self, z: Float[Tensor, "batch draws latent"]) -> Float[Tensor, "batch draws"]:
        """Return log q(z|x) in nats."""
        log_prob = normal_log_prob(
            z, mean=self.mean.unsqueeze(1), log_scale=self.log_scale.unsqueeze(1)
        )
        return log_prob.sum(-1)

    def kl(self) -> Float[Tensor, " batch"]:
        r"""Return KL(q(z|x) || N(0, I)) in nats, summed over the latent axis.

        With m = mean and s = scale, per event:
            KL = 1/2 sum_j (s_j^2 + m_j^2 - 1 - 2 log s_j)

        Source:
            Kingma & Welling 2014, arXiv:1312.6114, appendix B.

        Example:
            >>> DiagonalGaussian(torch.zeros(2, 3), torch.zeros(2, 3)).kl().tolist()
            [0.0, 0.0]
        """
        log_variance = 2 * self.log_scale
        return 0.5 * (log_variance.exp() + self.mean.square() - 1 - log_variance).sum(-1)


class VAE(Family):
    """A VAE with a diagonal Gaussian posterior: convolutional for images, an MLP for vectors.

    Raises:
        ValueError: A Bernoulli observation was asked for events that are not images.
    """

    def __init__(self, config: VAEConfig, data: Data) -> None:
        super().__init__()
        event, width, depth = data.event, config.width, config.depth
        if config.observation == "bernoulli" and event.kind != "image":
            raise ValueError(
                "model.observation: bernoulli expects images; this data is vectors. "
                'Use observation = "normal".'
            )
        self.latent = config.latent
        self.standardise = Rescale(data)
        if event.kind == "image":
            shape = event.shape
            self.encoder = image_encoder(shape, width=width, depth=depth, outputs=2 * self.latent)
            self.decoder = image_decoder(shape, width=width, depth=depth, inputs=self.latent)
        else:
            hidden = [width] * depth
            self.encoder = mlp([event.size, *hidden, 2 * self.latent])
            self.decoder = mlp([self.latent, *hidden, event.size])
        self.observation = _observation(config, event, self.standardise)
        self.event = event.model_copy(update={"levels": self.observation.levels})

    @property
    def interface(self) -> Interface:
        """A bounded density, estimated by importance sampling of q(z|x)."""
        return Interface(
            family="vae",
            event=self.event,
            latent=Latent(shape=(self.latent,)),
            observation=self.observation.name,
            density=Density(
                kind="estimate", estimator="importance", measure=self.observation.measure
            ),
        )

    def posterior(self, x: Float[Tensor, "batch ..."]) -> DiagonalGaussian:
        """Return q(z|x).

        The networks may run in bfloat16 (autocast); everything after them is in x's precision.
        """
        mean, raw = self.encoder(self.standardise(x)).to(x.dtype).chunk(2, dim=-1)
        return DiagonalGaussian(mean, bounded_log(raw))

    def parameters_of_x(
        self, z: Float[Tensor, "batch draws latent"]
    ) -> Float[Tensor, "batch draws ..."]:
        """Return what the decoder says of p(x|z): logits or a mean, see the observation model."""
        rows = self.decoder(z.flatten(0, 1)).to(z.dtype)
        draws: Tensor = rows.unflatten(0, z.shape[:2])
        return draws

    def decode(
        self, z: Float[Tensor, "batch latent"], label: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch ..."]:
        """Return E[x|z]."""
        return self.observation.mean(self.decoder(z).to(z.dtype))

    def observe(
        self, z: Float[Tensor, "batch latent"], noise: Float[Tensor, "batch ..."]
    ) -> Float[Tensor, "batch ..."]:
        """Return a sample of p(x|z), see `Observation.draw`."""
        return self.observation.draw(self.decoder(z), noise)

    def encode(
        self, x: Float[Tensor, "batch ..."]
    ) -> tuple[Float[Tensor, "batch latent"], Float[Tensor, "batch latent"]]:
        """Return mean and scale of q(z|x) for the event that a request means by x."""
        posterior = self.posterior(self.observation.settle(x))
        return posterior.mean, posterior.scale

    def elbo(
        self, x: Float[Tensor, "batch ..."], noise: Float[Tensor, "batch draws latent"]
    ) -> tuple[Float[Tensor, "batch draws"], Float[Tensor, " batch"], Float[Tensor, "batch draws"]]:
        """Return the terms of `bound` for the event that a request means by x."""
        return self.bound(self.observation.settle(x), noise)

    def bound(
        self, x: Float[Tensor, "batch ..."], noise: Float[Tensor, "batch draws latent"]
    ) -> tuple[Float[Tensor, "batch draws"], Float[Tensor, " batch"], Float[Tensor, "batch draws"]]:
        """Return the terms of the bound, in nats, for x as the observation model takes it.

        Returns:
            log p(x|z) of each draw z ~ q(z|x); KL(q(z|x) || p(z)), in closed form; and the log
            of the importance weight p(x|z) p(z) / q(z|x), whose mean over draws estimates p(x).
        """
        posterior = self.posterior(x)
        z = posterior.draw(noise)
        reconstruction = self.observation.log_prob(x, self.parameters_of_x(z))
        prior = normal_log_prob(z).sum(-1)
        return reconstruction, posterior.kl(), reconstruction + prior - posterior.log_prob(z)

    def turns(self) -> tuple[Turn, ...]:
        """Return the one turn: everything follows the ELBO."""
        return (Turn("elbo", tuple(self.parameters()), self._loss),)

    def _loss(self, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        x = self.observation.resample(batch.x)
        reconstruction, kl, _ = self.bound(x, self._noise(x, draws=1))
        kl_mean, distortion = kl.mean(), -reconstruction.mean()
        return {"loss": distortion + kl_mean, "distortion": distortion, "kl": kl_mean}

    def _noise(self, x: Tensor, *, draws: int) -> Float[Tensor, "batch draws latent"]:
        return torch.randn(len(x), draws, self.latent, dtype=x.dtype, device=x.device)

    def score(self, batch: Batch) -> Float[Tensor, ""]:
        """Return the mean negative ELBO in nats, of one draw per event."""
        return self._loss(batch)["loss"]

    def nats(self, batch: Batch) -> dict[str, Nats]:
        """Return the negative ELBO, and -log p(x) from `DRAWS` importance-weighted draws.

        The second is an upper bound too, in expectation, and tighter the more draws it has.
        Source: Burda et al. 2016, arXiv:1509.00519, eq. 8.
        """
        x = self.observation.resample(batch.x)
        chunk = max(1, min(DRAWS, CHUNK_ROWS // len(batch)))
        reconstructions, log_weights = [], []
        for start in range(0, DRAWS, chunk):
            draws = min(chunk, DRAWS - start)
            reconstruction, _, log_weight = self.bound(x, self._noise(x, draws=draws))
            reconstructions.append(reconstruction.double())
            log_weights.append(log_weight.double())
        elbo = torch.cat(reconstructions, dim=1).mean(1) - self.posterior(x).kl().double()
        evidence = torch.logsumexp(torch.cat(log_weights, dim=1), dim=1) - math.log(DRAWS)
        notes = (
            f"an upper bound on average: {DRAWS} draws of z",
            f"an upper bound on average: {DRAWS} importance-weighted draws of z",
        )
        of = self.observation.resampled
        bound, weighted = (f"{note}; {of}" if of else note for note in notes)
        return {
            "negative ELBO": Nats(-elbo, bound),
            "negative log-likelihood": Nats(-evidence, weighted),
        }

    def graphs(self) -> dict[Role, nn.Module]:
        """Return decode, observe, encode and elbo."""
        decode, observe = Call(self, "decode"), Call(self, "observe")
        image = self.event.kind == "image"
        return {
            "decode": Pixels(decode) if image else decode,
            "observe": Pixels(observe) if image else observe,
            "encode": Call(self, "encode"),
            "elbo": Call(self, "elbo"),
        }


def _observation(config: VAEConfig, event: Event, standardise: Rescale) -> Observation:
    if config.observation == "bernoulli":
        return Bernoulli()
    return Gaussian(
        event.shape if config.scale == "per-feature" else (),
        minimum=config.minimum_scale,
        standardise=standardise,
        image=event.kind == "image",
    )
