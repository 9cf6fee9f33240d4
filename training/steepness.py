"""How steep a critic is: gradients in its events, through which its parameters can be trained.

All of them in float32, whatever the precision of the training.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

TINY = 1e-12
"""Below the root of a squared slope, which has no derivative at 0."""


def squared_slopes(
    critic: Callable[[Tensor], Tensor], x: Float[Tensor, "batch ..."]
) -> Float[Tensor, " batch"]:
    """Return |grad f_i(x)|^2 at each event, over all outputs i: the Jacobian's squared norm.

    Args:
        critic: Maps each event on its own to a number (batch,), or to several (batch, outputs).
        x: Events.

    Example:
        >>> squared_slopes(lambda x: x * torch.tensor([3.0, 4.0]), torch.zeros(2, 2)).tolist()
        [25.0, 25.0]
    """
    with torch.autocast(x.device.type, enabled=False):
        x = x.detach().requires_grad_()
        outputs = critic(x).reshape(len(x), -1).unbind(1)
        slopes = [torch.autograd.grad(each.sum(), x, create_graph=True)[0] for each in outputs]
    return sum(each.square().flatten(1).sum(1) for each in slopes) + x.new_zeros(len(x))


def slope_miss(
    critic: Callable[[Tensor], Float[Tensor, " batch"]], x: Float[Tensor, "batch ..."]
) -> Float[Tensor, ""]:
    """Return the mean of (|grad f(x)| - 1)^2.

    Source:
        Gulrajani et al. 2017, arXiv:1704.00028, eq. 3.
    """
    return ((squared_slopes(critic, x) + TINY).sqrt() - 1).square().mean()


def between(
    x: Float[Tensor, "batch ..."], y: Float[Tensor, "batch ..."]
) -> Float[Tensor, "batch ..."]:
    """Return a point on the line from each x to its y, anywhere alike."""
    share = torch.rand(len(x), *[1] * (x.ndim - 1), dtype=x.dtype, device=x.device)
    return y + share * (x - y)
