r"""The divergence of a velocity, sum_i dv_i / dw_i: how fast a log-density falls on its way.

    d log p(w(t)) / dt = - div v(w(t), t)

Each number of a row's Jacobian costs a pass, so that its trace is exact where there are few
dimensions, and estimated elsewhere: with independent signs e, E[e' J e] = tr J.

Source:
    Chen et al. 2018, arXiv:1806.07366, theorem 1; Grathwohl et al. 2019, arXiv:1810.01367,
    section 3.1 (Hutchinson's estimator).
"""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def exact(
    velocity: Callable[..., Tensor],
    w: Float[Tensor, "batch ..."],
    *told: Tensor,
    shape: tuple[int, ...],
) -> tuple[Float[Tensor, "batch ..."], Float[Tensor, " batch"]]:
    """Return the velocity and its divergence, by one row for each dimension of each row.

    Rows and not `vmap`, because the gradient of a convolution under `vmap` does not export.
    It can be differentiated once more where gradients are enabled.

    Args:
        velocity: Maps w, t and what else a row is told to dw/dt, each row on its own.
        w: Where.
        told: What the velocity takes beside w, a row for each of w's.
        shape: Of each row; while a graph is traced, that of w is made of symbols.
    """
    size = math.prod(shape)
    basis = torch.eye(size, dtype=w.dtype, device=w.device).view(size, *shape)
    directions = basis.expand(w.shape[0], *basis.shape).flatten(0, 1)
    rows, *others = (_repeated(each, size) for each in (w, *told))
    moved, slopes = _along(directions, velocity, rows, others)
    return moved.unflatten(0, (-1, size))[:, 0], slopes.view(-1, size).sum(1)


def estimated(
    velocity: Callable[..., Tensor],
    w: Float[Tensor, "batch ..."],
    *told: Tensor,
    probe: Float[Tensor, "batch ..."],
) -> tuple[Float[Tensor, "batch ..."], Float[Tensor, " batch"]]:
    """Return the velocity and one draw whose mean is its divergence.

    Args:
        velocity: Maps w, t and what else a row is told to dw/dt, each row on its own.
        w: Where.
        told: What the velocity takes beside w.
        probe: Symmetric noise, of which the signs are taken: of all probes with independent
            entries of variance 1 they have the least variance.
    """
    signs = 1 - 2 * (probe < 0).to(w)
    return _along(signs, velocity, w, told)


def _along(
    directions: Float[Tensor, "rows ..."],
    velocity: Callable[..., Tensor],
    w: Float[Tensor, "rows ..."],
    told: Sequence[Tensor],
) -> tuple[Float[Tensor, "rows ..."], Float[Tensor, " rows"]]:
    """Return the velocity and e' J e for each row's direction e and Jacobian J."""
    is_learning = torch.is_grad_enabled()
    with torch.enable_grad():
        at = w if is_learning and w.requires_grad else w.detach().requires_grad_()
        moved = velocity(at, *told)
        (pulled,) = torch.autograd.grad(moved, at, directions, create_graph=is_learning)
    slopes = (pulled * directions).flatten(1).sum(1)
    return (moved if is_learning else moved.detach()), slopes


def _repeated(rows: Tensor, times: int) -> Tensor:
    """Return each row so many times, one after the other."""
    return rows.unsqueeze(1).expand(-1, times, *rows.shape[1:]).flatten(0, 1)
