"""The picture: samples of each game side by side, on the ring and on the grid."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

from training.mixtures import MIXTURES

PAIRS = 4
"""Games in a row of the picture."""
ROOM = 0.6
"""Around the modes."""


def draw(results: Mapping[str, Any], arrays: Mapping[str, np.ndarray], file: Path) -> None:
    """Write the picture of a run: two panels for each game."""
    games = {"data": results["data"], **results["found"]}
    mixtures = list(results["mixtures"])
    lines = math.ceil(len(games) / PAIRS)
    columns = PAIRS * len(mixtures)
    figure, panels = plt.subplots(
        lines,
        columns,
        figsize=(1.75 * columns, 1.98 * lines + 0.4),
        squeeze=False,
        layout="constrained",
    )
    places = iter(panels.ravel())
    for game, found in games.items():
        for mixture in mixtures:
            axis = next(places)
            x, y = arrays[f"{mixture}:{game}"].astype(np.float32).T
            colour = "#4a4a4a" if game == "data" else "#1f5fa8"
            axis.scatter(x, y, s=1.2, color=colour, linewidths=0)
            reach = float(np.abs(MIXTURES[mixture].centres).max()) + ROOM
            axis.set(
                xlim=(-reach, reach), ylim=(-reach, reach), xticks=[], yticks=[], aspect="equal"
            )
            modes, of = found[mixture]["modes"], results["mixtures"][mixture]
            axis.set_title(f"{game}\n{modes} of {of}, {found[mixture]['good'][0]:.0%}", fontsize=7)
    for axis in places:
        axis.set_axis_off()
    figure.suptitle(
        "A thousand samples of each: modes covered, and the share within three standard deviations "
        "of one",
        fontsize=9,
    )
    figure.savefig(file, dpi=100)
    plt.close(figure)
