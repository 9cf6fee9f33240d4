"""The benchmark of GANs on images trains what it is told to, and writes what it found."""

import json
from pathlib import Path
from typing import get_args

import pytest
import torch
from PIL import Image
from torch import nn

from benchmarks import objectives, reports
from training.adversarial import Name
from training.checkpoint import Fit
from training.data import Batch, Data
from training.extractor import Extractor
from training.gan import GAN, GANConfig
from training.loop import TrainConfig, TrainingFailed, fit
from training.samples import Features, numbers

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


def test_every_objective_plays() -> None:
    played = {GANConfig(**options).objective for options in objectives.GAMES.values()}
    assert played == set(get_args(Name))


def test_one_command_writes_figures_table_and_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def read(rows: Data, test: Batch, trained: object) -> Features:
        return Features(lambda x: numbers(rows, x)[:, :20], "some pixels")

    recipe = tmp_path / "small.toml"
    recipe.write_text(RECIPE)
    monkeypatch.setattr(reports, "RESULTS", tmp_path)
    monkeypatch.setattr(objectives, "RECIPE", recipe)
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
    assert table in capsys.readouterr().out
    with Image.open(folder / "plot.png") as picture:
        assert picture.size >= (800, 100)
    assert objectives.main(["--report", str(folder)]) == 0
    assert (folder / "table.md").read_text() == table
