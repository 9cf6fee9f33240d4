"""The contract between training and serving: a folder `models/<name>/<version>/`.

Training publishes bundles, serving reads them, and nothing else is shared. This module knows
files; what a manifest may say is `service.manifest`. docs/bundle.md tells people how to make a
bundle from any PyTorch model.
"""

import functools
import hashlib
import io
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
from pydantic import ValidationError

from service.errors import BundleInvalid
from service.manifest import Manifest, Role, TensorSpec
from service.tensors import Array

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"

Stamp = frozenset[tuple[str, int, int, int]]
"""Of each file of a version: its name, its number, its bytes, when it was changed."""

RANDOM_OPERATORS = frozenset(
    {
        "Bernoulli",
        "Multinomial",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    }
)
"""Refused: no request can seed them, and every runtime draws them differently."""

_VERSION = re.compile(r"[1-9][0-9]{0,14}")
"""As a folder. Fifteen digits are a number that JavaScript can hold."""

_DTYPES: dict[int, str] = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.INT64: "int64",
    onnx.TensorProto.UINT8: "uint8",
}


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files are known to be those of its manifest.

    Args:
        folder: Where it lies.
        manifest: What it says of itself.
        files: Every file that the manifest names, in the bytes whose hash was checked. What is
            loaded later is these bytes, so the folder may change meanwhile.
    """

    folder: Path
    manifest: Manifest
    files: Mapping[str, bytes]

    def graph(self, role: Role) -> bytes:
        """Return the ONNX file of a role."""
        return self.files[self.manifest.graphs[role].file]

    @cached_property
    def identity(self) -> str:
        """SHA-256 of the manifest. It holds those of all files, so equal means the same bundle."""
        return digest(self.manifest.model_dump_json().encode())

    @cached_property
    def golden(self) -> dict[str, Array]:
        """The golden vectors, by "<role>.<tensor>"."""
        with np.load(io.BytesIO(self.files[self.manifest.golden.file])) as arrays:
            return {key: arrays[key] for key in arrays.files}


def digest(data: bytes) -> str:
    """Return the SHA-256 of some bytes in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def read(folder: Path) -> Bundle:
    """Return the bundle in a folder after checking everything that needs no runtime.

    Schema, name and version against the folder, hashes, that no file lies elsewhere, forbidden
    operators, tensors of each graph, golden vectors. What only a device can tell (do the golden
    vectors come out?) is checked by `service.session`.

    Raises:
        BundleInvalid: One sentence that says which file or field is wrong, and how.
    """
    manifest = _read_manifest(folder)
    if (folder.parent.name, folder.name) != (manifest.name, str(manifest.version)):
        raise BundleInvalid(
            f"{folder}: the manifest says {manifest.name} version {manifest.version}, so the "
            f"folder must be {manifest.name}/{manifest.version}.",
            field="name",
        )
    hashes = {graph.file: graph.sha256 for graph in manifest.graphs.values()}
    for role, graph in manifest.graphs.items():
        if graph.sha256 != hashes[graph.file]:
            raise BundleInvalid(
                f"{folder / MANIFEST}: graphs.{role}.sha256 differs from that of another role of "
                f"{graph.file}.",
                field=f"graphs.{role}.sha256",
            )
    hashes[manifest.golden.file] = manifest.golden.sha256
    files = {name: _read_file(folder, name, sha256=sha256) for name, sha256 in hashes.items()}
    bundle = Bundle(folder, manifest, files)
    for role, graph in manifest.graphs.items():
        shared = [other for other in manifest.graphs.values() if other.file == graph.file]
        outputs = {spec.name: spec for other in shared for spec in other.outputs}
        where = f"{folder / graph.file}"
        _check_graph(bundle.graph(role), graph.inputs, tuple(outputs.values()), where=where)
    _check_golden(bundle)
    return bundle


def versions(models: Path, name: str) -> list[int]:
    """Return the versions of a model that lie in `models/<name>/`, newest first."""
    try:
        entries = os.listdir(models / name)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:  # such as lost+found, at the root of a volume
        _pass_over(models / name, error.strerror)
        return []
    return sorted((int(entry) for entry in entries if _VERSION.fullmatch(entry)), reverse=True)


def names(models: Path) -> list[str]:
    """Return the names of the models that have a version in a folder, in order."""
    try:
        return list(lying(models))
    except (FileNotFoundError, NotADirectoryError):
        return []


def lying(models: Path) -> dict[str, tuple[int, ...]]:
    """Return by name, in order, the versions that lie in a folder of models, newest first.

    Raises:
        OSError: The folder itself cannot be looked into, so that nobody knows.
    """
    # What is hidden is none of ours, and what cannot be printed could not be told either.
    entries = sorted(e for e in os.listdir(models) if e[0] != "." and e.isprintable())
    found = {entry: tuple(versions(models, entry)) for entry in entries}
    return {name: numbers for name, numbers in found.items() if numbers}


@functools.lru_cache(maxsize=128)
def _pass_over(folder: Path, why: str) -> None:
    """Say once, and not at every look, that a folder is left out."""
    log.warning("passing over %s: %s", folder, why)


def stamp(folder: Path) -> Stamp:
    """Return what tells whether a version's files have changed since, without reading them."""
    try:
        with os.scandir(folder) as entries:
            statuses = {entry.name: entry.stat(follow_symlinks=False) for entry in entries}
    except OSError:  # gone, or not ours to look into
        return frozenset()
    return frozenset(
        (name, status.st_ino, status.st_size, status.st_mtime_ns)
        for name, status in statuses.items()
    )


def locate(folder: Path, name: str) -> Path | None:
    """Return where a file of a bundle would lie, or None if a link leads out of the folder."""
    path = folder / name
    return path if path.resolve().parent == folder.resolve() else None


def publish(models: Path, manifest: Manifest, files: Mapping[str, bytes]) -> Path:
    """Write a bundle so that it appears all at once, and return its folder.

    It is written beside its place under a hidden name, read back with every check of `read`, and
    renamed. A reader never sees half a bundle, and a bundle that would be refused is not there.

    Args:
        models: Folder of all models.
        manifest: Its version must not exist yet.
        files: Contents by name: the graphs, the golden vectors, and whatever a person looks at.

    Raises:
        BundleInvalid: The version exists, or the bundle would be refused by `read`.
    """
    place = models / manifest.name / str(manifest.version)
    if place.exists():
        raise BundleInvalid(f"{place} exists already. Versions are never overwritten.")
    place.parent.mkdir(parents=True, exist_ok=True)
    workshop = Path(tempfile.mkdtemp(prefix=".publishing-", dir=place.parent))
    try:
        folder = workshop / manifest.name / str(manifest.version)
        folder.mkdir(parents=True)
        text = manifest.model_dump_json(indent=2) + "\n"
        for name, data in {**files, MANIFEST: text.encode()}.items():
            _write_file(folder / name, data)
        read(folder)
        folder.rename(place)
    finally:
        shutil.rmtree(workshop)
    return place


def _write_file(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    if not path.is_file():
        raise BundleInvalid(f"{folder}: there is no {MANIFEST}, so this is no bundle.")
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        others = f" ({error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise BundleInvalid(
            f"{path}: {field + ': ' if field else ''}{first['msg']}{others}.", field=field or None
        ) from error


def _read_file(folder: Path, name: str, *, sha256: str) -> bytes:
    path = locate(folder, name)
    if path is None:
        raise BundleInvalid(f"{folder / name} leads out of the bundle's folder.", field=name)
    if not path.is_file():
        raise BundleInvalid(f"{path}: named in the manifest, and not there.", field=name)
    data = path.read_bytes()
    if digest(data) != sha256:
        raise BundleInvalid(
            f"{path}: its SHA-256 is not the manifest's. The file was changed or cut short.",
            field=name,
        )
    return data


def _check_graph(
    data: bytes,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    *,
    where: str,
) -> None:
    """Pass if a file holds a graph with exactly these tensors, the outputs of all its roles."""
    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf's own class differs between its implementations
        raise BundleInvalid(f"{where}: not an ONNX file ({error}).", field="graphs") from error
    _refuse_noise_and_outside_files(model, where=where)
    fed = {tensor.name for tensor in model.graph.input}
    fed -= {tensor.name for tensor in model.graph.initializer}
    for side, values, specs in (
        ("inputs", [v for v in model.graph.input if v.name in fed], inputs),
        ("outputs", list(model.graph.output), outputs),
    ):
        actual = sorted(map(_describe, values))
        expected = sorted(f"{spec.name} {_erase_names(spec)}" for spec in specs)
        if actual != expected:
            raise BundleInvalid(
                f"{where}: its {side} are {actual}; the manifest says {expected}.",
                field="graphs",
            )


def _refuse_noise_and_outside_files(model: onnx.ModelProto, *, where: str) -> None:
    bodies = [model.graph, *model.functions]
    while bodies:
        body = bodies.pop()
        for tensor in _tensors(body):
            if tensor.external_data or tensor.data_location == onnx.TensorProto.EXTERNAL:
                raise BundleInvalid(
                    f"{where}: weight {tensor.name} lies in another file. Export with "
                    "external_data=False."
                )
        for node in body.node:
            bodies += [a.g for a in node.attribute if a.HasField("g")]
            bodies += [graph for a in node.attribute for graph in a.graphs]
            # Since opset 12 a third input switches Dropout's training mode on.
            trains = node.op_type == "Dropout" and len(node.input) > 2 and node.input[2]
            if node.op_type in RANDOM_OPERATORS or trains:
                raise BundleInvalid(
                    f"{where}: node {node.name or '(unnamed)'} is {node.op_type}, which draws its "
                    "own random numbers. Make the noise an input of the graph."
                )


def _tensors(body: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.TensorProto]:
    """Yield every tensor that a graph or a function holds, but those of the graphs within it."""
    sparse: list[onnx.SparseTensorProto] = []
    if isinstance(body, onnx.GraphProto):
        yield from body.initializer
        sparse += body.sparse_initializer
    for node in body.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            sparse += (attribute.sparse_tensor, *attribute.sparse_tensors)
    for each in sparse:
        yield from (each.values, each.indices)


def _describe(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    dtype = _DTYPES.get(tensor.elem_type, f"type {tensor.elem_type}")
    axes = [str(d.dim_value) if d.HasField("dim_value") else "*" for d in tensor.shape.dim]
    return f"{value.name} {dtype} ({', '.join(axes)})"


def _erase_names(spec: TensorSpec) -> str:
    axes = ["*" if isinstance(axis, str) else str(axis) for axis in spec.shape]
    return f"{spec.dtype} ({', '.join(axes)})"


def _check_golden(bundle: Bundle) -> None:
    where = bundle.folder / bundle.manifest.golden.file
    rows = bundle.manifest.golden.rows
    try:
        golden = bundle.golden
    except Exception as error:  # numpy and zipfile have no common class for a broken file
        raise BundleInvalid(f"{where}: not an npz of numbers ({error}).", field="golden") from error
    for role, graph in bundle.manifest.graphs.items():
        sizes = {"batch": rows}
        for spec in (*graph.inputs, *graph.outputs):
            key = f"{role}.{spec.name}"
            if key not in golden:
                raise BundleInvalid(f"{where}: there is no array {key}.", field=key)
            array = golden[key]
            # The first array with draws decides how many they are in the others.
            for axis, length in zip(spec.shape, array.shape, strict=False):
                if axis == "draws" and length:
                    sizes.setdefault(axis, length)
            shape = [
                sizes.get(axis, axis) if isinstance(axis, str) else axis for axis in spec.shape
            ]
            # What is fed has its type; what is compared with only needs to be a number.
            dtype = spec.dtype if spec in graph.inputs else "numbers"
            typed = array.dtype == dtype if spec in graph.inputs else array.dtype.kind in "iuf"
            if not (typed and array.shape == tuple(shape) and np.isfinite(array).all()):
                raise BundleInvalid(
                    f"{where}: {key} must be finite {dtype} of shape "
                    f"({', '.join(map(str, shape))}); it is {array.dtype} {array.shape}.",
                    field=key,
                )
