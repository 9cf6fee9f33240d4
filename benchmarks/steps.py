"""How good the samples of a continuous flow are by the number of steps that its ode is solved in.

    python -m benchmarks.steps models/mnist-flow-matching --beside models/mnist-gan

Samples of the same noise by each solver in more and more steps, from the exported graphs through
the engine that serves: how often a classifier that never saw a sample reads the digit that was
asked for, how far they are from test rows (MMD²), and how far each pixel is from the fine
solution. Beside them the same of another model and of real test rows.

Writes results.json, table.md and plot.png to benchmarks/results/steps-DATE, in some
minutes on one core.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import machine, reports, steps_plot
from benchmarks.reports import Results
from benchmarks.table import table
from service import bundle, ode, sampling
from service.batching import Batcher
from service.bundle import Bundle
from service.condition import Condition
from service.engine import Engine
from service.interface import Solver
from service.sampling import Drawing
from service.session import Device, choose_device
from training import data
from training.classifier import recognised, train_classifier
from training.data import Batch, Data
from training.discrepancy import squared_mmd
from training.representation import share_error
from training.restore import recipe_of

SAMPLES = 1000
CLASSIFIER_STEPS = 800
STEPS: dict[Solver, tuple[int, ...]] = {
    "euler": (2, 4, 8, 16, 32, 64),
    "midpoint": (1, 2, 4, 8, 16, 20, 32),
    "rk4": (1, 2, 4, 8, 16),
}
FINE: tuple[Solver, int] = ("rk4", 40)
"""What the others are held against."""
SEED = 1


def main(arguments: Sequence[str]) -> int:
    """Return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.steps")
    parser.add_argument("model", type=Path, help="folder of a conditional continuous flow")
    parser.add_argument("--beside", type=Path, help="folder of a model to compare with")
    parser.add_argument("--data", help="source of the rows, if not the recipe's")
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="cpu", help="(default: cpu)"
    )
    parser.add_argument("--samples", type=int, default=SAMPLES, help="of each (default: 1,000)")
    parser.add_argument("--name", help="of the folder in benchmarks/results (default: the date)")
    chosen = parser.parse_args(arguments)
    folder = reports.RESULTS / (chosen.name or time.strftime("steps-%Y-%m-%d", time.gmtime()))
    folder.mkdir(parents=True, exist_ok=True)
    results, images = measure(
        chosen.model,
        chosen.beside,
        chosen.data,
        samples=chosen.samples,
        device=choose_device(chosen.device),
    )
    reports.keep(results, folder)
    steps_plot.draw(results, images, folder / "plot.png")
    reports.say(markdown(results), folder)
    return 0


def measure(
    model: Path, beside: Path | None, source: str | None, *, samples: int, device: Device
) -> tuple[Results, dict[str, np.ndarray]]:
    """Return the figures, and some images of each way to be drawn."""
    described = machine.host()
    flow = newest(model)
    usual = ode.usual(flow.manifest)
    if usual is None:
        raise SystemExit(f"benchmarks.steps: {flow.manifest.name} is no continuous flow")
    own = recipe_of(flow).data
    rows = data.load(own.model_copy(update={"source": source} if source else {}))
    judge = _Judge(rows, samples=samples)
    label = [row % judge.classes for row in range(samples)]
    drawing = Drawing(n=samples, seed=SEED, condition=Condition(label))
    made = partial(draw, device=device)
    fine = made(flow, drawing, FINE)[0]
    found, images = [], {"fine": fine[: 2 * judge.classes]}
    for solver, steps in ((solver, each) for solver, all_ in STEPS.items() for each in all_):
        x, seconds = made(flow, drawing, (solver, steps))
        squares = np.square(x - fine, dtype=np.float64).reshape(samples, -1).mean(axis=1)
        found.append(
            {
                "solver": solver,
                "steps": steps,
                "evaluations": replace(usual, solver=solver, steps=steps).evaluations,
                "error": _root(squares),
                "seconds": seconds,
                **judge.of(torch.from_numpy(x), torch.tensor(label)),
            }
        )
        images[f"{solver} {steps}"] = x[: 2 * judge.classes]
        print(_line(found[-1]), flush=True)
    results: Results = {
        "machine": described,
        "device": device.kind,
        "model": flow.manifest.name,
        "version": flow.manifest.version,
        "usual": [usual.solver, usual.steps],
        "fine": FINE,
        "samples": samples,
        "by_steps": found,
        "test": judge.of(rows.test.x[:samples], judge.label(rows.test, samples)),
    }
    if beside:
        other = newest(beside)
        x, seconds = made(other, drawing, None)
        judged = judge.of(torch.from_numpy(x), torch.tensor(label))
        results["beside"] = {"model": other.manifest.name, "seconds": seconds, **judged}
        images["beside"] = x[: 2 * judge.classes]
    return results, images


class _Judge:
    """What is said of images: how many are read as asked, and how far all are from test rows.

    The training rows that the test rows are held against stand in for samples that are perfect.
    """

    def __init__(self, rows: Data, *, samples: int) -> None:
        if rows.labels is None:
            raise SystemExit("benchmarks.steps: this data has no labels, so no digit to ask for")
        torch.manual_seed(0)
        self.classes = len(rows.labels)
        self._classifier: nn.Module = train_classifier(rows, self.classes, steps=CLASSIFIER_STEPS)
        self._held = rows.validation.x.flatten(1)[:samples]
        self._unit = 2 * rows.train.x.flatten(1).var(0).sum().item()

    @staticmethod
    def label(batch: Batch, count: int) -> Tensor:
        """Return the labels of the first rows."""
        if batch.label is None:
            raise TypeError("a batch of labelled data has labels")
        return batch.label[:count]

    def of(self, x: Tensor, label: Tensor) -> dict[str, list[float]]:
        """Return both figures, each with its standard error."""
        with torch.no_grad():
            right = recognised(self._classifier, Batch(x, label))
        rows = min(len(x), len(self._held))
        apart = squared_mmd(self._held[:rows], x.flatten(1)[:rows], unit=self._unit)
        return {
            "recognised": [right / len(x), share_error(right, len(x))],
            "mmd": [apart.value, apart.standard_error],
        }


def draw(
    read: Bundle, drawing: Drawing, how: tuple[Solver, int] | None, *, device: Device
) -> tuple[np.ndarray, float]:
    """Return samples by the engine that serves, and the seconds that they took."""
    if how:
        drawing = replace(drawing, solver=how[0], steps=how[1])
    with closing(Batcher(devices=1)) as batcher:
        engine = Engine(read, device, batcher=batcher)
        began = time.monotonic()
        x = asyncio.run(sampling.sample(engine, drawing))["x"]
    return x, time.monotonic() - began


def newest(model: Path) -> Bundle:
    """Return the newest version of a model."""
    version = bundle.versions(model.parent, model.name)
    if not version:
        raise SystemExit(f"benchmarks.steps: no version of a model lies in {model}")
    return bundle.read(model / str(version[0]))


def _root(squares: np.ndarray) -> list[float]:
    """Return the root of a mean with its error, by the delta method."""
    root = float(np.sqrt(squares.mean()))
    error = float(squares.std(ddof=1)) / len(squares) ** 0.5 / (2 * root) if root else 0.0
    return [root, error]


def _line(found: dict[str, Any]) -> str:
    return " ".join(f"{name} {pm(each)}" for name, each in found.items())


def pm(value: object) -> str:
    """Return a figure as it is shown, with its error if it has one."""
    if isinstance(value, list):
        return f"{value[0]:.4f} ± {value[1]:.4f}"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def markdown(results: Results) -> str:
    """Return the report."""
    about = results["machine"]
    head = ["solver", "steps", "evaluations", "read as asked", "MMD²", "off by, RMS", "seconds"]
    lines = [
        f"# Steps of {results['model']} version {results['version']}",
        "",
        f"{about['cpu']}; {about['cores']} cores; samples made on {results['device']}; "
        f"{about['date']}; commit {about['commit']}; load "
        f"average before it {about['load_before']}. {results['samples']} samples of one seed and "
        f"labels in equal numbers. MMD² is to as many validation rows. Off by: each number of an "
        f"image, black 0 and white 1, beside {results['fine'][0]} in {results['fine'][1]} steps of "
        "the same noise. Seconds are of a machine that others used too.",
        "",
        *table(head, list(_rows(results))),
    ]
    return "\n".join(lines) + "\n"


def _rows(results: Results) -> Iterator[list[str]]:
    for each in results["by_steps"]:
        chosen = [each["solver"], each["steps"]] == results["usual"]
        yield [
            each["solver"],
            f"{each['steps']}{', its own' if chosen else ''}",
            str(each["evaluations"]),
            *(pm(each[name]) for name in ("recognised", "mmd", "error")),
            f"{each['seconds']:.1f}",
        ]
    if "beside" in results:
        each = results["beside"]
        figures = [pm(each[name]) for name in ("recognised", "mmd")]
        yield [each["model"], "–", "1", *figures, "–", f"{each['seconds']:.1f}"]
    figures = [pm(results["test"][name]) for name in ("recognised", "mmd")]
    yield ["test rows", "–", "–", *figures, "–", "–"]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
