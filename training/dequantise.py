"""From the grey levels of an image to numbers without gaps or bounds, and back."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Dequantise(nn.Module):
    r"""Spread each grey level k out over its bin, then stretch (0, 1) by a logit.

        y = (k + noise) / L,    w = c logit(alpha + (1 - 2 alpha) y)

    Over uniform noise, P(image) = E[p(y)] / L^D exactly, and so log P(image) is at least
    E[log p(y)] - D log L. The factor c lets w fill the box of the splines: outside of it there
    are no grey levels.

    Args:
        levels: The number L of grey levels.
        alpha: Distance kept from the ends of (0, 1), where a logit is infinite. Small values
            stretch the levels next to black and to white.
        bound: Largest |w|.

    Source:
        Theis et al. 2016, arXiv:1511.01844 (noise); Dinh et al. 2017, arXiv:1605.08803,
        section 4.1 (logit).
    """

    def __init__(self, *, levels: int, alpha: float, bound: float) -> None:
        super().__init__()
        self.levels = levels
        self.alpha = alpha
        self.stretch = bound / (math.log1p(-alpha) - math.log(alpha))

    def forward(
        self, x: Float[Tensor, "batch ..."], noise: Float[Tensor, "batch ..."]
    ) -> tuple[Float[Tensor, "batch ..."], Float[Tensor, " batch"]]:
        """Return w and log |det dw/dy| - D log L.

        Args:
            x: Intensities from 0 to 1, rounded here to the nearest k / (L - 1).
            noise: Uniform in [0, 1).
        """
        level = _within(x, noise, self.levels)
        # Both from the level, since 1 - low would lose the digits next to white.
        low = self.alpha + (1 - 2 * self.alpha) / self.levels * level
        high = self.alpha + (1 - 2 * self.alpha) / self.levels * (self.levels - level)
        w = self.stretch * (low.log() - high.log())
        slope = math.log(self.stretch * (1 - 2 * self.alpha) / self.levels)
        return w, (slope - low.log() - high.log()).flatten(1).sum(dim=1)

    def inverse(self, w: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        """Return x from 0 to 1, not rounded: k / (L - 1) plus up to half a level.

        Rounding it gives the image. It is left to whoever shows the image, because a rounding
        error of the network must not become a whole grey level.
        """
        low = torch.sigmoid(w / self.stretch)
        return _intensity((low - self.alpha) / (1 - 2 * self.alpha), self.levels)


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


def _within(
    x: Float[Tensor, "batch ..."], noise: Float[Tensor, "batch ..."], levels: int
) -> Float[Tensor, "batch ..."]:
    """Return k + noise, k the grey level that an intensity is nearest to."""
    return (x * (levels - 1)).round() + noise


def _intensity(y: Float[Tensor, "batch ..."], levels: int) -> Float[Tensor, "batch ..."]:
    """Return the x whose level has its middle at y."""
    return ((y * levels - 0.5) / (levels - 1)).clamp(0, 1)
