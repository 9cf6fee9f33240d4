"""The picture of a run shows each player's loss, the gradients and the score that chose."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from training.checkpoint import Epoch, Fit
from training.curves import draw_curves, moving_average
from training.pictures import png
from training.trace import Point


def run(*turns: str, epochs: int = 29, error: float | None = 0.01) -> Fit:
    """A run whose score is best in its last epoch but one."""
    history = tuple(
        Epoch(
            number=k,
            losses={
                f"{turn}/{name}": 1 / k for turn in turns for name in ("loss", "gradient_norm")
            },
            score=1 / k if k < epochs else 1.0,
            wall_time_s=float(k),
            score_error=error,
        )
        for k in range(1, epochs + 1)
    )
    best = min(history, key=lambda epoch: epoch.score)
    trace = tuple(
        Point(0.1 * k, {name: 1.0 + (-1) ** k for name in history[0].losses})
        for k in range(1, 10 * epochs + 1)
    )
    return Fit(history, best.number, best.score, 1.0, "cpu", trace)


def labels(fit: Fit, panel: int) -> list[str]:
    legend = draw_curves(fit).axes[panel].get_legend()
    assert legend
    return [text.get_text() for text in legend.get_texts()]


def test_a_player_shares_its_panel_with_the_score_and_a_game_has_one_for_each() -> None:
    one, two = run("a"), run("a", "b")
    assert (len(draw_curves(one).axes), len(draw_curves(two).axes)) == (2, 4)
    chosen = ["validation", "its standard error", "within it of the best"]
    best = "best: 0.03571 ± 0.01 in epoch 28"
    assert labels(one, 0) == ["a", *chosen, best]
    assert [labels(two, panel) for panel in range(4)] == [["a"], ["b"], ["a", "b"], [*chosen, best]]
    figure = draw_curves(two, score="held-out MMD²")
    assert figure.axes[3].get_ylabel() == "held-out MMD²"
    assert figure.axes[3].get_yscale() == "symlog"


def test_oscillation_within_an_epoch_is_drawn_and_its_average_is_still() -> None:
    raw, average, *_ = draw_curves(run("a", "b")).axes[0].get_lines()
    assert np.ptp(np.asarray(raw.get_ydata())) == 2.0
    middle = np.asarray(average.get_ydata())[20:-20]
    np.testing.assert_allclose(middle, 1.0, atol=0.1)


def test_score_without_an_error_is_drawn_without_one() -> None:
    assert labels(run("a", error=None), 0) == ["a", "validation", "best: 0.03571 in epoch 28"]


@pytest.mark.parametrize("turns", [("a",), ("a", "b")])
def test_curves_of_a_single_epoch_are_drawn_with_or_without_a_trace(turns: tuple[str, ...]) -> None:
    alone = run(*turns, epochs=1)
    for fit in (alone, replace(alone, trace=())):
        with Image.open(io.BytesIO(png(draw_curves(fit)))) as picture:
            assert picture.width == 700


def test_moving_average_of_a_window_is_the_mean_about_each_point() -> None:
    values = np.random.default_rng(0).random(50)
    found = moving_average(values, 5)
    assert found[20] == pytest.approx(values[18:23].mean())
    assert found[0] == pytest.approx(values[:3].mean())
    np.testing.assert_allclose(moving_average(values, 1), values)


def test_best_and_last_scores_are_in_the_picture_and_a_steep_beginning_is_not() -> None:
    whole = run("a", epochs=400, error=None)
    scores = [50.0, -9.0, *[5.0] * 397, 7.0]
    history = tuple(
        replace(epoch, score=score) for epoch, score in zip(whole.history, scores, strict=True)
    )
    losses = (Point(0.05, {"a/loss": 99.0, "a/gradient_norm": 1.0}), *whole.trace)
    low, high = (
        draw_curves(replace(whole, history=history, best_epoch=2, trace=losses)).axes[0].get_ylim()
    )
    assert -11 < low < -9
    assert 7 < high < 9


def test_every_turn_of_four_is_drawn() -> None:
    axes = draw_curves(run("a", "b", "c", "d")).axes
    assert [len(panel.get_lines()) for panel in axes[:5]] == [2, 2, 2, 2, 8]


def test_gradients_that_are_all_zero_are_drawn_on_a_linear_axis() -> None:
    whole = run("a", "b")
    still = tuple(
        replace(point, means={**point.means, "a/gradient_norm": 0.0, "b/gradient_norm": 0.0})
        for point in whole.trace
    )
    assert draw_curves(whole).axes[2].get_yscale() == "log"
    assert draw_curves(replace(whole, trace=still)).axes[2].get_yscale() == "linear"
