"""The tables of a card: a model's figures, sorted by the task that they judge."""

import math
from collections.abc import Iterator, Sequence

from service.manifest import Figure, Manifest
from training.representation import DIVERGENCE


def with_error(figure: Figure) -> str:
    """Return "1.234 ± 0.012": the error with two digits, the value to the same place."""
    error = figure.standard_error
    if not error or not math.isfinite(error):
        return f"{figure.value:.4g}"
    places = max(0, 1 - math.floor(math.log10(error)))
    return f"{figure.value:.{places}f} ± {error:.{places}f}"


def quality(manifest: Manifest) -> str:
    """Return the tables of a manifest's figures, one for each task, under headings."""
    latents = [each for each in manifest.evaluation if each.name.startswith(DIVERGENCE)]
    parts = [
        "Measured on the test split, which training never saw, with the standard error of each "
        "figure."
    ]
    for task, figures in _by_task(manifest.evaluation).items():
        pairs = [*_pairs(figures)]
        paired = {each.name for pair in pairs for each in pair}
        alone = [figure for figure in figures if figure.name not in paired]
        parts.append(f"### {task}")
        parts += [_figures(alone)] if alone else []
        parts += [_beside(pairs)] if pairs else []
    if latents:
        parts.append(_divergences(latents, manifest.latent.size))
    return "\n\n".join(parts)


_TASKS = {
    "Density": ("negative ", "gap of "),
    "Samples": (
        "MMD",
        "energy ",
        "sliced Wasserstein",
        "C2ST ",
        "KID",
        "FID",
        "precision",
        "recall",
        "density",
        "coverage",
        "C_T",
        "modes covered",
        "good share",
        "class",
        "samples ",
        "real test data ",
        "error of the solver",
    ),
    "Codes": ("active units", "linear probe "),
    "Critic": ("critic: ",),
    "Integral": ("integral", "effective sample size", "variance of uniform ", "largest weight "),
}
"""What a figure's name begins with, by the task that it judges."""


def _by_task(figures: Sequence[Figure]) -> dict[str, list[Figure]]:
    """Return the figures of each task that there are any of, and what belongs to none."""
    found: dict[str, list[Figure]] = {task: [] for task in (*_TASKS, "Other")}
    for figure in figures:
        if not figure.name.startswith(DIVERGENCE):
            fitting = (task for task, names in _TASKS.items() if figure.name.startswith(names))
            found[next(fitting, "Other")].append(figure)
    return {task: of for task, of in found.items() if of}


def _figures(figures: Sequence[Figure]) -> str:
    lines = ["| figure | value | unit | n | note |", "|---|---|---|---|---|"]
    for figure in figures:
        cells = (figure.name, with_error(figure), figure.unit, f"{figure.n:,}", figure.note)
        lines.append(_row(cells))
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    # A bar, as in E[x|z], would end the cell.
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _pairs(figures: Sequence[Figure]) -> Iterator[tuple[Figure, Figure]]:
    """Yield figures of samples, each with that of training rows."""
    known = {figure.name: figure for figure in figures}
    for name, figure in known.items():
        what, of, rest = name.partition(" of samples")
        beside = known.get(f"{what} of training{rest}") or known.get(f"{what} of training rows")
        if of and beside:
            yield figure, beside


def _beside(pairs: Sequence[tuple[Figure, Figure]]) -> str:
    lines = [
        "Samples beside test rows, and training rows beside the same, which is what a perfect "
        "model would get:",
        "",
        "| figure | samples | training rows | unit | n | note |",
        "|---|---|---|---|---|---|",
    ]
    for ours, theirs in pairs:
        name = ours.name.partition(" of samples")[0]
        cells = (
            name, with_error(ours), with_error(theirs), ours.unit, f"{ours.n:,}", ours.note,
        )  # fmt: skip
        lines.append(_row(cells))
    return "\n".join(lines)


def _divergences(figures: Sequence[Figure], size: int) -> str:
    """Return the table of the latents that say the most of x, that first which says the most."""
    ordered = sorted(figures, key=lambda figure: figure.value, reverse=True)
    lines = [
        f"What each latent says of an event, KL(q(z|x) || p(z)) in nats, mean of "
        f"{ordered[0].n:,} events: the {len(ordered)} largest of {size}, of which one near 0 says "
        "nothing.",
        "",
        "| latent | KL |",
        "|---|---|",
    ]
    for figure in ordered:
        lines.append(f"| {figure.name.removeprefix(DIVERGENCE)} | {with_error(figure)} |")
    return "\n".join(lines)
