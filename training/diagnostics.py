"""The picture of what a model leaves out and of what it copies, made of what it was judged by.

- How often samples are of each mode or class, where it is known which there are, beside test rows.
- How far samples are from the nearest training row, beside how far test rows are. Copies are
  nearer, strangers further; the figure C_T compares the two.
- Of images, samples above the training rows nearest to them: the first ones, and those that are
  the closest for how far training rows about them are. Copies would be among these; by the
  distance alone they would all be of the kind that is most alike, of digits ones.

Source:
    Distances as a part of those to the 50 nearest rows: Carlini et al. 2023, arXiv:2301.13188.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from training.collapse import LEAST_READS, PRESENT, classes
from training.manifolds import closest, nearest, surroundings
from training.mixtures import SHARE
from training.pictures import COLUMNS, DATA, MODEL, logarithmic, mosaic
from training.quality import with_error
from training.samples import Compared, by_kinds

PANEL = 2.7
"""Inches that a panel is high."""
NARROWEST = 7.0
"""Inches that the picture is wide, at least."""
NAMED, LONGEST = 30, 10
"""Bars that have their names below them, at most, and of how many letters."""
MARGIN = 1.25
"""Inches on the left of images, for what they are."""
ROWS = ("samples", "nearest\ntraining rows", "likest\ncopies", "nearest\ntraining rows")
"""Of images."""
ABOUT, LEAST_ABOUT = 50, 1e-6
"""Training rows that say how far from a sample such rows are, and how far they are at least. So
many, because the nearest may be in the data twice: then the next one is as near."""
LEAST_BARS, BARS, ROWS_OF_A_BAR = 10, 40, 12
"""Of the histogram of distances: as many as there are rows for."""


@dataclass(frozen=True)
class _Counts:
    """How many samples and test rows are of each mode or class.

    Args:
        names: Of those.
        samples, test: Counts.
        rows: Samples in all, and as many test rows.
        least: Share of the samples that each needs to count as there; 0 of one that is not counted.
    """

    names: Sequence[str]
    samples: Int64[np.ndarray, " kinds"]
    test: Int64[np.ndarray, " kinds"]
    rows: int
    least: Float[np.ndarray, " kinds"]


def draw_diagnostics(compared: Compared) -> Figure:
    """Return the picture: counts and distances, and below them images beside their neighbours."""
    counts = _counts(compared)
    images = _images(compared) if compared.data.event.kind == "image" else None
    tall, wide = (0.0, 0.0) if images is None else (side / 100 for side in images.shape[:2])
    width, height = max(NARROWEST, MARGIN + wide), PANEL + tall
    figure = Figure(figsize=(width, height), dpi=100, facecolor="white")
    places = {
        "left": 0.65 / width, "right": 1 - 0.15 / width, "wspace": 0.3,
        "bottom": (tall + 0.7) / height, "top": 1 - 0.35 / height,
    }  # fmt: skip
    panels = figure.subplots(1, 1 + (counts is not None), squeeze=False, gridspec_kw=places)[0]
    if counts is not None:
        _bars(panels[0], counts)
        figures = by_kinds(compared, compared.samples)
        said = (f"{each.name} {with_error(each)} {each.unit}" for each in figures)
        panels[0].set_title(", ".join(said).removesuffix(" fraction"), fontsize=8.5)
    _distances(panels[-1], compared)
    if images is not None:
        axes = figure.add_axes((MARGIN / width, 0, wide / width, tall / height))
        axes.imshow(images, cmap="gray", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
        axes.set_axis_off()
        for row, name in enumerate(ROWS):
            y = (1 - (row + 0.5) / len(ROWS)) * tall / height
            figure.text(MARGIN / 2 / width, y, name, ha="center", va="center", fontsize=9)
    return figure


def _counts(compared: Compared) -> _Counts | None:
    """Return the modes of a mixture or the classes that are read; None where nobody knows any."""
    data, reader = compared.data, compared.features.reader
    if data.mixture:
        ours, theirs = (
            data.mixture.find(x.double().numpy()) for x in (compared.samples, compared.test)
        )
        count = len(ours.hits)
        names = [str(mode + 1) for mode in range(count)]
        return _Counts(names, ours.hits, theirs.hits, ours.samples, np.full(count, SHARE))
    if reader is None or not data.labels:
        return None
    samples, test = (
        classes(x, reader, len(data.labels)) for x in (compared.samples, compared.test)
    )
    rows = len(compared.samples)
    least = np.where(test >= LEAST_READS, PRESENT * test / rows, 0)
    return _Counts(data.labels, samples, test, rows, least)


def _bars(axes: Axes, counts: _Counts) -> None:
    """Draw the shares, with the error of each, and what each would need to count as there."""
    places = np.arange(len(counts.names))
    for side, of, colour, label in (
        (-0.2, counts.test, DATA, "test rows"),
        (0.2, counts.samples, MODEL, "samples"),
    ):
        share = of / counts.rows
        error = np.sqrt(share * (1 - share) / counts.rows)
        axes.bar(places + side, share, 0.4, yerr=error, color=colour, label=label,
                 error_kw={"elinewidth": 0.7})  # fmt: skip
    axes.hlines(
        counts.least, places - 0.45, places + 0.45, colors="black", linewidth=0.9,
        linestyles=":", label="least",
    )  # fmt: skip
    axes.set_ylabel("share")
    axes.set_xticks([])
    if len(places) <= NAMED:
        names = [_shortened(name) for name in counts.names]
        upright = max(map(len, names)) > 3
        axes.set_xticks(places, names, fontsize=7, rotation=90 if upright else 0)
    axes.set_ylim(0, 1.3 * axes.get_ylim()[1])
    axes.legend(fontsize=7, ncols=3, loc="upper center", columnspacing=1.0)


def _shortened(name: str) -> str:
    return name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"


def _distances(axes: Axes, compared: Compared) -> None:
    """Draw how far samples and test rows are from the nearest training row."""
    ours, theirs = (
        nearest(x, compared.of_train).numpy() for x in (compared.of_samples, compared.of_test)
    )
    # Copies of all digits would be at 0, which a logarithm has not: they are in the first bin.
    bars = min(BARS, max(LEAST_BARS, len(ours) // ROWS_OF_A_BAR))
    both = np.concatenate([ours, theirs])
    low, high = np.quantile(both[both > 0], (0.002, 1.0)) if both.any() else (0.5, 2.0)
    bins = np.geomspace(low / 1.01, 1.01 * high, bars + 1).tolist()
    for x, colour, style, label in (
        (theirs, DATA, {"alpha": 0.45}, "test rows"),
        (ours, MODEL, {"histtype": "step", "linewidth": 1.3}, "samples"),
    ):
        axes.hist(x.clip(min=low), bins, color=colour, label=label, **style)
    axes.set_xscale("log")
    logarithmic(axes.xaxis)
    by = textwrap.fill(f"by {compared.features.name}", 52)
    axes.set_xlabel(by, fontsize=8)
    axes.set_title("distance to the nearest training row", fontsize=9)
    axes.set_ylabel("rows")
    axes.legend(fontsize=7)


def _images(compared: Compared) -> Float[np.ndarray, "tall wide channel"]:
    """Return samples above their nearest training rows: the first, then the likest to copies."""
    which = closest(compared.of_samples, compared.of_train)
    rows = [
        events
        for chosen in (torch.arange(len(which))[:COLUMNS], _likest(compared)[:COLUMNS])
        for events in (compared.samples[chosen], compared.data.train.x[which[chosen]])
    ]
    return mosaic(torch.cat(rows).permute(0, 2, 3, 1).numpy(), columns=len(rows[0]))


def _likest(compared: Compared) -> Int64[Tensor, " rows"]:
    """Return the samples in order, those that are likest to copies first."""
    x, train = compared.of_samples, compared.of_train
    usual = surroundings(x, train, k=ABOUT).clamp(min=LEAST_ABOUT)
    return (nearest(x, train) / usual).argsort()
