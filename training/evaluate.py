"""Evaluation: figures on the test split, each with its n and its standard error.

- Likelihood, where the model has one: the family's own nats per event.
- What samples are like beside test rows, and training rows beside the same, see `samples.py`.
- Of a model with an encoder: what its codes are worth, see `representation.py`.
- For a proposal none of these, but how well it integrates, see `weights.py`.
- Of a kept critic: what it knows and what its rejection is worth, see `ratio.py`.
- What samples miss by being computed in finitely many steps, where they are.
- For a conditional model: how often a classifier that never saw a sample reads the label
  that was asked for, beside its accuracy on real test rows.
"""

import math
from collections.abc import Callable, Iterator
from functools import cache, partial

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from service.interface import DEFAULT_DRAWS, Frozen
from service.manifest import MAX_HELD_OUT, Figure
from training.classifier import recognised, train_classifier
from training.data import Batch, Data
from training.family import Family
from training.representation import representation, share_error
from training.samples import Compared, comparisons, features_of
from training.sampling import sample

NATS_ROWS = 256
"""Rows whose likelihood is computed at once, at most."""
QUANTILE_DIGITS = 4
"""Of a nat, behind the point, in what a bundle tells of held-out events."""
NATS_DRAWS = 2**17
"""Draws of all those rows together: of many draws each, fewer rows are computed at once."""
INEXACT_ROWS, INEXACT_NUMBERS, LEAST_ROWS = 2000, 2**16, 32
"""Samples that are computed once more and finely: so many, of large ones so many numbers, and no
fewer than so many."""
LABELLED_ROWS = 2000
"""Samples that the classifier reads."""


class EvaluateConfig(Frozen):
    """How a finished model is judged."""

    rows: int = Field(
        default=10_000, ge=3, description="Test rows to use at most, the first of the split."
    )
    draws: int | None = Field(
        default=None,
        ge=1,
        description="Draws of each row where its likelihood is estimated. By default 256 of z, or "
        "one of dequantisation noise.",
    )
    classifier_steps: int = Field(
        default=800,
        ge=1,
        description="Training steps of the classifier that reads samples of a conditional model.",
    )
    seed: int = Field(default=0, ge=0, lt=2**31, description="Of all noise in the evaluation.")


@torch.no_grad()
def evaluate(
    model: Family,
    data: Data,
    config: EvaluateConfig,
    *,
    likelihood: bool = True,
    advance: Callable[[int], None] = lambda _: None,
    show: Callable[[Compared], None] = lambda _: None,
) -> tuple[Figure, ...]:
    """Return what the test split says of a model; the same each time on one machine.

    Args:
        model: On any device.
        data: Its training split serves the comparisons only.
        config: The recipe's section `evaluate`.
        likelihood: Whether to judge that, which takes the longest.
        advance: Told of rows whose likelihood is known.
        show: Told of what samples were compared with, unless there are too few rows for it.
    """
    model.eval()
    test = data.test[: config.rows]
    device = next(model.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(config.seed)
        if data.integrand is not None:
            return model.own_figures(test)
        classes = len(data.labels or ())
        # It takes a while, and not every model wants it.
        trained = cache(partial(_classifier, data, classes, config))
        features = partial(features_of, data, test, trained)
        draws = config.draws or model.usual_draws
        figures = [
            *(_likelihood(model, test, draws, advance) if likelihood else ()),
            *comparisons(model, data, test, features, config.seed, show),
            *representation(model, data, test),
            *_inexactness(model, test, config.seed),
            *model.own_figures(test),
        ]
        if model.interface.labels:
            figures += _recognition(model, test, trained(), config)
    return tuple(figures)


def _classifier(data: Data, classes: int, config: EvaluateConfig) -> nn.Sequential:
    """Return a classifier that is the same whatever was drawn before it."""
    with torch.random.fork_rng([]):
        torch.manual_seed(config.seed)
        return train_classifier(data, classes, steps=config.classifier_steps)


def _likelihood(
    model: Family, test: Batch, draws: int, advance: Callable[[int], None]
) -> Iterator[Figure]:
    """Yield each of the family's nats as a mean, and of grey levels as bits per dim too."""
    device = next(model.parameters()).device
    parts = []
    for rows in torch.arange(len(test)).split(max(1, min(NATS_ROWS, NATS_DRAWS // draws))):
        parts.append(model.nats(test[rows].to(device), draws))
        advance(len(rows))
    event = model.interface.event
    for name, first in parts[0].items():
        nats = torch.cat([part[name].values.double().cpu() for part in parts])
        mean = _mean(name, nats, unit="nats per event", note=first.note)
        if model.interface.density.estimator == "exact":
            mean = mean.model_copy(update={"values": _quantiles(nats)})
        # An estimate by other draws than the service's would be compared with what it is not like.
        elif model.interface.density.estimator == "dequantisation" and draws == DEFAULT_DRAWS:
            mean = mean.model_copy(update={"values": _quantiles(nats), "draws": draws})
        yield mean
        if event.levels:
            bits = nats / (event.size * math.log(2))
            yield _mean(f"{name}, bits per dim", bits, unit="bits per dim", note=first.note)


def _inexactness(model: Family, test: Batch, seed: int) -> Iterator[Figure]:
    """Yield the root mean square of what samples miss, with its error by the delta method."""
    latent, labels = model.interface.latent, model.interface.labels
    rows = min(INEXACT_ROWS, max(LEAST_ROWS, INEXACT_NUMBERS // latent.size))
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(rows, *latent.shape, generator=generator)
    turns = torch.arange(rows)
    condition = turns % len(labels) if labels else model.condition(test[turns % len(test)])
    device = next(model.parameters()).device
    asked = None if condition is None else condition.to(device)
    if found := model.inexactness(noise.to(device), asked):
        squares = found.squares.double().cpu()
        root = math.sqrt(squares.mean().item())
        error = squares.std().item() / math.sqrt(rows) / (2 * root) if root else 0.0
        yield Figure(
            name=found.name,
            value=root,
            standard_error=error,
            n=rows,
            unit=found.unit,
            note=found.note,
        )


def _recognition(
    model: Family, test: Batch, classifier: nn.Module, config: EvaluateConfig
) -> Iterator[Figure]:
    """Yield a classifier's accuracy on test rows and on samples of the labels asked for."""
    drawn = sample(model, rows=LABELLED_ROWS, seed=config.seed + 1)
    for name, batch, note in (
        ("samples recognised as their label", drawn, "labels in equal numbers"),
        ("real test data recognised", test, "the row to compare with"),
    ):
        right = recognised(classifier, batch)
        yield Figure(
            name=name,
            value=right / len(batch),
            standard_error=share_error(right, len(batch)),
            n=len(batch),
            unit="fraction",
            note=f"{note}; by a small network trained on the training split",
        )


def _quantiles(nats: Float[Tensor, " rows"]) -> tuple[float, ...]:
    """Return the values themselves in order, or as many quantiles of them as a bundle tells."""
    places = torch.linspace(0, 1, min(len(nats), MAX_HELD_OUT), dtype=nats.dtype)
    return tuple(round(value, QUANTILE_DIGITS) for value in nats.quantile(places).tolist())


def _mean(
    name: str,
    values: Float[Tensor, " rows"],
    *,
    unit: str,
    note: str,
) -> Figure:
    error = values.std().item() / math.sqrt(len(values))
    return Figure(
        name=name,
        value=values.mean().item(),
        standard_error=error,
        n=len(values),
        unit=unit,
        note=note,
    )
