"""The picture of the estimators shows what they say, and how surely."""

import math

import numpy as np
import pytest
import torch

from tests.training.linear_gaussian import LinearGaussian
from training import convergence
from training.annealing import Effort
from training.convergence import COLOURS, GROUPS, NAMES, Series, annealed, draw, sampled
from training.data import Batch
from training.marginal import Events
from training.pictures import render


@pytest.fixture(scope="module")
def known() -> tuple[Events, float]:
    """Events, and the mean of their log p(x)."""
    linear = LinearGaussian()
    linear.model.requires_grad_(False)
    x = linear.x[:20]
    return Events.of(linear.model, Batch(x)), linear.marginal.log_prob(x).mean().item()


def test_estimates_of_more_draws_come_nearer_from_below(known: tuple[Events, float]) -> None:
    events, exact = known
    torch.manual_seed(0)
    series = sampled(events, Events.posterior, 100)
    assert series.cost == [1, 2, 4, 8, 16, 32, 64, 100]
    assert [len(each) for each in series.estimates][:2] == [400, 200]
    assert len(series.estimates[-1]) == 4
    # Few groups are left at the end.
    assert (np.diff(series.mean[:-2]) > 0).all()
    assert (np.diff(series.spread[:-2]) < 0).all()
    assert abs(series.mean[-1] - exact) < 4.5 * series.spread[-1] + 0.01
    # Each size is made of the same draws, so that all of one draw average to the ELBO.
    error = series.spread[0] / math.sqrt(400)
    bound = sampled(events, Events.posterior, 1000).mean[0]
    assert abs(series.mean[0] - bound) <= 4.5 * error


def test_longer_paths_come_nearer_and_cost_what_they_take(known: tuple[Events, float]) -> None:
    events, exact = known
    torch.manual_seed(0)
    told: list[int] = []
    series = annealed(events, Effort(32, 16, 3), told.append)
    # Four chains make an estimate; each step takes a gradient, and so do four pilots.
    assert series.cost == [2 * 8 * (3 * (t - 1) + 1) for t in (8, 16, 32)]
    assert (np.diff(series.mean) > 0).all()
    assert series.mean[-1] < exact + 4.5 * series.spread[-1]
    assert told == [20 * t for t in (8, 16, 32)]


@pytest.mark.parametrize("chains", [4, 7, 11])
def test_chains_make_four_estimates_whatever_is_left_over(
    known: tuple[Events, float], chains: int
) -> None:
    torch.manual_seed(0)
    series = annealed(known[0], Effort(8, chains, 2), lambda _: None)
    assert [len(each) for each in series.estimates] == [GROUPS]
    assert series.cost == [2 * (chains // 4 + 4) * (2 * 7 + 1)]


def test_paths_of_a_part_are_as_many_as_elsewhere(
    known: tuple[Events, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convergence, "PART_CHAINS", 40)
    told: list[int] = []
    annealed(known[0], Effort(8, 4, 2), told.append)
    assert told == [80, 80]


@pytest.mark.parametrize("names", [("prior", "posterior", "annealing"), ("prior", "annealing")])
def test_picture_has_a_curve_and_a_band_for_each_estimator(names: tuple[str, ...]) -> None:
    series = {
        name: Series([1, 10, 100], [np.array([a - 1, a + 1]) for a in (-9.0 * k, -3.0 * k, -1.0)])
        for k, name in enumerate(names, start=1)
    }
    figure = draw(series, title="toy", events=7)
    whole, near = figure.axes
    assert "toy" in whole.get_title(loc="left")
    assert "7 test events" in whole.get_title(loc="left")
    for axes in (whole, near):
        assert axes.get_xscale() == "log"
        colours = [line.get_color() for line in axes.get_lines()]
        assert all(COLOURS[name] in colours for name in names)
        assert len(axes.collections) >= len(names)
    low, high = near.get_ylim()
    assert low < -1.0 < high
    legend = whole.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [NAMES[name] for name in names]
    assert render(figure).std() > 0
