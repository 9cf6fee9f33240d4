"""Observation models p(x|z): what the decoder's output says of an event.

Each is independent across pixels or features given z. A model has three views of an event:
`resample`, what training and evaluation see of the data; `settle`, what a served graph makes
of the x it is sent; and `draw`, a sample of p(x|z).
"""

from abc import ABC, abstractmethod
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import softplus

from training.networks import Rescale, bounded_log, normal_log_prob

START = -3.0
"""Log of a logistic's scale before training: 0.05 of the way from black to white. A guess."""


class Observation(nn.Module, ABC):
    """p(x|z) as a function of the decoder's output."""

    name: Literal["bernoulli", "normal", "logistic"]
    measure: str
    """What `log_prob` is a density of and per what, in words."""
    levels: int | None
    """Grey levels of the events it is a density of, None if x is continuous."""
    resampled: str = ""
    """How `resample` differs from `settle`, in words; "" if both leave x alone."""

    def resample(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        """Return the events that the data stands for, with torch's global generator."""
        return x

    def settle(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        """Return the event that a request means by x, without chance."""
        return x

    @abstractmethod
    def log_prob(
        self, x: Float[Tensor, "batch ..."], output: Float[Tensor, "batch draws ..."]
    ) -> Float[Tensor, "batch draws"]:
        """Return log p(x|z) in nats, of each event under each draw's output."""

    @abstractmethod
    def mean(self, output: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        """Return E[x|z]."""

    @abstractmethod
    def draw(
        self, output: Float[Tensor, "batch ..."], noise: Float[Tensor, "batch ..."]
    ) -> Float[Tensor, "batch ..."]:
        """Return a sample of p(x|z), a function of noise of the kind the interface names."""


class Bernoulli(Observation):
    """Black or white pixels; the decoder's output is the logit of white.

    A grey of g stands for a pixel that is white with probability g. Training binarises each
    image afresh each time it sees it (Salakhutdinov & Murray 2008); a request is rounded.

    Args:
        greys: Whether the data has any, and is not black and white as it is.
    """

    name = "bernoulli"
    measure = "the binary image"
    levels = 2

    def __init__(self, *, greys: bool = True) -> None:
        super().__init__()
        if greys:
            self.resampled = "of images binarised at random, whereas the service rounds"

    def resample(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        """Return images of 0 and 1, white with the probability of their grey."""
        return (torch.rand_like(x) < x).to(x.dtype)

    def settle(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        """Return x rounded to 0 and 1."""
        return x.round()

    def log_prob(
        self, x: Float[Tensor, "batch ..."], output: Float[Tensor, "batch draws ..."]
    ) -> Float[Tensor, "batch draws"]:
        """Return sum x l - log(1 + e^l) over pixels, which is finite for any logit l."""
        return (x.unsqueeze(1) * output - softplus(output)).flatten(2).sum(2)

    def mean(self, output: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        """Return the probability of white."""
        return torch.sigmoid(output)

    def draw(
        self, output: Float[Tensor, "batch ..."], noise: Float[Tensor, "batch ..."]
    ) -> Float[Tensor, "batch ..."]:
        """Return 1 where the uniform noise is below the probability of white, else 0."""
        return (noise < torch.sigmoid(output)).to(output.dtype)


class Gaussian(Observation):
    """Continuous pixels or features, normal about the decoder's mean with a learned scale.

    Everything is in the data's own units: the mean of a vector is location + unit * output, and
    its scale is unit * (minimum + e^s) with s learned, so the Jacobian of the standardisation is
    part of the density. The mean of an image is a sigmoid, hence a picture. The density itself
    covers all real x: a draw is not clamped to [0, 1], because the clamped draw would follow
    another distribution than the one `log_prob` reports.

    Args:
        shape: Of the learned scale: () for a global one, or the event's.
        minimum: Floor of the scale in standardised units.
        standardise: The data's location and unit.
        image: Whether the mean is squashed into [0, 1].
    """

    name = "normal"
    measure = "x as real numbers, per unit of x in each dimension"
    levels = None

    def __init__(
        self, shape: tuple[int, ...], *, minimum: float, standardise: Rescale, image: bool
    ) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.zeros(shape))
        self.minimum = minimum
        self.standardise = standardise
        self.image = image

    @property
    def log_scale(self) -> Float[Tensor, "..."]:
        """Log of the standard deviation of x given z, in the data's units."""
        return torch.log((self.minimum + bounded_log(self.raw).exp()) * self.standardise.unit)

    def mean(self, output: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        """Return the mean in the data's units."""
        if self.image:
            return torch.sigmoid(output)
        return self.standardise.location + self.standardise.unit * output

    def log_prob(
        self, x: Float[Tensor, "batch ..."], output: Float[Tensor, "batch draws ..."]
    ) -> Float[Tensor, "batch draws"]:
        """Return the log-density of x, per unit of x."""
        log_prob = normal_log_prob(x.unsqueeze(1), mean=self.mean(output), log_scale=self.log_scale)
        return log_prob.flatten(2).sum(2)

    def draw(
        self, output: Float[Tensor, "batch ..."], noise: Float[Tensor, "batch ..."]
    ) -> Float[Tensor, "batch ..."]:
        """Return mean + scale * noise, for standard normal noise."""
        return self.mean(output) + torch.exp(self.log_scale) * noise


class Logistic(Observation):
    """Grey levels: a logistic variable of learned scale s, rounded to the nearest level.

    Its location m may lie outside of [0, 1], without which no pixel could be sure to be black. With
    bins of width d = 1 / (levels - 1), a = (x + d/2 - m) / s and b = (x - d/2 - m) / s:

        P(x|z) = sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - e^(b - a))

    where the lowest level has all below it (b = -inf) and the highest all above (a = inf). The
    product is what is computed: it loses no digits far away from m.

    Args:
        shape: Of the learned scale: () for a global one, or the event's.
        levels: Of grey.

    Source:
        Kingma et al. 2016, arXiv:1606.04934, appendix C; Salimans et al. 2017, arXiv:1701.05517.
    """

    name = "logistic"

    def __init__(self, shape: tuple[int, ...], *, levels: int) -> None:
        super().__init__()
        self.levels = levels
        self.measure = f"the image of {levels} grey levels"
        self.steps = levels - 1
        self.bin = 1 / self.steps
        self.raw = nn.Parameter(torch.full(shape, START))

    @property
    def scale(self) -> Float[Tensor, "..."]:
        """s, at least half a bin: `mean` is then right to 0.02 levels."""
        return self.bin / 2 + bounded_log(self.raw).exp()

    def location(self, output: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return m: 0 and 1 are where the output is -1 and 1."""
        return 0.5 + 0.5 * output

    def settle(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        """Return x on its nearest level."""
        answer: Tensor = (x * self.steps).round() / self.steps
        return answer

    def log_prob(
        self, x: Float[Tensor, "batch ..."], output: Float[Tensor, "batch draws ..."]
    ) -> Float[Tensor, "batch draws"]:
        """Return the log-probability of x, which is on a level, in nats."""
        x, scale = x.unsqueeze(1), self.scale
        away = x - self.location(output)
        below_top = -softplus(-(away + self.bin / 2) / scale)
        above_bottom = -softplus((away - self.bin / 2) / scale)
        within = torch.log(-torch.expm1(-self.bin / scale))
        lowest, highest = x < self.bin / 2, x > 1 - self.bin / 2
        inner = below_top + above_bottom + within
        log_prob = torch.where(lowest, below_top, torch.where(highest, above_bottom, inner))
        return log_prob.flatten(2).sum(2)

    def mean(self, output: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        """Return E[x|z]: of the variable cut off at 0 and 1, whose rounding hardly moves it.

        The mean of a logistic of location m, cut off at 0 and 1, is the integral of
        sigmoid((m - t) / s) over t from 0 to 1.
        """
        location, scale = self.location(output), self.scale
        mean = scale * (softplus(location / scale) - softplus((location - 1) / scale))
        return mean.clamp(0, 1)  # the difference of two large numbers is off by their rounding

    def draw(
        self, output: Float[Tensor, "batch ..."], noise: Float[Tensor, "batch ..."]
    ) -> Float[Tensor, "batch ..."]:
        """Return the level that uniform noise u falls on: m + s logit(u), rounded."""
        logit = torch.log(noise) - torch.log1p(-noise)
        x = self.location(output) + self.scale * logit
        return self.settle(x.clamp(0, 1))
