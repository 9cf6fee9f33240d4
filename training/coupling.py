"""Invertible layers: each maps its input one way with the log-determinant, and back.

A *coupling* leaves some channels as they are, and moves each of the others by a map whose shape a
network reads off the unmoved ones. Its Jacobian is triangular, its inverse one pass.

Source: Dinh, Krueger & Bengio 2015, arXiv:1410.8516; Dinh, Sohl-Dickstein & Bengio 2017,
arXiv:1605.08803.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from training.conditioner import dense
from training.elementwise import Elementwise

Context = Float[Tensor, "batch context"] | None
"""What a map is told of its event."""


class Bijection(nn.Module, ABC):
    """An invertible map of events, of the batch axis each on its own.

    Which map it is may depend on a context (batch, context) of each event, such as its class.
    """

    @abstractmethod
    def forward(
        self, x: Float[Tensor, "batch ..."], context: Context = None
    ) -> tuple[Float[Tensor, "batch ..."], Float[Tensor, " batch"]]:
        """Return z and log |det dz/dx|."""

    @abstractmethod
    def inverse(
        self, z: Float[Tensor, "batch ..."], context: Context = None
    ) -> Float[Tensor, "batch ..."]:
        """Return the x that forward maps to z."""


class Chain(Bijection):
    """Bijections one after the other."""

    def __init__(self, layers: Sequence[Bijection]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(
        self, x: Float[Tensor, "batch ..."], context: Context = None
    ) -> tuple[Float[Tensor, "batch ..."], Float[Tensor, " batch"]]:
        """Return z and the sum of the layers' log-determinants."""
        total = x.new_zeros(x.shape[0])
        for layer in self.layers:
            x, log_abs_det = layer(x, context)
            total = total + log_abs_det
        return x, total

    def inverse(
        self, z: Float[Tensor, "batch ..."], context: Context = None
    ) -> Float[Tensor, "batch ..."]:
        """Return x, undoing the last layer first."""
        for layer in reversed(self.layers):
            z = layer.inverse(z, context)  # type: ignore[operator]
        return z


class Standardise(Bijection):
    """z = (x - mean) / std with constants from the training data."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Float[Tensor, " feature"], std: Float[Tensor, " feature"]) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(
        self, x: Float[Tensor, "batch feature"], context: Context = None
    ) -> tuple[Float[Tensor, "batch feature"], Float[Tensor, " batch"]]:
        """Return z and the constant -sum log std for each row."""
        z = (x - self.mean) / self.std
        return z, x.new_zeros(x.shape[0]) - self.std.log().sum()

    def inverse(
        self, z: Float[Tensor, "batch feature"], context: Context = None
    ) -> Float[Tensor, "batch feature"]:
        """Return x = mean + std z."""
        return self.mean + self.std * z


class Coupling(Bijection):
    """Maps of the `moved` channels (axis 1), steered by a network that sees the `known` ones.

    Args:
        channels: How many channels the input has. Those in neither list stay, unseen.
        known: Indices of what the network reads.
        moved: Indices of what it moves; disjoint from `known`.
        network: Maps (batch, len(known), ...) and the context, or None, to (batch, len(moved) *
            free numbers, ...).
        transform: What kind of map.
    """

    known: Tensor
    moved: Tensor
    still: Tensor
    back: Tensor

    def __init__(
        self,
        *,
        channels: int,
        known: Sequence[int],
        moved: Sequence[int],
        network: nn.Module,
        transform: Elementwise,
    ) -> None:
        super().__init__()
        still = [channel for channel in range(channels) if channel not in moved]
        back = torch.tensor([*moved, *still]).argsort()
        self.register_buffer("known", torch.tensor(known), persistent=False)
        self.register_buffer("moved", torch.tensor(moved), persistent=False)
        self.register_buffer("still", torch.tensor(still), persistent=False)
        self.register_buffer("back", back, persistent=False)
        self.network = network
        self.transform = transform

    def forward(
        self, x: Float[Tensor, "batch channel ..."], context: Context = None
    ) -> tuple[Float[Tensor, "batch channel ..."], Float[Tensor, " batch"]]:
        """Return z and the sum of the maps' log-slopes."""
        moved, log_slope = self.transform.forward(
            x.index_select(1, self.moved), self._free(x, context)
        )
        return self._join(moved, x), log_slope.flatten(1).sum(dim=1)

    def inverse(
        self, z: Float[Tensor, "batch channel ..."], context: Context = None
    ) -> Float[Tensor, "batch channel ..."]:
        """Return x; the network sees the same channels, since they did not move."""
        moved = self.transform.inverse(z.index_select(1, self.moved), self._free(z, context))
        return self._join(moved, z)

    def _free(
        self, x: Float[Tensor, "batch channel ..."], context: Context
    ) -> Float[Tensor, "batch moved free ..."]:
        # What lies outside the box could drive the splines to any steepness: the network sees
        # the nearest place inside.
        bound = self.transform.bound
        known = x.index_select(1, self.known).clamp(-bound, bound)
        # The network may work in fewer digits than the splines, which take steep turns.
        dtype = next(self.network.parameters()).dtype
        told = None if context is None else context.to(dtype)
        free = self.network(known.to(dtype), told).to(x.dtype)
        return torch.unflatten(free, 1, (len(self.moved), -1))

    def _join(self, moved: Tensor, x: Tensor) -> Tensor:
        joined = torch.cat((moved, x.index_select(1, self.still)), dim=1)
        return joined.index_select(1, self.back)


def with_digits(x: Float[Tensor, "batch ..."], *, training: bool) -> Float[Tensor, "batch ..."]:
    """Return x in float64 once the training is over: steep splines amplify rounding errors.

    The networks, which cost the most, stay in float32. Of 256 images of MNIST the worst pixel is
    then 3e-5 off instead of 2e-4.
    """
    return x if training else x.double()


def halves(
    features: int,
    *,
    transforms: Sequence[Elementwise],
    width: int,
    depth: int,
    dropout: float = 0.0,
    context: int = 0,
) -> Iterator[Coupling]:
    """Yield couplings over random halves of the features, each half moved in turn.

    Draws from torch's global generator.

    Args:
        features: Of each row, two or more.
        transforms: What kind of map, of each coupling.
        width: Units of each coupling's network.
        depth: Residual blocks of each.
        dropout: Of each.
        context: Numbers that each network is told.
    """
    order = torch.randperm(features).tolist()
    for layer, transform in enumerate(transforms):
        known, moved = order[: features // 2], order[features // 2 :]
        # The other half next, then two new halves; of two features there are no others.
        swap = layer % 2 == 0 or features == 2
        order = [*moved, *known] if swap else torch.randperm(features).tolist()
        network = dense(
            known=len(known),
            free=len(moved) * transform.free,
            width=width,
            depth=depth,
            dropout=dropout,
            context=context,
        )
        yield Coupling(
            channels=features, known=known, moved=moved, network=network, transform=transform
        )


class Squeeze(Bijection):
    """Each 2 x 2 block of pixels becomes channels: (C, H, W) -> (4 C, H / 2, W / 2).

    The four phases come in the order (0, 0), (0, 1), (1, 0), (1, 1), each with its C channels.
    """

    def forward(
        self, x: Float[Tensor, "batch channel height width"], context: Context = None
    ) -> tuple[Float[Tensor, "batch channel4 height2 width2"], Float[Tensor, " batch"]]:
        """Return the phases. Nothing is stretched."""
        c, h, w = x.shape[1:]
        blocks = x.reshape(-1, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4)
        return blocks.reshape(-1, 4 * c, h // 2, w // 2), x.new_zeros(x.shape[0])

    def inverse(
        self, z: Float[Tensor, "batch channel4 height2 width2"], context: Context = None
    ) -> Float[Tensor, "batch channel height width"]:
        """Return the image whose phases z are."""
        c, h, w = z.shape[1:]
        blocks = z.reshape(-1, 2, 2, c // 4, h, w).permute(0, 3, 4, 1, 5, 2)
        return blocks.reshape(-1, c // 4, 2 * h, 2 * w)


class Unsqueeze(Bijection):
    """The inverse of `Squeeze`."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze = Squeeze()

    def forward(
        self, x: Float[Tensor, "batch channel4 height2 width2"], context: Context = None
    ) -> tuple[Float[Tensor, "batch channel height width"], Float[Tensor, " batch"]]:
        """Return the image whose phases x are."""
        return self.squeeze.inverse(x), x.new_zeros(x.shape[0])

    def inverse(
        self, z: Float[Tensor, "batch channel height width"], context: Context = None
    ) -> Float[Tensor, "batch channel4 height2 width2"]:
        """Return the phases of z."""
        phases: Tensor = self.squeeze(z)[0]
        return phases


class First(Bijection):
    """A bijection of the first channels only; the others pass through."""

    def __init__(self, channels: int, inner: Bijection) -> None:
        super().__init__()
        self.channels = channels
        self.inner = inner

    def forward(
        self, x: Float[Tensor, "batch channel ..."], context: Context = None
    ) -> tuple[Float[Tensor, "batch channel ..."], Float[Tensor, " batch"]]:
        """Return z and the inner log-determinant."""
        first, log_abs_det = self.inner(x[:, : self.channels], context)
        return torch.cat((first, x[:, self.channels :]), dim=1), log_abs_det

    def inverse(
        self, z: Float[Tensor, "batch channel ..."], context: Context = None
    ) -> Float[Tensor, "batch channel ..."]:
        """Return x."""
        first = self.inner.inverse(z[:, : self.channels], context)
        return torch.cat((first, z[:, self.channels :]), dim=1)
