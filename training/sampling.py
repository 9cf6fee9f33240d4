"""Seeded samples from a model in training's hands (the service has its own addressable noise)."""

import torch
from jaxtyping import Float
from torch import Tensor

from training.data import Batch
from training.family import Family

CHUNK_ROWS = 256
"""Rows decoded at once: keeps memory small whatever the model."""


@torch.no_grad()
def sample(model: Family, *, rows: int, seed: int, condition: Tensor | None = None) -> Batch:
    """Return samples of a model, on the CPU, with the labels they were asked for.

    The noise is a function of (seed, rows) on every device. Without a `condition`, a model of
    labels is asked for each in turn: 0, 1, ..., 0, 1, ... One that is told a context needs it.

    A model of vectors with a p(x|z) draws from it; of images it shows the mean, as every VAE does.
    """
    model.eval()
    interface = model.interface
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(rows, *interface.latent.shape, generator=generator)
    push = model.graphs().get("prior")
    if interface.labels and condition is None:
        condition = torch.arange(rows) % len(interface.labels)
    chunks = []
    for part in torch.arange(rows).split(CHUNK_ROWS):
        asked = None if condition is None else condition[part].to(device)
        z = noise[part].to(device)
        chunks.append(_decode(model, push(z)[0] if push else z, asked, generator).cpu())
    return Batch(torch.cat(chunks), condition if interface.labels else None)


def _decode(
    model: Family, z: Tensor, condition: Tensor | None, generator: torch.Generator
) -> Float[Tensor, "batch ..."]:
    interface = model.interface
    if interface.event.kind == "image" or interface.observation != "normal":
        return model.decode(z, condition)
    noise = torch.randn(len(z), *interface.event.shape, generator=generator).to(z)
    inputs = (z, noise) if condition is None else (z, condition, noise)
    x: Tensor = model.graphs()["observe"](*inputs)[0]
    return x
