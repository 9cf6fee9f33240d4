"""The picture: digits of each game side by side, under its name and its distance to the data."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

COLUMNS = 3
"""Games in a row of the picture."""
DIGITS = 10
"""Images in a row of a game."""


def draw(results: Mapping[str, Any], images: Mapping[str, np.ndarray], file: Path) -> None:
    """Write the picture of a run: two rows of digits for each game, and for test rows."""
    names = ["test rows", *(game for game in results["found"] if game in images)]
    lines = math.ceil(len(names) / COLUMNS)
    figure, panels = plt.subplots(
        lines,
        COLUMNS,
        figsize=(3.6 * COLUMNS, 0.98 * lines + 0.2),
        squeeze=False,
        layout="constrained",
    )
    for axis in panels.ravel():
        axis.set_axis_off()
    for axis, name in zip(panels.ravel(), names, strict=False):
        axis.imshow(_rows(images[name]), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axis.set_title(_title(name, results), fontsize=8)
    figure.savefig(file, dpi=100)
    plt.close(figure)


def _rows(images: np.ndarray) -> np.ndarray:
    """Return images side by side, so many in a row."""
    count, height, width = images.shape
    tiles = images.reshape(count // DIGITS, DIGITS, height, width).swapaxes(1, 2)
    return tiles.reshape(-1, DIGITS * width)


def _title(name: str, results: Mapping[str, Any]) -> str:
    if name not in results["found"]:
        return name
    found = results["found"][name]
    return (
        f"{name}: FID {found['FID']['value']:.2f}, {found['read as asked']['value']:.1%} as asked"
    )
