r"""Generative adversarial networks: a generator learns to fool a critic.

The critic's D(x) is the logit of "x is data". Its turn raises the likelihood of that verdict,

    V = E_data[log sigma(D(x))] + E_z[log(1 - sigma(D(G(z))))],

and the generator's turn raises E_z[log sigma(D(G(z)))]: the non-saturating form, whose gradient
does not vanish while the critic wins. There is no density: p(x) is known only by its samples.

Source:
    Goodfellow et al. 2014, arXiv:1406.2661, section 3.
"""

import itertools
from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import silu, softplus
from torch.nn.utils.parametrizations import spectral_norm

from service.interface import Density, Frozen, Interface, Latent, Role
from training.data import Batch, Data
from training.discrepancy import squared_mmd
from training.family import Call, Family, Pixels, Turn
from training.networks import halvings, pyramid

GROUP = 8
"""Channels that are normalised together, where their number allows."""


class GANConfig(Frozen):
    """What a recipe says of a GAN."""

    family: Literal["gan"] = Field("gan", description="Selects this family.")
    latent: int = Field(64, ge=1, description="Dimensions of z.")
    width: int = Field(32, ge=1, description="The generator's channels at full size.")
    critic_width: int = Field(32, ge=1, description="The critic's channels at full size.")
    critic_rate: float = Field(
        1.0, gt=0, description="The critic's learning rate over the generator's."
    )
    regulariser: Literal["spectral-norm", "r1"] = Field(
        "spectral-norm",
        description="What keeps the critic from being too steep: layers of gain 1, or a penalty "
        "on its gradient at the data.",
    )
    penalty: float = Field(
        1.0, gt=0, description="Of r1: the factor gamma on half the squared gradient."
    )
    embedding: int = Field(
        32, ge=1, description="Length of the vector that stands for a class in the generator."
    )


class Modulation(nn.Module):
    """Group normalisation whose scale and shift are linear in a code.

    It uses no batch statistics, so an image never depends on its company, and the averaged
    generator (EMA) needs no statistics of its own.

    Source:
        Dumoulin et al. 2017, arXiv:1610.07629; Wu & He 2018, arXiv:1803.08494.
    """

    def __init__(self, channels: int, code: int) -> None:
        super().__init__()
        self.normalise = nn.GroupNorm(max(1, channels // GROUP), channels, affine=False)
        self.scale = nn.Linear(code, channels)
        self.shift = nn.Linear(code, channels)

    def forward(
        self, x: Float[Tensor, "batch channel height width"], code: Float[Tensor, "batch code"]
    ) -> Float[Tensor, "batch channel height width"]:
        """Return (1 + scale) * normalised x + shift."""
        scale: Tensor = self.scale(code)[..., None, None]
        shift: Tensor = self.shift(code)[..., None, None]
        normal: Tensor = self.normalise(x)
        return (1 + scale) * normal + shift


class Stage(nn.Module):
    """Two convolutions of the generator, steered by the code; the first may double the sides.

    It doubles by a transposed convolution of kernel 4 and stride 2: each pixel gets two taps in
    each direction, so there is no chequerboard (Odena et al. 2016), at less than half the cost
    of a 3 x 3 convolution of the enlarged image.
    """

    def __init__(self, before: int, after: int, *, code: int, enlarge: bool) -> None:
        super().__init__()
        self.first_modulation = Modulation(before, code)
        if enlarge:
            self.first: nn.Module = nn.ConvTranspose2d(before, after, 4, stride=2, padding=1)
        else:
            self.first = nn.Conv2d(before, after, 3, padding=1)
        self.second_modulation = Modulation(after, code)
        self.second = nn.Conv2d(after, after, 3, padding=1)

    def forward(
        self, x: Float[Tensor, "batch channel height width"], code: Float[Tensor, "batch code"]
    ) -> Float[Tensor, "batch after rows columns"]:
        """Return the refined, perhaps enlarged, features."""
        x = self.first(silu(self.first_modulation(x, code)))
        refined: Tensor = self.second(silu(self.second_modulation(x, code)))
        return refined


class Generator(nn.Module):
    """G: noise and, where the data has classes, a label, to an image from 0 to 1.

    The image grows from the smallest size that `halvings` allows. The code, noise and class
    embedding side by side, steers every stage and not only the first.

    Args:
        shape: (channels, height, width) of an image.
        config: Sizes.
        classes: How many labels there are; 0 for an unconditional generator.
    """

    def __init__(self, shape: tuple[int, ...], config: GANConfig, classes: int) -> None:
        super().__init__()
        channels, rows, columns = shape
        times = halvings(rows, columns)
        widths = pyramid(config.width, times + 1)[::-1]
        self.embedding = nn.Embedding(classes, config.embedding) if classes else None
        code = config.latent + (config.embedding if classes else 0)
        self.coarse = (widths[0], rows >> times, columns >> times)
        self.start = nn.Linear(code, self.coarse[0] * self.coarse[1] * self.coarse[2])
        self.stages = nn.ModuleList(
            Stage(before, after, code=code, enlarge=level > 0)
            for level, (before, after) in enumerate(itertools.pairwise([widths[0], *widths]))
        )
        self.modulation = Modulation(widths[-1], code)
        self.finish = nn.Conv2d(widths[-1], channels, 3, padding=1)

    def forward(
        self, z: Float[Tensor, "batch latent"], label: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch channel height width"]:
        """Return images.

        Raises:
            ValueError: A label came and the data has no classes, or the other way round.
        """
        if (label is None) != (self.embedding is None):
            expected = "no label" if self.embedding is None else "a label for each z"
            raise ValueError(f"decode: expected {expected}. Conditional means with classes.")
        code = z
        if self.embedding is not None and label is not None:
            code = torch.cat([z, self.embedding(label)], dim=1)
        features = self.start(code).unflatten(1, self.coarse)
        for stage in self.stages:
            features = stage(features, code)
        logits = self.finish(silu(self.modulation(features, code)))
        return torch.sigmoid(logits.to(z.dtype))


class Critic(nn.Module):
    """D: an image and its label to the logit of "this pair is data".

    Spectral normalisation, if asked for, holds every layer's gain at 1, which keeps the game
    balanced. The label enters as an inner product with the image's features (projection).

    Source:
        Miyato et al. 2018, arXiv:1802.05957 (spectral normalisation). Miyato & Koyama 2018,
        arXiv:1802.05637 (projection).
    """

    SLOPE = 0.1
    """Of the leaky ReLU on negative inputs: Miyato et al. 2018, table 3."""

    def __init__(self, shape: tuple[int, ...], config: GANConfig, classes: int) -> None:
        super().__init__()
        channels, rows, columns = shape
        widths = pyramid(config.critic_width, halvings(rows, columns) + 1)
        layers: list[nn.Module] = [nn.Conv2d(channels, widths[0], 3, padding=1)]
        for before, after in itertools.pairwise(widths):
            layers += [
                nn.LeakyReLU(self.SLOPE),
                nn.Conv2d(before, after, 4, stride=2, padding=1),
                nn.LeakyReLU(self.SLOPE),
                nn.Conv2d(after, after, 3, padding=1),
            ]
        self.features = nn.Sequential(*layers, nn.LeakyReLU(self.SLOPE))
        self.verdict = nn.Linear(widths[-1], 1)
        self.projection = nn.Embedding(classes, widths[-1]) if classes else None
        if config.regulariser == "spectral-norm":
            for layer in [each for each in self.modules() if hasattr(each, "weight")]:
                spectral_norm(layer)

    def forward(
        self,
        x: Float[Tensor, "batch channel height width"],
        label: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, " batch"]:
        """Return logits, in x's precision."""
        features = self.features(2 * x - 1).to(x.dtype).sum((2, 3))
        logit: Tensor = self.verdict(features).to(x.dtype).squeeze(1)
        if self.projection is not None and label is not None:
            logit = logit + (self.projection(label) * features).sum(1)
        return logit


def value(real: Float[Tensor, " batch"], fake: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
    """Return V, the critic's mean log-likelihood of its verdicts, from its logits.

    At its best, for densities p of the data and q of the samples, the critic's logit is
    log p - log q and V = 2 JSD(p, q) - log 4, hence -log 4 when the samples follow the data.

    Source:
        Goodfellow et al. 2014, arXiv:1406.2661, theorem 1.
    """
    return -softplus(-real).mean() - softplus(fake).mean()


class GAN(Family):
    """A convolutional GAN for images, conditional on the label where the data has classes.

    Raises:
        ValueError: The events are not images.
    """

    def __init__(self, config: GANConfig, data: Data) -> None:
        super().__init__()
        if data.event.kind != "image":
            raise ValueError("model.family: gan expects images; this data is vectors.")
        self.config, self.event, self.labels = config, data.event, data.labels
        classes = len(data.labels or ())
        self.generator = Generator(data.event.shape, config, classes)
        self.critic = Critic(data.event.shape, config, classes)
        # Mean squared distance of two training images: twice the sum of the pixels' variances.
        self.unit = 2 * data.train.x.var(0).sum().item()

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
        """Return the critic's move, then the generator's."""
        return (
            Turn(
                "critic",
                tuple(self.critic.parameters()),
                self._critic_loss,
                rate=self.config.critic_rate,
            ),
            Turn("generator", tuple(self.generator.parameters()), self._generator_loss),
        )

    def _critic_loss(self, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        with torch.no_grad():
            fake = self.decode(self._noise(batch), self._label(batch))
        label = self._label(batch)
        both = None if label is None else torch.cat([label, label])
        real_logit, fake_logit = self.critic(torch.cat([batch.x, fake]), both).chunk(2)
        right = 0.5 * ((real_logit > 0).to(fake) + (fake_logit < 0).to(fake)).mean()
        loss = -value(real_logit, fake_logit)
        if self.config.regulariser == "r1":
            loss = loss + self._gradient_penalty(batch.x, label)
        return {"loss": loss, "accuracy": right}

    def _gradient_penalty(
        self, x: Float[Tensor, "batch ..."], label: Int[Tensor, " batch"] | None
    ) -> Float[Tensor, ""]:
        """Return gamma / 2 E|grad_x D(x)|^2 over the data, in float32.

        Source:
            Mescheder et al. 2018, arXiv:1801.04406, eq. 9 (R1).
        """
        with torch.autocast(x.device.type, enabled=False):
            x = x.detach().requires_grad_()
            logit = self.critic(x, label).sum()
            (gradient,) = torch.autograd.grad(logit, x, create_graph=True)
        return 0.5 * self.config.penalty * gradient.square().flatten(1).sum(1).mean()

    def _generator_loss(self, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        label = self._label(batch)
        # The critic only judges here: without its gradients the turn is a quarter cheaper.
        self.critic.requires_grad_(False)
        logit = self.critic(self.decode(self._noise(batch), label), label)
        self.critic.requires_grad_(True)
        return {"loss": softplus(-logit).mean()}

    def _noise(self, batch: Batch) -> Float[Tensor, "batch latent"]:
        return torch.randn(len(batch), self.config.latent, device=batch.x.device)

    def _label(self, batch: Batch) -> Int[Tensor, " batch"] | None:
        return batch.label if self.labels else None

    def decode(
        self, z: Float[Tensor, "batch latent"], label: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch channel height width"]:
        """Return images G(z, label)."""
        images: Tensor = self.generator(z, label)
        return images

    def score(self, batch: Batch) -> Float[Tensor, ""]:
        """Return the squared MMD between the batch and as many samples of the same labels.

        In pixels: a stopping statistic that needs no trained network, not a measure of quality.
        """
        samples = self.decode(self._noise(batch), self._label(batch))
        discrepancy = squared_mmd(batch.x.flatten(1), samples.flatten(1), unit=self.unit)
        return torch.tensor(discrepancy.value)

    def graphs(self) -> dict[Role, nn.Module]:
        """Return decode."""
        return {"decode": Pixels(Call(self, "decode"))}
