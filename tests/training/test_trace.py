"""The trace of a run is as fine as it can be, however long the run was to be."""

from pathlib import Path

import numpy as np
import pytest

from tests.training.gaussian import Gaussian, gaussian_data
from training import trace
from training.checkpoint import Fit
from training.data import Batch
from training.family import Score
from training.loop import TrainConfig, fit
from training.trace import Point, Trace


def train(folder: Path, model: Gaussian, *, epochs: int = 6, patience: int = 0) -> Fit:
    """Train with ten steps an epoch."""
    config = TrainConfig(epochs=epochs, patience=patience, batch_size=20, learning_rate=0.05)
    return fit(model, gaussian_data(), config, folder=folder, key="k")


def test_trace_is_finer_than_epochs_and_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fine = train(tmp_path / "fine", Gaussian())
    assert [point.epoch for point in fine.trace] == pytest.approx([k / 10 for k in range(1, 61)])
    first = [point.means for point in fine.trace[:10]]
    for name, mean in fine.history[0].losses.items():
        assert np.mean([each[name] for each in first]) == pytest.approx(mean)
    monkeypatch.setattr(trace, "POINTS", 8)
    coarse = train(tmp_path / "coarse", Gaussian()).trace
    assert [point.epoch for point in coarse] == pytest.approx([0.4 * k for k in range(1, 16)])
    losses = [point.means["likelihood/loss"] for point in fine.trace]
    assert [point.means["likelihood/loss"] for point in coarse] == pytest.approx(
        np.reshape(losses, (15, 4)).mean(axis=1)
    )


def test_trace_of_a_run_that_patience_ends_early_is_as_fine_as_of_any_other(
    tmp_path: Path,
) -> None:
    class Stuck(Gaussian):
        def score(self, batch: Batch) -> Score:
            return Score(1.0)

    found = train(tmp_path, Stuck(), epochs=2000, patience=3)
    assert len(found.history) == 4
    assert len(found.trace) == 40


def test_steps_that_fill_no_point_are_the_last_point(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "POINTS", 2)
    found = Trace()
    for step in range(1, 8):
        found.add({"a/loss": float(step)})
        found.close_step(step / 10)
    # Of the first four steps two points, which are of two steps then, a third, and a step alone.
    assert found.span == 2
    assert found.until(0.7) == (
        Point(0.2, {"a/loss": 1.5}), Point(0.4, {"a/loss": 3.5}),
        Point(0.6, {"a/loss": 5.5}), Point(0.7, {"a/loss": 7.0}),
    )  # fmt: skip
