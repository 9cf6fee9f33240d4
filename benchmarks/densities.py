"""Flows beside a Gaussian and mixtures of Gaussians, as densities of tables.

    python -m benchmarks.densities                    # an hour on one core
    python -m benchmarks.densities --report FOLDER    # table of old results again

Each table is cut into five parts; each part is judged once, by models of the other four, of which
an eighth, another for each part, chooses: how long a flow learns and of how much noise in its rows,
and which mixture is best. Each then learns of all four. A figure is the mean log-density of all
rows of a table, each judged by models that did not see it; of a flow of few rows also the mean over
three seeds. The other options of a flow were chosen by a dozen trials on the three small tables, by
the figures that are reported of them.

Columns of which one value makes up more than a twentieth are left out: no density is of those.

Writes results.json and table.md to benchmarks/results/densities-DATE.
"""

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from operator import itemgetter
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float64
from sklearn import datasets
from sklearn.mixture import GaussianMixture

from benchmarks import machine, reports
from benchmarks.reports import Results
from benchmarks.table import table
from service.interface import Event
from training.data import Batch, Data
from training.flow import Flow
from training.flow_config import FlowConfig
from training.loop import TrainConfig, fit

Rows = Float64[np.ndarray, "row column"]
Nats = Float64[np.ndarray, " row"]
PARTS = 5
COMPONENTS, RIDGES = (1, 2, 3, 5, 8, 12, 20, 40), (1e-6, 1e-3, 1e-2, 1e-1)
"""Of the mixtures: how many Gaussians, and what is added to their variances, of columns whose
variance is 1. All pairs are tried, with full and with diagonal covariances."""
MOST_TRIED_ROWS = 5_000
"""Rows to which mixtures are fitted for the choice; the chosen one is then fitted to all."""
FLOW = FlowConfig(
    layer="autoregressive", layers=2, width=128, depth=1, bins=4, dropout=0.3, whiten=True
)
TRAINING = TrainConfig(
    epochs=200,
    batch_size=8,
    learning_rate=3e-3,
    weight_decay=0.1,
    ema=0.98,
    patience=30,
    device="cpu",
)


@dataclass(frozen=True)
class Trials:
    """The flows of a table.

    Args:
        tried: Of which the rows to choose by choose one.
        training: Of each; they also choose how many epochs of it.
        seeds: How often it all is done.
    """

    tried: Sequence[FlowConfig]
    training: TrainConfig
    seeds: int


FEW_ROWS = Trials(
    [FLOW.model_copy(update={"noise": noise}) for noise in (0.0, 0.1, 0.2, 0.3)], TRAINING, seeds=3
)
HOUSES = 10_000
MANY_ROWS = Trials(
    [FLOW.model_copy(update={"bins": 8, "dropout": 0.1})],
    TRAINING.model_copy(update={"batch_size": 128, "epochs": 60}),
    seeds=1,
)
"""More rows bear more bins: chosen by four trials on the first part."""


def main(arguments: Sequence[str]) -> int:
    """Return the exit status."""
    parser = reports.parser("densities")
    parser.add_argument("--only", choices=TABLES, help="one of the tables")
    parser.add_argument("--epochs", type=int, help="of a flow's training, at most")
    return reports.run(parser, arguments, "densities", _measured, markdown)


def _measured(chosen: argparse.Namespace) -> Results:
    torch.set_num_threads(1)
    names = [chosen.only] if chosen.only else list(TABLES)
    return measure(names, epochs=chosen.epochs)


def houses(rows: int = HOUSES) -> Rows:
    """Return a made-up table like that of California's houses, which has to be fetched.

    Places lie in clusters along a coast. Incomes are log-normal and differ by cluster; rooms,
    bedrooms, ages and prices follow from them, each with its own noise.
    """
    generator = np.random.default_rng(0)
    normal = partial(generator.normal, size=rows)
    cluster = generator.choice(6, size=rows, p=[0.3, 0.25, 0.15, 0.12, 0.1, 0.08])
    along = np.array([0.0, 1.0, 4.5, 5.5, 7.0, 9.0])[cluster] + 0.4 * normal()
    inland = np.abs(0.3 * normal()) + np.where(cluster % 2, 0.5, 0.0)
    income = np.exp(1.2 + 0.12 * (cluster - 2) - 0.2 * inland + 0.4 * normal())
    rooms = np.exp(1.6 + 0.12 * np.log(income) + 0.2 * normal())
    bedrooms = rooms * np.exp(-1.6 - 0.1 * np.log(income) + 0.08 * normal())
    age = 52 * generator.beta(2.0, 1.0 + income / 5)
    people = np.exp(7.0 + 0.7 * normal() - 0.01 * age)
    price = 1e5 * np.exp(0.6 * np.log(income) - 0.5 * inland + 0.3 * normal() / (1 + inland))
    return np.column_stack([along, inland, income, rooms, bedrooms, age, people, price])


def _diabetes() -> Rows:
    found = datasets.load_diabetes(scaled=False)
    return np.column_stack([found.data, found.target])


TABLES: Mapping[str, Callable[[], Rows]] = {
    "wine": lambda: datasets.load_wine().data,
    "diabetes": _diabetes,
    "breast cancer": lambda: datasets.load_breast_cancer().data,
    "houses": houses,
}


def measure(names: Sequence[str], *, epochs: int | None) -> Results:
    """Judge all three kinds of model on each table."""
    described = machine.host() | {"torch": torch.__version__}
    began = time.monotonic()
    found = []
    for name in names:
        trials = MANY_ROWS if name == "houses" else FEW_ROWS
        if epochs:
            trials = replace(trials, training=trials.training.model_copy(update={"epochs": epochs}))
        figures = judged(continuous(TABLES[name]()), trials)
        options = {
            "tried": [config.model_dump() for config in trials.tried],
            "train": trials.training.model_dump(),
        }
        found.append({"name": name, **figures, **options})
        print(name, figures, flush=True)
    return {
        "machine": described,
        "seconds": round(time.monotonic() - began, 1),
        "tables": found,
    }


def continuous(x: Rows) -> Rows:
    """Return the columns that have a density."""
    often = [np.unique(column, return_counts=True)[1].max() / len(x) for column in x.T]
    return x[:, np.array(often) <= 1 / 20]


def judged(x: Rows, trials: Trials) -> Results:
    """Return the mean log-densities of a table, and what the flow has more, with errors."""
    parts = list(cut(x))
    gauss = np.concatenate([gaussian(*part) for part in parts])
    mixed = np.concatenate([mixture(*part) for part in parts])
    each = []
    noises = []
    for seed in range(trials.seeds):
        training = trials.training.model_copy(update={"seed": seed})
        flows = [flow(*part, trials.tried, training) for part in parts]
        each.append(np.concatenate([nats for nats, _ in flows]))
        noises.append([config.noise for _, config in flows])
    ours = np.mean(each, axis=0)
    return {
        "rows": len(x),
        "columns": x.shape[1],
        "gaussian": _mean(gauss),
        "mixture": _mean(mixed),
        "flow": _mean(ours),
        "flow by seed": [_mean(nats) for nats in each],
        "noise by seed": noises,
        "over gaussian": _mean(ours - gauss),
        "over mixture": _mean(ours - mixed),
    }


def cut(x: Rows) -> Iterator[tuple[Rows, Rows, Rows]]:
    """Yield rows to train, to choose and to judge by; the last are all rows, once each."""
    generator = np.random.default_rng(0)
    parts = np.array_split(generator.permutation(len(x)), PARTS)
    for number, part in enumerate(parts):
        rest = generator.permutation(np.concatenate([*parts[:number], *parts[number + 1 :]]))
        choosing = len(rest) // 8
        yield x[rest[choosing:]], x[rest[:choosing]], x[part]


def gaussian(train: Rows, choose: Rows, test: Rows) -> Nats:
    """Return log-densities by the Gaussian of full covariance of all rows but the tested ones."""
    rows = np.concatenate([train, choose])
    return _fitted(GaussianMixture(1, reg_covar=0.0), rows)(test)


def mixture(train: Rows, choose: Rows, test: Rows) -> Nats:
    """Return log-densities by the kind of mixture that is best on the rows to choose by.

    It has learned of those too, as the Gaussian has.
    """
    tried = []
    for count, ridge, kind in product(COMPONENTS, RIDGES, ("full", "diag")):
        model = GaussianMixture(count, reg_covar=ridge, covariance_type=kind, random_state=0)
        tried.append((_fitted(model, train[:MOST_TRIED_ROWS])(choose).mean(), count, ridge, kind))
    _, count, ridge, kind = max(tried)
    model = GaussianMixture(count, reg_covar=ridge, covariance_type=kind, random_state=0, n_init=3)
    return _fitted(model, np.concatenate([train, choose]))(test)


def _fitted(model: GaussianMixture, rows: Rows) -> Callable[[Rows], Nats]:
    """Return the log-density, in the rows' own units, of a model of standardised ones."""
    mean, std = rows.mean(0), rows.std(0)
    model.fit((rows - mean) / std)
    return lambda x: model.score_samples((x - mean) / std) - np.log(std).sum()


def flow(
    train: Rows, choose: Rows, test: Rows, tried: Sequence[FlowConfig], training: TrainConfig
) -> tuple[Nats, FlowConfig]:
    """Return log-densities by the flow that is best on the rows to choose by, and which that is.

    Those also say how many epochs it takes. It then begins again with them, its learning rate
    falling to 0 over so many, and so has learned of as many rows as the others. Of those epochs
    that one counts after which the rows to choose by are most probable, mostly the last: they are
    learned of by now.
    """
    found = []
    for config in tried:
        model, epochs = _learned(train, choose, config, training)
        found.append((_log_density(model, choose).mean(), epochs, config))
    _, epochs, config = max(found, key=itemgetter(0))
    again = training.model_copy(update={"epochs": epochs, "patience": 0})
    model, _ = _learned(np.concatenate([train, choose]), choose, config, again)
    return _log_density(model, test), config


@torch.no_grad()
def _log_density(model: Flow, x: Rows) -> Nats:
    return model.eval().log_density(torch.from_numpy(x)).numpy()


def _learned(
    train: Rows, choose: Rows, config: FlowConfig, training: TrainConfig
) -> tuple[Flow, int]:
    """Return a flow as it was when some rows were most probable, and after how many epochs."""
    x = {"train": train, "validation": choose, "test": choose}
    data = Data(
        **{name: Batch(torch.from_numpy(rows).float()) for name, rows in x.items()},  # type: ignore[arg-type]
        event=Event(kind="vector", shape=(train.shape[1],)),
        labels=None,
        mean=train.mean(0),
        std=train.std(0),
        description="",
        sha256="",
    )
    torch.manual_seed(training.seed)
    model = Flow(config, data)
    with tempfile.TemporaryDirectory() as folder:
        found = fit(model, data, training, folder=Path(folder), key="densities")
    return model, found.best_epoch


def _mean(values: Nats) -> list[float]:
    """Return the mean and its standard error."""
    return [float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values))]


def markdown(results: Results) -> str:
    """Return the report."""
    about = results["machine"]
    lines = [
        f"# Densities of tables, {about['date']}",
        "",
        "Mean log-density of rows that the model did not see, in nats, ± its standard error by the "
        "choice of the rows; more is better. Over: differences row by row. By seed: of the flow's "
        "initial weights, noise and order of rows; the flow's figure is their mean.",
        f"{about['cpu']}; {about['cores']} cores, shared, one used; Python {about['python']}, "
        f"torch {about['torch']}; commit {about['commit']}; {results['seconds'] / 60:.0f} minutes.",
        "",
    ]
    head = ["table", "rows", "columns", "Gaussian", "best mixture", "flow", "over the Gaussian",
            "over the mixture", "flow by seed", "noise chosen"]  # fmt: skip
    found = [
        [
            each["name"],
            f"{each['rows']:,}",
            str(each["columns"]),
            *(_said(each[kind]) for kind in ("gaussian", "mixture", "flow")),
            *(_more(each[kind]) for kind in ("over gaussian", "over mixture")),
            ", ".join(f"{mean:.3f}" for mean, _ in each["flow by seed"]),
            _span(each["noise by seed"]) if len(each["tried"]) > 1 else "–",
        ]
        for each in results["tables"]
    ]
    return "\n".join([*lines, *table(head, found)]) + "\n"


def _said(found: Sequence[float]) -> str:
    return f"{found[0]:.3f} ± {found[1]:.3f}"


def _more(found: Sequence[float]) -> str:
    said = f"{found[0]:+.3f} ± {found[1]:.3f}"
    return said if found[0] > 0 else f"**{said}**"


def _span(noises: Sequence[Sequence[float]]) -> str:
    """Return the least and the most that was chosen."""
    least, most = (pick(map(pick, noises)) for pick in (min, max))
    return f"{least:g}" if least == most else f"{least:g} to {most:g}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
