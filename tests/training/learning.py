"""A few hundred steps of a model's only turn, without the loop that a recipe has."""

import torch

from training.data import Data
from training.family import Family

ROWS = 512
"""Of a step."""


def learn(model: Family, data: Data, *, steps: int, rate: float) -> None:
    """Move a model's parameters, and leave it in evaluation mode without gradients."""
    model.train()
    (turn,) = model.turns()
    adam = torch.optim.Adam(turn.parameters, lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    for _ in range(steps):
        adam.zero_grad()
        turn.loss(data.train[torch.randint(len(data.train), (ROWS,))])["loss"].backward()
        adam.step()
        schedule.step()
    model.eval().requires_grad_(False)
