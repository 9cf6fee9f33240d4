r"""What GANs of each objective make of MNIST: one architecture, one budget, one table.

    python -m benchmarks.objectives --data data/mnist.npz --jobs 16     # with a GPU: minutes
    python -m benchmarks.objectives --data data/mnist.npz --set model.width=8 \
        --set model.critic_width=8 --set train.epochs=1 --set train.batch_size=32 \
        --set train.learning_rate=1e-3 --set train.precision=float32    # half an hour of a core
    python -m benchmarks.objectives --report FOLDER    # table and picture of old results again

Architecture and budget are those of training/recipes/mnist-gan.toml; what keeps the critic from
being too steep is what is usual for the objective. Each GAN is judged as every card judges: by
the features of `mnist-lenet`, 2,000 samples of the labels of 2,000 test rows, and beside them
2,000 training rows of the same labels. The same network, which never saw a sample, reads the
digits.

Writes results.json, table.md, plot.png and samples.npz, of which the picture is made, to
benchmarks/results/objectives-DATE. On a CPU a GAN takes an hour and more.
"""

import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from benchmarks import machine, objectives_plot, reports
from benchmarks.modes import regulariser
from benchmarks.reports import Results
from benchmarks.table import table
from service.manifest import Figure
from training import data, extractor, recipe
from training.adversarial import Name, is_mmd
from training.classifier import recognised
from training.data import Batch, Data
from training.family import Family
from training.gan import GANConfig
from training.loop import TrainingFailed, choose_device, fit
from training.quality import with_error
from training.recipe import Recipe
from training.representation import labels, share_error
from training.samples import comparisons, features_of
from training.sampling import sample

RECIPE = Path(__file__).parents[1] / "training/recipes/mnist-gan.toml"
SHOWN = 20
"""Samples of each game in the picture: two of each digit."""
READ = "read as asked"
FIGURES = {
    "FID": "FID",
    "KID": "KID",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "C2ST": "C2ST accuracy",
    "C_T": "C_T",
    READ: READ,
}
"""Columns of the table, and which figure each of them is."""


def _usual(name: Name) -> dict[str, Any]:
    """Return an objective with what suits it (measured, of those that it may have)."""
    if name in ("wasserstein", "total-variation", "mmd-distance"):
        how: dict[str, Any] = {"regulariser": "gradient-penalty", "penalty": 1.0}
    elif name == "least-squares" or is_mmd(name):
        how = {"regulariser": "spectral-norm"}
    else:
        how = {"regulariser": "r1", "penalty": 10.0 if name == "pearson" else 1.0}
    return {"objective": name, **how}


GAMES: dict[str, dict[str, Any]] = {name: _usual(name) for name in get_args(Name)} | {
    "non-saturating, normalised": {"regulariser": "spectral-norm"},
    "wasserstein, clipped": {"objective": "wasserstein", "regulariser": "clip", "bound": 0.05},
}
"""What is told of each GAN in place of the recipe's own."""

Found = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """One GAN to be trained.

    Args:
        game: Which of `GAMES`.
        overrides: Of the recipe, as `--set` takes them.
    """

    game: str
    overrides: tuple[str, ...]


def main(arguments: Sequence[str]) -> int:
    """Return the exit status."""
    parser = reports.parser("objectives")
    parser.add_argument("--data", help="source of the rows, if not the recipe's")
    parser.add_argument("--only", nargs="+", choices=GAMES, help="which games (default: all)")
    parser.add_argument("--jobs", type=int, default=1, help="GANs trained at once (default: 1)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="a.b=value", help="overrides of the recipe"
    )
    chosen = parser.parse_args(arguments)
    folder = reports.folder("objectives", chosen)
    if not chosen.report:
        overrides = [*([f"data.source={chosen.data}"] if chosen.data else []), *chosen.set]
        results, pictures = measure(chosen.only or list(GAMES), overrides, jobs=chosen.jobs)
        reports.keep(results, folder)
        np.savez_compressed(folder / "samples.npz", **pictures)  # type: ignore[arg-type]
    results = reports.kept(folder)
    with np.load(folder / "samples.npz") as kept:
        objectives_plot.draw(results, dict(kept), folder / "plot.png")
    reports.say(markdown(results), folder)
    return 0


def measure(
    games: Sequence[str], overrides: Sequence[str], *, jobs: int
) -> tuple[Results, dict[str, UInt8[np.ndarray, "shown height width"]]]:
    """Train each game, as many at once as there are jobs, and judge it."""
    described = recipe.read(RECIPE, overrides=overrides)
    results: Results = {
        "machine": machine.host() | {"torch": torch.__version__},
        "recipe": described.model_dump(mode="json", exclude_unset=True, exclude={"quick"}),
        "games": {game: GAMES[game] for game in games},
        "found": {},
        "beside": {},
    }
    pictures = {}
    began = time.monotonic()
    tasks = [Task(game, tuple(overrides)) for game in games]
    for task, (found, images) in zip(tasks, _played(tasks, jobs), strict=True):
        results["beside"] |= found.pop("beside", {})
        results["found"][task.game] = found
        if images is not None:
            pictures[task.game] = images
    pictures["test rows"] = _shown(data.load(described.data).test)
    results["seconds"] = round(time.monotonic() - began, 1)
    return results, pictures


def _played(
    tasks: Sequence[Task], jobs: int
) -> Iterator[tuple[Found, UInt8[np.ndarray, "shown height width"] | None]]:
    """Yield what each task comes to, in order."""
    if jobs == 1:
        yield from map(played, tasks)
        return
    # Processes that begin afresh: CUDA does not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        yield from pool.map(played, tasks)


def played(task: Task) -> tuple[Found, UInt8[np.ndarray, "shown height width"] | None]:
    """Return what a trained GAN came to and some of its samples, or how its training failed."""
    torch.set_num_threads(1)
    described = recipe.read(RECIPE, overrides=task.overrides)
    model = GANConfig(**described.model.model_dump(exclude_unset=True) | GAMES[task.game])
    described = described.model_copy(update={"model": model})
    rows = data.load(described.data)
    try:
        gan, found = _trained(described, rows)
    except TrainingFailed as error:
        print(f"{task.game}: {error}", flush=True)
        return {"failed": str(error)}, None
    figures = {each.name: each for each in _judged(gan, rows)}
    for what in FIGURES.values():
        found[what] = figures[f"{what} of samples"].model_dump(mode="json")
    beside = {
        what: figures[f"{what} of training rows"].model_dump(mode="json")
        for what in FIGURES.values()
    }
    classes = len(rows.labels or ())
    shown = sample(gan, rows=SHOWN, seed=1, condition=torch.arange(SHOWN) % classes)
    print(task.game, _line(found), flush=True)
    return found | {"beside": beside}, _shown(shown)


def _trained(described: Recipe, rows: Data) -> tuple[Family, Found]:
    gan = recipe.build(described, rows)
    with tempfile.TemporaryDirectory() as folder:
        trained = fit(gan, rows, described.train, folder=Path(folder), key="")
    found: Found = {
        "device": trained.device,
        "seconds": round(trained.wall_time_s, 1),
        "epochs": len(trained.history),
        "kept": trained.best_epoch,
        "scores": [each.score for each in trained.history],
    }
    return gan.to(choose_device(described.train.device)), found


@torch.no_grad()
def _judged(gan: Family, rows: Data) -> Iterator[Figure]:
    """Yield the figures of a card, and how many digits are read as they were asked for."""

    def untrained() -> torch.nn.Sequential:
        raise SystemExit("benchmarks.objectives: the named extractor cannot read this data")

    test = rows.test
    yield from comparisons(gan, rows, test, lambda: features_of(rows, test, untrained), 0)
    network, known = extractor.load()
    asked = labels(test)
    ours = sample(gan, rows=len(test), seed=0, condition=asked)
    for who, batch in (("samples", ours), ("training rows", test)):
        right = recognised(network, Batch(batch.x, asked))
        yield Figure(
            name=f"{READ} of {who}",
            value=right / len(test),
            standard_error=share_error(right, len(test)),
            n=len(test),
            unit="fraction",
            note=f"by {known.name}; beside it the test rows themselves",
        )


def _shown(batch: Batch) -> UInt8[np.ndarray, "shown height width"]:
    """Return two images of each digit as grey levels."""
    x: Tensor = batch.x
    if batch.label is not None and len(x) > SHOWN:
        first = [torch.nonzero(batch.label == digit)[:2, 0] for digit in range(SHOWN // 2)]
        x = x[torch.stack(first).T.flatten()]
    return (255 * x[:, 0]).round().to(torch.uint8).numpy()


def markdown(results: Results) -> str:
    """Return the report."""
    about, train = results["machine"], results["recipe"]["train"]
    model = results["recipe"]["model"]
    found = results["found"]
    devices = sorted({each["device"] for each in found.values() if "device" in each})
    lines = [
        f"# Objectives of GANs on MNIST, {about['date']}",
        "",
        f"Networks of the recipe `mnist-gan` with {model['width']} and {model['critic_width']} "
        f"channels; {_counted(train['epochs'], 'epoch')} of {train['batch_size']} rows a step, one "
        "seed, the weights of the lowest held-out MMD² kept. "
        f"{_measured(found.values())}The last line is of training rows ({READ}: of test rows), "
        "which a perfect model would get.",
        f"Trained on {', '.join([*devices, str(about['cores'])])} cores; Python {about['python']}, "
        f"torch {about['torch']}; commit {about['commit']}; {results['seconds'] / 60:.0f} minutes "
        "in all, seconds of each while others trained beside it.",
        "",
    ]
    rows = []
    for game, each in found.items():
        config = GANConfig(**results["recipe"]["model"] | results["games"][game])
        rows.append([game, regulariser(config), *_cells(each)])
    beside = _figures(results["beside"]) or [""] * len(FIGURES)
    rows.append(["training rows", "", *beside, "", ""])
    head = ["objective", "regulariser", *FIGURES, "epoch kept", "seconds"]
    return "\n".join([*lines, *table(head, rows)]) + "\n"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _measured(found: Iterable[Found]) -> str:
    """Return by what and how many rows the figures are; nothing if all games failed."""
    judged = next((each for each in found if "failed" not in each), None)
    if judged is None:
        return ""
    kid, right = Figure(**judged["KID"]), Figure(**judged[READ])
    features, reader = kid.note.partition(" of ")[2], right.note.removeprefix("by ").split(";")[0]
    return (
        f"By {features}, {kid.n:,} samples beside as many test rows of the same labels; "
        f"{READ}: of {right.n:,}, by {reader}. "
    )


def _cells(found: Found) -> list[str]:
    if "failed" in found:
        return ["failed", *[""] * (len(FIGURES) + 1)]
    return [*_figures(found), f"{found['kept']} of {found['epochs']}", f"{found['seconds']:.0f}"]


def _figures(found: Found) -> list[str]:
    return [with_error(Figure(**found[what])) for what in FIGURES.values()] if found else []


def _line(found: Found) -> str:
    return ", ".join(f"{name} {cell}" for name, cell in zip(FIGURES, _figures(found), strict=True))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
