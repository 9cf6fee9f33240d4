"""How near flows come to densities in the plane whose entropy is known.

    python -m benchmarks.targets                    # about a quarter of an hour on one core
    python -m benchmarks.targets --report FOLDER    # table and picture of old results again

A coupling flow of splines and a continuous flow are trained on events of each of four targets.
The mean negative log-density of fresh events, less the entropy of the target, is the divergence of
the model from it, in nats: 0 is perfect, and no less is possible.

Writes results.json, table.md, plot.png and densities.npz, of which the picture is made, to
benchmarks/results/targets-DATE.
"""

import json
import math
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from benchmarks import machine, reports, target_plot
from benchmarks.reports import Results
from benchmarks.table import table
from benchmarks.target_densities import Points, Target, targets
from service.interface import Event
from training.continuous import ContinuousFlow
from training.continuous_config import ContinuousFlowConfig
from training.data import Batch, Data
from training.family import Family
from training.flow import Flow
from training.flow_config import FlowConfig
from training.loop import TrainConfig, fit

WANTED_NATS = 0.05
"""Of each model on each target, at the most."""
TRAIN_ROWS, VALIDATION_ROWS, TEST_ROWS = 200_000, 5_000, 50_000
DOUBLED_ROWS = 2_500
"""Of the test rows: those that are judged once more in twice the steps of the solver."""
SHOWN_ROWS = 4_000
BLOCK = 2_000
"""Rows whose density is found at once: they stay in the processor's cache."""
FLOW = FlowConfig(layers=8, width=64, depth=2, bins=16)
CONTINUOUS = ContinuousFlowConfig(width=96, depth=3, waves=64, times="late", solver="rk4", steps=40)
TRAINING = {
    "coupling flow": TrainConfig(
        epochs=6,
        batch_size=512,
        learning_rate=3e-3,
        warmup_steps=100,
        gradient_clip=5.0,
        ema=0.99,
        device="cpu",
    ),
    "continuous flow": TrainConfig(
        epochs=30,
        batch_size=1024,
        learning_rate=3e-3,
        warmup_steps=100,
        gradient_clip=5.0,
        ema=0.999,
        device="cpu",
    ),
}
MODELS = tuple(TRAINING)

Pictures = dict[str, np.ndarray]
"""Arrays of densities.npz: of each target's number and, behind a dash, of what."""


def main(arguments: Sequence[str]) -> int:
    """Return the exit status."""
    parser = reports.parser("targets")
    parser.add_argument("--epochs", type=int, help="of training (default: what each model needs)")
    parser.add_argument("--rows", type=int, default=TEST_ROWS, help="of test (default: 50,000)")
    parser.add_argument("--processes", type=int, default=1, help="of one core each (default: 1)")
    chosen = parser.parse_args(arguments)
    folder = reports.folder("targets", chosen)
    if not chosen.report:
        results, pictures = measure(
            epochs=chosen.epochs, rows=chosen.rows, processes=chosen.processes
        )
        reports.keep(results, folder)
        np.savez_compressed(folder / "densities.npz", **pictures)  # type: ignore[arg-type]
    results = reports.kept(folder)
    with np.load(folder / "densities.npz") as kept:
        target_plot.draw(results, dict(kept), folder / "plot.png")
    reports.say(markdown(results), folder)
    return 0


def measure(*, epochs: int | None, rows: int, processes: int) -> tuple[Results, Pictures]:
    """Train both models on each target, and judge them."""
    described = machine.host() | {"torch": torch.__version__}
    began = time.monotonic()
    work = [partial(learn, number, epochs=epochs, rows=rows) for number in range(len(targets()))]
    if processes == 1:
        found = [each() for each in work]
    else:
        with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
            found = [each.result() for each in [pool.submit(each) for each in work]]
    results = {
        "machine": described,
        "seconds": round(time.monotonic() - began, 1),
        "processes": processes,
        "models": {"coupling flow": FLOW.model_dump(), "continuous flow": CONTINUOUS.model_dump()},
        "training": {kind: config.model_dump() for kind, config in TRAINING.items()},
        "rows": {"train": TRAIN_ROWS, "test": rows, "doubled": min(rows, DOUBLED_ROWS)},
        "targets": [each for each, _ in found],
    }
    return results, {name: array for _, pictures in found for name, array in pictures.items()}


def learn(number: int, *, epochs: int | None, rows: int) -> tuple[Results, Pictures]:
    """Return how near both models come to one target, and what of it is shown."""
    torch.set_num_threads(1)  # The work is small: threads wait for each other most of the time.
    target = targets()[number]
    data = sampled(target, np.random.default_rng(number), test=rows)
    _, entropy = target.integrals()
    found: Results = {"name": target.name, "entropy": entropy, "window": target.window}
    truth = np.exp(target.log_density(_pixels(target)))
    pictures = {
        f"{number}-events": data.test.x[:SHOWN_ROWS].numpy().astype(np.float16),
        f"{number}-truth": _shaded(truth, target),
    }
    for kind in MODELS:
        model, seconds = trained(kind, data, epochs)
        found[kind] = judged(model, target, data, entropy) | {"seconds": round(seconds, 1)}
        pictures[f"{number}-{kind}"] = heat(model, target)
        print(target.name, kind, json.dumps(found[kind]), flush=True)
    return found, pictures


def sampled(target: Target, generator: np.random.Generator, *, test: int) -> Data:
    """Return fresh events of a target in three splits."""
    splits = {"train": TRAIN_ROWS, "validation": VALIDATION_ROWS, "test": test}
    x = {
        name: torch.from_numpy(target.draw(rows, generator)).float()
        for name, rows in splits.items()
    }
    return Data(
        **{name: Batch(rows) for name, rows in x.items()},  # type: ignore[arg-type]
        event=Event(kind="vector", shape=(2,)),
        labels=None,
        mean=x["train"].mean(0).numpy(),
        std=x["train"].std(0).numpy(),
        description=f"{target.name}: {TRAIN_ROWS:,} train, {VALIDATION_ROWS:,} validation",
        sha256="",
    )


def trained(kind: str, data: Data, epochs: int | None) -> tuple[Family, float]:
    """Return a model of the data, and how many seconds its training took."""
    config = TRAINING[kind].model_copy(update={"epochs": epochs} if epochs else {})
    torch.manual_seed(config.seed)
    model = Flow(FLOW, data) if kind == "coupling flow" else ContinuousFlow(CONTINUOUS, data)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        fit(model, data, config, folder=Path(folder), key=kind)
    return model, time.monotonic() - began


def judged(model: Family, target: Target, data: Data, entropy: float) -> Results:
    """Return what a model's test events cost above the entropy, and the error of its solver."""
    x = data.test.x
    log_q = log_density(model, x)
    # Event by event the target's own share of the noise cancels.
    paired = target.log_density(x.double().numpy()) - log_q
    found = {"excess": _mean(-log_q, less=entropy), "paired": _mean(paired[np.isfinite(paired)])}
    if isinstance(model, ContinuousFlow):
        twice = log_density(model, x[:DOUBLED_ROWS], steps=2 * model.config.steps)
        found["doubled"] = _mean(log_q[:DOUBLED_ROWS] - twice)
    return found


def _mean(values: Float64[np.ndarray, " rows"], *, less: float = 0.0) -> list[float]:
    """Return the mean, less a constant, and its standard error."""
    return [float(values.mean()) - less, float(values.std(ddof=1)) / math.sqrt(len(values))]


@torch.no_grad()
def log_density(
    model: Family, x: Tensor, *, steps: int | None = None
) -> Float64[np.ndarray, " rows"]:
    """Return log q of each row; of a continuous flow by its solver, in so many steps."""
    if isinstance(model, ContinuousFlow):
        found = [model.encode(block, steps=steps)[1] for block in x.split(BLOCK)]
    elif isinstance(model, Flow):
        found = [model.log_density(block) for block in x.split(BLOCK)]
    else:
        raise TypeError(f"expected a flow; got {type(model).__name__}")
    return torch.cat(found).double().numpy()


def heat(model: Family, target: Target) -> np.ndarray:
    """Return a model's density on the picture's grid, in shades."""
    pixels = torch.from_numpy(_pixels(target)).float()
    return _shaded(np.exp(log_density(model, pixels)), target)


def _pixels(target: Target) -> Points:
    """Return the places of a picture, square ones."""
    return target.grid(_pixel(target))


def _pixel(target: Target) -> float:
    """Return the side of a pixel: a hundred in a row, or about."""
    left, right, *_ = target.window
    return round(0.01 * (right - left), 2)


def _shaded(density: Float64[np.ndarray, " pixels"], target: Target) -> np.ndarray:
    """Return rows of shades from the bottom: 255 is the highest density of the target itself."""
    left, right, *_ = target.window
    columns = round((right - left) / _pixel(target))
    highest = math.exp(target.log_density(_pixels(target)).max())
    shades = np.clip(255 * density / highest, 0, 255).round().astype(np.uint8)
    return shades.reshape(-1, columns)


def markdown(results: Results) -> str:
    """Return the report."""
    about, rows = results["machine"], results["rows"]
    solved = results["models"]["continuous flow"]
    lines = [
        f"# Targets of known entropy, {about['date']}",
        "",
        f"Mean negative log-density of {rows['test']:,} fresh events less the entropy, in nats, "
        "± its standard error; paired: the mean of log p - log q at the same events, which is "
        f"the same with less noise. At most {WANTED_NATS:g} is wanted. Twice the steps: what "
        f"{2 * solved['steps']} steps of the solver change in the third column, of "
        f"{rows['doubled']:,} of the events; all else of the continuous flow is by "
        f"{solved['steps']} steps of {solved['solver']}.",
        f"{about['cpu']}; {about['cores']} cores, shared, {results['processes']} used; Python "
        f"{about['python']}, torch {about['torch']}; commit {about['commit']}; "
        f"{results['seconds'] / 60:.0f} minutes.",
        "",
    ]
    head = ["target", "entropy", "model", "NLL - entropy", "paired", "wanted", "twice the steps",
            "trained in"]  # fmt: skip
    found = [_row(target, kind) for target in results["targets"] for kind in MODELS]
    return "\n".join([*lines, *table(head, found)]) + "\n"


def _row(target: Results, kind: str) -> list[str]:
    model = target[kind]
    return [
        target["name"],
        f"{target['entropy']:.4f}",
        kind,
        f"{_said(model['excess'])}",
        f"{_said(model['paired'])}",
        "met" if model["excess"][0] <= WANTED_NATS else "**missed**",
        f"{model['doubled'][0]:+.5f}" if "doubled" in model else "",
        f"{model['seconds']:.0f} s",
    ]


def _said(found: Sequence[float]) -> str:
    return f"{found[0]:.4f} ± {found[1]:.4f}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
