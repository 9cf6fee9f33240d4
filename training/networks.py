"""Building blocks that more than one family uses."""

import itertools
import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from training.data import Data

SMALLEST_SIDE = 4
"""Images are halved no further than to 4 x 4: below that a 3 x 3 convolution sees only edges."""
WIDEST = 4
"""Channels double with every halving, up to this factor on the finest level's."""
LOG_BOUND = 8.0
"""Bound on every learned log-scale, so that its exponential lies within e^-8 and e^8."""
LOG_2PI = math.log(2 * math.pi)


def bounded_log(raw: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return a log-scale within ±`LOG_BOUND`, close to `raw` near 0.

    b tanh(raw / b): the exponential of the answer can neither overflow nor vanish, and its
    gradient never dies at once as that of a clamp does.

    Example:
        >>> bounded_log(torch.tensor([0.0, 1e9])).tolist()
        [0.0, 8.0]
    """
    return LOG_BOUND * torch.tanh(raw / LOG_BOUND)


def normal_log_prob(
    x: Float[Tensor, "..."],
    *,
    mean: Float[Tensor, "..."] | float = 0.0,
    log_scale: Float[Tensor, "..."] | float = 0.0,
) -> Float[Tensor, "..."]:
    """Return log N(x; mean, exp(log_scale)^2) in nats, elementwise.

    Written out because `torch.distributions` validates its arguments in ways that no graph
    can be exported from.
    """
    log_scale = torch.as_tensor(log_scale, dtype=x.dtype, device=x.device)
    standard = (x - mean) * torch.exp(-log_scale)
    return -0.5 * (standard.square() + LOG_2PI) - log_scale


def total(x: Float[Tensor, "... size"]) -> Float[Tensor, "..."]:
    """Return the sum over the last axis.

    In float64, which ONNX Runtime adds up alike whatever rows stand beside: of float32 the bytes
    of a sum of 50 depended on the batch (measured, ORT 1.31).
    """
    return x.double().sum(-1).to(x.dtype)


def halvings(height: int, width: int) -> int:
    """Return how often an image can be halved with whole sides of at least `SMALLEST_SIDE`.

    Example:
        >>> halvings(28, 28), halvings(8, 8), halvings(27, 28)
        (2, 1, 0)
    """
    times = 0
    while height % 2 == 0 and width % 2 == 0 and min(height, width) >= 2 * SMALLEST_SIDE:
        height, width, times = height // 2, width // 2, times + 1
    return times


def pyramid(width: int, levels: int) -> list[int]:
    """Return the channels of each level, the finest first.

    Example:
        >>> pyramid(32, 4)
        [32, 64, 128, 128]
    """
    return [width * min(2**level, WIDEST) for level in range(levels)]


def mlp(sizes: list[int]) -> nn.Sequential:
    """Return linear layers of these sizes with SiLU between them, and none after the last."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after), nn.SiLU()]
    return nn.Sequential(*layers[:-1])


def one_hot(
    label: Int[Tensor, " rows"], classes: int, *, like: Tensor
) -> Float[Tensor, "rows classes"]:
    """Return 1 at each row's class, 0 elsewhere.

    torch's own looks at the labels first, in a way that no graph can be exported from.
    """
    return (label.unsqueeze(1) == torch.arange(classes, device=label.device)).to(like)


class Rescale(nn.Module):
    """Map events to inputs that a network likes, (x - location) / unit, and back.

    Images run from -1 to 1. The features of a vector get mean 0 and variance 1 over the
    training split.

    Raises:
        ValueError: A feature never changes, so that its density is infinite.
    """

    location: Tensor
    unit: Tensor

    def __init__(self, data: Data) -> None:
        super().__init__()
        location, unit = torch.tensor(0.5), torch.tensor(0.5)
        if data.mean is not None and data.std is not None:
            location = torch.as_tensor(data.mean, dtype=torch.float32)
            unit = torch.as_tensor(data.std, dtype=torch.float32)
        if not (unit > 0).all():
            still = torch.nonzero(unit <= 0).flatten().tolist()
            raise ValueError(
                f"every feature must vary over the training rows; features {still} do not. "
                "Leave them out."
            )
        self.register_buffer("location", location)
        self.register_buffer("unit", unit)

    def forward(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        """Return (x - location) / unit."""
        return (x - self.location) / self.unit


class ResidualBlock(nn.Module):
    """x + f(x), with f two 3 x 3 convolutions, each after a SiLU.

    There is no normalisation. Instead f starts small (`START`), so that a deep stack starts
    close to the identity.

    Source:
        He et al. 2016, arXiv:1603.05027 (pre-activation); Zhang et al. 2019, arXiv:1901.09321
        (a small start in place of normalisation).
    """

    START = 0.1
    """Factor on the initial weights of the last convolution: a guess that trains well."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        with torch.no_grad():
            self.second.weight.mul_(self.START)
        self.activation = nn.SiLU()

    def forward(
        self, x: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, "batch channel height width"]:
        """Return x + f(x)."""
        hidden = self.first(self.activation(x))
        change: Tensor = self.second(self.activation(hidden))
        return x + change


def image_encoder(shape: tuple[int, ...], *, width: int, depth: int, outputs: int) -> nn.Sequential:
    """Return a network from images of this shape to `outputs` numbers.

    Each level halves the image and then refines it by `depth` residual blocks; nothing but
    the first convolution works at full size, which is where a convolution costs most.

    Args:
        shape: (channels, height, width) of an image.
        width: Channels of the finest level; coarser ones have up to `WIDEST` times as many.
        depth: Residual blocks per level.
        outputs: Length of the answer.
    """
    channels, rows, columns = shape
    times = halvings(rows, columns)
    layers: list[nn.Module] = []
    for after in pyramid(width, max(times, 1)):
        if times:
            layers.append(nn.Conv2d(channels, after, 4, stride=2, padding=1))
        else:
            layers.append(nn.Conv2d(channels, after, 3, padding=1))
        layers += [ResidualBlock(after) for _ in range(depth)]
        channels = after
    area = (rows >> times) * (columns >> times)
    return nn.Sequential(*layers, nn.SiLU(), nn.Flatten(), nn.Linear(channels * area, outputs))


def image_decoder(shape: tuple[int, ...], *, width: int, depth: int, inputs: int) -> nn.Sequential:
    """Return a network from `inputs` numbers to images of this shape: the encoder's mirror."""
    channels, rows, columns = shape
    times = halvings(rows, columns)
    widths = pyramid(width, max(times, 1))
    coarse = (widths[-1], rows >> times, columns >> times)
    layers: list[nn.Module] = [
        nn.Linear(inputs, coarse[0] * coarse[1] * coarse[2]),
        nn.Unflatten(1, coarse),
    ]
    for before, after in itertools.pairwise([*reversed(widths), channels]):
        layers += [ResidualBlock(before) for _ in range(depth)]
        layers.append(nn.SiLU())
        if times:
            layers.append(nn.ConvTranspose2d(before, after, 4, stride=2, padding=1))
        else:
            layers.append(nn.Conv2d(before, after, 3, padding=1))
    return nn.Sequential(*layers)
