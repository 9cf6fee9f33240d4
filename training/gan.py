r"""Generative adversarial networks: a generator learns to fool a critic.

In a step the critic moves so many times, each on fresh rows and noise, and then the generator
once. What either of them wants is the objective's (`adversarial.py`), what they are is in
`players.py`. By default the critic's D(x) is the logit of "x is data". Its turn raises the
likelihood of that,

    V = E_data[log sigma(D(x))] + E_z[log(1 - sigma(D(G(z))))],

and the generator's turn raises E_z[log sigma(D(G(z)))]: the non-saturating form, whose gradient
does not vanish while the critic wins. There is no density: p(x) is known only by its samples.

Source:
    Goodfellow et al. 2014, arXiv:1406.2661, section 3.
"""

from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from service.interface import Density, Frozen, Interface, Latent, Role
from training.adversarial import (
    Name,
    Outputs,
    has_kink,
    is_mmd,
    objective,
    of_a_kernel,
    tells_ratio,
)
from training.calibration import Calibration
from training.data import Batch, Data
from training.discrepancy import squared_mmd
from training.family import Call, Pixels, Score, Turn
from training.kernels import mean_squared_distance
from training.networks import Rescale
from training.players import (
    Critic,
    Generator,
    ImageCritic,
    ImageGenerator,
    VectorCritic,
    VectorGenerator,
)
from training.ratio import RatioModel
from training.steepness import between, slope_miss, squared_slopes

Regulariser = Literal["spectral-norm", "r1", "gradient-penalty", "scaling", "clip", "none"]
PENALTIES = ("r1", "gradient-penalty", "scaling")
"""Regularisers that have a factor."""


class GANConfig(Frozen):
    """What a recipe says of a GAN."""

    family: Literal["gan"] = Field("gan", description="Selects this family.")
    objective: Name = Field(
        "non-saturating", description="What the critic raises and the generator lowers."
    )
    latent: int = Field(64, ge=1, description="Dimensions of z.")
    width: int = Field(
        32, ge=1, description="The generator's channels at full size; of features, hidden units."
    )
    critic_width: int = Field(
        32, ge=1, description="The critic's channels at full size; of features, hidden units."
    )
    depth: int = Field(3, ge=1, description="Of features: hidden layers of either network.")
    critic_rate: float = Field(
        1.0, gt=0, description="The critic's learning rate over the generator's."
    )
    critic_steps: int = Field(
        1, ge=1, description="Moves of the critic in a step, each on fresh rows and noise."
    )
    critic_features: int = Field(
        16, ge=1, description="Of the mmd objectives: numbers that the critic says of an event."
    )
    regulariser: Regulariser = Field(
        "spectral-norm",
        description="What keeps the critic from being too steep: layers of gain 1, a penalty on "
        "its gradient at the data or on its miss of 1 between data and samples, an MMD scaled "
        "down by it, weights within bounds, or nothing.",
    )
    penalty: float = Field(
        1.0,
        gt=0,
        description="Of r1: the factor gamma on half the squared gradient. Of gradient-penalty: "
        "that on the squared miss. Of scaling: that on the squared gradient.",
    )
    bound: float = Field(
        0.01, gt=0, description="Of clip: the largest magnitude of each of the critic's weights."
    )
    embedding: int = Field(
        32, ge=1, description="Length of the vector that stands for a class in the generator."
    )

    keep_critic: bool = Field(
        False,
        description="Publish the critic too, calibrated, as an estimate of log p/q of data and "
        "samples, by which the service can reject samples.",
    )

    critic_finish: int = Field(
        10_000,
        ge=0,
        description="Steps that a kept critic goes on learning after training, unregularised, "
        "against the generator that is published.",
    )

    @model_validator(mode="after")
    def _options_are_used(self) -> "GANConfig":
        told, name, how = self.model_fields_set, self.objective, self.regulariser
        if "penalty" in told and how not in PENALTIES:
            raise ValueError(f"penalty: is of regulariser = {_either(PENALTIES)}; leave it out")
        if "bound" in told and how != "clip":
            raise ValueError('bound: is of regulariser = "clip"; leave it out')
        if "critic_features" in told and not is_mmd(name):
            raise ValueError("critic_features: are of the mmd objectives; leave it out")
        if "critic_finish" in told and not self.keep_critic:
            raise ValueError("critic_finish: is of keep_critic = true; leave it out")
        if self.keep_critic and not tells_ratio(name):
            raise ValueError(
                "keep_critic: no density ratio follows from the best critic of "
                f'objective = "{name}"; leave it out'
            )
        return self

    @model_validator(mode="after")
    def _regulariser_is_of_the_objective(self) -> "GANConfig":
        name, how = self.objective, self.regulariser
        if how == "scaling" and (not is_mmd(name) or has_kink(name)):
            raise ValueError(
                'regulariser: scaling needs a kernel with a curvature: objective = "mmd-gaussian" '
                'or "mmd-rational-quadratic"'
            )
        if how == "r1" and is_mmd(name):
            raise ValueError(
                "regulariser: r1 is of a critic that says one number, and an mmd objective's says "
                'several; use "gradient-penalty"'
            )
        if how == "none" and (name == "wasserstein" or has_kink(name)):
            raise ValueError(
                f'regulariser: objective = "{name}" has no bound unless the critic\'s slope has '
                'one; use "gradient-penalty"'
            )
        return self


def _either(names: tuple[str, ...]) -> str:
    return " or ".join(f'"{name}"' for name in names)


class GAN(RatioModel):
    """A GAN of images, convolutional, or of vectors, conditional where the data has classes.

    Vectors are standardised for both players, so that slopes and distances of a critic are in
    standard deviations of the features.

    Raises:
        ValueError: `depth` was set for images, or a feature never changes.
    """

    critic: Critic

    def __init__(self, config: GANConfig, data: Data) -> None:
        super().__init__()
        self.config, self.event, self.labels = config, data.event, data.labels
        if data.event.kind == "image" and "depth" in config.model_fields_set:
            raise ValueError("model.depth: is of features; leave it out of images")
        self.objective = objective(config.objective, features=config.critic_features)
        self.scale = Rescale(data) if data.event.kind == "vector" else None
        self.generator = self._generator()
        self.critic = self._critic()
        if config.regulariser == "clip":
            with torch.no_grad():
                for weight in self.critic.parameters():
                    weight.clamp_(-config.bound, config.bound)
        self.critic_finish = config.critic_finish
        self.calibration = Calibration() if config.keep_critic else None
        self.unit = mean_squared_distance(self.enter(data.train.x).flatten(1))

    def _generator(self) -> Generator:
        """Return the generator for this kind of events."""
        config, shape = self.config, self.event.shape
        sizes = {
            "width": config.width,
            "latent": config.latent,
            "classes": len(self.labels or ()),
            "embedding": config.embedding,
        }
        if self.event.kind == "image":
            return ImageGenerator(shape, **sizes)
        return VectorGenerator(shape[0], depth=config.depth, **sizes)

    def _critic(self) -> Critic:
        """Return the critic for this kind of events and for the objective."""
        config, shape = self.config, self.event.shape
        width, outputs, classes = (
            config.critic_width,
            self.objective.outputs,
            len(self.labels or ()),
        )
        is_shifted, gain_one = self.objective.is_shifted, config.regulariser == "spectral-norm"
        if self.event.kind == "image":
            return ImageCritic(
                shape,
                width=width,
                outputs=outputs,
                classes=classes,
                is_shifted=is_shifted,
                gain_one=gain_one,
            )
        return VectorCritic(
            shape[0],
            width=width,
            depth=config.depth,
            outputs=outputs,
            classes=classes,
            is_shifted=is_shifted,
            gain_one=gain_one,
        )

    @property
    def interface(self) -> Interface:
        """An implicit model: no density."""
        return Interface(
            family="gan",
            # Greys are a sigmoid's: the generator keeps to no levels.
            event=self.event.model_copy(update={"levels": None}),
            latent=Latent(shape=(self.config.latent,)),
            labels=self.labels,
            density=Density(kind="none", estimator=None),
        )

    def turns(self) -> tuple[Turn, ...]:
        """Return the critic's moves, then the generator's."""
        config = self.config
        return (
            Turn(
                "critic",
                tuple(self.critic.parameters()),
                self._critic_loss,
                rate=config.critic_rate,
                times=config.critic_steps,
                bound=config.bound if config.regulariser == "clip" else None,
            ),
            Turn("generator", tuple(self.generator.parameters()), self._generator_loss),
        )

    def _critic_loss(self, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        label, real, fake = self._label(batch), self.enter(batch.x), self._fake(batch)
        of_real, of_fake = self._said_of_both(real, fake, label)
        loss = self.objective.critic_loss(of_real, of_fake)
        match self.config.regulariser:
            case "r1":
                loss = loss + self._r1(real, label)
            case "gradient-penalty":
                loss = loss + self._gradient_penalty(real, fake, label, of_real, of_fake)
            case "scaling":
                loss = loss / self._steepness(real, label)
        return {"loss": loss, **self.objective.figures(of_real.detach(), of_fake.detach())}

    def critic_loss(self, batch: Batch) -> Float[Tensor, ""]:
        """Return what the critic minimises of events and as many new samples, unregularised."""
        real, fake = self.enter(batch.x), self._fake(batch)
        return self.objective.critic_loss(*self._said_of_both(real, fake, self._label(batch)))

    @torch.no_grad()
    def _fake(self, batch: Batch) -> Float[Tensor, "batch ..."]:
        """Return as many samples as the critic sees them, of the same labels."""
        made: Tensor = self.generator(self._noise(batch), self._label(batch))
        return made

    def _said_of_both(
        self,
        real: Float[Tensor, "batch ..."],
        fake: Float[Tensor, "batch ..."],
        label: Int[Tensor, " batch"] | None,
    ) -> tuple[Outputs, Outputs]:
        both = None if label is None else torch.cat([label, label])
        of_real, of_fake = self.critic(torch.cat([real, fake]), both).chunk(2)
        return of_real, of_fake

    def _r1(
        self, x: Float[Tensor, "batch ..."], label: Int[Tensor, " batch"] | None
    ) -> Float[Tensor, ""]:
        """Return gamma / 2 E|grad_x D(x)|^2 over the data.

        Source:
            Mescheder et al. 2018, arXiv:1801.04406, eq. 9 (R1).
        """
        squares = squared_slopes(lambda at: self.critic(at, label), x)
        return 0.5 * self.config.penalty * squares.mean()

    def _gradient_penalty(
        self,
        real: Float[Tensor, "batch ..."],
        fake: Float[Tensor, "batch ..."],
        label: Int[Tensor, " batch"] | None,
        of_real: Outputs,
        of_fake: Outputs,
    ) -> Float[Tensor, ""]:
        """Return lambda E(|grad f| - 1)^2 at points between data and samples.

        f is the critic, or of an MMD the witness of its features of this batch.

        Source:
            Gulrajani et al. 2017, arXiv:1704.00028, eq. 3; Bińkowski et al. 2018,
            arXiv:1801.01401, section 4.
        """

        def said(at: Tensor) -> Tensor:
            return self.objective.witness(self.critic(at, label), of_real, of_fake)

        return self.config.penalty * slope_miss(said, between(real, fake))

    def _steepness(
        self, x: Float[Tensor, "batch ..."], label: Int[Tensor, " batch"] | None
    ) -> Float[Tensor, ""]:
        """Return k(h, h) + lambda c E|grad_x h(x)|^2 over the data, c the kernel's curvature.

        With lambda = 1 it is the mean of a feature's squared value and squared gradients in the
        space of functions that the kernel spans, by which MMD^2 is divided.

        Source:
            Arbel et al. 2018, arXiv:1805.11565, proposition 3.
        """
        kernel = of_a_kernel(self.objective)
        squares = squared_slopes(lambda at: self.critic(at, label), x)
        return kernel.at_zero + self.config.penalty * (kernel.curvature or 0.0) * squares.mean()

    def _generator_loss(self, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        label = self._label(batch)
        # The critic only judges here: without its gradients the turn is a quarter cheaper.
        self.critic.requires_grad_(False)
        said = self.critic(self.generator(self._noise(batch), label), label)
        loss = self.objective.generator_loss(said, lambda: self.critic(self.enter(batch.x), label))
        self.critic.requires_grad_(True)
        return {"loss": loss}

    def _noise(self, batch: Batch) -> Float[Tensor, "batch latent"]:
        return torch.randn(len(batch), self.config.latent, device=batch.x.device)

    def _label(self, batch: Batch) -> Int[Tensor, " batch"] | None:
        return batch.label if self.labels else None

    def release(self) -> None:
        """Give a kept critic the weights that normalised ones have become."""
        if self.calibration is not None:
            self.critic.release()

    def raw_log_ratio(
        self, x: Float[Tensor, "batch ..."], label: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, " batch"]:
        """Return log p/q as the averaged critic says it: as far as it is at its best."""
        return self.objective.log_ratio(self.critic(self.enter(x), label))

    def enter(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        """Return events as the players see them: images as they are, vectors standardised."""
        entered: Tensor = x if self.scale is None else self.scale(x)
        return entered

    def decode(
        self, z: Float[Tensor, "batch latent"], label: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch ..."]:
        """Return events G(z, label), vectors in the data's own units."""
        events: Tensor = self.generator(z, label)
        return events if self.scale is None else self.scale.location + self.scale.unit * events

    def score(self, batch: Batch) -> Score:
        """Return the squared MMD between the batch and as many samples of the same labels.

        In pixels or standardised features: a stopping statistic that needs no trained network,
        not a measure of quality. A game's losses are no such statistic: each is measured by the
        other player, and both may stand still while samples get better, or worse.
        """
        samples = self.decode(self._noise(batch), self._label(batch))
        real, fake = (self.enter(x).flatten(1) for x in (batch.x, samples))
        found = squared_mmd(real, fake, unit=self.unit)
        return Score(found.value, found.standard_error)

    def graphs(self) -> dict[Role, nn.Module]:
        """Return decode, and the critic if it is kept."""
        decode = Call(self, "decode")
        made: dict[Role, nn.Module] = {
            "decode": Pixels(decode) if self.event.kind == "image" else decode
        }
        return made | ({"critic": Call(self, "log_ratio")} if self.calibration else {})
