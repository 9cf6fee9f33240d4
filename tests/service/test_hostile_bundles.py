"""Whatever lies in the folder: it is refused with a sentence, and what served goes on serving.

One table of spoilt bundles, one law over it. Nothing here may be waited for, followed out of the
folder, or made room for.
"""

import asyncio
import os
import re
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from service import bundle
from service.batching import Batcher
from service.engine import Engine
from service.errors import BundleInvalid
from service.repository import Repository
from service.session import Device, Limit
from tests.service import hostile
from tests.service.bundles import step
from tests.service.hostile import Spoil, file, forged, golden, graph, manifest, text

LOAD_S = 0.5
"""What the graphs of a version may run, here."""
ALLOWED_S = 5.0
ALLOWED_BYTES = 200 * 2**20
"""Beyond what the process held before."""

DECODE = "decode.onnx"
NPZ = "golden.npz"

CASES: dict[str, tuple[Spoil, str]] = {
    # --- files ---
    "changed": (file(DECODE, hostile.cut), "decode.onnx: its SHA-256 is not"),
    "missing": (file(DECODE, Path.unlink), "decode.onnx: named in the manifest, and not there"),
    "no manifest": (file("manifest.json", Path.unlink), "there is no manifest.json"),
    "link": (file(DECODE, hostile.link), "decode.onnx: it is a link"),
    "linked manifest": (file("manifest.json", hostile.link), "manifest.json: it is a link"),
    "linked folder": (hostile.linked_folder, "is reached by a link"),
    "pipe": (file(NPZ, hostile.pipe), "golden.npz: it is no plain file"),
    "piped manifest": (file("manifest.json", hostile.pipe), "manifest.json: it is no plain file"),
    "device": (file(NPZ, hostile.device), "golden.npz: it is a link"),
    "directory": (file(NPZ, hostile.directory), "golden.npz: it is no plain file"),
    "huge file": (file(DECODE, hostile.sparse(2**40)), "decode.onnx: it has 1099511627776 bytes"),
    # --- the manifest ---
    "huge manifest": (file("manifest.json", hostile.sparse(2**30)), "manifest.json: it has 1073"),
    "not JSON": (text(lambda said: said[:-5]), "manifest.json: Invalid JSON"),
    "nested": (text(lambda said: '{"title":' + "[" * 100_000), "manifest.json: Invalid JSON"),
    "duplicate key": (text(lambda said: '{"version": 1,' + said[1:]), "version stands there twice"),
    "huge number": (
        text(lambda said: said.replace('"seed": 0', '"seed": ' + "9" * 400)),
        "manifest.json: a number has 400 digits",
    ),
    "NaN in the recipe": (
        manifest(lambda m: m["provenance"].update(recipe={"rate": np.nan})),
        "manifest.json: NaN is no number of JSON",
    ),
    "unknown field": (manifest(lambda m: m.update(more=1)), "manifest.json: more: Extra inputs"),
    "schema": (manifest(lambda m: m.update(schema_version=2)), "schema_version: "),
    "name": (manifest(lambda m: m.update(name="other")), "the folder must be other/2"),
    "version": (manifest(lambda m: m.update(version=3)), "the folder must be steps/3"),
    "path out": (
        manifest(lambda m: m["graphs"]["decode"].update(file="../1/decode.onnx")),
        "graphs.decode.file: ",
    ),
    "absolute path": (
        manifest(lambda m: m["golden"].update(file="/etc/hostname.npz")), "golden.file: ",
    ),
    "posterior of nothing": (
        manifest(lambda m: m.update(posterior="diagonal")),
        "posterior: goes with an elbo or a refine graph",
    ),
    "posterior of no kind": (
        manifest(lambda m: m.update(posterior={"full": [2**40]})), "posterior: Input should be",
    ),
    "huge event": (
        manifest(lambda m: m["event"].update(shape=[10**12])), "event.shape: Value error, at most",
    ),
    "rows": (manifest(lambda m: m["golden"].update(rows=10**9)), "golden.rows: "),
    "NaN tolerance": (
        manifest(lambda m: m["graphs"]["decode"]["tolerance"]["x"].update(absolute=np.nan)),
        "graphs.decode.tolerance.x.absolute: ",
    ),
    "negative tolerance": (
        manifest(lambda m: m["graphs"]["decode"]["tolerance"]["x"].update(absolute=-1)),
        "graphs.decode.tolerance.x.absolute: ",
    ),
    "infinite tolerance": (
        manifest(lambda m: m["graphs"]["decode"]["tolerance"]["x"].update(relative=np.inf)),
        "graphs.decode.tolerance.x.relative: ",
    ),
    "huge tolerance": (
        manifest(lambda m: m["graphs"]["decode"]["tolerance"]["x"].update(absolute=1e30)),
        "golden.npz: the tolerance of decode.x is 1e+30",
    ),
    # --- golden vectors ---
    "npz cut short": (hostile.cut_and_hashed("golden"), "golden.npz: not an npz of numbers"),
    "objects": (
        golden(lambda g: g.update({"decode.z": np.array([[None] * 2] * 8)})),
        "golden.npz: not an npz of numbers (decode.z holds Python objects)",
    ),
    "bomb": (hostile.bomb, "golden.npz: decode.z must be finite float32 of shape (8, 2)"),
    "honest bomb": (hostile.honest_bomb, "golden.npz: with decode.z it unpacks to 1610612736"),
    "wrong rows": (
        golden(lambda g: g.update({"decode.x": g["decode.x"][:3]})),
        "golden.npz: decode.x must be finite numbers of shape (8, 2); it is float32 (3, 2)",
    ),
    "wrong answers": (
        golden(lambda g: g.update({"decode.x": g["decode.x"] + 0.01})),
        "decode.onnx: on this device decode.x is off by 0.01",
    ),
    # --- graphs ---
    "onnx cut short": (hostile.cut_and_hashed("decode"), "decode.onnx: not an ONNX file"),
    "noise": (graph("{ y = RandomNormalLike(z) x = Add(y, z) }"), "is RandomNormalLike, which"),
    "deep noise": (forged(hostile.dice), "decode.onnx: node (unnamed) is RandomNormalLike, which"),
    "dropout": (
        graph("<float r = {0.5}, bool t = {1}> { x = Dropout(z, r, t) }"), "is Dropout, which",
    ),
    "unknown operator": (graph("{ x = NoSuch(z) }"), "decode.onnx: ONNX Runtime cannot load it"),
    "failing graph": (
        graph("<int64[2] s = {3, -1}> { x = Reshape(z, s) }"), "decode.onnx failed: ",
    ),
    "custom operator": (
        graph(
            "{ x = com.microsoft.Gelu(z) }",
            head=hostile.HEAD.replace("20]", '20, "com.microsoft": 1]'),
        ),
        "decode.onnx: node (unnamed) is Gelu of the domain com.microsoft",
    ),
    "other name": (
        graph("{ x = Identity(y) }", head=hostile.HEAD.replace(" z)", " y)")),
        "decode.onnx: its inputs are ['y float32 (*, 2)']; the manifest says ['z",
    ),
    "other shape": (
        graph("{ x = Identity(z) }", head=hostile.HEAD.replace("batch,2", "batch,3")),
        "decode.onnx: its inputs are ['z float32 (*, 3)']",
    ),
    "other dtype": (
        graph("{ x = Identity(z) }", head=hostile.HEAD.replace("float", "int64")),
        "decode.onnx: its inputs are ['z int64 (*, 2)']",
    ),
    "outside weights": (forged(hostile.move_outside), "weight shift lies in another file"),
    "NaN weights": (forged(hostile.not_a_number), "decode.x is off by nan"),
    "huge weight": (forged(hostile.claim([10**6, 10**6])), "weight shift: its shape is (1000000,"),
    "empty weight": (forged(hostile.claim([10**6])), "has the shape (1000000), and"),
    "huge constant": (
        graph(
            "<int64[2] s = {1000000, 1000000}> "
            "{ a = ConstantOfShape(s) m = ReduceSum<keepdims=0>(a) x = Add(z, m) }"
        ),
        "decode.onnx: value a: its shape is (1000000, 1000000)",
    ),
    "huge product": (
        graph(
            "<int64[2] s = {1000, 1000}, float[1] o = {1}> "
            "{ q = Mul(s, s) a = Expand(o, q) m = ReduceSum<keepdims=0>(a) x = Add(z, m) }"
        ),
        "decode.onnx: value a: its shape is (1000000, 1000000)",
    ),
    "many large constants": (
        graph(
            "<int64[1] s = {200000000}> { "
            + " ".join(f"a{i} = ConstantOfShape(s)" for i in range(6))
            + " b = Sum(a0, a1, a2, a3, a4, a5) m = ReduceSum<keepdims=0>(b) x = Add(z, m) }"
        ),
        "decode.onnx: a row of it takes 1400000001 numbers on the way",
    ),
    "huge sparse weight": (forged(hostile.thin), "sparse weight thin: its shape is (1000000000000"),
    "too many nodes": (forged(hostile.many), "decode.onnx: it has 60001 nodes; at most 50000"),
    "endless loop": (
        graph(
            "<int64 n = {9223372036854775807}, bool t = {1}> "
            "{ x = Loop(n, t, z) <body = b (int64 i, bool c, float[batch,2] a) => "
            "(bool d, float[batch,2] e) { d = Identity(c) e = Neg(a) }> }"
        ),
        "its golden vectors and its warm-up did not end within 0.5 s",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def batcher() -> Iterator[Batcher]:
    with closing(Batcher(devices=1)) as batcher:
        yield batcher


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder with version 1 of a model, and version 2, which is to be spoilt."""
    for version in (1, 2):
        step(version).publish(tmp_path, version=version)
    return tmp_path


def load(folder: Path, batcher: Batcher) -> Engine:
    read = bundle.read(folder)
    limit = Limit(LOAD_S)
    return Engine(read, Device("cpu"), batcher=batcher, max_batch_rows=8, limit=limit)


def forget_peak() -> int:
    """Begin to measure the most memory that is held, and return what is held now."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_bytes()


def peak_bytes() -> int:
    """Return the most memory that this process has held since."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return 1024 * int(found[1])


def decode(engine: Engine) -> float:
    answer = asyncio.run(engine.run("decode", {"z": np.zeros((1, 2), np.float32)}))
    return float(answer["x"][0, 0])


@pytest.mark.parametrize("case", CASES)
def test_spoilt_bundle_is_refused_by_its_sentence_and_costs_little(
    case: str, models: Path, batcher: Batcher
) -> None:
    spoil, sentence = CASES[case]
    spoil(models / "steps" / "2")
    before, began = forget_peak(), time.monotonic()
    with pytest.raises(BundleInvalid) as caught:
        load(models / "steps" / "2", batcher)
    assert sentence in caught.value.detail
    assert caught.value.detail.endswith(".")
    assert caught.value.field
    assert time.monotonic() - began < ALLOWED_S
    assert peak_bytes() - before < ALLOWED_BYTES


@pytest.mark.parametrize("case", CASES)
def test_version_that_served_goes_on_serving(case: str, models: Path, batcher: Batcher) -> None:
    second = models / "steps" / "2"
    aside = second.rename(models / "aside")
    repository = Repository(
        models, Device("cpu"), batcher=batcher, max_batch_rows=8, max_load_s=LOAD_S
    )
    with closing(repository):
        repository.load()
        served = repository.engine("steps")
        aside.rename(second)
        CASES[case][0](second)
        repository.poll()
        model = repository.find("steps")
        assert (model.engine, list(model.problems)) == (served, [2])
        assert CASES[case][1] in model.problems[2]
        assert decode(served) == 1


def test_shutdown_does_not_wait_for_a_graph_that_never_ends(models: Path, batcher: Batcher) -> None:
    CASES["endless loop"][0](models / "steps" / "2")
    repository = Repository(models, Device("cpu"), batcher=batcher, max_load_s=600)
    repository.start()
    while not repository._limits:  # until it has begun
        time.sleep(0.01)
    began = time.monotonic()
    repository.close()
    assert time.monotonic() - began < ALLOWED_S
    assert repository.find("steps").problems == {}


def test_there_are_more_than_twenty_kinds() -> None:
    assert len(CASES) > 20


def test_file_that_is_not_ours_to_read_is_refused(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = os.open

    def guarded(path: Path, flags: int) -> int:
        if path.name == DECODE:  # root may read anything, so that its mode would not do
            raise PermissionError(13, "Permission denied")
        return opened(path, flags)

    monkeypatch.setattr(os, "open", guarded)
    with pytest.raises(
        BundleInvalid, match=r"decode\.onnx: it cannot be read \(Permission denied\)\."
    ):
        bundle.read(models / "steps" / "2")


def test_graph_that_ends_in_time_is_not_disturbed(models: Path, batcher: Batcher) -> None:
    engine = load(models / "steps" / "2", batcher)
    time.sleep(LOAD_S)
    assert decode(engine) == 2
