"""The picture: how noisy the gradients are above, what is learnt with each below."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

TITLES = {
    "reinforce": "REINFORCE",
    "reinforce-baseline": "REINFORCE with a baseline",
    "reparametrization": "reparametrization",
}
COLOURS = {
    "reinforce": "#c0392b",
    "reinforce-baseline": "#e08a1e",
    "reparametrization": "#1f5fa8",
}
LATENTS = {
    "normal": "Normal latents, z = mean + scale · noise",
    "binary": "Binary latents: z jumps, so there is no reparametrization",
}


def draw(results: Mapping[str, Any], file: Path) -> None:
    """Write the picture of a run."""
    figure, axes = plt.subplots(2, 2, figsize=(11.5, 7.5), sharex=True, sharey="row")
    for column, (latents, title) in enumerate(LATENTS.items()):
        runs = [run for run in results["runs"] if run["latents"] == latents]
        measured = next(run for run in runs if run["looks"])
        above, below = axes[0, column], axes[1, column]
        above.set_title(title, fontsize=11)
        _variances(above, measured["looks"])
        for run in runs:
            below.plot(*_elbo(run, results["steps"]), color=COLOURS[run["gradient"]])
        _mark_zero(above, below, *_elbo(measured, results["steps"]))
        below.set_xlabel("training steps")
        for axis in (above, below):
            axis.grid(alpha=0.3)
            axis.set_xlim(0, 1.15 * results["steps"])
    axes[0, 0].set_ylabel(f"variance of the gradient in λ ({results['draws']} draws)")
    axes[1, 0].set_ylabel("ELBO, nats per image")
    figure.suptitle(
        "Gradients of the same bound: equal on average, not in noise\n"
        "scikit-learn digits; above all at the same q(z|λ) and decoder, below each in its own run",
        fontsize=11,
    )
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _variances(axis: Axes, looks: list[Any]) -> None:
    """Draw each gradient's variance with its spread over images, and its ratio to the least."""
    steps = [look["step"] for look in looks]
    last = looks[-1]["variance"]
    least = min(found["median"] for found in last.values())
    for gradient in last:
        low, median, high = (
            [look["variance"][gradient][name] for look in looks]
            for name in ("low", "median", "high")
        )
        colour = COLOURS[gradient]
        axis.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
        axis.plot(steps, median, color=colour, label=TITLES[gradient])
        axis.annotate(
            f"× {float(f'{median[-1] / least:.2g}'):,.0f}", (steps[-1], median[-1]), (4, -3),
            textcoords="offset points", color=colour, fontsize=9,
        )  # fmt: skip
    axis.set_yscale("log")
    axis.legend(fontsize=9, loc="lower right")


def _elbo(run: Mapping[str, Any], steps: int) -> tuple[list[float], list[float]]:
    """Return the middle of each stretch of steps and the mean ELBO there."""
    every = steps / len(run["elbo"])
    return [(index + 0.5) * every for index in range(len(run["elbo"]))], run["elbo"]


def _mark_zero(above: Axes, below: Axes, steps: list[float], elbo: list[float]) -> None:
    """Mark where the ELBO passes 0: there is no level that a baseline could take away."""
    if not elbo[0] < 0 < elbo[-1]:
        return
    where = next(step for step, value in zip(steps, elbo, strict=True) if value > 0)
    for axis in (above, below):
        axis.axvline(where, color="#555555", linewidth=1, linestyle=":")
    below.axhline(0, color="#555555", linewidth=1, linestyle=":")
    below.annotate(
        "the ELBO passes 0: for once there is\nno level that a baseline could remove",
        (where, 0), (12, -36), textcoords="offset points", fontsize=8.5, color="#555555",
        arrowprops={"arrowstyle": "-", "color": "#555555", "linewidth": 0.7},
    )  # fmt: skip
