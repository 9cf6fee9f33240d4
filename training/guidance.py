"""Guidance: samples are led towards their label, past what the network says of it.

A network that is told the label of most events and of some none has learnt two velocities, v(w|y)
and v(w). Along

    v(w|y) + s (v(w|y) - v(w))

with s > 0 fewer samples are doubtful and more are alike. It is a velocity like any other, and so
what it samples has a density.

Source:
    Ho and Salimans 2022, arXiv:2207.12598, equation 6, with velocities in place of scores.
"""

from collections.abc import Callable

import torch
from jaxtyping import Int
from torch import Tensor

from service.interface import UNTOLD_LABEL
from training.ode import Rates, State


def dropped(label: Int[Tensor, " rows"], share: float) -> Int[Tensor, " rows"]:
    """Return labels of which a share, by torch's global generator, is not told."""
    kept = torch.rand(len(label), device=label.device) >= share
    return label.where(kept, UNTOLD_LABEL)


def guided(rates: Callable[..., State], scale: float, *others: Tensor) -> Rates:
    """Return rates as functions of w and t alone, guided if the scale is not 0.

    Args:
        rates: Of w, of t and of the others.
        scale: s.
        others: The label or the context, if there is one, and perhaps a probe.
    """
    if not scale:
        return lambda w, t: rates(w, t, *others)
    label, *probe = others
    untold = torch.full_like(label, UNTOLD_LABEL)

    def led(w: Tensor, t: Tensor) -> State:
        both = zip(rates(w, t, label, *probe), rates(w, t, untold, *probe), strict=True)
        return tuple((1 + scale) * told - scale * other for told, other in both)

    return led
