"""Export a family's graphs as recipe R1 does and compare ONNX Runtime with float64 torch."""

import copy
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn
from torch.export import Dim

from service.manifest import Role, TensorSpec
from training.family import Family


def differences(
    family: Family, role: Role, *, folder: Path, rows: tuple[int, ...] = (1, 7, 64), draws: int = 3
) -> dict[str, float]:
    """Return, by output, the largest |ONNX Runtime - float64| over batches of these sizes."""
    family = copy.deepcopy(family).eval()
    graph = family.graphs()[role]
    inputs, outputs = family.interface.signature(role)
    path = folder / f"{role}.onnx"
    _export(graph, inputs, [spec.name for spec in outputs], path=path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    exact = copy.deepcopy(graph).double()
    worst = {spec.name: 0.0 for spec in outputs}
    for batch in rows:
        values = [_value(spec, {"batch": batch, "draws": draws}, family) for spec in inputs]
        feed = {spec.name: value.numpy() for spec, value in zip(inputs, values, strict=True)}
        with torch.no_grad():
            expected = exact(*(v.double() if v.is_floating_point() else v for v in values))
        for spec, found, wanted in zip(outputs, session.run(None, feed), expected, strict=True):
            assert found.dtype == np.dtype(spec.dtype)
            assert found.shape == tuple(wanted.shape)
            gap = np.abs(found.astype(np.float64) - wanted.numpy().astype(np.float64)).max()
            worst[spec.name] = max(worst[spec.name], float(gap))
    return worst


def _export(
    graph: nn.Module, inputs: tuple[TensorSpec, ...], outputs: list[str], *, path: Path
) -> None:
    graph.requires_grad_(False)
    axes = {"batch": Dim("batch", min=1, max=4096), "draws": Dim("draws", min=1, max=4096)}
    example = tuple(_value(spec, {"batch": 3, "draws": 2}, None) for spec in inputs)
    shapes = tuple(
        {axis: axes[name] for axis, name in enumerate(spec.shape) if isinstance(name, str)}
        for spec in inputs
    )
    with torch.no_grad():
        # A forward of *inputs has one parameter, hence a tuple within the tuple.
        wrapped = _Named(graph)
        program = torch.export.export(wrapped, example, dynamic_shapes=(shapes,), strict=False)
        torch.onnx.export(
            program,
            (),
            path,
            dynamo=True,
            dynamic_shapes=(shapes,),
            input_names=[spec.name for spec in inputs],
            output_names=outputs,
            opset_version=20,
            external_data=False,
            verbose=False,
        )


class _Named(nn.Module):
    def __init__(self, graph: nn.Module) -> None:
        super().__init__()
        self.graph = graph

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        answer: tuple[Tensor, ...] = self.graph(*inputs)
        return answer


def _value(spec: TensorSpec, axes: dict[str, int], family: Family | None) -> Tensor:
    shape = [axes[axis] if isinstance(axis, str) else axis for axis in spec.shape]
    if spec.dtype == "int64":
        classes = len(family.interface.labels or ()) if family else 2
        return torch.randint(classes, shape)
    if spec.noise == "uniform" or spec.name == "x":
        return torch.rand(shape)
    return torch.randn(shape)
