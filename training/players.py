"""The players of a game: generators and critics, of images and of vectors.

Whatever the events, a generator gets noise and a label, and a critic an event and its label.
"""

import itertools
from abc import ABC, abstractmethod

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import silu
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations

from training.networks import halvings, mlp, pyramid

GROUP = 8
"""Channels that are normalised together, where their number allows."""
SLOPE = 0.1
"""Of a critic's leaky ReLU on negative inputs: Miyato et al. 2018, table 3."""


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


class Generator(nn.Module, ABC):
    """G: noise and, where the data has classes, a label, to an event.

    Args:
        latent: Dimensions of the noise.
        classes: How many labels there are; 0 for an unconditional generator.
        embedding: Length of the vector that stands for a label.
    """

    def __init__(self, *, latent: int, classes: int, embedding: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(classes, embedding) if classes else None
        self.code = latent + (embedding if classes else 0)

    def forward(
        self, z: Float[Tensor, "batch latent"], label: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch ..."]:
        """Return events, in z's precision.

        Raises:
            ValueError: A label came and the data has no classes, or the other way round.
        """
        if (label is None) != (self.embedding is None):
            expected = "no label" if self.embedding is None else "a label for each z"
            raise ValueError(f"decode: expected {expected}. Conditional means with classes.")
        code = z
        if self.embedding is not None and label is not None:
            code = torch.cat([z, self.embedding(label)], dim=1)
        return self.of(code).to(z.dtype)

    @abstractmethod
    def of(self, code: Float[Tensor, "batch code"]) -> Float[Tensor, "batch ..."]:
        """Return events of noise and label side by side."""


class ImageGenerator(Generator):
    """An image from 0 to 1, grown from the smallest size that `halvings` allows.

    The code, noise and class embedding side by side, steers every stage and not only the first.

    Args:
        shape: (channels, height, width) of an image.
        width: Channels at full size.
        latent: Dimensions of the noise.
        classes: How many labels there are.
        embedding: Length of the vector that stands for a label.
    """

    def __init__(
        self, shape: tuple[int, ...], *, width: int, latent: int, classes: int, embedding: int
    ) -> None:
        super().__init__(latent=latent, classes=classes, embedding=embedding)
        channels, rows, columns = shape
        times = halvings(rows, columns)
        widths = pyramid(width, times + 1)[::-1]
        self.coarse = (widths[0], rows >> times, columns >> times)
        self.start = nn.Linear(self.code, self.coarse[0] * self.coarse[1] * self.coarse[2])
        self.stages = nn.ModuleList(
            Stage(before, after, code=self.code, enlarge=level > 0)
            for level, (before, after) in enumerate(itertools.pairwise([widths[0], *widths]))
        )
        self.modulation = Modulation(widths[-1], self.code)
        self.finish = nn.Conv2d(widths[-1], channels, 3, padding=1)

    def of(self, code: Float[Tensor, "batch code"]) -> Float[Tensor, "batch channel height width"]:
        """Return images."""
        features = self.start(code).unflatten(1, self.coarse)
        for stage in self.stages:
            features = stage(features, code)
        logits: Tensor = self.finish(silu(self.modulation(features, code)))
        return torch.sigmoid(logits.to(code.dtype))


class VectorGenerator(Generator):
    """Standardised features, by a perceptron.

    Args:
        size: How many features.
        width: Hidden units.
        depth: Hidden layers.
        latent: Dimensions of the noise.
        classes: How many labels there are.
        embedding: Length of the vector that stands for a label.
    """

    def __init__(
        self, size: int, *, width: int, depth: int, latent: int, classes: int, embedding: int
    ) -> None:
        super().__init__(latent=latent, classes=classes, embedding=embedding)
        self.network = mlp([self.code, *[width] * depth, size])

    def of(self, code: Float[Tensor, "batch code"]) -> Float[Tensor, "batch feature"]:
        """Return features of mean 0 and deviation 1, if they follow the data."""
        features: Tensor = self.network(code)
        return features


class Critic(nn.Module, ABC):
    """D: an event and its label to one number or several.

    Spectral normalisation, if asked for, holds every layer's gain at 1, which keeps the game
    balanced. The label enters as an inner product with the event's features (projection).

    Args:
        features: The layers that find the features.
        width: How many those are.
        outputs: How many numbers are made of them.
        classes: How many labels there are.
        is_shifted: Whether the numbers have a constant of their own.
        gain_one: Whether layers are normalised.

    Source:
        Miyato et al. 2018, arXiv:1802.05957 (spectral normalisation). Miyato & Koyama 2018,
        arXiv:1802.05637 (projection).
    """

    def __init__(
        self,
        features: nn.Sequential,
        width: int,
        *,
        outputs: int,
        classes: int,
        is_shifted: bool,
        gain_one: bool,
    ) -> None:
        super().__init__()
        self.outputs = outputs
        self.features = features
        self.verdict = nn.Linear(width, outputs, bias=is_shifted)
        self.projection = nn.Embedding(classes, width * outputs) if classes else None
        if gain_one:
            for layer in [each for each in self.modules() if hasattr(each, "weight")]:
                spectral_norm(layer)

    def forward(
        self, x: Float[Tensor, "batch ..."], label: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch output"]:
        """Return what is said of events, in x's precision."""
        features = self.seen(x)
        said: Tensor = self.verdict(features).to(x.dtype)
        if self.projection is not None and label is not None:
            directions = self.projection(label).unflatten(1, (self.outputs, -1))
            said = said + (directions * features.unsqueeze(1)).sum(2)
        return said

    def release(self) -> None:
        """Put weights that may be of any gain in place of normalised ones; in evaluation mode."""
        for layer in [*self.modules()]:
            if is_parametrized(layer, "weight"):
                remove_parametrizations(layer, "weight")

    @abstractmethod
    def seen(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch width"]:
        """Return the features of events."""


class ImageCritic(Critic):
    """Of images from 0 to 1, halved as often as `halvings` allows.

    Args:
        shape: (channels, height, width) of an image.
        width: Channels at full size.
        outputs: How many numbers are said of an image.
        classes: How many labels there are.
        is_shifted: Whether the numbers have a constant of their own.
        gain_one: Whether layers are normalised.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        width: int,
        outputs: int,
        classes: int,
        is_shifted: bool,
        gain_one: bool,
    ) -> None:
        channels, rows, columns = shape
        widths = pyramid(width, halvings(rows, columns) + 1)
        layers: list[nn.Module] = [nn.Conv2d(channels, widths[0], 3, padding=1)]
        for before, after in itertools.pairwise(widths):
            layers += [
                nn.LeakyReLU(SLOPE),
                nn.Conv2d(before, after, 4, stride=2, padding=1),
                nn.LeakyReLU(SLOPE),
                nn.Conv2d(after, after, 3, padding=1),
            ]
        super().__init__(
            nn.Sequential(*layers, nn.LeakyReLU(SLOPE)),
            widths[-1],
            outputs=outputs,
            classes=classes,
            is_shifted=is_shifted,
            gain_one=gain_one,
        )

    def seen(
        self, x: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, "batch features"]:
        """Return the sums over all pixels."""
        features: Tensor = self.features(2 * x - 1).to(x.dtype).sum((2, 3))
        return features


class VectorCritic(Critic):
    """Of standardised features, by a perceptron.

    Args:
        size: How many features there are.
        width: Hidden units.
        depth: Hidden layers.
        outputs: How many numbers are said of a vector.
        classes: How many labels there are.
        is_shifted: Whether the numbers have a constant of their own.
        gain_one: Whether layers are normalised.
    """

    def __init__(
        self,
        size: int,
        *,
        width: int,
        depth: int,
        outputs: int,
        classes: int,
        is_shifted: bool,
        gain_one: bool,
    ) -> None:
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise([size, *[width] * depth]):
            layers += [nn.Linear(before, after), nn.LeakyReLU(SLOPE)]
        super().__init__(
            nn.Sequential(*layers),
            width,
            outputs=outputs,
            classes=classes,
            is_shifted=is_shifted,
            gain_one=gain_one,
        )

    def seen(self, x: Float[Tensor, "batch feature"]) -> Float[Tensor, "batch width"]:
        """Return what the last hidden layer makes of vectors."""
        features: Tensor = self.features(x).to(x.dtype)
        return features
