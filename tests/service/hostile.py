"""Ways to spoil a bundle, each by hand: what somebody could put into the folder."""

import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
from onnx import TensorProto, helper

from service import bundle

Spoil = Callable[[Path], object]
Manifest = dict[str, Any]

HEAD = '<ir_version: 10, opset_import: ["": 20]> g (float[batch,2] z) => (float[batch,2] x) '


def manifest(change: Callable[[Manifest], object]) -> Spoil:
    """Change the manifest."""

    def spoil(folder: Path) -> None:
        path = folder / bundle.MANIFEST
        said = json.loads(path.read_text())
        change(said)
        path.write_text(json.dumps(said))

    return spoil


def text(change: Callable[[str], str]) -> Spoil:
    """Change the manifest as a text."""

    def spoil(folder: Path) -> None:
        path = folder / bundle.MANIFEST
        path.write_text(change(path.read_text()))

    return spoil


def put(folder: Path, data: bytes, *, of: str) -> None:
    """Put another file there, with its hash in the manifest: `of` decode or golden."""
    name = "decode.onnx" if of == "decode" else "golden.npz"
    (folder / name).write_bytes(data)

    def tell(said: Manifest) -> None:
        entry = said["golden"] if of == "golden" else said["graphs"]["decode"]
        entry["sha256"] = bundle.digest(data)

    manifest(tell)(folder)


def graph(nodes: str, *, functions: str = "", head: str = HEAD) -> Spoil:
    """Put another graph there, in ONNX's text form."""

    def spoil(folder: Path) -> None:
        model = onnx.parser.parse_model(f"{head}{nodes} {functions}")
        put(folder, model.SerializeToString(), of="decode")

    return spoil


def forged(change: Callable[[onnx.ModelProto], object]) -> Spoil:
    """Change the graph."""

    def spoil(folder: Path) -> None:
        model = onnx.load(folder / "decode.onnx")
        change(model)
        put(folder, model.SerializeToString(), of="decode")

    return spoil


def golden(change: Callable[[dict[str, Any]], object]) -> Spoil:
    """Change the golden vectors."""

    def spoil(folder: Path) -> None:
        with np.load(folder / "golden.npz") as there:
            arrays = dict(there)
        change(arrays)
        stream = io.BytesIO()
        np.savez(stream, allow_pickle=True, **arrays)
        put(folder, stream.getvalue(), of="golden")

    return spoil


def file(name: str, change: Callable[[Path], object]) -> Spoil:
    """Do something to a file."""
    return lambda folder: change(folder / name)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def cut_and_hashed(of: str) -> Spoil:
    """Cut a file short, and let the manifest agree to it."""

    def spoil(folder: Path) -> None:
        path = folder / ("decode.onnx" if of == "decode" else "golden.npz")
        put(folder, path.read_bytes()[:-10], of=of)

    return spoil


def link(path: Path) -> None:
    outside = path.parents[2] / "outside"
    path.rename(outside)
    path.symlink_to(outside)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def sparse(size: int) -> Callable[[Path], None]:
    """Make a file huge that takes no room on the disk."""
    return lambda path: os.truncate(path, size)


def bomb(folder: Path) -> None:
    """Put golden vectors there that would unpack to 4 TB, of which there is a megabyte."""
    header = io.BytesIO()
    about = {"descr": "<f4", "fortran_order": False, "shape": (2**40,)}
    np.lib.format.write_array_header_1_0(header, about)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("decode.z", "decode.x"):
            archive.writestr(f"{name}.npy", header.getvalue() + bytes(2**20))
    put(folder, stream.getvalue(), of="golden")


def honest_bomb(folder: Path) -> None:
    """Put golden vectors there that fit the manifest, and unpack to 3 GB of zeros."""
    width = 2**23

    def widen(said: Manifest) -> None:
        said["event"]["shape"] = said["latent"]["shape"] = [width]
        said["golden"]["rows"] = 48
        decode = said["graphs"]["decode"]
        for side in ("inputs", "outputs"):
            decode[side][0]["shape"] = ["batch", width]

    manifest(widen)(folder)
    shape = onnx.parser.parse_model(
        HEAD.replace("batch,2", f"batch,{width}") + "{ x = Identity(z) }"
    )
    put(folder, shape.SerializeToString(), of="decode")
    header = io.BytesIO()
    about = {"descr": "<f4", "fortran_order": False, "shape": (48, width)}
    np.lib.format.write_array_header_1_0(header, about)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("decode.z", "decode.x"):
            archive.writestr(f"{name}.npy", header.getvalue() + bytes(2**20))
    put(folder, stream.getvalue(), of="golden")


def linked_folder(folder: Path) -> None:
    elsewhere = folder.parents[1] / "elsewhere"
    shutil.move(folder, elsewhere)
    folder.symlink_to(elsewhere)


def claim(dims: list[int]) -> Callable[[onnx.ModelProto], None]:
    """Let a weight say that it is larger than it is."""

    def change(model: onnx.ModelProto) -> None:
        model.graph.initializer[0].dims[:] = dims

    return change


def thin(model: onnx.ModelProto) -> None:
    """Add a sparse weight of a terabyte with one number in it."""
    values = helper.make_tensor("thin", TensorProto.FLOAT, [1], [1.0])
    indices = helper.make_tensor("indices", TensorProto.INT64, [1], [0])
    sparse = helper.make_sparse_tensor(values, indices, [10**12])
    model.graph.sparse_initializer.append(sparse)


def move_outside(model: onnx.ModelProto) -> None:
    weight = model.graph.initializer[0]
    weight.ClearField("float_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../../../secret")


def not_a_number(model: onnx.ModelProto) -> None:
    weight = helper.make_tensor("shift", TensorProto.FLOAT, [1], [float("nan")])
    model.graph.initializer[0].CopyFrom(weight)


def dice(model: onnx.ModelProto) -> None:
    """Draw noise three graphs deep: in a branch of a loop's body within a function."""
    noise = helper.make_node("RandomNormalLike", ["a"], ["b"])
    deep = helper.make_graph([noise], "deep", [], [])
    for _ in range(2):
        nested = helper.make_node("If", ["c"], ["b"], then_branch=deep, else_branch=deep)
        deep = helper.make_graph([nested], "deep", [], [])
    opsets = [helper.make_opsetid("", 20)]
    model.functions.append(
        helper.make_function("local", "f", ["a", "c"], ["b"], list(deep.node), opsets)
    )


def many(model: onnx.ModelProto) -> None:
    model.graph.node.extend(
        helper.make_node("Identity", ["z"], [f"unused_{number}"]) for number in range(60_000)
    )
