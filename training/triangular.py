"""Triangular maps: each feature moves by a map whose shape the features before it decide.

Any density can be pushed to any other by one (Knothe 1957; Rosenblatt 1952), and its Jacobian is
triangular. One way is a single pass of a masked network; the way back goes feature by feature.

Source:
    Papamakarios et al. 2017, arXiv:1705.07057 (MAF, fast densities); Kingma et al. 2016,
    arXiv:1606.04934 (IAF, the same the other way round, fast samples).
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch._higher_order_ops.while_loop import while_loop

from training.coupling import Bijection, Context
from training.elementwise import Elementwise
from training.masked import Masked


class Triangular(Bijection):
    """z_i = a map of x_i, steered by x_1, ..., x_{i-1}.

    Args:
        transform: What kind of map.
        network: Its free numbers, for each feature.
    """

    def __init__(self, transform: Elementwise, network: Masked) -> None:
        super().__init__()
        self.transform = transform
        self.network = network

    def forward(
        self, x: Float[Tensor, "batch feature"], context: Context = None
    ) -> tuple[Float[Tensor, "batch feature"], Float[Tensor, " batch"]]:
        """Return z and log |det dz/dx|, in one pass."""
        free = self.network(self._seen(x), self._told(context)).to(x.dtype)
        z, log_slope = self.transform.forward(x, free)
        return z, log_slope.sum(1)

    def inverse(
        self, z: Float[Tensor, "batch feature"], context: Context = None
    ) -> Float[Tensor, "batch feature"]:
        """Return x, one feature after the other.

        In an exported graph that is one loop, whose body is there once.
        """
        features = self.network.inputs
        place, x = torch.zeros((), dtype=torch.int64, device=z.device), z * 0
        if torch.compiler.is_exporting():
            found: Tensor = while_loop(
                lambda place, _: place < features,
                lambda place, x: self._with_next(place, x, z, context),
                (place, x),
            )[1]
            return found
        for _ in range(features):
            place, x = self._with_next(place, x, z, context)
        return x

    def _with_next(
        self, place: Tensor, x: Tensor, z: Tensor, context: Context
    ) -> tuple[Tensor, Tensor]:
        """Return the next place, and x with the feature of this one, which was 0 in it."""
        index = place.reshape(1)
        free = self.network.at(self._seen(x), place, self._told(context)).to(x.dtype)
        found = self.transform.inverse(z.index_select(1, index), free)
        here = (torch.arange(self.network.inputs, device=x.device) == place).to(x.dtype)
        return place + 1, x + found * here

    def _seen(self, x: Tensor) -> Tensor:
        bound = self.transform.bound
        return x.clamp(-bound, bound).to(self.network.first.weight.dtype)

    def _told(self, context: Context) -> Context:
        return None if context is None else context.to(self.network.first.weight.dtype)


class Inverted(Bijection):
    """A bijection the other way round: what was slow is fast, and what was fast is slow."""

    def __init__(self, inner: Bijection) -> None:
        super().__init__()
        self.inner = inner

    def forward(
        self, x: Float[Tensor, "batch ..."], context: Context = None
    ) -> tuple[Float[Tensor, "batch ..."], Float[Tensor, " batch"]]:
        """Return z and log |det dz/dx|."""
        z = self.inner.inverse(x, context)
        return z, -self.inner(z, context)[1]

    def inverse(
        self, z: Float[Tensor, "batch ..."], context: Context = None
    ) -> Float[Tensor, "batch ..."]:
        """Return x."""
        x: Tensor = self.inner(z, context)[0]
        return x


class Flat(Bijection):
    """Events of any shape as rows of numbers: an image channel by channel, each row by row."""

    def __init__(self, inner: Bijection, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.inner = inner
        self.shape = shape

    def forward(
        self, x: Float[Tensor, "batch ..."], context: Context = None
    ) -> tuple[Float[Tensor, "batch ..."], Float[Tensor, " batch"]]:
        """Return z and log |det dz/dx|."""
        z, log_abs_det = self.inner(x.flatten(1), context)
        return torch.unflatten(z, 1, self.shape), log_abs_det

    def inverse(
        self, z: Float[Tensor, "batch ..."], context: Context = None
    ) -> Float[Tensor, "batch ..."]:
        """Return x."""
        x = self.inner.inverse(z.flatten(1), context)
        return torch.unflatten(x, 1, self.shape)


class Reverse(Bijection):
    """The channels in the opposite order, so that the last ones come first next time."""

    def forward(
        self, x: Float[Tensor, "batch channel ..."], context: Context = None
    ) -> tuple[Float[Tensor, "batch channel ..."], Float[Tensor, " batch"]]:
        """Return them. Nothing is stretched."""
        return x.flip(1), x.new_zeros(x.shape[0])

    def inverse(
        self, z: Float[Tensor, "batch channel ..."], context: Context = None
    ) -> Float[Tensor, "batch channel ..."]:
        """Return x."""
        return z.flip(1)
