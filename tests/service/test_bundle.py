"""Every way in which a bundle is refused, by its sentence, and how one is published."""

import io
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from service import bundle, graphs
from service.errors import BundleInvalid
from tests.service.bundles import AFFINE, ALL, TILES
from tests.service.ppca import LATENT, PPCA
from tests.service.tiny import Tiny

Change = Callable[[dict[str, Any]], object]


def edit(folder: Path, change: Change) -> None:
    path = folder / bundle.MANIFEST
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def forge(folder: Path, change: Callable[[onnx.ModelProto], object]) -> None:
    """Change the decode graph, and its hash in the manifest with it."""
    path = folder / "decode.onnx"
    model = onnx.load(path)
    change(model)
    path.write_bytes(model.SerializeToString())
    sha256 = bundle.digest(path.read_bytes())
    edit(folder, lambda manifest: manifest["graphs"]["decode"].update(sha256=sha256))


def regild(folder: Path, data: bytes) -> None:
    """Put in other golden vectors, and their hash."""
    (folder / "golden.npz").write_bytes(data)
    edit(folder, lambda manifest: manifest["golden"].update(sha256=bundle.digest(data)))


def npz(**arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=True, **arrays)
    return stream.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return AFFINE.publish(tmp_path)


def refused(folder: Path, *, by: str) -> None:
    with pytest.raises(BundleInvalid, match=re.escape(by)):
        bundle.read(folder)


@pytest.mark.parametrize("tiny", ALL + LATENT, ids=lambda tiny: tiny.name)
def test_published_bundle_is_read_as_it_was_written(tiny: Tiny, tmp_path: Path) -> None:
    folder = tiny.publish(tmp_path)
    assert folder == tmp_path / tiny.name / "1"
    read = bundle.read(folder)
    files = tiny.files()
    assert read.manifest == tiny.manifest(files)
    assert read.graph("decode") == files["decode.onnx"]
    for key, array in tiny.golden().items():
        np.testing.assert_array_equal(read.golden[key], array)


def test_identity_is_that_of_the_content(tmp_path: Path) -> None:
    first, second = (bundle.read(AFFINE.publish(tmp_path / name)) for name in "ab")
    other = bundle.read(AFFINE.publish(tmp_path / "a", version=2))
    assert first.identity == second.identity != other.identity


def test_folder_without_a_manifest_is_no_bundle(tmp_path: Path) -> None:
    refused(tmp_path, by="there is no manifest.json, so this is no bundle.")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "\xff"])
def test_broken_manifest_is_refused(folder: Path, text: str) -> None:
    (folder / bundle.MANIFEST).write_text(text, encoding="latin-1")
    refused(folder, by="manifest.json: ")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda m: m.update(schema_version=2), "schema_version"),
        (lambda m: m.update(extra=1), "extra"),
        (lambda m: m.update(name="../affine"), "name"),
        (lambda m: m.update(version=0), "version"),
        (lambda m: m.pop("licence"), "licence"),
        (lambda m: m["graphs"].pop("decode"), "every bundle has a decode graph"),
        (lambda m: m["graphs"].pop("log_density"), "needs a log_density graph"),
        (lambda m: m["graphs"]["decode"].update(sha256="short"), "graphs.decode.sha256"),
        (lambda m: m["graphs"]["decode"].update(tolerance={}), "tolerance must name"),
        (lambda m: m["graphs"]["decode"]["inputs"][0].update(name="y"), "graphs.decode.inputs"),
        (lambda m: m["event"].update(shape=[3]), "2 feature names for 3 features"),
        (lambda m: m.update(observation="normal"), "observation: goes with an observe graph"),
        (lambda m: m["density"].update(kind="none"), "estimator exact is of kind exact, not none"),
        (
            lambda m: m["density"].update(estimator="importance"),
            "estimator importance is of kind estimate, not exact",
        ),
        (lambda m: m["density"].update(estimator=None), "estimator None is of kind none"),
        (
            lambda m: m["event"].update(minimum=1.0, maximum=0.0),
            "minimum 1 is not below maximum 0",
        ),
    ],
)
def test_manifest_that_breaks_the_schema_is_refused_by_field(
    folder: Path, change: Change, field: str
) -> None:
    edit(folder, change)
    refused(folder, by=field)


@pytest.mark.parametrize("file", ["../decode.onnx", "/etc/passwd", ".hidden.onnx", "a/b.onnx"])
def test_file_name_that_leads_elsewhere_is_refused(folder: Path, file: str) -> None:
    edit(folder, lambda manifest: manifest["graphs"]["decode"].update(file=file))
    refused(folder, by="graphs.decode.file")


def test_link_that_leads_out_of_the_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.onnx"
    (folder / "decode.onnx").rename(outside)
    (folder / "decode.onnx").symlink_to(outside)
    refused(folder, by="decode.onnx: it is a link, and what it leads to is not in the bundle")


def test_bundle_in_another_folder_is_told_where_it_belongs(folder: Path) -> None:
    moved = folder.rename(folder.parent / "7")
    refused(moved, by="the folder must be affine/1")


def test_missing_file_is_refused(folder: Path) -> None:
    (folder / "encode.onnx").unlink()
    refused(folder, by="encode.onnx: named in the manifest, and not there")


@pytest.mark.parametrize("file", ["decode.onnx", "golden.npz"])
def test_file_that_was_cut_short_is_refused_by_its_hash(folder: Path, file: str) -> None:
    data = (folder / file).read_bytes()
    (folder / file).write_bytes(data[:-1])
    refused(folder, by=f"{file}: its SHA-256 is not the manifest's")


def test_graph_that_is_no_onnx_is_refused(folder: Path) -> None:
    (folder / "decode.onnx").write_bytes(b"not onnx")
    sha256 = bundle.digest(b"not onnx")
    edit(folder, lambda manifest: manifest["graphs"]["decode"].update(sha256=sha256))
    refused(folder, by="decode.onnx: not an ONNX file")


@pytest.mark.parametrize("operator", sorted(graphs.RANDOM_OPERATORS))
def test_graph_that_draws_its_own_noise_is_refused(folder: Path, operator: str) -> None:
    node = helper.make_node(operator, ["z"], ["u"], name="dice")
    forge(folder, lambda model: model.graph.node.append(node))
    refused(folder, by=f"node dice is {operator}, which draws its own random numbers")


def test_noise_within_a_branch_or_a_function_is_refused(folder: Path, tmp_path: Path) -> None:
    dice = helper.make_node("RandomNormalLike", ["z"], ["u"])
    branch = helper.make_graph([dice], "b", [], [])
    node = helper.make_node("If", ["c"], ["v"], then_branch=branch, else_branch=branch)
    forge(folder, lambda model: model.graph.node.append(node))
    refused(folder, by="RandomNormalLike")

    other = AFFINE.publish(tmp_path / "other")
    opsets = [helper.make_opsetid("", 20)]
    function = helper.make_function("local", "f", ["z"], ["u"], [dice], opsets)
    forge(other, lambda model: model.functions.append(function))
    refused(other, by="RandomNormalLike")


def test_dropout_is_refused_only_in_training_mode(folder: Path) -> None:
    asleep = helper.make_node("Dropout", ["z"], ["u"])
    forge(folder, lambda model: model.graph.node.append(asleep))
    bundle.read(folder)
    awake = helper.make_node("Dropout", ["z", "", "training"], ["v"])
    forge(folder, lambda model: model.graph.node.append(awake))
    refused(folder, by="is Dropout, which draws its own random numbers")


def test_weights_in_another_file_are_refused(folder: Path) -> None:
    def move(model: onnx.ModelProto) -> None:
        weight = model.graph.initializer[0]
        weight.data_location = TensorProto.EXTERNAL
        weight.external_data.add(key="location", value="../../secret")

    forge(folder, move)
    refused(folder, by="lies in another file")


def test_tensors_of_nodes_in_another_file_are_refused(folder: Path) -> None:
    tensor = helper.make_tensor("outside", TensorProto.FLOAT, [1], [0.0])
    tensor.data_location = TensorProto.EXTERNAL
    node = helper.make_node("Constant", [], ["c"], value=tensor)
    forge(folder, lambda model: model.graph.node.append(node))
    refused(folder, by="weight outside lies in another file")


def test_sparse_weights_in_another_file_are_refused(folder: Path) -> None:
    values = helper.make_tensor("outside", TensorProto.FLOAT, [1], [0.0])
    values.data_location = TensorProto.EXTERNAL
    indices = helper.make_tensor("indices", TensorProto.INT64, [1], [0])
    sparse = helper.make_sparse_tensor(values, indices, [4])
    forge(folder, lambda model: model.graph.sparse_initializer.append(sparse))
    refused(folder, by="weight outside lies in another file")


def test_graph_with_other_tensors_than_the_manifest_is_refused(folder: Path) -> None:
    def widen(model: onnx.ModelProto) -> None:
        model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 3

    forge(folder, widen)
    refused(folder, by="its outputs are ['x float32 (*, 3)']")


def test_graph_with_a_fixed_batch_is_refused(folder: Path) -> None:
    def fix(model: onnx.ModelProto) -> None:
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1

    forge(folder, fix)
    refused(folder, by="its inputs are ['z float32 (1, 2)']; the manifest says")


@pytest.mark.parametrize(
    "data", [b"not a zip", npz(**{"decode.z": np.array([None])}), b""], ids=["text", "object", ""]
)
def test_golden_vectors_that_are_no_npz_are_refused(folder: Path, data: bytes) -> None:
    regild(folder, data)
    refused(folder, by="golden.npz: not an npz of numbers")


@pytest.mark.parametrize(
    ("change", "by"),
    [
        (lambda golden: golden.pop("encode.z"), "there is no array encode.z"),
        (lambda golden: golden.update({"encode.z": np.zeros((3, 2))}), "of shape (8, 2)"),
        (lambda golden: golden.update({"encode.z": np.full((8, 2), np.nan)}), "must be finite"),
        (lambda golden: golden.update({"encode.z": np.full((8, 2), "0")}), "it is <U1 (8, 2)"),
        (
            lambda golden: golden.update({"encode.x": np.zeros((8, 2))}),
            "encode.x must be finite float32 of shape (8, 2); it is float64 (8, 2)",
        ),
    ],
)
def test_golden_vectors_that_do_not_fit_are_refused(folder: Path, change: Change, by: str) -> None:
    golden = AFFINE.golden()
    change(golden)
    regild(folder, npz(**golden))
    refused(folder, by=by)


@pytest.mark.parametrize("draws", [0, 3])
def test_golden_vectors_of_different_draws_are_refused(tmp_path: Path, draws: int) -> None:
    folder = PPCA.publish(tmp_path)
    golden = PPCA.golden()
    golden["elbo.noise"] = golden["elbo.noise"][:, :draws]
    regild(folder, npz(**golden))
    refused(folder, by="elbo.")


def test_version_is_never_overwritten(folder: Path, tmp_path: Path) -> None:
    before = (folder / "decode.onnx").read_bytes()
    with pytest.raises(BundleInvalid, match="exists already"):
        AFFINE.publish(tmp_path)
    assert (folder / "decode.onnx").read_bytes() == before


def test_bundle_that_would_be_refused_is_not_published(tmp_path: Path) -> None:
    files = TILES.files()
    manifest = TILES.manifest(files)
    with pytest.raises(BundleInvalid, match="SHA-256"):
        bundle.publish(tmp_path, manifest, {**files, "decode.onnx": b""})
    assert list((tmp_path / "tiles").iterdir()) == []
    assert bundle.names(tmp_path) == []


def test_reader_never_sees_half_a_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    write = bundle._write_file

    def look_and_write(path: Path, data: bytes) -> None:
        seen.append(bundle.names(tmp_path))
        write(path, data)

    monkeypatch.setattr(bundle, "_write_file", look_and_write)
    TILES.publish(tmp_path)
    assert seen == [[]] * len(seen)
    assert bundle.names(tmp_path) == ["tiles"]
    assert [path.name for path in (tmp_path / "tiles").iterdir()] == ["1"]


def test_versions_are_numbers_newest_first(tmp_path: Path) -> None:
    for version in (2, 10, 1):
        AFFINE.publish(tmp_path, version=version)
    for other in ("notes", "01", "0", "٣", "9" * 16):
        (tmp_path / "affine" / other).mkdir()
    (tmp_path / ".hidden" / "1").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "README.md").touch()
    assert bundle.versions(tmp_path, "affine") == [10, 2, 1]
    assert bundle.versions(tmp_path, "nothing") == []
    assert bundle.names(tmp_path) == ["affine"]
    assert bundle.names(tmp_path / "nowhere") == []


def test_folder_that_may_not_be_listed_is_passed_over(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    models = folder.parent.parent
    (models / "lost+found").mkdir()
    listdir = os.listdir

    def guarded(path: Path) -> list[str]:
        if path.name == "lost+found":
            raise PermissionError(13, "Permission denied")
        return listdir(path)

    monkeypatch.setattr(os, "listdir", guarded)
    assert bundle.names(models) == ["affine"]
    assert bundle.names(models) == ["affine"]
    assert caplog.text.count("cannot look into") == 1  # it is looked at every two seconds
    assert "lost+found" in caplog.text


def test_bundle_keeps_the_bytes_it_has_checked(folder: Path) -> None:
    read = bundle.read(folder)
    (folder / "decode.onnx").write_bytes(b"changed since")
    assert read.graph("decode") == AFFINE.files()["decode.onnx"]


def test_signature_is_in_the_words_of_the_error_messages() -> None:
    manifest = PPCA.manifest(PPCA.files())
    inputs, outputs = manifest.signature("elbo")
    assert [spec.describe() for spec in (*inputs, *outputs)] == [
        "float32 (batch, 3)",
        "float32 (batch, draws, 2)",
        "float32 (batch, draws)",
        "float32 (batch)",
        "float32 (batch, draws)",
    ]
