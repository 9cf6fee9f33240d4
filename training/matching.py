"""Flow matching: which noise goes to which event, and the velocity along the lines between them.

Source:
    Lipman et al. 2023, arXiv:2210.02747; Liu et al. 2023, arXiv:2209.03003.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

MOST = 256
"""Rows that are paired at once: 5 ms on a CPU, where 1,024 take 91 (measured 2026-11-27). Larger
batches are paired in parts."""

Times = Literal["uniform", "late"]


def miss(
    velocity: Callable[[Tensor, Tensor], Tensor],
    noise: Float[Tensor, "rows ..."],
    events: Float[Tensor, "rows ..."],
    *,
    times: Times,
) -> Float[Tensor, ""]:
    """Return the mean squared miss of each line's direction, at a random time on each.

    The times are made of one number in each of as many equal parts of [0, 1] as there are lines,
    so that each is uniform and together they are never all early. Late ones have the density
    1 / (2 sqrt(1 - t)): half of them are in the last quarter. Draws from torch's global generator.

    Args:
        velocity: Of places and times.
        noise: Where the lines begin.
        events: Where they end.
        times: How they are spread.
    """
    rows, device = len(events), events.device
    t = (torch.randperm(rows, device=device) + torch.rand(rows, device=device)) / rows
    t = t.to(events.dtype)
    if times == "late":
        t = 1 - (1 - t).square()
    far = t.view(-1, *[1] * (events.ndim - 1))
    moved = velocity((1 - far) * noise + far * events, t)
    return (moved - (events - noise)).square().mean()


def optimal_transport(
    noise: Float[Tensor, "rows ..."],
    events: Float[Tensor, "rows ..."],
    label: Int[Tensor, " rows"] | None = None,
) -> Int[Tensor, " rows"]:
    """Return which row of noise each event gets, such that the squared distances add up to least.

    The ways from noise to events then hardly cross, and a velocity has less to average over: its
    paths are straighter, and take fewer steps.

    Args:
        noise: As many rows as there are events.
        events: Where the noise is to go.
        label: Events of one label share what noise they came with. Paired across the labels, the
            noise of a label would not be normal, while the samples of it start from such noise.

    Source:
        Pooladian et al. 2023, arXiv:2304.14772, section 3.2; Tong et al. 2024, arXiv:2302.00482.
    """
    chosen = torch.arange(len(events), device=events.device)
    groups = torch.zeros_like(chosen) if label is None else label
    parts = [
        part
        for group in groups.unique()
        for part in (groups == group).nonzero().flatten().split(MOST)
    ]
    for rows in parts:
        ours, theirs = events[rows].flatten(1).float(), noise[rows].flatten(1).float()
        cost = torch.cdist(ours, theirs).square().cpu().numpy().astype(np.float64)
        _, columns = linear_sum_assignment(cost)
        chosen[rows] = rows[torch.as_tensor(columns, device=rows.device)]
    return chosen
