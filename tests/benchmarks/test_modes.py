"""Modes are counted as they are, and the benchmark of GANs writes what it found."""

import json
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import modes, reports
from training.adversarial import Name
from training.gan import GANConfig
from training.loop import TrainConfig
from training.mixtures import MIXTURES, Mixture

each_mixture = pytest.mark.parametrize("mixture", MIXTURES.values(), ids=MIXTURES)


@each_mixture
def test_perfect_samples_cover_all_modes(mixture: Mixture) -> None:
    found = modes.judged(mixture.draw(20_000, spread=mixture.spread, seed=0), mixture)
    assert found["modes"] == len(mixture.centres)
    share, error = found["good"]
    # In the plane, 1 - exp(-9/2) of a Gaussian is within three deviations.
    assert abs(share - 0.98889) <= 4.5 * error


def test_generator_of_five_of_eight_modes_has_five() -> None:
    ring = MIXTURES["ring"]
    part = Mixture(ring.centres[[0, 1, 3, 4, 6]], ring.spread)
    found = modes.judged(part.draw(5_000, spread=ring.spread, seed=0), ring)
    assert found["modes"] == 5
    assert [place for place, hits in enumerate(found["hits"]) if hits] == [0, 1, 3, 4, 6]
    assert found["good"][0] > 0.98


def test_samples_between_the_modes_are_not_good_and_few_do_not_cover_one() -> None:
    ring = MIXTURES["ring"]
    assert modes.judged(ring.draw(1_000, spread=0.0, seed=0) * 1.1, ring)["modes"] == 0
    few = np.concatenate([np.repeat(ring.centres[:1], 995, 0), np.repeat(ring.centres[1:2], 5, 0)])
    found = modes.judged(few, ring)
    assert (found["modes"], found["good"][0]) == (1, 1.0)


def test_every_objective_plays() -> None:
    played = {GANConfig(**options).objective for options in modes.GAMES.values()}
    assert played == set(get_args(Name))


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
