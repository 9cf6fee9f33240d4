"""Latent-variable models: p(x) = ∫ p(x|z) p(z) dz, with p(z) = N(0, I) or learned.

A decoder and an observation model make p(x|z). How z is inferred from x is the business of
whoever inherits: by an encoder (`vae.py`), or event by event (`bbvi.py`).
"""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from service.interface import Event, Frozen, Role
from training.bounds import Terms, log_mean
from training.data import Data
from training.family import Call, Family, Nats, Pixels
from training.networks import Rescale, image_decoder, mlp, one_hot
from training.observation import Bernoulli, Gaussian, Logistic, Observation
from training.prior import Prior, StandardNormal

CHUNK_ROWS = 1024
"""Decoder rows evaluated at once for a figure: bounds the memory, and changes nothing but which
draws are made. 4,096 no longer fit the cache, and take twice the time (measured, mnist-vae)."""


class LatentConfig(Frozen):
    """What a recipe says of p(x|z), whatever infers z."""

    observation: Literal["bernoulli", "normal", "logistic"] = Field(
        "bernoulli",
        description="p(x|z): bernoulli for images, binarised afresh at every step; logistic for "
        "images on their grey levels; normal for images or vectors as real numbers.",
    )
    scale: Literal["global", "per-feature"] = Field(
        "global",
        description="Of a normal or logistic p(x|z): one learned scale, or one per pixel or "
        "feature.",
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

    @model_validator(mode="after")
    def _scale_has_a_use(self) -> "LatentConfig":
        if "scale" in self.model_fields_set and self.observation == "bernoulli":
            raise ValueError("scale: a bernoulli observation has none; leave it out")
        if "minimum_scale" in self.model_fields_set and self.observation != "normal":
            raise ValueError('minimum_scale: is of observation = "normal"; leave it out')
        return self


class LatentModel(Family):
    """A decoder and an observation model: convolutional for images, an MLP for vectors.

    Args:
        config: Sizes, and the kind of p(x|z).
        data: Whose events.
        labels: Names of the classes that the decoder is told, if it is told any.

    Raises:
        ValueError: The observation model does not fit the events.
    """

    usual_draws = 256

    def __init__(
        self, config: LatentConfig, data: Data, *, labels: tuple[str, ...] | None = None
    ) -> None:
        super().__init__()
        self.latent = config.latent
        self.labels = labels
        self.prior: Prior = StandardNormal()
        self.standardise = Rescale(data)
        self.observation = _observation(config, data.event, self.standardise)
        self.event = data.event.model_copy(update={"levels": self.observation.levels})
        inputs = config.latent + len(labels or ())
        if data.event.kind == "image":
            self.decoder = image_decoder(
                data.event.shape, width=config.width, depth=config.depth, inputs=inputs
            )
        else:
            self.decoder = mlp([inputs, *[config.width] * config.depth, data.event.size])

    def log_likelihood(
        self,
        x: Float[Tensor, "batch ..."],
        z: Float[Tensor, "batch draws latent"],
        label: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch draws"]:
        """Return log p(x|z) in nats, for x as the observation model takes it."""
        rows = self.output(z.flatten(0, 1), repeated(label, z.shape[1]))
        return self.observation.log_prob(x, rows.unflatten(0, z.shape[:2]))

    def weigh(
        self, x: Float[Tensor, "batch ..."], label: Int[Tensor, " batch"] | None = None
    ) -> Callable[[Tensor], Tensor] | None:
        """Return what makes log p(x|z) p(z) / q(z|x) of noise, z ~ q(z|x); None without an encoder.

        It maps (batch, draws, latent) to (batch, draws), in nats.
        """
        return None

    def output(
        self, z: Float[Tensor, "rows latent"], label: Int[Tensor, " rows"] | None
    ) -> Float[Tensor, "rows ..."]:
        """Return what the decoder says of p(x|z): see the observation model."""
        if label is not None:
            z = torch.cat([z, one_hot(label, len(self.labels or ()), like=z)], dim=1)
        # The networks may run in bfloat16 (autocast); all after them is in z's precision.
        answer: Tensor = self.decoder(z).to(z.dtype)
        return answer

    def decode(
        self, z: Float[Tensor, "batch latent"], label: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch ..."]:
        """Return E[x|z]."""
        return self.observation.mean(self.output(z, label))

    def observe(
        self, z: Float[Tensor, "batch latent"], *inputs: Tensor
    ) -> Float[Tensor, "batch ..."]:
        """Return a sample of p(x|z), given [label and] noise; see `Observation.draw`."""
        label, noise = self.conditioned(inputs)
        return self.observation.draw(self.output(z, label), noise)

    def likelihood(self, x: Float[Tensor, "batch ..."], *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return log p(x|z), given [label and] z, for the event that a request means by x.

        Beside it log p(z) where that is learned; else everybody knows it.
        """
        label, z = self.conditioned(inputs)
        log_likelihood = self.log_likelihood(self.observation.settle(x), z, label)
        if self.prior.distribution == "normal":
            return (log_likelihood,)
        return log_likelihood, self.prior.log_prob(z)

    def conditioned(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor | None, Tensor]:
        """Return label, if the model has labels, and the one input after it."""
        return (inputs[0], inputs[1]) if self.labels else (None, inputs[0])

    def figures(
        self, terms: Callable[[int], Terms], *, rows: int, draws: int, how: str = ""
    ) -> dict[str, Nats]:
        """Return the negative ELBO, and -log p(x) from so many importance-weighted draws.

        The second is an upper bound too, in expectation, and tighter the more draws it has.

        Args:
            terms: Makes so many draws of each event.
            rows: How many events.
            draws: How many of each in all; as many are made at once as fit.
            how: z is inferred, in words for the note.

        Source:
            Burda et al. 2016, arXiv:1509.00519, eq. 8.
        """
        chunk = max(1, min(draws, CHUNK_ROWS // rows))
        parts = [terms(min(chunk, draws - start)) for start in range(0, draws, chunk)]
        elbo = torch.cat([part.elbo.double() for part in parts], dim=1).mean(1)
        evidence = log_mean(torch.cat([part.log_weight.double() for part in parts], dim=1))
        about = "; ".join(filter(None, (how, self.observation.resampled)))
        about = f"; {about}" if about else ""
        note = "an upper bound on average: {} draws of z"
        return {
            "negative ELBO": Nats(-elbo, note.format(draws) + about),
            "negative log-likelihood": Nats(
                -evidence, note.format(f"{draws} importance-weighted") + about
            ),
        }

    def graphs(self) -> dict[Role, nn.Module]:
        """Return decode, observe and likelihood; of a learned p(z) also prior."""
        decode, observe = Call(self, "decode"), Call(self, "observe")
        learned: dict[Role, nn.Module] = {}
        if self.prior.distribution == "learned":
            learned["prior"] = Call(self.prior, "push")
        image = self.event.kind == "image"
        return {
            "decode": Pixels(decode) if image else decode,
            "observe": Pixels(observe) if image else observe,
            "likelihood": Call(self, "likelihood"),
            **learned,
        }


def repeated(
    label: Int[Tensor, " batch"] | None, draws: int | torch.SymInt
) -> Int[Tensor, " rows"] | None:
    """Return the label of each draw of each event, in the order of `z.flatten(0, 1)`."""
    return None if label is None else label.unsqueeze(1).expand(-1, draws).flatten()


def _observation(config: LatentConfig, event: Event, standardise: Rescale) -> Observation:
    if config.observation != "normal" and event.kind != "image":
        raise ValueError(
            f"model.observation: {config.observation} expects images; this data is vectors. "
            'Use observation = "normal".'
        )
    shape = event.shape if config.scale == "per-feature" else ()
    match config.observation:
        case "bernoulli":
            return Bernoulli(greys=event.levels != 2)
        case "logistic":
            return Logistic(shape, levels=event.levels or 256)
        case "normal":
            image = event.kind == "image"
            return Gaussian(
                shape, minimum=config.minimum_scale, standardise=standardise, image=image
            )
