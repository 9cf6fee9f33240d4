"""Models by name: the newest sound version serves, and what was refused says why."""

from contextlib import closing
from pathlib import Path

import pytest

from service import bundle
from service.batching import Batcher
from service.errors import ModelNotFound, NotReady, RequestMalformed
from service.repository import Repository
from service.session import Device
from tests.service.bundles import AFFINE, TILES


def loaded(folder: Path, default: str | None = None) -> Repository:
    with closing(Batcher(devices=1)) as batcher:
        repository = Repository(
            folder, Device("cpu"), batcher=batcher, max_batch_rows=8, default=default
        )
        repository.load()
    return repository


def test_newest_version_serves(tmp_path: Path) -> None:
    for version in (1, 2, 10):
        AFFINE.publish(tmp_path, version=version)
    repository = loaded(tmp_path)
    assert repository.ready
    assert repository.engine("affine").manifest.version == 10
    assert repository.models["affine"].problems == {}


def test_bad_newest_version_falls_back_to_the_older_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    AFFINE.publish(tmp_path)
    (AFFINE.publish(tmp_path, version=2) / "golden.npz").write_bytes(b"")
    repository = loaded(tmp_path)
    model = repository.models["affine"]
    assert repository.engine("affine").manifest.version == 1
    assert (model.state, list(model.problems)) == ("ready", [2])
    assert "golden.npz: its SHA-256" in model.problems[2]
    assert "refused affine version 2" in caplog.text


def test_one_bad_model_does_not_take_the_others_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    AFFINE.publish(tmp_path)
    TILES.publish(tmp_path)
    read = bundle.read

    def stumble(folder: Path) -> bundle.Bundle:
        if folder.parent.name == "affine":
            raise PermissionError("not yours")
        return read(folder)

    monkeypatch.setattr(bundle, "read", stumble)
    repository = loaded(tmp_path)
    assert repository.ready
    assert repository.models["affine"].problems == {1: "PermissionError: not yours"}
    with pytest.raises(ModelNotFound, match="failed its checks"):
        repository.engine("affine")
    assert repository.engine("tiles").manifest.name == "tiles"


def test_nothing_serves_before_it_is_loaded(tmp_path: Path) -> None:
    AFFINE.publish(tmp_path)
    with closing(Batcher(devices=1)) as batcher:
        repository = Repository(tmp_path, Device("cpu"), batcher=batcher)
    assert not repository.ready
    with pytest.raises(NotReady):
        repository.engine("affine")


def test_folder_of_nothing_sound_is_loaded_and_not_ready(tmp_path: Path) -> None:
    (AFFINE.publish(tmp_path) / "manifest.json").unlink()
    repository = loaded(tmp_path)
    assert (repository.loaded, repository.ready) == (True, False)


def test_name_may_be_left_out_where_it_is_clear(tmp_path: Path) -> None:
    AFFINE.publish(tmp_path)
    assert loaded(tmp_path).default == "affine"
    assert loaded(tmp_path).engine(None).manifest.name == "affine"
    TILES.publish(tmp_path)
    assert loaded(tmp_path, default="tiles").engine(None).manifest.name == "tiles"
    assert loaded(tmp_path).default is None
    with pytest.raises(RequestMalformed, match="affine, tiles"):
        loaded(tmp_path).engine(None)


def test_unknown_names_and_versions_are_not_found(tmp_path: Path) -> None:
    AFFINE.publish(tmp_path)
    repository = loaded(tmp_path)
    with pytest.raises(ModelNotFound, match="There are: affine"):
        repository.engine("nothing")
    with pytest.raises(ModelNotFound, match="affine has no version 2. It is served in: 1"):
        repository.engine("affine", 2)
