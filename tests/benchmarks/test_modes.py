"""The benchmark of the modes that GANs find writes what it found."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks import modes, reports
from benchmarks.modes import regulariser
from training.gan import GANConfig
from training.loop import TrainConfig
from training.mixtures import MIXTURES

OLDER: tuple[str, ...] = ()
"""Kept results whose tables were written by code before this."""


def test_every_game_is_another_and_plays_the_objective_that_it_is_called_by() -> None:
    games = {name: GANConfig(**modes.SIZES, **options) for name, options in modes.GAMES.items()}
    for name, config in games.items():
        assert config.objective == name.partition(",")[0]
    rows = {(config.objective, regulariser(config)) for config in games.values()}
    assert len(rows) == len(games)


def test_kept_tables_are_those_of_their_figures() -> None:
    for folder in sorted(reports.RESULTS.glob("modes-*")):
        if folder.name not in OLDER:
            table = modes.markdown(reports.kept(folder))
            assert (folder / "table.md").read_text(encoding="utf-8") == table, folder.name


def test_one_command_writes_figures_table_and_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reports, "RESULTS", tmp_path)
    monkeypatch.setattr(modes, "HELD_OUT", 0.2)
    monkeypatch.setattr(modes, "SAMPLES", 500)
    monkeypatch.setattr(modes, "SIZES", {"latent": 2, "width": 8, "critic_width": 8, "depth": 1})
    small = TrainConfig(epochs=1, batch_size=100, device="cpu")
    monkeypatch.setattr(modes, "TRAINING", small)
    threads = torch.get_num_threads()
    games = ["kl", "wasserstein, clipped", "non-saturating, unregularised"]
    assert modes.main(["--name", "of-a-test", "--rows", "400", "--only", *games]) == 0
    torch.set_num_threads(threads)
    folder = tmp_path / "of-a-test"
    results = json.loads((folder / "results.json").read_text())
    assert list(results["found"]) == games
    for found in results["found"].values():
        assert set(found) == set(MIXTURES)
    table = (folder / "table.md").read_text()
    assert "| wasserstein, clipped | clip 0.1 |" in table
    assert table in capsys.readouterr().out
    with Image.open(folder / "plot.png") as picture:
        assert picture.size >= (800, 200)
    (folder / "plot.png").unlink()
    assert modes.main(["--report", str(folder)]) == 0
    assert (folder / "plot.png").exists()
    assert (folder / "table.md").read_text() == table
