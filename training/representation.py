"""What a model's codes E[z|x] are worth: to a linear probe, and one latent at a time.

Only models with a posterior q(z|x) have codes. All of it is read from their `encode` graph, so
that a code is what the service answers.
"""

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from service.manifest import Figure
from training.data import Batch, Data
from training.family import Family

CHUNK_ROWS = 256
"""Rows encoded at once."""
FLOW_DRAWS = 64
"""Draws of q(z|x) whose mean is the code, where q is a flow and its mean unknown."""
PROBE_ROWS = 10_000
"""Training rows that the probe learns from, at most."""
PROBE_STEPS = 200
"""Of L-BFGS: enough for accuracy, which stands still long before the last digit of a weight."""
ACTIVE = 0.01
"""Variance of E[z|x] over x, as a part of the prior's, above which a latent is active: Burda et al.
2016, section 5.2, where the prior's is 1."""
PRIOR_DRAWS = 4096
"""Draws of a learned prior that tell its variance, to within a few percent."""
LATENTS = 16
"""Latents whose divergence is told, at most: those with the largest."""
DIVERGENCE = "KL of latent "
"""How the names of those figures begin."""


@dataclass(frozen=True)
class Codes:
    """What a model says of z given x, in float64 on the CPU.

    Args:
        mean: E[z|x], or where q is a flow the mean of `FLOW_DRAWS` draws.
        spread: Standard deviation of each latent given x; None where q is a flow.
        noise: Variance that the mean has from its draws, for each latent and on average over x: 0
            where it is known.
    """

    mean: Float[Tensor, "rows latent"]
    spread: Float[Tensor, "rows latent"] | None
    noise: Float[Tensor, " latent"]


@torch.no_grad()
def representation(model: Family, data: Data, test: Batch) -> tuple[Figure, ...]:
    """Return the figures of a model's codes; none of a model without a posterior.

    Draws from torch's global generator where q is a flow.

    Args:
        model: On any device.
        data: Whose training split teaches the probe.
        test: The rows to judge by.
    """
    if model.interface.posterior is None:
        return ()
    known = codes(model, test)
    figures = [_active(known, _variance_of_prior(model))]
    if known.spread is not None and model.interface.latent.distribution == "normal":
        figures += _divergences(known.mean, known.spread)
    if data.labels:
        train = data.train[:PROBE_ROWS]
        told = "; the encoder is told the label" if model.interface.labels else ""
        figures += [
            _probe(
                "linear probe of E[z|x]",
                (train, codes(model, train).mean),
                (test, known.mean),
                told,
            ),
            _probe(
                "linear probe of x itself",
                (train, _standardised(data, train)),
                (test, _standardised(data, test)),
                "; the row to compare with",
            ),
        ]
    return tuple(figures)


def codes(model: Family, batch: Batch) -> Codes:
    """Return the codes of rows, of a flow from draws of torch's global generator."""
    device = next(model.parameters()).device
    encode = model.graphs()["encode"]
    kind, size = model.interface.posterior, model.interface.latent.size
    means, spreads = [], []
    noises = torch.zeros(size, dtype=torch.float64)
    for start in range(0, len(batch), CHUNK_ROWS):
        part = batch[start : start + CHUNK_ROWS].to(device)
        inputs = [part.x]
        if model.interface.labels and part.label is not None:
            inputs.append(part.label)
        if kind == "flow":
            noise = torch.randn(len(part), FLOW_DRAWS, size, device=device, dtype=part.x.dtype)
            z = encode(*inputs, noise)[0].double().cpu()
            means.append(z.mean(1))
            noises += z.var(1).sum(0) / FLOW_DRAWS
            continue
        mean, scale = (each.double().cpu() for each in encode(*inputs))
        means.append(mean)
        spreads.append(scale if kind == "diagonal" else scale.square().sum(2).sqrt())
    return Codes(torch.cat(means), torch.cat(spreads) if spreads else None, noises / len(batch))


def _variance_of_prior(model: Family) -> Float[Tensor, " latent"]:
    """Return the variance of each latent under p(z), by draws where that is learned."""
    push, size = model.graphs().get("prior"), model.interface.latent.size
    if push is None:
        return torch.ones(size, dtype=torch.float64)
    parameter = next(model.parameters())
    noise = torch.randn(PRIOR_DRAWS, size, device=parameter.device, dtype=parameter.dtype)
    z: Tensor = push(noise)[0]
    return z.double().cpu().var(0)


def _active(known: Codes, unit: Float[Tensor, " latent"]) -> Figure:
    """Return how many latents say anything of x, whose variance is in units of the prior's."""
    rows, latents = known.mean.shape
    # The mean of n draws varies by 1 / n over x even where q is the prior: more than ACTIVE.
    variance = (known.mean.var(0) - known.noise) / unit
    return Figure(
        name="active units",
        value=int((variance > ACTIVE).sum()),
        standard_error=None,
        n=rows,
        unit=f"of {latents} latents",
        note=f"E[z|x] varies over x by more than {ACTIVE} of what z does (Burda et al. 2016)",
    )


def _divergences(
    mean: Float[Tensor, "rows latent"], spread: Float[Tensor, "rows latent"]
) -> Iterator[Figure]:
    """Yield KL(q(z_j|x) || N(0, 1)) of the latents in which it is largest, on average over x."""
    kl = 0.5 * (spread.square() + mean.square() - 1) - spread.log()
    average, error = kl.mean(0), kl.std(0) / math.sqrt(len(kl))
    for latent in average.argsort(descending=True, stable=True)[:LATENTS].tolist():
        yield Figure(
            name=f"{DIVERGENCE}{latent}",
            value=average[latent].item(),
            standard_error=error[latent].item(),
            n=len(kl),
            unit="nats per event",
        )


def _standardised(data: Data, batch: Batch) -> Float[Tensor, "rows feature"]:
    """Return events as rows of numbers around 0 and 1; an image's pixels are that already."""
    x = batch.x.flatten(1).double()
    if data.mean is None or data.std is None:
        return x
    return (x - torch.as_tensor(data.mean)) / torch.as_tensor(data.std)


def _probe(
    name: str,
    train: tuple[Batch, Float[Tensor, "rows feature"]],
    test: tuple[Batch, Float[Tensor, "others feature"]],
    note: str,
) -> Figure:
    """Return the accuracy on test rows of a linear classifier of what stands beside each batch."""
    classifier = LogisticRegression(max_iter=PROBE_STEPS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        classifier.fit(train[1].numpy(), labels(train[0]).numpy())
    found = classifier.predict(test[1].numpy())
    right, rows = int((found == labels(test[0]).numpy()).sum()), len(found)
    return Figure(
        name=name,
        value=right / rows,
        standard_error=share_error(right, rows),
        n=rows,
        unit="fraction",
        note=f"logistic regression of the label, fitted to {len(train[0]):,} training rows{note}",
    )


def labels(batch: Batch) -> Int[Tensor, " batch"]:
    """Return the labels.

    Raises:
        ValueError: There are none.
    """
    if batch.label is None:
        raise ValueError("a classifier needs labels; this data has none")
    return batch.label


def share_error(right: int, rows: int) -> float:
    """Return the standard error of a share; one more of either kind keeps it above 0.

    Example:
        >>> round(share_error(50, 100), 3), share_error(100, 100) > 0
        (0.05, True)
    """
    rate = (right + 1) / (rows + 2)
    return math.sqrt(rate * (1 - rate) / rows)
