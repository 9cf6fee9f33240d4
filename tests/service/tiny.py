"""What a tiny bundle is made of: a few lines of ONNX text, and the same in numpy float64."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx.parser

from service import bundle
from service.interface import Interface, Role, TensorSpec
from service.manifest import (
    Figure,
    Golden,
    Graph,
    Manifest,
    Provenance,
    Rejection,
    Tolerance,
)

Floats = npt.NDArray[np.float64]
Arrays = Mapping[str, npt.NDArray[Any]]
Reference = Callable[..., dict[str, npt.NDArray[Any]]]

GOLDEN_ROWS = 8
GOLDEN_DRAWS = 4
TYPES = {"float32": "float", "int64": "int64", "uint8": "uint8"}


@dataclass(frozen=True)
class Tiny:
    """A model small enough to write down.

    `nodes` is the body of each graph in ONNX's text form, `constants` what it may use,
    `references` the same in numpy.
    """

    name: str
    interface: Interface
    nodes: Mapping[Role, str]
    constants: Arrays
    references: Mapping[Role, Reference]
    held_out: tuple[float, ...] = ()
    held_out_draws: int | None = None
    rejection: Rejection | None = None

    def graph(self, role: Role) -> bytes:
        inputs, outputs = self.interface.signature(role)
        constants = ", ".join(
            f"{TYPES[str(value.dtype)]}[{','.join(map(str, value.shape))}] {name} = "
            f"{{{','.join(map(str, value.ravel()))}}}"
            for name, value in self.constants.items()
            if f" {name}" in self.nodes[role].replace("(", " ").replace(",", " ")
        )
        text = (
            f'<ir_version: 10, opset_import: ["": 20]> {role} ({_values(inputs)}) => '
            f"({_values(outputs)}) <{constants}> {{ {self.nodes[role]} }}"
        )
        model: bytes = onnx.parser.parse_model(text).SerializeToString()
        return model

    def golden(self) -> dict[str, npt.NDArray[Any]]:
        generator = np.random.default_rng(0)
        arrays: dict[str, npt.NDArray[Any]] = {}
        for role, reference in self.references.items():
            inputs, _ = self.interface.signature(role)
            feeds = {spec.name: self._input(spec, generator) for spec in inputs}
            for name, array in (feeds | reference(**feeds)).items():
                arrays[f"{role}.{name}"] = array
        return arrays

    def files(self) -> dict[str, bytes]:
        stream = BytesIO()
        np.savez(stream, allow_pickle=False, **self.golden())
        graphs = {f"{role}.onnx": self.graph(role) for role in self.nodes}
        return {**graphs, "golden.npz": stream.getvalue(), "card.md": b"# A tiny model\n"}

    def manifest(self, files: Mapping[str, bytes], version: int = 1) -> Manifest:
        return Manifest(
            **dict(self.interface),
            name=self.name,
            version=version,
            title=self.name.capitalize(),
            graphs={role: self._graph(role, files[f"{role}.onnx"]) for role in self.nodes},
            rejection=self.rejection,
            golden=Golden(sha256=bundle.digest(files["golden.npz"]), rows=GOLDEN_ROWS),
            evaluation=(
                Figure(
                    name="nll",
                    value=1.5,
                    standard_error=0.1,
                    n=100,
                    unit="nats",
                    values=self.held_out,
                    draws=self.held_out_draws,
                ),
            ),
            provenance=PROVENANCE,
            licence="Apache-2.0",
        )

    def publish(self, models: Path, version: int = 1) -> Path:
        files = self.files()
        return bundle.publish(models, self.manifest(files, version), files)

    def _graph(self, role: Role, data: bytes) -> Graph:
        inputs, outputs = self.interface.signature(role)
        return Graph(
            file=f"{role}.onnx",
            sha256=bundle.digest(data),
            inputs=inputs,
            outputs=outputs,
            tolerance={
                # An image's last grey level may fall to either side of a half.
                spec.name: Tolerance(absolute=1.0 if spec.dtype == "uint8" else 1e-4, relative=1e-5)
                for spec in outputs
            },
            rows_exact_at=8,
        )

    def _input(self, spec: TensorSpec, generator: np.random.Generator) -> npt.NDArray[Any]:
        sizes = {"batch": GOLDEN_ROWS, "draws": GOLDEN_DRAWS}
        shape = [axis if isinstance(axis, int) else sizes[axis] for axis in spec.shape]
        if spec.dtype == "int64":
            return generator.integers(0, len(self.interface.labels or ()), shape)
        if spec.name == "scale_tril":
            return np.tril(generator.uniform(0.5, 1.5, shape)).astype(np.float32)
        if spec.name in ("scale", "rate", "t"):
            return generator.uniform(0.2, 1.0, shape).astype(np.float32)
        if spec.noise == "uniform" or (spec.name == "x" and self.interface.event.kind == "image"):
            return generator.uniform(size=shape).astype(np.float32)
        return generator.normal(size=shape).astype(np.float32)


PROVENANCE = Provenance(
    recipe={},
    data="none: written down by hand",
    data_sha256="0" * 64,
    seed=0,
    versions={"onnx": onnx.__version__},
    git_commit=None,
    wall_time_s=0.0,
    device="none",
    parameters=0,
    created="2026-01-01T00:00:00Z",
)


def _values(specs: tuple[TensorSpec, ...]) -> str:
    return ", ".join(
        f"{TYPES[spec.dtype]}[{','.join(map(str, spec.shape))}] {spec.name}" for spec in specs
    )
