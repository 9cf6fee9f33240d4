"""One graph in ONNX Runtime: the device proves itself, and the golden vectors come out."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from service import bundle, session
from service.errors import BundleInvalid, DeviceUnavailable, EngineFailed
from service.runtime import onnxruntime
from service.session import Device, Limit, Session
from tests.service.bundles import AFFINE, MIX, SHIFT

CPU = Device("cpu")
HAS_CUDA = "CUDAExecutionProvider" in onnxruntime.get_available_providers()


@pytest.fixture
def decoder(tmp_path: Path) -> Session:
    return Session(bundle.read(AFFINE.publish(tmp_path)), "decode", CPU)


def test_run_returns_what_is_asked_for(decoder: Session) -> None:
    z = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)
    answer = decoder.run({"z": z})
    assert answer.keys() == {"x"}
    np.testing.assert_allclose(answer["x"], z @ MIX + SHIFT, atol=1e-5)


def test_nodes_are_counted_where_they_run(decoder: Session) -> None:
    assert decoder.nodes.keys() == {"cpu"}


def test_buffers_on_the_device_answer_the_same_and_are_not_handed_out(tmp_path: Path) -> None:
    read = bundle.read(AFFINE.publish(tmp_path))
    plain = Session(read, "log_density", CPU)
    bound = Session(read, "log_density", CPU, bind=True)
    x = np.random.default_rng(0).normal(size=(6, 8, 2)).astype(np.float32)
    answers = [bound.run({"x": rows})["log_density"] for rows in x]
    for rows, answer in zip(x, answers, strict=True):
        np.testing.assert_array_equal(answer, plain.run({"x": rows})["log_density"])
    few = bound.run({"x": x[0, :3]})["log_density"]
    np.testing.assert_allclose(few, answers[0][:3], rtol=1e-6)


def test_graph_that_fails_says_which(decoder: Session) -> None:
    with pytest.raises(EngineFailed, match=r"decode\.onnx failed: "):
        decoder.run({"z": np.zeros((3, 5), np.float32)})
    with pytest.raises(EngineFailed, match=r"decode\.onnx failed: "):
        decoder.run({"y": np.zeros((3, 2), np.float32)})


def test_graph_that_the_runtime_cannot_load_is_a_bad_bundle(tmp_path: Path) -> None:
    broken = replace(AFFINE, nodes={**AFFINE.nodes, "decode": "x = NoSuchOperator(z)"})
    read = bundle.read(broken.publish(tmp_path))
    with pytest.raises(BundleInvalid, match="ONNX Runtime cannot load it on cpu"):
        Session(read, "decode", CPU)


def test_cpu_is_taken_at_its_word() -> None:
    assert session.choose_device("cpu") == CPU


@pytest.mark.skipif(HAS_CUDA, reason="this ONNX Runtime has CUDA")
def test_cuda_that_is_not_there_is_refused_and_auto_says_why() -> None:
    with pytest.raises(DeviceUnavailable, match="built without CUDA"):
        session.choose_device("cuda")
    device = session.choose_device("auto")
    assert device.kind == "cpu"
    assert "built without CUDA" in device.reason


def test_cuda_that_cannot_run_a_graph_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)

    def fail(*args: object) -> None:
        raise RuntimeError("no driver")

    monkeypatch.setattr(session, "_create", fail)
    with pytest.raises(DeviceUnavailable, match="CUDA cannot run a graph: no driver"):
        session.choose_device("cuda")


def test_cuda_that_runs_on_the_cpu_behind_our_back_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    create = session._create
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setattr(session, "_create", lambda model, device, *_, **__: create(model, CPU))
    with pytest.raises(DeviceUnavailable, match="ran elsewhere"):
        session.choose_device("cuda")


def test_there_is_at_least_one_core() -> None:
    assert session.cores() >= 1


@pytest.mark.parametrize("bind", [False, True])
def test_graph_that_never_ends_is_ended(tmp_path: Path, bind: bool) -> None:
    endless = (
        "t = Cast<to=9>(on) x = Loop(n, t, z) <body = b (int64 i, bool[1] c, float[batch,2] a) => "
        "(bool[1] d, float[batch,2] e) { d = Identity(c) e = Neg(a) }>"
    )
    constants = {**AFFINE.constants, "n": np.array([2**63 - 1]), "on": np.array([1])}
    looping = replace(AFFINE, nodes={**AFFINE.nodes, "decode": endless}, constants=constants)
    endless_decoder = Session(bundle.read(looping.publish(tmp_path)), "decode", CPU, bind=bind)
    z = np.zeros((1, 2), np.float32)
    with Limit(0.05) as limit:
        for _ in range(2):  # once it is over, nothing more runs
            with pytest.raises(EngineFailed, match=r"decode\.onnx failed: .*terminate"):
                endless_decoder.run({"z": z}, limit=limit)
    assert limit.is_over


def test_run_that_ends_in_time_may_be_followed_by_longer_ones(decoder: Session) -> None:
    z = np.zeros((1, 2), np.float32)
    with Limit(60) as limit:
        before = decoder.run({"z": z}, limit=limit)["x"]
    assert not limit.is_over
    np.testing.assert_array_equal(decoder.run({"z": z})["x"], before)
