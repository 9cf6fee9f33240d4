"""The picture of a run: losses and gradients step by step, and the score that chose the weights.

Of a game the losses say little: each player's is measured by the other. What they show is how the
two move, so they are drawn finer than epochs: the points of the trace, and a moving average in
which an oscillation stands out from noise. The score has its standard error about it.
"""

from collections.abc import Sequence
from itertools import cycle

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, SymmetricalLogLocator

from training.checkpoint import GRADIENT_NORM, Fit
from training.pictures import MODEL, logarithmic
from training.trace import Point

SHARE_OF_THE_RUN = 20
"""A moving average is over one in so many points of the trace: of the 1,000 of a long run 50."""
BEGINNING = 10
"""The first of so many parts of a curve may leave the picture: it is often steep."""
FEW_EPOCHS = 40
"""Up to which each has a dot."""
LINEAR = 5
"""Standard errors about 0 within which the axis of a game's score is linear."""
COLOURS = ("#1f5fa8", "#d9a404", "#3c8d5a")
"""Of the turns, over and over."""


def draw_curves(trained: Fit, *, score: str = "validation score") -> Figure:
    """Return losses, norms of gradients and the validation score of a run over its epochs.

    Args:
        trained: The run.
        score: What the score of a game is called.
    """
    trace = trained.trace or tuple(
        Point(float(each.number), each.losses) for each in trained.history
    )
    turns = [name.rpartition("/")[0] for name in trace[0].means if name.endswith("/loss")]
    # One player minimises what validation measures, with dropout or noise in its rows perhaps, so
    # one scale shows both. A game's losses and its score have nothing in common, nor have the
    # losses of some games.
    is_game = len(turns) > 1
    count = len(turns) + 1 + is_game
    figure = Figure(figsize=(7, 0.6 + 2.0 * count), dpi=100, layout="constrained")
    panels = figure.subplots(count, 1, sharex=True)
    for axes, turn, colour in zip(panels, turns, cycle(COLOURS), strict=False):
        losses = _follow(axes, trace, f"{turn}/loss", colour, label=turn)
        scores = [] if is_game else _scores(axes, trained)
        axes.set_ylabel("loss" if is_game else "loss, score")
        _keep_the_tail_in_view(axes, losses, scores)
    _norms(panels[len(turns)], trace, turns)
    if is_game:
        panels[-1].set_ylabel(score)
        _scores(panels[-1], trained)
        _show_errors(panels[-1], trained)
    for axes in panels:
        axes.legend(fontsize=8, loc="best")
        axes.grid(alpha=0.3)
    panels[-1].set_xlabel("epoch")
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _follow(
    axes: Axes, trace: Sequence[Point], name: str, colour: str, *, label: str
) -> Float[np.ndarray, " points"]:
    """Draw the points of the trace and their moving average; return the points."""
    at = np.array([point.epoch for point in trace])
    values = np.array([point.means.get(name, np.nan) for point in trace])
    averaged = moving_average(values, max(1, len(trace) // SHARE_OF_THE_RUN))
    axes.plot(at, values, color=colour, alpha=0.4, linewidth=0.6)
    axes.plot(at, averaged, color=colour, linewidth=1.5, label=label)
    return values


def _norms(axes: Axes, trace: Sequence[Point], turns: Sequence[str]) -> None:
    """Draw the norms of all turns' gradients, on a logarithmic axis if they are not all 0."""
    norms = [
        _follow(axes, trace, f"{turn}/{GRADIENT_NORM}", colour, label=turn)
        for turn, colour in zip(turns, cycle(COLOURS), strict=False)
    ]
    axes.set_ylabel("gradient norm")
    if any((each > 0).any() for each in norms):
        axes.set_yscale("log")
        logarithmic(axes.yaxis)


def moving_average(
    values: Float[np.ndarray, " points"], window: int
) -> Float[np.ndarray, " points"]:
    """Return the mean of the points about each, of those that there are at either end.

    Example:
        >>> moving_average(np.array([0.0, 3.0, 6.0, 0.0]), 3).tolist()
        [1.5, 3.0, 3.0, 3.0]
    """
    reach = window // 2
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    first, last = np.maximum(places - reach, 0), np.minimum(places + reach + 1, len(values))
    return np.asarray((sums[last] - sums[first]) / (last - first))


def _scores(axes: Axes, trained: Fit) -> list[Float[np.ndarray, " epochs"]]:
    """Draw the score of each epoch, its error, and which is the best; return what must be seen.

    These are the edges of its band and, wherever it is, the best one, whose weights are kept.
    """
    history, best = trained.history, trained.history[trained.best_epoch - 1]
    epochs = np.array([epoch.number for epoch in history])
    scores = np.array([epoch.score for epoch in history])
    errors = np.array([epoch.score_error or 0.0 for epoch in history])
    marker = "." if len(history) <= FEW_EPOCHS else ""
    axes.plot(epochs, scores, marker=marker, color=MODEL, linewidth=1.3, label="validation")
    said = f"{best.score:.4g}"
    if best.score_error is not None:
        axes.fill_between(
            epochs, scores - errors, scores + errors, color=MODEL, alpha=0.18, linewidth=0,
            label="its standard error",
        )  # fmt: skip
        axes.axhline(
            best.score + best.score_error, color=MODEL, linewidth=0.8, linestyle=":",
            label="within it of the best",
        )  # fmt: skip
        said += f" ± {best.score_error:.2g}"
    label = f"best: {said} in epoch {best.number}"
    axes.plot([best.number], [best.score], "o", color=MODEL, label=label)
    return [scores - errors, scores + errors, np.array([best.score])]


def _show_errors(axes: Axes, trained: Fit) -> None:
    """Make the axis logarithmic, but linear about 0: there errors are seen, and above how it fell.

    A squared MMD is estimated without bias, so it may be below 0.
    """
    if error := trained.history[trained.best_epoch - 1].score_error:
        axes.set_yscale("symlog", linthresh=LINEAR * error)
        ticks = SymmetricalLogLocator(base=10, linthresh=LINEAR * error, subs=[1.0, 2.0, 5.0])
        axes.yaxis.set_major_locator(ticks)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _keep_the_tail_in_view(
    axes: Axes,
    losses: Float[np.ndarray, " points"],
    scores: Sequence[Float[np.ndarray, " _"]],
) -> None:
    """Cut the steep beginning off the y axis, and single losses far off, so the rest is seen.

    Scores are few beside losses, so of them the beginning alone is cut off.
    """
    edges = np.quantile(_tail(losses), (0.003, 0.997))
    seen = np.concatenate([edges, *map(_tail, scores)])
    low, high = float(seen.min()), float(seen.max())
    pad = 0.06 * (high - low) or 1.0
    axes.set_ylim(low - pad, high + pad)


def _tail(curve: Float[np.ndarray, " points"]) -> Float[np.ndarray, " _"]:
    return curve[len(curve) // BEGINNING :]
