"""What guidance does to the samples of a continuous flow.

    python -m benchmarks.guidance models/mnist-flow-matching --beside models/mnist-gan

Samples of one noise and labels in equal numbers, each time led further past their label, from the
exported graphs through the engine that serves: how often the named extractor reads the digit that
was asked for, and how far their features are from those of test rows. Beside them the same of
another model, and of training rows, which is what a perfect model would get.

Writes results.json, table.md and plot.png to benchmarks/results/guidance-DATE, in some minutes on
one core. Of images of digits, whose features the named extractor has.
"""

import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from benchmarks import machine, reports
from benchmarks.reports import Results
from benchmarks.steps import draw, newest, pm
from benchmarks.steps_plot import strip
from benchmarks.table import table
from service.condition import Condition
from service.sampling import Drawing
from service.session import Device
from training import data, extractor
from training.classifier import read, recognised
from training.data import Batch
from training.features import frechet
from training.manifolds import support
from training.representation import labels, share_error
from training.restore import recipe_of
from training.samples import partners

GUIDANCE = (0.0, 0.1, 0.2, 0.35, 0.5, 1.0, 2.0)
SAMPLES = 1000
SEED = 1
FIGURES = {"read": "read as asked", "precision": "precision", "recall": "recall", "fid": "FID"}


def main(arguments: Sequence[str]) -> int:
    """Return the exit status."""
    parser = reports.parser("guidance")
    parser.add_argument("model", type=Path, help="folder of a continuous flow that can be guided")
    parser.add_argument("--beside", type=Path, help="folder of a model to compare with")
    parser.add_argument("--data", help="source of the rows, if not the recipe's")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="of each (default: 1,000)")
    chosen = parser.parse_args(arguments)
    place = reports.folder("guidance", chosen)
    if not chosen.report:
        results, images = measure(chosen)
        reports.keep(results, place)
        picture(results, images, place / "plot.png")
    reports.say(markdown(reports.kept(place)), place)
    return 0


def measure(chosen: Namespace) -> tuple[Results, dict[str, np.ndarray]]:
    """Return the figures, and some images of each to be drawn."""
    described = machine.host()
    flow = newest(chosen.model)
    if flow.manifest.ode is None or flow.manifest.ode.guidance is None:
        raise SystemExit(f"benchmarks.guidance: {flow.manifest.name} cannot be guided")
    source = {"source": chosen.data} if chosen.data else {}
    rows = data.load(recipe_of(flow).data.model_copy(update=source))
    test = rows.test[: chosen.samples]
    judge = _Judge(test)
    asked = Drawing(n=len(test), seed=SEED, condition=Condition(labels(test).tolist()))
    some = [int((labels(test) == digit).nonzero()[turn]) for turn in (0, 1) for digit in range(10)]
    found, images = [], {}
    for guidance in GUIDANCE:
        x, seconds = draw(flow, replace(asked, guidance=guidance), None, device=Device("cpu"))
        found.append({"guidance": guidance, "seconds": seconds, **judge.of(torch.from_numpy(x))})
        images[f"{guidance:g}"] = x[some]
        print(found[-1], flush=True)
    train = rows.train[partners(rows.train, test, told=labels(test))]
    results: Results = {
        "machine": described,
        "model": flow.manifest.name,
        "version": flow.manifest.version,
        "usual": flow.manifest.ode.guidance,
        "samples": len(test),
        "by_guidance": found,
        "train": judge.of(train.x),
    }
    if chosen.beside:
        other = newest(chosen.beside)
        x, seconds = draw(other, asked, None, device=Device("cpu"))
        judged = judge.of(torch.from_numpy(x))
        results["beside"] = {"model": other.manifest.name, "seconds": seconds, **judged}
        images["beside"] = x[some]
    return results, images


class _Judge:
    """What is said of images that were asked for with the labels of test rows."""

    def __init__(self, test: Batch) -> None:
        self._network, _ = extractor.load()
        self._label = labels(test)
        self._test = read(self._network[:-1], test.x)

    def of(self, x: Tensor) -> dict[str, list[float]]:
        """Return each figure with its standard error."""
        right = recognised(self._network, Batch(x, self._label))
        features = read(self._network[:-1], x)
        apart, inside = frechet(self._test, features), support(features, self._test)
        shares = {"precision": inside.precision, "recall": inside.recall, "read": right / len(x)}
        return {
            "fid": [apart.value, apart.standard_error],
            **{
                name: [share, share_error(round(share * len(x)), len(x))]
                for name, share in shares.items()
            },
        }


def markdown(results: Results) -> str:
    """Return the report."""
    about = results["machine"]
    lines = [
        f"# Guidance of {results['model']} version {results['version']}",
        "",
        f"{about['cpu']}; {about['cores']} cores; {about['date']}; commit {about['commit']}; load "
        f"average before it {about['load_before']}. {results['samples']} samples of one seed, with "
        "the labels of as many test rows, which their features are held against. Seconds are of a "
        "machine that others used too.",
        "",
        *table(["guidance", *FIGURES.values(), "seconds"], list(_rows(results))),
    ]
    return "\n".join(lines) + "\n"


def _rows(results: Results) -> Iterator[list[str]]:
    for each in results["by_guidance"]:
        own = ", its own" if each["guidance"] == results["usual"] else ""
        figures = [pm(each[name]) for name in FIGURES]
        yield [f"{each['guidance']:g}{own}", *figures, f"{each['seconds']:.0f}"]
    if "beside" in results:
        each = results["beside"]
        yield [each["model"], *(pm(each[name]) for name in FIGURES), f"{each['seconds']:.0f}"]
    yield ["training rows", *(pm(results["train"][name]) for name in FIGURES), "–"]


def picture(results: Mapping[str, Any], images: Mapping[str, np.ndarray], file: Path) -> None:
    """Write the picture of a run."""
    figure = plt.figure(figsize=(13.5, 6.2), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.9), squeeze=False)[0]
    below = left.subplots(len(FIGURES), 1, sharex=True)
    for axes, (name, title) in zip(below, FIGURES.items(), strict=True):
        _curve(axes, results, name)
        axes.set_ylabel(title, fontsize=9)
    below[0].legend(fontsize=8)
    below[-1].set_xlabel("guidance")
    for axes, (name, shown) in zip(right.subplots(len(images), 1), images.items(), strict=True):
        strip(axes, shown)
        title = results["beside"]["model"] if name == "beside" else f"guidance {name}"
        axes.set_title(title, fontsize=9, loc="left")
    figure.suptitle(
        f"{results['model']}: led past the label. All strips of it are of the same noise.",
        fontsize=10,
    )
    figure.savefig(file, dpi=100)
    plt.close(figure)


def _curve(axes: Axes, results: Mapping[str, Any], name: str) -> None:
    value, error = np.array([each[name] for each in results["by_guidance"]]).T
    at = [each["guidance"] for each in results["by_guidance"]]
    axes.errorbar(at, value, error, marker="o", markersize=3, color="#c8442b", label="samples")
    axes.axhline(results["train"][name][0], linestyle=":", color="#777777", label="training rows")
    if "beside" in results:
        beside = results["beside"]
        axes.axhline(beside[name][0], linestyle="--", color="#777777", label=beside["model"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
