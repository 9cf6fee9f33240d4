"""The loop trains, resumes bit for bit, and stops with a sentence."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from tests.training.gaussian import Gaussian, gaussian_data
from training import loop, progress, trace
from training.checkpoint import CHECKPOINT, CheckpointRefused, Fit, Run
from training.data import Batch
from training.family import Score, Turn
from training.loop import (
    TrainConfig,
    TrainingFailed,
    fit,
    permutation,
    rate,
    rows_of,
    validate,
)
from training.trace import Trace

DATA = gaussian_data()
CONFIG = TrainConfig(
    epochs=6,
    batch_size=20,
    learning_rate=0.05,
    warmup_steps=5,
    gradient_clip=1.0,
    weight_decay=0.01,
    ema=0.9,
)


def train(folder: Path, model: Gaussian, config: TrainConfig = CONFIG, key: str = "k") -> Fit:
    return fit(model, DATA, config, folder=folder, key=key)


def test_fit_finds_the_maximum_likelihood(tmp_path: Path) -> None:
    model = Gaussian(noise=0.0)
    found = train(tmp_path, model, CONFIG.model_copy(update={"epochs": 40, "weight_decay": 0.0}))
    torch.testing.assert_close(model.mean.detach(), DATA.train.x.mean(0), atol=0.02, rtol=0)
    assert found.best_score == min(epoch.score for epoch in found.history)
    assert found.history[found.best_epoch - 1].score == found.best_score


@pytest.mark.parametrize("calls", [30, 34, 25])
def test_killed_run_ends_with_the_same_bits_as_one_that_never_was(
    tmp_path: Path, calls: int
) -> None:
    straight = Gaussian()
    whole = train(tmp_path / "straight", straight)

    killed = Gaussian()
    killed.stop_at = calls
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed", killed)
    torch.manual_seed(1234)  # a new process starts with other generators
    resumed = Gaussian()
    parts = train(tmp_path / "killed", resumed)

    assert resumed.calls == 60 - calls // 10 * 10
    assert torch.equal(resumed.mean, straight.mean)
    assert torch.equal(resumed.seen, straight.seen)
    assert [e.losses for e in parts.history] == [e.losses for e in whole.history]
    assert [e.score for e in parts.history] == [e.score for e in whole.history]
    assert parts.trace == whole.trace
    assert parts.best_epoch == whole.best_epoch


def test_kill_within_an_epoch_loses_no_step_that_was_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY_S", -1.0)  # at every step
    # So that points are of four steps by then, and the kill comes after the first of one of them.
    monkeypatch.setattr(trace, "POINTS", 8)
    straight = Gaussian()
    whole = train(tmp_path / "straight", straight)
    killed = Gaussian()
    killed.stop_at = 37
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed", killed)
    resumed = Gaussian()
    parts = train(tmp_path / "killed", resumed)
    assert resumed.calls == 60 - 37
    assert torch.equal(resumed.mean, straight.mean)
    assert [e.losses for e in parts.history] == [e.losses for e in whole.history]
    assert parts.trace == whole.trace


def test_gradient_norms_are_logged_as_they_were_before_the_clip(tmp_path: Path) -> None:
    config = TrainConfig(epochs=1, batch_size=200, gradient_clip=0.01)
    found = train(tmp_path, Gaussian(noise=0.0), config)
    # The gradient of the mean negative log-density at 0 is minus the mean.
    expected = DATA.train.x.mean(0).norm().item()
    assert found.history[0].losses["likelihood/gradient_norm"] == pytest.approx(expected)
    events = EventAccumulator(str(tmp_path)).Reload()
    (event,) = events.Scalars("train/likelihood/gradient_norm")
    assert event.value == pytest.approx(expected)


def test_moves_of_a_step_are_on_different_rows_and_an_epoch_is_one_pass(tmp_path: Path) -> None:
    seen: list[Tensor] = []

    class Eager(Gaussian):
        def turns(self) -> tuple[Turn, ...]:
            (turn,) = super().turns()
            return (replace(turn, times=3),)

        def _loss(self, batch: Batch) -> Mapping[str, Tensor]:
            seen.append(batch.x)
            return super()._loss(batch)

    found = train(tmp_path, Eager(), TrainConfig(epochs=1, batch_size=20))
    assert [len(x) for x in seen] == [20] * 9
    assert len(torch.cat(seen).unique(dim=0)) == 180
    assert len(found.trace) == 3


def test_turn_of_one_move_sees_the_rows_of_the_first_of_another(tmp_path: Path) -> None:
    seen: dict[str, list[Tensor]] = {"often": [], "once": []}

    class Two(Gaussian):
        def turns(self) -> tuple[Turn, ...]:
            (turn,) = super().turns()

            def loss(name: str, batch: Batch) -> Mapping[str, Tensor]:
                seen[name].append(batch.x)
                return turn.loss(batch)

            return tuple(
                replace(turn, name=name, times=times, loss=partial(loss, name))
                for name, times in (("often", 3), ("once", 1))
            )

    train(tmp_path, Two(), TrainConfig(epochs=1, batch_size=20))
    assert len(seen["once"]) == 3
    for first, alone in zip(seen["often"][::3], seen["once"], strict=True):
        assert torch.equal(first, alone)


def test_few_rows_serve_every_move(tmp_path: Path) -> None:
    order = torch.randperm(50)
    first, second = rows_of(order, 0, size=40, moves=2)
    assert (len(first), len(second)) == (40, 40)
    assert set(torch.cat([first, second]).tolist()) == set(range(50))
    assert [part.tolist() for part in rows_of(order, 0, size=80, moves=2)] == [order.tolist()] * 2


def test_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    first, again = Gaussian(), Gaussian()
    train(tmp_path, first)
    train(tmp_path, again)
    assert again.calls == 0
    assert torch.equal(first.mean, again.mean)


def test_wall_time_counts_earlier_sessions(tmp_path: Path) -> None:
    before = train(tmp_path, Gaussian()).history[-1].wall_time_s
    assert train(tmp_path, Gaussian()).wall_time_s >= before > 0


def test_checkpoint_of_another_recipe_is_refused_and_left_alone(tmp_path: Path) -> None:
    train(tmp_path, Gaussian(), key="one")
    bytes_before = (tmp_path / CHECKPOINT).read_bytes()
    with pytest.raises(CheckpointRefused, match="of another recipe, of other data"):
        train(tmp_path, Gaussian(), key="two")
    assert (tmp_path / CHECKPOINT).read_bytes() == bytes_before


def test_checkpoint_of_an_earlier_version_is_refused_in_a_sentence(tmp_path: Path) -> None:
    train(tmp_path, Gaussian())
    state = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    del state["trace"]
    torch.save(state, tmp_path / CHECKPOINT)
    with pytest.raises(CheckpointRefused, match="of an earlier version of the package"):
        train(tmp_path, Gaussian())


def test_broken_checkpoint_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / CHECKPOINT).write_bytes(b"PK\x03\x04 half a file")
    with pytest.raises(CheckpointRefused, match="cannot be read"):
        train(tmp_path, Gaussian())


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_loss_that_is_not_finite_stops_with_turn_epoch_and_step(
    tmp_path: Path, factor: float
) -> None:
    model = Gaussian()
    model.factor = factor
    with pytest.raises(TrainingFailed, match=r"turn 'likelihood', epoch 1, step 1: the loss is"):
        train(tmp_path, model)


def test_score_that_is_not_finite_stops_training(tmp_path: Path) -> None:
    class Scoreless(Gaussian):
        def score(self, batch: Batch) -> Score:
            return Score(math.nan)

    with pytest.raises(TrainingFailed, match="epoch 1: the validation score is nan"):
        train(tmp_path, Scoreless())


def test_validation_leaves_no_trace_and_repeats() -> None:
    model = Gaussian()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = validate(model, DATA.validation, seed=0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert validate(model, DATA.validation, seed=0) == first


def test_validation_weighs_its_chunks_by_size(monkeypatch: pytest.MonkeyPatch) -> None:
    class Quiet(Gaussian):
        def score(self, batch: Batch) -> Score:
            return Score.mean(self.nats(batch, 1)["nll"].values)

    whole = validate(Quiet(), DATA.validation, seed=0)
    monkeypatch.setattr(loop, "VALIDATION_ROWS", 30)
    parts = validate(Quiet(), DATA.validation, seed=0)
    assert parts.value == pytest.approx(whole.value, rel=1e-6)
    # Of 100 rows whose half a chi-squared of two degrees, shifted, has some spread.
    assert parts.standard_error == pytest.approx(whole.standard_error, rel=0.1)
    monkeypatch.setattr(Quiet, "score", lambda *_: Score(2.0))
    assert validate(Quiet(), DATA.validation, seed=0) == Score(2.0)


@pytest.mark.parametrize("index", [0, 1])
def test_checkpoint_holds_the_random_state_of_its_own_gpu_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, index: int
) -> None:
    device, state = torch.device("cuda", index), torch.arange(16, dtype=torch.uint8)
    restored: list[tuple[Tensor, torch.device]] = []
    monkeypatch.setattr(Run, "_device", device)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda which: state + which.index)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda *given: restored.append(given))
    model = Gaussian()
    run = Run(model, model, {}, tmp_path / CHECKPOINT, "k", Trace(span=1))
    run.save()
    assert run.resume()
    ((found, where),) = restored
    assert torch.equal(found, state + index)
    assert where == device


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_killed_run_on_a_gpu_ends_with_the_same_bits(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"device": "cuda"})
    straight, killed, resumed = Gaussian(), Gaussian(), Gaussian()
    train(tmp_path / "straight", straight, config)
    killed.stop_at = 34
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed", killed, config)
    torch.manual_seed(1234)
    train(tmp_path / "killed", resumed, config)
    assert torch.equal(resumed.mean, straight.mean)


def test_patience_ends_a_run_that_no_longer_improves(tmp_path: Path) -> None:
    class Stuck(Gaussian):
        def score(self, batch: Batch) -> Score:
            return Score(1.0)

    config = CONFIG.model_copy(update={"epochs": 50, "patience": 3})
    found = train(tmp_path, Stuck(), config)
    assert (found.best_epoch, len(found.history)) == (1, 4)
    again = Stuck()
    assert len(train(tmp_path, again, config).history) == 4
    assert again.calls == 0


def test_average_starts_with_the_weights_and_not_with_their_initial_values(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"ema": 0.9999, "epochs": 40, "weight_decay": 0.0})
    model = Gaussian(noise=0.0)
    train(tmp_path, model, config)
    torch.testing.assert_close(model.mean.detach(), DATA.train.x.mean(0), atol=0.2, rtol=0)


def test_without_an_average_the_weights_themselves_come_back(tmp_path: Path) -> None:
    config = TrainConfig(epochs=1, batch_size=200, learning_rate=0.1)
    model = Gaussian(noise=0.0)
    train(tmp_path, model, config)
    # One step of Adam from 0 is the learning rate, in the direction of the data.
    torch.testing.assert_close(model.mean.detach(), torch.tensor([0.1, -0.1]), atol=1e-6, rtol=0)


class Game(Gaussian):
    """Two players on two numbers: each turn may move its own alone."""

    def __init__(self) -> None:
        super().__init__()
        self.rival = nn.Parameter(torch.zeros(2))

    def turns(self) -> tuple[Turn, ...]:
        def loss(sign: float) -> Callable[[Batch], Mapping[str, Tensor]]:
            return lambda batch: {"loss": sign * (self.mean - self.rival + 1).sum()}

        return (
            Turn("first", (self.mean,), loss(1.0), rate=2.0),
            Turn("second", (self.rival,), loss(-1.0)),
        )


def test_each_turn_moves_its_own_parameters_at_its_own_rate(tmp_path: Path) -> None:
    model = Game()
    train(tmp_path, model, TrainConfig(epochs=1, batch_size=200, learning_rate=0.1))
    assert model.mean.tolist() == pytest.approx([-0.2, -0.2])
    assert model.rival.tolist() == pytest.approx([-0.1, -0.1])


def test_every_epoch_has_its_own_order_of_rows() -> None:
    first, second = (permutation(50, seed=0, epoch=epoch) for epoch in (0, 1))
    assert not torch.equal(first, second)
    assert torch.equal(first, permutation(50, seed=0, epoch=0))
    assert sorted(first.tolist()) == list(range(50))


def test_rate_rises_in_a_line_and_falls_along_a_cosine() -> None:
    config = TrainConfig(epochs=10, warmup_steps=4)
    assert [rate(config, step, 10) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert rate(config, 4, 10) == 1.0
    assert rate(config, 52, 10) == pytest.approx(0.5)
    assert rate(config, 100, 10) == pytest.approx(0.0)
    assert rate(config.model_copy(update={"schedule": "constant"}), 90, 10) == 1.0


def test_cuda_that_is_not_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(TrainingFailed, match="finds no CUDA device"):
        train(tmp_path, Gaussian(), CONFIG.model_copy(update={"device": "cuda"}))


def test_pipe_gets_a_line_an_epoch_and_a_long_run_no_more_than_some(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path, Gaussian())
    assert capsys.readouterr().out.count("epoch") == 6
    monkeypatch.setattr(progress, "LINES", 10)
    train(tmp_path / "long", Gaussian(), CONFIG.model_copy(update={"epochs": 25}))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 9
    assert lines[-1].startswith("epoch 25/25: likelihood ")


def test_run_that_patience_ends_has_its_last_line_and_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stuck(Gaussian):
        def score(self, batch: Batch) -> Score:
            return Score(1.0)

    monkeypatch.setattr(progress, "LINES", 10)
    train(tmp_path, Stuck(), CONFIG.model_copy(update={"epochs": 50, "patience": 3}))
    assert capsys.readouterr().out.splitlines()[-1].startswith("epoch 4/50: ")
    assert (tmp_path / "samples.png").exists()


def test_run_leaves_logs_and_a_picture(tmp_path: Path) -> None:
    train(tmp_path, Gaussian())
    with Image.open(tmp_path / "samples.png") as picture:
        assert picture.size == (1260, 420)
    events = EventAccumulator(str(tmp_path)).Reload()
    scores = [event.value for event in events.Scalars("validation/score")]
    assert len(scores) == 6
    assert events.Tags()["images"] == ["samples"]
