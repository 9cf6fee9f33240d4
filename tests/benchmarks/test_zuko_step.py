"""The benchmark beside zuko times one architecture on both sides, and writes what it found."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import reports, zuko_step
from benchmarks.zuko_flows import like
from benchmarks.zuko_step import AGREEMENT, CASES, Case, Pair, count, gap
from tests.training.cases import of, shaken
from training.flow import Flow

FEATURES = 5
SMALL = {"layers": 3, "width": 8, "depth": 1}
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zuko_step, "SIZES", SMALL)
    monkeypatch.setattr(zuko_step, "BATCH", 16)
    monkeypatch.setattr(zuko_step, "FEATURES", (FEATURES,))


def test_one_command_writes_figures_and_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reports, "RESULTS", tmp_path)
    threads = torch.get_num_threads()
    chosen = ["--rounds", "2", "--seconds", "0.001", "--name", "of-a-test", "--note", "Not alone."]
    assert zuko_step.main(chosen) == 0
    torch.set_num_threads(threads)
    folder = tmp_path / "of-a-test"
    cases = json.loads((folder / "results.json").read_text())["cases"]
    assert [(each["case"], each["features"]) for each in cases] == [
        (case.title, FEATURES) for case in CASES
    ]
    times = [side for case in cases for side in case["step_s"].values()]
    assert all(len(side) == 2 and min(side) > 0 for side in times)
    table = (folder / "table.md").read_text()
    assert "Not alone." in table
    assert table in capsys.readouterr().out
    (folder / "table.md").unlink()
    assert zuko_step.main(["--report", str(folder)]) == 0
    assert (folder / "table.md").read_text() == table


@every_case
def test_both_sides_have_the_same_parameters_and_densities(case: Case) -> None:
    torch.manual_seed(0)
    x = 2 + 3 * torch.randn(64, FEATURES)
    flow = shaken(Flow(case.config, of(x)))
    assert count(like(flow)) == count(flow)
    assert gap(flow, x) <= AGREEMENT


@every_case
def test_a_step_changes_all_that_is_learnt(case: Case) -> None:
    pair = Pair(case.config, FEATURES)
    for side in ("ours", "zuko"):
        before = [each.detach().clone() for each in pair.models[side].parameters()]
        pair.steps[side]()
        after = pair.models[side].parameters()
        assert all((a != b).any() for a, b in zip(before, after, strict=True))


@every_case
def test_other_densities_are_not_timed(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zuko_step, "equal_to", like)
    with pytest.raises(RuntimeError, match=r"expected .* apart"):
        Pair(case.config, FEATURES)


def test_the_median_decides_what_was_met() -> None:
    def verdict(ours: list[float]) -> str:
        case = {"case": "MAF", "features": 8, "parameters": 1000}
        times = {"ours": ours, "zuko": [1.0, 1.0, 1.0]}
        (row,) = zuko_step.rows({"cases": [{**case, "step_s": times}]})
        return row[-1]

    assert verdict([0.9, 1.0, 1.5]) == "met"
    assert verdict([0.9, 1.01, 1.5]) == "missed"
