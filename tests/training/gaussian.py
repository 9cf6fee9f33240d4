"""A family as small as can be: N(mean, 1) over two features, with one or two players."""

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from service.interface import Density, Event, Interface, Latent, Role
from training.data import Batch, Data
from training.family import Call, Family, Nats, Score, Turn


class Gaussian(Family):
    """N(mean, 1) by maximum likelihood, its loss as noisy as one wants."""

    def __init__(self, *, noise: float = 0.1, labels: tuple[str, ...] | None = None) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(2))
        self.noise = noise
        self.labels = labels
        self.calls = 0
        self.stop_at = math.inf
        self.factor = 1.0
        self.register_buffer("seen", torch.zeros(()))
        self.seen: Tensor

    @property
    def interface(self) -> Interface:
        """An exact density of two features."""
        return Interface(
            family="flow",
            event=Event(kind="vector", shape=(2,)),
            latent=Latent(shape=(2,)),
            labels=self.labels,
            density=Density(kind="exact", estimator="exact"),
        )

    def turns(self) -> tuple[Turn, ...]:
        """Return the one turn of maximum likelihood."""
        return (Turn("likelihood", (self.mean,), self._loss),)

    def _loss(self, batch: Batch) -> Mapping[str, Tensor]:
        self.calls += 1
        if self.calls > self.stop_at:
            raise KeyboardInterrupt
        self.seen += len(batch)
        nats = self._nll(batch.x).mean() * self.factor
        return {"loss": nats + self.noise * torch.randn_like(self.mean) @ self.mean, "nats": nats}

    def score(self, batch: Batch) -> Score:
        """Return the mean negative log-density, with noise in it that must not matter."""
        return Score.mean(self._nll(batch.x) + 0.001 * torch.randn_like(self.mean[0]))

    def nats(self, batch: Batch, draws: int) -> dict[str, Nats]:
        """Return -log N(x; mean, 1)."""
        return {"nll": Nats(self._nll(batch.x), "of a Gaussian")}

    def log_density(self, x: Tensor) -> Tensor:
        """Return log N(x; mean, 1)."""
        return -self._nll(x)

    def _nll(self, x: Tensor) -> Tensor:
        return 0.5 * (x - self.mean).square().sum(1) + math.log(2 * math.pi)

    def decode(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """Return mean + z; with labels, class k lies 8 k to the right of class 0."""
        x = self.mean + z
        if label is not None:
            x = x + 8 * torch.stack([label, torch.zeros_like(label)], dim=1)
        return x

    def graphs(self) -> dict[Role, nn.Module]:
        """Return both roles."""
        return {"decode": Call(self, "decode"), "log_density": Call(self, "log_density")}


def gaussian_data(rows: int = 200, *, classes: int = 0, seed: int = 0) -> Data:
    """Return rows of N((1, -2), 1); with classes, class k lies 8 k to the right."""
    generator = torch.Generator().manual_seed(seed)

    def split(count: int) -> Batch:
        x = torch.randn(count, 2, generator=generator) + torch.tensor([1.0, -2.0])
        if not classes:
            return Batch(x)
        label = torch.randint(classes, (count,), generator=generator)
        return Batch(x + 8 * torch.stack([label, torch.zeros_like(label)], dim=1), label)

    return Data(
        train=split(rows),
        validation=split(rows // 2),
        test=split(rows // 2),
        event=Event(kind="vector", shape=(2,)),
        labels=tuple("abcdef"[:classes]) or None,
        mean=np.array([1.0, -2.0]),
        std=np.ones(2),
        description=f"{2 * rows} rows of a Gaussian, split 2:1:1",
        sha256="0" * 64,
    )
