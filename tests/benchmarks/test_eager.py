"""The benchmark of graphs beside eager modules goes both ways, and writes what it found."""

import json
from collections.abc import Mapping
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from benchmarks import eager, reports
from benchmarks.eager import Case
from service.session import Session
from service.tensors import Array

SMALL = {
    "layer": "inverse-autoregressive",
    "transform": "affine",
    "layers": 2,
    "width": 8,
    "depth": 1,
}
CASES = (
    Case("VAE", "mnist-vae", batches=(1, 3)),
    Case("continuous flow", "moons-flow-matching", batches=(4,)),
    Case("IAF", "moons-flow", SMALL, batches=(4,)),
)


def test_one_command_writes_figures_and_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reports, "RESULTS", tmp_path)
    monkeypatch.setattr(eager, "CASES", CASES)
    threads = torch.get_num_threads()
    chosen = ["--rounds", "2", "--seconds", "0.001", "--name", "of-a-test", "--note", "Not alone."]
    assert eager.main(chosen) == 0
    torch.set_num_threads(threads)
    folder = tmp_path / "of-a-test"
    cases = json.loads((folder / "results.json").read_text())["cases"]
    assert [list(case["batches"]) for case in cases] == [["1", "3"], ["4"], ["4"]]
    assert [list(case["nodes"]) for case in cases] == [
        ["prior", "decode"],
        ["velocity", "leave"],
        ["decode"],
    ]
    rates = [way for case in cases for each in case["batches"].values() for way in each.values()]
    assert all(len(way) == 2 and min(way) > 0 for way in rates)
    table = (folder / "table.md").read_text()
    assert "Not alone." in table
    assert table in capsys.readouterr().out
    (folder / "table.md").unlink()
    assert eager.main(["--report", str(folder)]) == 0
    assert (folder / "table.md").read_text() == table


def test_ways_that_lead_elsewhere_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    both = eager.Both(*eager._shipped("moons-flow"))
    run = Session.run

    def off(session: Session, feeds: Mapping[str, Array]) -> dict[str, Array]:
        return {name: 1.01 * each for name, each in run(session, feeds).items()}

    monkeypatch.setattr(Session, "run", off)
    with pytest.raises(RuntimeError, match=r"flow: the two ways are .* apart"):
        both.ways(8)


def test_nodes_of_a_loop_count_once() -> None:
    add = helper.make_node("Add", ["a", "a"], ["b"])
    body = helper.make_graph([add, add], "body", [], [])
    loop = helper.make_node("Loop", ["n", "more"], ["c"], body=body)
    value = helper.make_tensor_value_info("a", TensorProto.FLOAT, [1])
    graph: onnx.GraphProto = helper.make_graph([add, loop], "graph", [value], [])
    assert eager.nodes(graph) == 4
