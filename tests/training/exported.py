"""Runs a family's exported graphs and says how far they are from float64."""

import copy

import numpy as np
import onnx
import torch
from torch import Tensor

from service.interface import Role, TensorSpec
from service.runtime import onnxruntime
from training.export import to_onnx
from training.family import Family, outputs_of


def used(graph: onnx.GraphProto) -> set[str]:
    """Return the names that a graph's nodes read, those inside its loops too."""
    names = {name for node in graph.node for name in node.input}
    bodies = (each.g for node in graph.node for each in node.attribute if each.HasField("g"))
    return names.union(*map(used, bodies))


def differences(
    family: Family, role: Role, *, rows: tuple[int, ...] = (1, 7, 64), draws: int = 3
) -> dict[str, float]:
    """Return, by output, the largest |ONNX Runtime - float64| over batches of these sizes."""
    graphs = copy.deepcopy(family).eval().requires_grad_(False).graphs()
    graph, outputs = graphs[role], outputs_of(graphs, family.interface, role)
    inputs, _ = family.interface.signature(role)
    file = to_onnx(graph, inputs, outputs)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    whole = onnx.load_from_string(file).graph
    assert not {weight.name for weight in whole.initializer} - used(whole), "of another graph"
    assert [each.name for each in session.get_inputs()] == [spec.name for spec in inputs]
    assert [each.name for each in session.get_outputs()] == [spec.name for spec in outputs]
    exact = copy.deepcopy(graph).double()
    worst = {spec.name: 0.0 for spec in outputs}
    for batch in rows:
        values = feeds(family, role, rows=batch, draws=draws)
        feed = {spec.name: value.numpy() for spec, value in zip(inputs, values, strict=True)}
        with torch.no_grad():
            expected = exact(*map(double, values))
        for spec, found, wanted in zip(outputs, session.run(None, feed), expected, strict=True):
            assert found.dtype == np.dtype(spec.dtype)
            gap = np.abs(found.astype(np.float64) - wanted.numpy().astype(np.float64)).max()
            worst[spec.name] = max(worst[spec.name], float(gap))
    return worst


def feeds(family: Family, role: Role, *, rows: int, draws: int = 3) -> list[Tensor]:
    """Return random inputs of a graph, in their order."""
    inputs, _ = family.interface.signature(role)
    return [_value(spec, family, {"batch": rows, "draws": draws}) for spec in inputs]


def double(value: Tensor) -> Tensor:
    """Return numbers in float64, and labels as they are."""
    return value.double() if value.is_floating_point() else value


def _value(spec: TensorSpec, family: Family, axes: dict[str, int]) -> Tensor:
    shape = [axes[axis] if isinstance(axis, str) else axis for axis in spec.shape]
    if spec.dtype == "int64":
        return torch.randint(len(family.interface.labels or ()), shape)
    if spec.noise == "uniform" or spec.name in ("x", "t"):
        return torch.rand(shape)
    return torch.randn(shape)
