"""Each target's sampler is of its density, and the benchmark of flows writes what it found."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import reports, target_densities, targets
from benchmarks.target_densities import Target
from training.continuous_config import ContinuousFlowConfig
from training.flow_config import FlowConfig

TARGETS = {target.name: target for target in target_densities.targets()}
each_target = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)


@each_target
def test_density_integrates_to_one(target: Target) -> None:
    mass, _ = target.integrals()
    assert mass == pytest.approx(1.0, abs=1e-12 if target.name == "checkerboard" else 1e-4)


@each_target
def test_sampler_is_of_its_density(target: Target) -> None:
    """The mean of -log p over its own events is the entropy."""
    x = target.draw(20_000, np.random.default_rng(0))
    nats = -target.log_density(x)
    error = nats.std() / math.sqrt(len(nats))
    assert abs(nats.mean() - target.integrals()[1]) <= 4.5 * error + 1e-12


@each_target
def test_events_fill_the_plane_as_the_density_says(target: Target) -> None:
    """Their numbers in squares of side 0.5 are those expected: mean chi-square of each is 1."""
    n, side = 20_000, 0.5
    left, right, bottom, top = target.window
    edges = [np.arange(low, high + 1e-9, side) for low, high in ((left, right), (bottom, top))]
    fine = target.grid(0.02)
    p = np.exp(target.log_density(fine)) * 0.02**2
    expected = n * np.histogramdd(fine, bins=edges, weights=p)[0]
    x = target.draw(n, np.random.default_rng(1))
    seen = np.histogramdd(x, bins=edges)[0]
    enough = expected >= 5
    chi_square = ((seen - expected) ** 2 / expected.clip(1e-300))[enough]
    assert chi_square.mean() - 1 <= 4.5 * math.sqrt(2 / enough.sum())
    assert seen[expected < 1e-9].sum() == 0


def test_entropy_of_a_board_of_half_its_squares_is_the_log_of_their_area() -> None:
    assert TARGETS["checkerboard"].integrals()[1] == pytest.approx(math.log(32), abs=1e-12)


def test_entropy_of_eight_gaussians_is_that_of_another_rule() -> None:
    """By symmetry all is seen from one of them, where the Gauss-Hermite rule applies."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(120)
    places = np.stack(np.meshgrid(nodes, nodes), axis=-1).reshape(-1, 2)
    weight = np.outer(weights, weights).ravel() / weights.sum() ** 2
    x = target_densities.CENTRES[0] + target_densities.SPREAD * places
    by_hermite = -(weight * TARGETS["eight Gaussians"].log_density(x)).sum()
    assert by_hermite == pytest.approx(2.831578, abs=1e-6)
    assert TARGETS["eight Gaussians"].integrals()[1] == pytest.approx(by_hermite, abs=1e-6)


def test_one_command_writes_figures_table_and_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reports, "RESULTS", tmp_path)
    monkeypatch.setattr(targets, "TRAIN_ROWS", 2_048)
    monkeypatch.setattr(targets, "VALIDATION_ROWS", 100)
    monkeypatch.setattr(targets, "FLOW", FlowConfig(layers=2, width=8, depth=1))
    small = ContinuousFlowConfig(width=8, depth=1, solver="rk4", steps=2)
    monkeypatch.setattr(targets, "CONTINUOUS", small)
    threads = torch.get_num_threads()
    assert targets.main(["--epochs", "1", "--rows", "500", "--name", "of-a-test"]) == 0
    torch.set_num_threads(threads)
    folder = tmp_path / "of-a-test"
    results = json.loads((folder / "results.json").read_text())
    assert [target["name"] for target in results["targets"]] == list(TARGETS)
    for target in results["targets"]:
        for kind in targets.MODELS:
            excess, error = target[kind]["paired"]
            assert excess >= -4.5 * error
        assert abs(target["continuous flow"]["doubled"][0]) <= 0.1
    with Image.open(folder / "plot.png") as picture:
        assert picture.size >= (800, 800)
    table = (folder / "table.md").read_text()
    assert table in capsys.readouterr().out
    (folder / "plot.png").unlink()
    assert targets.main(["--report", str(folder)]) == 0
    assert (folder / "plot.png").exists()
    assert (folder / "table.md").read_text() == table
