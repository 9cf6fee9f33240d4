"""The command: what it prints and with which status it ends."""

import gc
import logging
import shutil
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from service import __main__ as command
from service.backend import Backend
from service.errors import DeviceUnavailable
from service.settings import Settings
from tests.service.bundles import AFFINE, TILES


def test_verify_prints_a_line_for_each_bundle_of_a_models_folder(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["verify", str(models)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["ok", f"{name}/1:"] for name in ("affine", "grains", "ppca", "tiles")
    ]
    assert "log_density.log_density " in lines[0]


def test_verify_takes_a_model_or_a_version(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    AFFINE.publish(tmp_path)
    second = AFFINE.publish(tmp_path, version=2)
    assert command.main(["verify", str(tmp_path / "affine")]) == 0
    assert capsys.readouterr().out.count("ok ") == 2
    assert command.main(["verify", str(second)]) == 0
    assert capsys.readouterr().out.startswith("ok   affine/2: ")


def test_verify_works_from_inside_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(AFFINE.publish(tmp_path))
    assert command.main(["verify", "."]) == 0


def test_verify_says_what_is_wrong_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (AFFINE.publish(tmp_path) / "decode.onnx").write_bytes(b"")
    TILES.publish(tmp_path)
    assert command.main(["verify", str(tmp_path)]) == 1
    bad, ok = capsys.readouterr().out.splitlines()
    assert bad.startswith("bad  ")
    assert "decode.onnx: its SHA-256 is not the manifest's" in bad
    assert ok.startswith("ok   tiles/1")


@pytest.mark.parametrize("path", ["", "nowhere"])
def test_verify_of_no_bundle_fails(
    tmp_path: Path, path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["verify", str(tmp_path / path)]) == 1
    assert "there is no manifest.json" in capsys.readouterr().out


def test_setting_that_is_wrong_is_a_sentence_and_status_2(
    monkeypatch: pytest.MonkeyPatch, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PUSHFORWARD_MODELS", str(models))
    monkeypatch.setenv("PUSHFORWARD_PORT", "many")
    assert command.main([]) == 2
    error = capsys.readouterr().err
    assert error.startswith("PUSHFORWARD_PORT: ")
    assert "got 'many'." in error
    assert error.count("\n") == 1


def test_models_folder_that_is_not_there_is_a_sentence_and_status_2(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PUSHFORWARD_MODELS", str(tmp_path / "nowhere"))
    assert command.main([]) == 2
    assert capsys.readouterr().err.startswith("PUSHFORWARD_MODELS: ")


def test_device_that_cannot_serve_is_a_sentence_and_status_2(
    monkeypatch: pytest.MonkeyPatch, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(wanted: str) -> None:
        raise DeviceUnavailable(f"{wanted} cannot run a graph.")

    monkeypatch.setattr("service.backend.choose_device", refuse)
    monkeypatch.setenv("PUSHFORWARD_MODELS", str(models))
    monkeypatch.setenv("PUSHFORWARD_DEVICE", "cuda")
    assert command.main([]) == 2
    assert capsys.readouterr().err == "PUSHFORWARD_DEVICE: cuda cannot run a graph.\n"


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("PUSHFORWARD_MAXDRAWS", "Did you mean PUSHFORWARD_MAX_DRAWS?"),
        ("pushforward_hots", "Did you mean PUSHFORWARD_HOST?"),
        ("PUSHFORWARD_SERVICE_HOSTNAME", "docs/operations.md lists them."),
    ],
)
def test_variable_that_is_no_setting_is_a_sentence_and_status_2(
    monkeypatch: pytest.MonkeyPatch,
    models: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    advice: str,
) -> None:
    monkeypatch.setenv("PUSHFORWARD_MODELS", str(models))
    monkeypatch.setenv(name, "7")
    assert command.main([]) == 2
    assert capsys.readouterr().err == f"{name}: there is no such setting. {advice}\n"


def test_port_that_is_taken_is_a_sentence_and_status_2(
    monkeypatch: pytest.MonkeyPatch, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        monkeypatch.setenv("PUSHFORWARD_MODELS", str(models))
        monkeypatch.setenv("PUSHFORWARD_DEVICE", "cpu")
        monkeypatch.setenv("PUSHFORWARD_PORT", str(port))
        assert command.main([]) == 2
    error = capsys.readouterr().err
    assert "cannot listen on 127.0.0.1: Address already in use" in error
    assert str(port) in error
    assert error.count("\n") == 1


def test_log_is_set_up_before_the_device_is_chosen(
    monkeypatch: pytest.MonkeyPatch, models: Path
) -> None:
    order = []

    def choose(wanted: str) -> None:
        order.append("device")
        raise DeviceUnavailable("none")

    monkeypatch.setenv("PUSHFORWARD_MODELS", str(models))
    monkeypatch.setattr(logging, "basicConfig", lambda **_: order.append("log"))
    monkeypatch.setattr("service.backend.choose_device", choose)
    command.main([])
    assert order == ["log", "device"]


def test_models_are_loaded_without_the_web(monkeypatch: pytest.MonkeyPatch, models: Path) -> None:
    def run(settings: Settings, serving: Backend, listening: socket.socket) -> None:
        deadline = time.monotonic() + 30
        while not serving.repository.loaded:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        listening.close()
        served.extend(serving.repository.models)

    served: list[str] = []
    before = set(threading.enumerate())
    monkeypatch.setenv("PUSHFORWARD_MODELS", str(models))
    monkeypatch.setenv("PUSHFORWARD_DEVICE", "cpu")
    with socket.create_server(("127.0.0.1", 0)) as free:
        monkeypatch.setenv("PUSHFORWARD_PORT", str(free.getsockname()[1]))
    monkeypatch.setattr(command, "_server", lambda: SimpleNamespace(run=run))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "setswitchinterval", lambda _: None)
    assert command.main([]) == 0
    assert served == ["affine", "grains", "ppca", "tiles"]
    assert set(threading.enumerate()) <= before


def test_server_is_imported_without_collections_and_they_go_on_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    collecting = gc.isenabled()
    try:
        gc.enable()
        assert command._server().run
        assert gc.isenabled()
        monkeypatch.setitem(sys.modules, "service.server", None)  # cannot be imported
        monkeypatch.delattr("service.server", raising=False)
        with pytest.raises(ImportError):
            command._server()
        assert gc.isenabled()
    finally:
        (gc.enable if collecting else gc.disable)()


def test_moved_bundle_is_told_where_it_belongs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.move(AFFINE.publish(tmp_path), tmp_path / "other" / "1")
    assert command.main(["verify", str(tmp_path / "other")]) == 1
    assert "the folder must be affine/1" in capsys.readouterr().out
