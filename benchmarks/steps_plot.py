"""The picture: quality over the number of evaluations, and the same noise in more steps."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

COLOURS = {"euler": "#4a4a4a", "midpoint": "#c8442b", "rk4": "#1f5fa8"}
SHOWN = ("midpoint 1", "midpoint 2", "midpoint 4", "midpoint 8", "midpoint 20", "fine", "beside")


def draw(results: Mapping[str, Any], images: Mapping[str, np.ndarray], file: Path) -> None:
    """Write the picture of a run."""
    figure = plt.figure(figsize=(13.5, 6.2), layout="constrained")
    parts = figure.subfigures(1, 2, width_ratios=(1, 1.9), squeeze=False)
    left, right = parts[0]
    upper, middle, lower = left.subplots(3, 1, sharex=True)
    _curves(upper, results, "recognised", "read as asked")
    _curves(middle, results, "mmd", "MMD² to held-out rows")
    _curves(lower, results, "error", "RMS off the fine solution")
    lower.set_yscale("log")
    # An estimate of nothing may be below it.
    middle.set_yscale("symlog", linthresh=1e-3)
    lower.set_xscale("log", base=2)
    lower.set_xlabel("evaluations of the velocity for each sample")
    upper.legend(fontsize=8)
    shown = [name for name in SHOWN if name in images]
    for axes, name in zip(np.atleast_1d(right.subplots(len(shown), 1)), shown, strict=True):
        strip(axes, images[name])
        axes.set_title(_title(name, results), fontsize=9, loc="left")
    figure.suptitle(
        f"{results['model']}: what more steps are worth. All strips of it are of the same noise.",
        fontsize=10,
    )
    figure.savefig(file, dpi=100)
    plt.close(figure)


def _curves(axes: Axes, results: Mapping[str, Any], figure: str, name: str) -> None:
    for solver, colour in COLOURS.items():
        own = [each for each in results["by_steps"] if each["solver"] == solver]
        if not own:
            continue
        value, error = np.array([each[figure] for each in own]).T
        at = [each["evaluations"] for each in own]
        axes.errorbar(at, value, error, marker="o", markersize=3, color=colour, label=solver)
    others = {"test rows": (results["test"], ":"), "": ({}, "")}
    if "beside" in results:
        others[results["beside"]["model"]] = (results["beside"], "--")
    for label, (found, style) in others.items():
        if figure in found:
            axes.axhline(found[figure][0], linestyle=style, color="#777777", label=label)
    axes.set_ylabel(name, fontsize=9)


def strip(axes: Axes, images: np.ndarray) -> None:
    """Draw images side by side."""
    shown = np.concatenate([*images.transpose(0, 2, 3, 1)], axis=1).clip(0, 1)
    axes.imshow(shown.squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_axis_off()


def _title(name: str, results: Mapping[str, Any]) -> str:
    if name == "fine":
        solver, steps = results["fine"]
        return f"{solver}, {steps} steps"
    if name == "beside":
        return f"{results['beside']['model']}"
    solver, steps = name.split()
    return f"{solver}, {steps} step{'s' if steps != '1' else ''}"
