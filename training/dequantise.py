"""From grey levels and categories to numbers without gaps or bounds, and back."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Logit(nn.Module):
    r"""Stretch places y in (0, 1) by a logit: w = c logit(alpha + (1 - 2 alpha) y).

    Args:
        alpha: Distance kept from the ends of (0, 1), where a logit is infinite. Small values
            stretch the first and the last level, next to black and to white.
        bound: Largest |w|.
    """

    def __init__(self, *, alpha: float, bound: float) -> None:
        super().__init__()
        self.alpha = alpha
        self.stretch = bound / (math.log1p(-alpha) - math.log(alpha))

    def stretched(self, level: Tensor, levels: int | Tensor) -> tuple[Tensor, Tensor]:
        """Return w of y = level / levels, and log |dw / d level|."""
        share = (1 - 2 * self.alpha) / levels
        # Both from the level, since 1 - low would lose the digits next to white.
        low = self.alpha + share * level
        high = self.alpha + share * (levels - level)
        scale = self.stretch * share
        slope = scale.log() if isinstance(scale, Tensor) else math.log(scale)
        return self.stretch * (low.log() - high.log()), slope - low.log() - high.log()

    def place(self, w: Tensor) -> Tensor:
        """Return y."""
        return (torch.sigmoid(w / self.stretch) - self.alpha) / (1 - 2 * self.alpha)


class Dequantise(Logit):
    r"""Spread each grey level k out over its bin, then stretch (0, 1) by a logit.

        y = (k + noise) / L,    w = c logit(alpha + (1 - 2 alpha) y)

    Over uniform noise, P(image) = E[p(y)] / L^D exactly, and so log P(image) is at least
    E[log p(y)] - D log L. The factor c lets w fill the box of the splines: outside of it there
    are no grey levels.

    Args:
        levels: The number L of grey levels.
        alpha, bound: As of `Logit`.

    Source:
        Theis et al. 2016, arXiv:1511.01844 (noise); Dinh et al. 2017, arXiv:1605.08803,
        section 4.1 (logit).
    """

    def __init__(self, *, levels: int, alpha: float, bound: float) -> None:
        super().__init__(alpha=alpha, bound=bound)
        self.levels = levels

    def forward(
        self, x: Float[Tensor, "batch ..."], noise: Float[Tensor, "batch ..."]
    ) -> tuple[Float[Tensor, "batch ..."], Float[Tensor, " batch"]]:
        """Return w and log |det dw/dy| - D log L.

        Args:
            x: Intensities from 0 to 1, rounded here to the nearest k / (L - 1).
            noise: Uniform in [0, 1).
        """
        w, slope = self.stretched(_within(x, noise, self.levels), self.levels)
        return w, slope.flatten(1).sum(dim=1)

    def inverse(self, w: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        """Return x from 0 to 1, not rounded: k / (L - 1) plus up to half a level.

        Rounding it gives the image. It is left to whoever shows the image, because a rounding
        error of the network must not become a whole grey level.
        """
        return _intensity(self.place(w), self.levels)


class Spread(nn.Module):
    r"""Spread each grey level k out over its bin, on a line from -1 to 1.

        w = 2 (k + noise) / L - 1

    For models whose numbers may lie anywhere, and so need no logit. Noise as in `Dequantise`.

    Args:
        levels: The number L of grey levels.
    """

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.levels = levels

    def forward(
        self, x: Float[Tensor, "batch ..."], noise: Float[Tensor, "batch ..."]
    ) -> tuple[Float[Tensor, "batch ..."], Float[Tensor, " batch"]]:
        """Return w and D log 2 - D log L, which is log |det dw/dy| - D log L; as `Dequantise`."""
        level = _within(x, noise, self.levels)
        slope = math.log(2 / self.levels) * x[0].numel()
        return level * (2 / self.levels) - 1, x.new_zeros(x.shape[0]) + slope

    def inverse(self, w: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        """Return x from 0 to 1, not rounded, as `Dequantise.inverse` does."""
        return _intensity((w + 1) / 2, self.levels)


class Columns(Logit):
    r"""Standardise the numbers of a row, and spread its categories out as `Dequantise` does levels.

    Args:
        mean, std: Of each feature over the training rows.
        counts: How many categories each feature has; 0 for a number.
        alpha, bound: As of `Logit`.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        mean: Float[Tensor, " feature"],
        std: Float[Tensor, " feature"],
        counts: Sequence[int],
        *,
        alpha: float,
        bound: float,
    ) -> None:
        super().__init__(alpha=alpha, bound=bound)
        numbers = [k for k, count in enumerate(counts) if not count]
        kinds = [k for k, count in enumerate(counts) if count]
        self.numbers, self.kinds = numbers, kinds
        self.order = [*map([*numbers, *kinds].index, range(len(counts)))]
        self.register_buffer("mean", mean[numbers])
        self.register_buffer("std", std[numbers])
        self.register_buffer("counts", torch.tensor([float(counts[k]) for k in kinds]))

    def forward(
        self, x: Float[Tensor, "batch feature"], noise: Float[Tensor, "batch feature"]
    ) -> tuple[Float[Tensor, "batch feature"], Float[Tensor, " batch"]]:
        """Return w and log |det dw/dx|, where a category is a bin of width 1.

        Args:
            x: Numbers in their own units, and numbers of categories, rounded here.
            noise: Uniform in [0, 1); that of numbers is not used.
        """
        counts = self.get_buffer("counts").to(x)
        numbers = (x[:, self.numbers] - self.mean.to(x)) / self.std.to(x)
        level = x[:, self.kinds].round() + noise[:, self.kinds].to(x)
        kinds, slope = self.stretched(level, counts)
        log_abs_det = slope.sum(dim=1) - self.std.to(x).log().sum()
        return torch.cat((numbers, kinds), dim=1)[:, self.order], log_abs_det

    def inverse(self, w: Float[Tensor, "batch feature"]) -> Float[Tensor, "batch feature"]:
        """Return the row: numbers, and the categories in whose bins w lies."""
        counts = self.get_buffer("counts").to(w)
        numbers = w[:, self.numbers] * self.std.to(w) + self.mean.to(w)
        place = self.place(w[:, self.kinds])
        kinds = torch.minimum((place * counts).floor().clamp(min=0), counts - 1)
        return torch.cat((numbers, kinds), dim=1)[:, self.order]


def _within(
    x: Float[Tensor, "batch ..."], noise: Float[Tensor, "batch ..."], levels: int
) -> Float[Tensor, "batch ..."]:
    """Return k + noise, k the grey level that an intensity is nearest to."""
    return (x * (levels - 1)).round() + noise


def _intensity(y: Float[Tensor, "batch ..."], levels: int) -> Float[Tensor, "batch ..."]:
    """Return the x whose level has its middle at y."""
    return ((y * levels - 0.5) / (levels - 1)).clamp(0, 1)
