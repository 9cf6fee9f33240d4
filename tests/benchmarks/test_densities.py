"""The densities of tables: how rows are cut, what the baselines are, and that a report is made."""

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import densities, reports
from training.flow_config import FlowConfig
from training.loop import TrainConfig


def test_each_row_is_judged_once_by_models_that_did_not_see_it() -> None:
    x = np.arange(53.0)[:, None]
    parts = list(densities.cut(x))
    assert len(parts) == densities.PARTS
    assert sorted(np.concatenate([test for *_, test in parts])[:, 0]) == list(range(53))
    for part in parts:
        assert sorted(np.concatenate(part)[:, 0]) == list(range(53))
    choosing = [set(choose[:, 0]) for _, choose, _ in parts]
    assert all(one != other for one, other in combinations(choosing, 2))


def test_columns_with_values_that_come_often_are_left_out() -> None:
    generator = np.random.default_rng(0)
    x = np.column_stack(
        [generator.normal(size=100), np.arange(100) % 19, generator.normal(size=100)]
    )
    assert np.array_equal(densities.continuous(x), x[:, [0, 2]])


def test_gaussian_is_that_of_all_rows_but_the_tested_ones() -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(300, 3)) @ generator.normal(size=(3, 3)) * 50 + 7
    train, choose, test = x[:200], x[200:250], x[250:]
    seen = torch.from_numpy(x[:250])
    expected = torch.distributions.MultivariateNormal(
        seen.mean(0), torch.cov(seen.T, correction=0)
    ).log_prob(torch.from_numpy(test))
    found = densities.gaussian(train, choose, test)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-9)


def test_mixture_finds_two_clusters_that_one_gaussian_does_not() -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(600, 2)) + np.where(generator.random((600, 1)) < 0.5, 30, -30)
    train, choose, test = x[:400], x[400:500], x[500:]
    mixed, one = (judge(train, choose, test) for judge in (densities.mixture, densities.gaussian))
    # Of each: log 2 for the cluster, and the entropy of two normal numbers.
    assert mixed.mean() == pytest.approx(-np.log(2) - np.log(2 * np.pi * np.e), abs=0.2)
    assert one.mean() < mixed.mean() - 1


def test_flow_learns_of_the_rows_that_choose_too() -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(600, 2)) + np.where(np.arange(600) < 400, 4, -4)[:, None]
    train, choose, test = x[:400], x[400:500], x[500:]
    config = FlowConfig(layers=2, width=16, depth=1)
    training = TrainConfig(epochs=3, batch_size=50, learning_rate=1e-2, device="cpu")
    model, best = densities._learned(train, choose, config, training)
    assert 1 <= best <= 3
    with torch.no_grad():
        first = model.eval().log_density(torch.from_numpy(test))
    again, _ = densities.flow(train, choose, test, [config], training)
    assert again.mean() > first.mean().item() + 1


def test_rows_to_choose_by_choose_the_flow() -> None:
    """They and the tested ones want the opposite."""
    x = np.random.default_rng(0).normal(size=(300, 2))
    tried = [FlowConfig(layers=2, width=16, depth=1, noise=noise) for noise in (1.0, 0.0)]
    training = TrainConfig(epochs=4, batch_size=20, learning_rate=1e-2, device="cpu")
    narrow, wide = x[200:250], 2 * x[250:]
    for choose, test, expected in ((narrow, wide, 0.0), (wide, narrow, 1.0)):
        _, chosen = densities.flow(x[:200], choose, test, tried, training)
        assert chosen.noise == expected


def test_made_up_houses_are_finite_and_the_same_each_time() -> None:
    x = densities.houses(500)
    assert x.shape == (500, 8)
    assert np.isfinite(x).all()
    assert np.array_equal(x, densities.houses(500))
    assert densities.continuous(x).shape == x.shape


def test_report_is_made_of_a_run_and_again_of_its_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reports, "RESULTS", tmp_path)
    monkeypatch.setattr(densities, "COMPONENTS", (1, 2))
    monkeypatch.setattr(densities, "RIDGES", (1e-2,))
    small = FlowConfig(layers=2, width=8, depth=1, whiten=True, noise=0.2)
    trials = densities.Trials([small], TrainConfig(epochs=5, batch_size=32), seeds=2)
    monkeypatch.setattr(densities, "FEW_ROWS", trials)
    assert densities.main(["--only", "wine", "--epochs", "1", "--name", "of-a-test"]) == 0
    folder = tmp_path / "of-a-test"
    (wine,) = json.loads((folder / "results.json").read_text())["tables"]
    for name in ("gaussian", "mixture"):
        assert wine[f"over {name}"][0] == pytest.approx(wine["flow"][0] - wine[name][0])
    written = (folder / "table.md").read_text()
    assert "| wine | 178 | 9 |" in written
    assert wine["train"]["epochs"] == 1
    assert wine["flow"][0] == pytest.approx(np.mean([mean for mean, _ in wine["flow by seed"]]))
    one, other = wine["flow by seed"]
    assert one != other
    assert wine["noise by seed"] == [[0.2] * densities.PARTS] * 2
    capsys.readouterr()
    assert densities.main(["--report", str(folder)]) == 0
    assert written in capsys.readouterr().out
