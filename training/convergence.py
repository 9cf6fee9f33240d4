"""How three estimators of log p(x) come near the truth the more they may spend: a picture."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from training.annealing import PILOTS, Effort, Path
from training.evidence import Weigh, blocks
from training.marginal import PART_CHAINS, Events

GROUPS = 4
"""Estimates of the largest size that are made, so that their spread is seen."""
GRADIENT = 2
"""What an evaluation with its gradient costs, in evaluations."""
FEWEST_TEMPERATURES = 8
"""Of the first path: below, annealing is hardly any."""
QUIET = "#555555"
"""Colour of what is said beside."""
COLOURS = {"prior": "#8a8a8a", "posterior": "#2b6cc8", "annealing": "#c8442b"}
NAMES = {
    "prior": "draws of the prior",
    "posterior": "importance weights (encoder)",
    "annealing": "annealed importance sampling",
}


@dataclass(frozen=True)
class Series:
    """Estimates of mean log p(x) over the same events, made with more and more effort.

    Args:
        cost: Evaluations of log p(x|z) that one estimate spends on an event.
        estimates: For each cost, several independent estimates.
    """

    cost: list[int]
    estimates: list[Float[np.ndarray, " _"]]

    @property
    def mean(self) -> Float[np.ndarray, " sizes"]:
        """What an estimate is on average."""
        return np.array([each.mean() for each in self.estimates])

    @property
    def spread(self) -> Float[np.ndarray, " sizes"]:
        """How far single estimates lie apart: their standard deviation."""
        return np.array([each.std(ddof=1) for each in self.estimates])


def sampled(events: Events, weigh: Callable[[Events], Weigh], draws: int) -> Series:
    """Return the estimates of 1, 2, 4, ... up to so many independent draws.

    All are made of the same draws, cut into groups of each size.
    """
    total = GROUPS * draws
    weights = torch.cat([_weights(part, weigh(part), total) for part in events.parts(total)])
    sizes = [2**k for k in range(draws.bit_length())]
    if sizes[-1] != draws:
        sizes.append(draws)
    return Series(sizes, [_in_groups(weights, size) for size in sizes])


@torch.no_grad()
def _weights(part: Events, weigh: Weigh, total: int) -> Float[Tensor, "batch draws"]:
    counts = blocks(len(part.batch), total)
    return torch.cat([weigh(part.noise(count)).double().cpu() for count in counts], dim=1)


def _in_groups(weights: Float[Tensor, "events draws"], size: int) -> Float[np.ndarray, " groups"]:
    """Return the mean over events of each estimate that so many draws make."""
    groups = weights[:, : weights.shape[1] // size * size].unflatten(1, (-1, size))
    estimates = groups.logsumexp(2) - math.log(size)
    array: np.ndarray = estimates.mean(0).numpy()
    return array


def annealed(events: Events, effort: Effort, advance: Callable[[int], None]) -> Series:
    """Return the estimates of paths of 8, 16, 32, ... up to so many temperatures.

    The chains of each make `GROUPS` estimates of as many chains, so they must be so many at least;
    those left over are not run.
    """
    size = effort.chains // GROUPS
    chains = GROUPS * size
    series = Series([], [])
    for temperatures in ladder(effort.temperatures):
        rung = Effort(temperatures, chains, effort.leapfrogs)
        parts = []
        for part in events.parts(chains, at_once=PART_CHAINS):
            path = Path(part.prior(), part.noise(PILOTS), effort=rung)
            parts.append(path.forward(part.noise(chains)).cpu())
            advance(len(part.batch) * temperatures)
        series.cost.append(GRADIENT * Effort(temperatures, size, effort.leapfrogs).evaluations)
        series.estimates.append(_in_groups(torch.cat(parts), size))
    return series


def ladder(temperatures: int) -> list[int]:
    """Return the lengths of the paths that are tried.

    Example:
        >>> ladder(50)
        [8, 16, 32, 50]
    """
    doubled = [FEWEST_TEMPERATURES * 2**k for k in range(30)]
    return [each for each in doubled if each < temperatures] + [temperatures]


def draw(series: dict[str, Series], *, title: str, events: int) -> Figure:
    """Return the picture of some estimators: what each says on average, and how surely.

    Args:
        series: By `prior`, `posterior` or `annealing`.
        title: What the model is.
        events: How many events the estimates are means over.
    """
    figure = Figure(figsize=(12.5, 5.2), dpi=140, layout="constrained", facecolor="white")
    whole, near = figure.subplots(1, 2, width_ratios=(1.25, 1))
    for axes in (whole, near):
        for name, each in series.items():
            _curve(axes, each, name)
        axes.set_xscale("log")
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    best = max(float(each.mean[-1]) for each in series.values())
    low, high = _view(series, best)
    whole.set_ylim(low, high)
    whole.set_ylabel("log p(x) in nats, mean over events")
    last = _last_nats(series, best)
    near.set_ylim(best - last, best + 0.15 * last)
    near.set_title("the strip on the left, enlarged", loc="left", fontsize=10, color=QUIET)
    # Below the encoder's curve, which is nearly there at once, and above the prior's.
    whole.legend(loc="center left", frameon=False)
    for axes in (whole, near):
        axes.axhline(best, color="#222222", linewidth=0.8, linestyle=(0, (4, 4)), zorder=0)
    # Where the right panel is in the left one.
    whole.axhspan(best - last, best + 0.15 * last, color="#f3edd7", zorder=-1)
    near.set_facecolor("#fcfaf2")
    whole.set_title(
        f"{title}: estimates of log p(x) of {events} test events",
        loc="left",
        fontsize=13,
        fontweight="bold",
    )
    figure.supxlabel(
        "evaluations of p(x|z) for each event (with its gradient, an evaluation counts twice)\n"
        "Every estimate is too low on average: higher is nearer the truth. "
        "Bands: standard deviation of a single estimate.",
        fontsize=10,
        color=QUIET,
    )
    return figure


def _curve(axes: Axes, series: Series, name: str) -> None:
    mean, spread, colour = series.mean, series.spread, COLOURS[name]
    axes.plot(series.cost, mean, "o-", color=colour, markersize=4, label=NAMES[name])
    axes.fill_between(
        series.cost, mean - spread, mean + spread, color=colour, alpha=0.2, linewidth=0
    )


def _view(series: dict[str, Series], best: float) -> tuple[float, float]:
    """Return the limits of the vertical axis, which leave out how bad the prior begins."""
    ends = [float(each.mean[-1]) for each in series.values()]
    firsts = [float(each.mean[0]) for name, each in series.items() if name != "prior"]
    depth = best - min(ends + firsts)
    return best - 1.15 * depth, best + 0.12 * depth


def _last_nats(series: dict[str, Series], best: float) -> float:
    """Return how far below the best to look closely: at the upper half of the better curves."""
    curve = series.get("posterior") or series["annealing"]
    return max(0.05, 1.2 * (best - float(curve.mean[len(curve.cost) // 3])))
