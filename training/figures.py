"""Figures of one bundle from several evaluations."""

from collections.abc import Sequence

from service.manifest import Figure
from training.representation import DIVERGENCE


def merged(before: Sequence[Figure], after: Sequence[Figure]) -> tuple[Figure, ...]:
    """Return the figures of before, those of after in place of their namesakes or behind them.

    Of the divergences of latents only the largest are told: where there are new ones, an old one
    that is none of them goes.
    """
    new = {figure.name: figure for figure in after}
    old = {figure.name: figure for figure in before}
    for name, figure in new.items():
        # What was usual by the service's own draws is still so.
        if not figure.values and name in old and old[name].values:
            kept = {"values": old[name].values, "draws": old[name].draws}
            new[name] = figure.model_copy(update=kept)
    if any(name.startswith(DIVERGENCE) for name in new):
        stale = {name for name in old if name.startswith(DIVERGENCE) and name not in new}
        old = {name: figure for name, figure in old.items() if name not in stale}
    return tuple((old | new).values())
