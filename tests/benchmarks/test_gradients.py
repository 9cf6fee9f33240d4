"""The picture of the gradients is drawn from what was measured, and looking changes nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from benchmarks import gradients, reports
from training.data import Data, DataConfig, load
from training.gradients import Gradient


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gradients, "EVERY", 3)
    monkeypatch.setattr(gradients, "WATCHED_ROWS", 4)
    monkeypatch.setattr(gradients, "REPEATS", 20)
    monkeypatch.setattr(reports, "RESULTS", tmp_path)


@pytest.fixture(scope="module")
def data() -> Data:
    return load(DataConfig(source="sklearn:digits", rows=200))


def run(data: Data, watched: tuple[Gradient, ...]) -> dict[str, Any]:
    return gradients.train("binary", "reinforce-baseline", data, steps=6, watched=watched)


def test_one_command_writes_figures_table_and_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    threads = torch.get_num_threads()
    assert gradients.main(["--steps", "6", "--name", "of-a-test"]) == 0
    torch.set_num_threads(threads)
    folder = tmp_path / "of-a-test"
    results = json.loads((folder / "results.json").read_text())
    assert [len(each["elbo"]) for each in results["runs"]] == [2] * 5
    assert [look["step"] for look in results["runs"][0]["looks"]] == [0, 3, 6]
    table = (folder / "table.md").read_text()
    assert table in capsys.readouterr().out
    assert table.count("| reinforce |") == 2
    with Image.open(folder / "plot.png") as picture:
        assert picture.width > 1000
    (folder / "table.md").unlink()
    assert gradients.main(["--report", str(folder)]) == 0
    assert (folder / "table.md").read_text() == table


def test_a_baseline_is_seen_to_take_the_noise_away(data: Data) -> None:
    first = run(data, ("reinforce-baseline", "reinforce"))["looks"][0]["variance"]
    assert first["reinforce"]["low"] > 100 * first["reinforce-baseline"]["high"]


def test_looking_at_gradients_does_not_change_the_run(data: Data) -> None:
    assert run(data, ())["elbo"] == run(data, ("reinforce",))["elbo"]
