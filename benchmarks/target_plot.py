"""The picture: events of each target, its density, and the densities that were learnt."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

MODELS = ("coupling flow", "continuous flow")
COLOURS = "magma"


def draw(results: Mapping[str, Any], arrays: Mapping[str, np.ndarray], file: Path) -> None:
    """Write the picture of a run: a row for each target."""
    found = results["targets"]
    heights = [_height(target["window"]) for target in found]
    figure, axes = plt.subplots(
        len(found),
        4,
        figsize=(11.5, 2.75 * sum(heights) + 0.35 * len(found) + 0.5),
        gridspec_kw={"height_ratios": heights},
        layout="constrained",
    )
    for number, (target, row) in enumerate(zip(found, axes, strict=True)):
        _events(row[0], arrays[f"{number}-events"], target)
        _heat(row[1], arrays[f"{number}-truth"], target["window"])
        row[1].set_title(f"its density, entropy {target['entropy']:.3f} nats", fontsize=9)
        for axis, kind in zip(row[2:], MODELS, strict=True):
            _heat(axis, arrays[f"{number}-{kind}"], target["window"])
            excess, error = target[kind]["excess"]
            axis.set_title(f"{kind}, {excess:+.3f} ± {error:.3f}", fontsize=9)
    figure.suptitle(
        "Densities in the plane and what two flows learn of them: mean negative log-density of "
        "fresh events,\nless the entropy, in nats. In a row all densities have the same colours.",
        fontsize=10,
    )
    figure.savefig(file, dpi=100)
    plt.close(figure)


def _height(window: tuple[float, float, float, float]) -> float:
    left, right, bottom, top = window
    return (top - bottom) / (right - left)


def _events(axis: Axes, events: np.ndarray, target: Mapping[str, Any]) -> None:
    """Draw some events of the target itself."""
    left, right, bottom, top = target["window"]
    x, y = events.astype(np.float32).T
    axis.scatter(x, y, s=0.6, color="#1f5fa8", linewidths=0)
    axis.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[], aspect="equal")
    axis.set_title(f"{target['name']}: {len(events):,} events", fontsize=9)


def _heat(axis: Axes, shades: np.ndarray, window: tuple[float, float, float, float]) -> None:
    """Draw a density, white where it is as high as the target's own highest."""
    axis.imshow(shades, origin="lower", extent=window, cmap=COLOURS, vmin=0, vmax=255)
    axis.set(xticks=[], yticks=[])
