"""Weights that lie beside the graphs: the same files come back, and nothing else is read."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from service import bundle, external
from service.errors import BundleInvalid
from service.manifest import Weights
from service.proof import replay
from service.session import Device, Session
from service.tensors import Array
from tests.service.bundles import AFFINE

SHARED = np.random.default_rng(0).normal(size=(40, 40)).astype(np.float32)
OWN = np.random.default_rng(1).normal(size=(40, 8)).astype(np.float32)


def product(*weights: Array) -> bytes:
    """Return a graph that multiplies x with one weight after the other."""
    names = [f"w{k}" for k in range(len(weights))]
    nodes = [
        helper.make_node("MatMul", [f"x{k}" if k else "x", name], [f"x{k + 1}"])
        for k, name in enumerate(names)
    ]
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 40])],
        [helper.make_tensor_value_info(f"x{len(weights)}", TensorProto.FLOAT, ["batch", None])],
        [numpy_helper.from_array(value, name) for value, name in zip(weights, names, strict=True)],
    )
    imports = [helper.make_opsetid("", 20)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    return bytes(model.SerializeToString(deterministic=True))


def either(weight: Array) -> bytes:
    """Return a graph whose weight is held by the body of an If."""
    names = ("yes", "no")
    bodies = [
        helper.make_graph(
            [helper.make_node("MatMul", ["x", f"w_{name}"], [f"y_{name}"])],
            name,
            [],
            [helper.make_tensor_value_info(f"y_{name}", TensorProto.FLOAT, ["batch", 40])],
            [numpy_helper.from_array(weight, f"w_{name}")],
        )
        for name in names
    ]
    graph = helper.make_graph(
        [helper.make_node("If", ["c"], ["y"], then_branch=bodies[0], else_branch=bodies[1])],
        "either",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 40]),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 40])],
    )
    imports = [helper.make_opsetid("", 20)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    return bytes(model.SerializeToString(deterministic=True))


WHOLE = {"a.onnx": product(SHARED, OWN), "b.onnx": product(SHARED), "c.onnx": either(SHARED)}


def test_joined_undoes_parted_to_the_byte() -> None:
    files, weights = external.parted(WHOLE)
    assert {
        name: external.joined(data, weights, where=name) for name, data in files.items()
    } == WHOLE


def test_each_weight_lies_there_once() -> None:
    files, weights = external.parted(WHOLE)
    assert weights == SHARED.tobytes() + OWN.tobytes()
    # An If holds two copies, of which one stays in the file.
    assert sum(map(len, files.values())) < SHARED.nbytes + 1000


def test_small_weights_stay_where_they_are() -> None:
    small = {"a.onnx": product(np.eye(40, dtype=np.float32)[:, :6])}
    assert external.parted(small) == (small, b"")


def test_any_onnx_tool_opens_the_files_where_they_lie(tmp_path: Path) -> None:
    files, weights = external.parted(WHOLE)
    for name, data in (*files.items(), (external.FILE, weights)):
        (tmp_path / name).write_bytes(data)
    onnx.checker.check_model(tmp_path / "a.onnx")
    x = np.random.default_rng(2).normal(size=(3, 40)).astype(np.float32)
    for name in ("a.onnx", "b.onnx"):
        here = onnxruntime.InferenceSession(tmp_path / name).run(None, {"x": x})
        whole = onnxruntime.InferenceSession(WHOLE[name]).run(None, {"x": x})
        np.testing.assert_array_equal(here[0], whole[0])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"offset": "-4"}, "is said to be 6400 bytes at -4 of weights.bin"),
        ({"offset": "1e3"}, "is said to be 6400 bytes at 1e3"),
        ({"offset": str(10**12)}, "is said to be 6400 bytes at 1000000000000"),
        ({"length": "6401"}, "is said to be 6401 bytes at 0 of weights.bin, which has 6400"),
        ({"length": ""}, "is said to be some bytes at 0"),
    ],
)
def test_place_that_is_not_there_is_refused(changes: dict[str, str], says: str) -> None:
    files, weights = external.parted({"b.onnx": product(SHARED)})
    model = onnx.load_model_from_string(files["b.onnx"])
    for entry in model.graph.initializer[0].external_data:
        entry.value = changes.get(entry.key, entry.value)
    with pytest.raises(BundleInvalid, match=says):
        external.joined(model.SerializeToString(), weights, where="b.onnx")


def test_same_bytes_are_not_taken_a_thousand_times() -> None:
    files, weights = external.parted({"a.onnx": product(SHARED, SHARED + 1)})
    model = onnx.load_model_from_string(files["a.onnx"])
    first, second = (tensor.external_data for tensor in model.graph.initializer)
    second[1].value = first[1].value
    assert external.joined(model.SerializeToString(), weights, where="a.onnx")
    model.graph.initializer.extend(1000 * [model.graph.initializer[0]])
    with pytest.raises(BundleInvalid, match=r"take more bytes than weights\.bin has, 12800"):
        external.joined(model.SerializeToString(), weights, where="a.onnx")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Publish a bundle all of whose weights lie beside its graphs."""
    monkeypatch.setattr(external, "LEAST_BYTES", 1)
    whole = AFFINE.files()
    graphs = {name: _raw(data) for name, data in whole.items() if name.endswith(".onnx")}
    files, weights = external.parted(graphs)
    said = AFFINE.manifest({**whole, **files})
    said = said.model_copy(update={"weights": Weights(sha256=bundle.digest(weights))})
    return bundle.publish(tmp_path, said, {**whole, **files, external.FILE: weights})


def _raw(data: bytes) -> bytes:
    """Return a graph whose weights are raw bytes, as exporters write them."""
    model = onnx.load_model_from_string(data)
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
    return bytes(model.SerializeToString(deterministic=True))


def test_bundle_of_shared_weights_repeats_its_golden_vectors(folder: Path) -> None:
    read = bundle.read(folder)
    assert (folder / external.FILE).stat().st_size > 0
    for role in read.manifest.graphs:
        assert replay(read, [role], Session(read, role, Device("cpu")))[role]


def test_bundle_without_its_weights_is_refused(folder: Path) -> None:
    (folder / external.FILE).unlink()
    with pytest.raises(BundleInvalid, match=r"weights\.bin: named in the manifest, and not there"):
        bundle.read(folder)


def test_bundle_with_other_weights_is_refused(folder: Path) -> None:
    weights = bytearray((folder / external.FILE).read_bytes())
    weights[0] ^= 1
    (folder / external.FILE).write_bytes(weights)
    with pytest.raises(BundleInvalid, match=r"weights\.bin: its SHA-256 is not the manifest's"):
        bundle.read(folder)


def test_weights_that_the_manifest_does_not_name_are_refused(folder: Path) -> None:
    said = bundle.read(folder).manifest.model_copy(update={"weights": None})
    (folder / bundle.MANIFEST).write_text(said.model_dump_json())
    with pytest.raises(BundleInvalid, match=r"weight mix lies in another file"):
        bundle.read(folder)
