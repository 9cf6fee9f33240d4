"""Models by name: the newest sound version serves, what appears is loaded, what goes is let go."""

import os
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from service import bundle
from service import repository as module
from service.api.oip.models import index
from service.batching import Batcher
from service.errors import ModelNotFound, NotReady, RequestMalformed
from service.repository import Repository
from service.session import Device
from tests.service.bundles import AFFINE, TILES, step
from tests.service.living import Told, publish, resolve, shift, spoil, state


@pytest.fixture(scope="module")
def batcher() -> Iterator[Batcher]:
    with closing(Batcher(devices=1)) as batcher:
        yield batcher


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
    with pytest.raises(ModelNotFound, match=r"affine has no version 2\. It is served in: 1"):
        repository.engine("affine", 2)


def test_new_version_takes_over_and_the_old_one_serves_whoever_has_it(
    living: Repository, told: Told
) -> None:
    old = living.engine("steps")
    publish(living, 2)
    assert living.engine("steps") is old
    living.poll()
    assert shift(living.engine("steps")) == 2
    assert shift(living.engine("steps", 1)) == shift(old) == 1
    publish(living, 3)
    living.poll()
    assert state(living) == ([3, 2, 1], [3, 2], [])
    assert shift(old) == 1
    assert told.events == [
        ("loaded", "steps", 2), ("unloaded", "steps", 1), ("loaded", "steps", 3)
    ]  # fmt: skip


def test_poll_that_finds_nothing_new_does_nothing(
    living: Repository, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = living.engine("steps")
    monkeypatch.setattr(bundle, "read", lambda folder: pytest.fail("it was read again"))
    living.poll()
    assert living.engine("steps") is before
    assert told.events == []


def test_bad_version_changes_nothing_but_what_is_told(
    living: Repository, told: Told, caplog: pytest.LogCaptureFixture
) -> None:
    before = living.engine("steps")
    spoil(living, 2)
    living.poll()
    assert living.engine("steps") is before
    assert state(living) == ([2, 1], [1], [2])
    assert "decode.onnx: its SHA-256" in living.find("steps").problems[2]
    assert "refused steps version 2" in caplog.text
    assert told.events == [("refused", "steps", 2)]
    with pytest.raises(ModelNotFound, match="version 2 failed its checks"):
        resolve(living, 2)


def test_version_whose_place_a_bad_one_took_has_one_state_and_its_problem(
    living: Repository,
) -> None:
    (living.folder / "steps" / "1" / "decode.onnx").write_bytes(b"")
    living.poll()
    model = living.find("steps")
    assert (model.state_of(1), list(model.problems)) == ("ready", [1])
    assert {each["state"] for each in index(living)} == {"READY"}


def test_observer_that_fails_keeps_nobody_waiting(
    living: Repository, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("no room for a metric")

    publish(living, 2, 3)
    living.poll()
    monkeypatch.setattr(told, "unloaded", fail)
    monkeypatch.setattr(told, "loaded", fail)
    assert shift(resolve(living, 1)) == 1


def test_refused_version_is_tried_again_only_when_its_files_change(
    living: Repository, told: Told
) -> None:
    path = spoil(living, 2)
    for _ in range(3):
        living.poll()
    assert told.events == [("refused", "steps", 2)]
    path.write_bytes(step(2).files()["decode.onnx"])
    living.poll()
    assert state(living) == ([2, 1], [2, 1], [])
    assert told.events[1:] == [("loaded", "steps", 2)]


def test_half_a_copy_is_refused_until_the_rest_is_there(
    living: Repository, tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole = step(2).publish(tmp_path_factory.mktemp("elsewhere"), version=2)
    place = living.folder / "steps" / "2"
    place.mkdir()
    for file in sorted(whole.iterdir(), key=lambda path: path.name == "decode.onnx"):
        living.poll()
        assert state(living)[1:] == ([1], [2])
        shutil.copy(file, place)
    living.poll()
    assert state(living) == ([2, 1], [2, 1], [])


def test_new_model_appears_and_a_removed_one_is_not_found(living: Repository, told: Told) -> None:
    publish(living, 1, name="others")
    living.poll()
    assert living.engine("others").manifest.name == "others"
    assert list(living.models) == ["others", "steps"]
    assert living.default is None
    shutil.rmtree(living.folder / "steps")
    living.poll()
    with pytest.raises(ModelNotFound, match="There are: others"):
        living.engine("steps")
    assert told.events == [("loaded", "others", 1), ("unloaded", "steps", 1)]


def test_model_that_is_not_loaded_yet_says_so(
    living: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(living, 1, name="others")
    read = bundle.read

    def look(folder: Path) -> bundle.Bundle:
        with pytest.raises(NotReady):
            living.engine("others")
        assert living.ready  # what served before does so still
        return read(folder)

    monkeypatch.setattr(bundle, "read", look)
    living.poll()
    assert living.find("others").problems == {}
    assert living.engine("others")


def test_removed_version_falls_back_to_the_newest_sound_one(living: Repository) -> None:
    publish(living, 2)
    spoil(living, 3)
    publish(living, 4)
    living.poll()
    shutil.rmtree(living.folder / "steps" / "4")
    living.poll()
    assert state(living) == ([3, 2, 1], [2, 1], [3])
    assert shift(living.engine("steps")) == 2
    with pytest.raises(ModelNotFound, match=r"has no version 4\. It is served in: 2, 1"):
        living.engine("steps", 4)


def test_model_whose_last_sound_version_goes_is_failed(living: Repository) -> None:
    spoil(living, 2)
    shutil.rmtree(living.folder / "steps" / "1")
    living.poll()
    assert (living.find("steps").state, state(living)) == ("failed", ([2], [], [2]))
    with pytest.raises(ModelNotFound, match="failed its checks"):
        living.engine("steps")
    assert not living.ready
    publish(living, 3)
    living.poll()
    assert living.ready


def test_version_that_was_replaced_is_loaded_again(living: Repository) -> None:
    place = living.folder / "steps" / "1"
    shutil.rmtree(place)
    step(7).publish(living.folder, version=1)
    living.poll()
    assert shift(living.engine("steps")) == 7
    path = place / "decode.onnx"
    path.write_bytes(path.read_bytes()[:-1])
    living.poll()
    assert state(living) == ([1], [1], [1])  # what was verified goes on serving
    assert shift(living.engine("steps")) == 7


def test_touched_version_stays_as_it_is(living: Repository, told: Told) -> None:
    before = living.engine("steps")
    os.utime(before_file := living.folder / "steps" / "1" / "decode.onnx", (1, 1))
    assert before_file.stat().st_mtime == 1
    living.poll()
    assert living.engine("steps") is before
    assert told.events == []


def test_version_that_goes_while_it_is_loaded_is_not_told_of(
    living: Repository, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(living, 2)
    read = bundle.read

    def read_and_lose(folder: Path) -> bundle.Bundle:
        found = read(folder)
        if folder.name == "2":
            shutil.rmtree(folder)
            living._take_stock()
        return found

    monkeypatch.setattr(bundle, "read", read_and_lose)
    living.poll()
    assert state(living) == ([1], [1], [])
    assert told.events == []


def test_new_version_is_loading_until_it_serves(
    living: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(living, 2)
    seen: list[str] = []
    read = bundle.read

    def look_and_read(folder: Path) -> bundle.Bundle:
        seen.append(living.find("steps").state_of(2))
        return read(folder)

    monkeypatch.setattr(bundle, "read", look_and_read)
    living.poll()
    assert seen == ["loading"]
    assert living.find("steps").state_of(2) == "ready"


def test_watcher_loads_what_appears_and_outlives_a_stumble(
    tmp_path: Path, batcher: Batcher, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = Repository(
        tmp_path, Device("cpu"), batcher=batcher, poll_s=1e-3, observer=told
    )  # fmt: skip
    stumbles = iter([True, True])
    poll = Repository.poll

    def stumble(self: Repository) -> None:
        if next(stumbles, False):
            raise RuntimeError("a bug")
        poll(self)

    monkeypatch.setattr(Repository, "poll", stumble)
    with closing(repository):
        repository.start()
        publish(repository, 1)
        assert told.heard.wait(10)
    assert repository.ready


def test_closed_repository_starts_no_more(tmp_path: Path) -> None:
    repository = loaded(tmp_path)
    repository.close()
    with pytest.raises(RuntimeError, match="make another"):
        repository.start()


def test_largest_model_is_loaded_first(
    tmp_path: Path, batcher: Batcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    for tiny in (AFFINE, TILES):
        tiny.publish(tmp_path)
    (tmp_path / "tiles" / "1" / "curves.png").write_bytes(bytes(10**6))
    order, read = [], bundle.read

    def note(folder: Path) -> bundle.Bundle:
        order.append(folder.parent.name)
        return read(folder)

    monkeypatch.setattr(bundle, "read", note)
    monkeypatch.setattr(module, "LOADERS", 1)
    with closing(Repository(tmp_path, Device("cpu"), batcher=batcher)) as repository:
        repository.load()
    assert order == ["tiles", "affine"]
