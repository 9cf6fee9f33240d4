"""The app's start and end, and the settings it is started with."""

import threading
from contextlib import closing
from pathlib import Path

import pytest
from pydantic import ValidationError

from service import app as module
from service.batching import Batcher
from service.errors import DeviceUnavailable
from service.repository import Repository
from service.session import Device
from service.settings import Settings
from tests.service.conftest import MakeClient


def test_device_is_chosen_before_anything_is_loaded(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(wanted: str) -> None:
        raise DeviceUnavailable(f"no {wanted} here")

    monkeypatch.setattr("service.backend.choose_device", refuse)
    with pytest.raises(DeviceUnavailable, match="no cuda here"):
        module.create_app(Settings(models=models, device="cuda"))


def test_stop_while_loading_leaves_no_thread(models: Path) -> None:
    before = set(threading.enumerate())
    with closing(Batcher(devices=2)) as batcher:
        repository = Repository(models, Device("cpu"), batcher=batcher)
        repository.close()
        repository.load()
    assert not repository.loaded
    assert set(threading.enumerate()) <= before


def test_two_services_in_one_process_do_not_share_models(
    make_client: MakeClient, tmp_path: Path
) -> None:
    empty, full = make_client(models=tmp_path), make_client()
    assert empty.get("/models").json()["models"] == []
    assert len(full.get("/models").json()["models"]) == 4


@pytest.mark.parametrize(
    ("name", "value", "field"),
    [
        ("MODELS", "/nowhere", "models"),
        ("PORT", "99999", "port"),
        ("DEVICE", "tpu", "device"),
        ("THREADS", "0", "threads"),
        ("MAX_BATCH_ROWS", "12", "max_batch_rows"),
        ("DEFAULT_MODEL", "nothing", "default_model"),
    ],
)
def test_settings_are_checked(
    name: str, value: str, field: str, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PUSHFORWARD_MODELS", str(models))
    monkeypatch.setenv(f"PUSHFORWARD_{name}", value)
    with pytest.raises(ValidationError) as caught:
        Settings()
    assert caught.value.errors()[0]["loc"] == (field,)


def test_settings_come_from_the_environment(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PUSHFORWARD_MODELS", str(models))
    monkeypatch.setenv("PUSHFORWARD_DEFAULT_MODEL", "affine")
    monkeypatch.setenv("PUSHFORWARD_PORT", "8001")
    settings = Settings()
    assert (settings.models, settings.default_model, settings.port) == (models, "affine", 8001)
