"""The benchmark of GANs on images trains what it is told to, and writes what it found."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from benchmarks import objectives, reports
from benchmarks.modes import regulariser
from training import recipe
from training.checkpoint import Fit
from training.data import Batch, Data
from training.extractor import Extractor
from training.gan import GAN, GANConfig
from training.loop import TrainConfig, TrainingFailed, fit
from training.samples import Features, numbers

OLDER = ("objectives-h200-2026-11-28",)
"""Kept results whose tables were written by code before this."""
RECIPE = """
name = "small"
title = "Small"
licence = "CC0-1.0"
[data]
source = "sklearn:digits"
test_fraction = 0.2
[model]
family = "gan"
width = 4
critic_width = 4
[train]
epochs = 1
batch_size = 64
"""
KNOWN = Extractor(
    name="none", accuracy=0.1, standard_error=0.0, test_rows=1, features=1, data="", steps=1,
    data_sha256="", seed=0, sha256="",
)  # fmt: skip


def fit_or_fail(model: GAN, data: Data, config: TrainConfig, *, folder: Path, key: str) -> Fit:
    if model.config.regulariser == "clip":
        raise TrainingFailed("epoch 1: the loss is inf")
    return fit(model, data, config, folder=folder, key=key)


def test_every_game_is_another_and_plays_the_objective_that_it_is_called_by() -> None:
    own = recipe.read(objectives.RECIPE).model.model_dump(exclude_unset=True)
    games = {name: GANConfig(**own | options) for name, options in objectives.GAMES.items()}
    for name, config in games.items():
        assert config.objective == name.partition(",")[0]
    rows = {(config.objective, regulariser(config)) for config in games.values()}
    assert len(rows) == len(games)


def test_kept_tables_are_those_of_their_figures() -> None:
    for folder in sorted(reports.RESULTS.glob("objectives-*")):
        if folder.name not in OLDER:
            table = objectives.markdown(reports.kept(folder))
            assert (folder / "table.md").read_text(encoding="utf-8") == table, folder.name


def test_one_command_writes_figures_table_and_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def read(rows: Data, test: Batch, trained: object) -> Features:
        return Features(lambda x: numbers(rows, x)[:, :20], "some pixels")

    small = tmp_path / "small.toml"
    small.write_text(RECIPE)
    monkeypatch.setattr(reports, "RESULTS", tmp_path)
    monkeypatch.setattr(objectives, "RECIPE", small)
    monkeypatch.setattr(objectives, "features_of", read)
    unread = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), KNOWN
    monkeypatch.setattr("benchmarks.objectives.extractor.load", lambda: unread)
    monkeypatch.setattr(objectives, "fit", fit_or_fail)
    threads = torch.get_num_threads()
    games = ["non-saturating", "mmd-distance", "wasserstein, clipped"]
    assert objectives.main(["--name", "of-a-test", "--only", *games]) == 0
    torch.set_num_threads(threads)
    folder = tmp_path / "of-a-test"
    results = json.loads((folder / "results.json").read_text())
    assert list(results["found"]) == games
    for game in games[:2]:
        assert set(objectives.FIGURES.values()) <= set(results["found"][game])
    assert set(objectives.FIGURES.values()) == set(results["beside"])
    table = (folder / "table.md").read_text()
    assert "| mmd-distance | gradient-penalty 1 |" in table
    assert "| wasserstein, clipped | clip 0.05 | failed |" in table
    assert "\n| training rows |  |" in table
    assert "By some pixels, 359 samples beside as many test rows of the same labels" in table
    assert "read as asked: of 359, by none." in table
    assert table in capsys.readouterr().out
    with Image.open(folder / "plot.png") as picture:
        assert picture.size >= (800, 100)
    assert objectives.main(["--report", str(folder)]) == 0
    assert (folder / "table.md").read_text() == table


def test_table_of_games_that_all_failed_has_as_many_cells_in_every_line() -> None:
    results = {
        "machine": {"date": "today", "cores": 1, "python": "3", "torch": "2", "commit": "none"},
        "recipe": {
            "model": {"family": "gan", "width": 4, "critic_width": 4},
            "train": {"epochs": 1, "batch_size": 64},
        },
        "games": {"hinge": objectives.GAMES["hinge"]},
        "found": {"hinge": {"failed": "epoch 1: the loss is inf"}},
        "beside": {},
        "seconds": 60.0,
    }
    lines = [line for line in objectives.markdown(results).splitlines() if line.startswith("|")]
    assert len(lines) == 4
    assert len({line.count("|") for line in lines}) == 1
