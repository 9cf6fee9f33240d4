"""Versions that are no longer the newest: loaded when a request names them, and let go again."""

import asyncio
import shutil
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from service import bundle
from service.batching import Batcher
from service.engine import Engine
from service.errors import Draining, ModelNotFound, NotReady
from service.repository import Repository
from service.session import Device
from tests.service.bundles import step
from tests.service.living import Told, publish, resolve, shift, spoil, state


@pytest.fixture(scope="module")
def batcher() -> Iterator[Batcher]:
    with closing(Batcher(devices=1)) as batcher:
        yield batcher


def test_older_version_is_loaded_when_it_is_asked_for(living: Repository, told: Told) -> None:
    publish(living, 2, 3)
    living.poll()
    assert state(living)[1] == [3, 1]
    with pytest.raises(NotReady, match="Version 2 is not loaded"):
        living.engine("steps", 2)
    assert shift(resolve(living, 2)) == 2
    assert state(living)[1] == [3, 2]
    assert shift(resolve(living, 1)) == 1
    assert shift(living.engine("steps")) == 3
    assert told.events[-2:] == [("unloaded", "steps", 2), ("loaded", "steps", 1)]


def test_least_recently_used_of_the_older_versions_goes(tmp_path: Path, batcher: Batcher) -> None:
    for version in (1, 2, 3, 4):
        step(version).publish(tmp_path, version=version)
    repository = Repository(tmp_path, Device("cpu"), batcher=batcher, old_versions=2)
    with closing(repository):
        repository.load()
        for version in (1, 2, 1, 3):
            resolve(repository, version)
        assert state(repository)[1] == [4, 3, 1]


def test_requests_for_one_version_share_its_loading(
    living: Repository, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(living, 2, 3)
    living.poll()
    told.events.clear()
    go, read = threading.Event(), bundle.read

    def wait_and_read(folder: Path) -> bundle.Bundle:
        assert go.wait(10)
        return read(folder)

    monkeypatch.setattr(bundle, "read", wait_and_read)

    async def ask() -> list[Engine | BaseException]:
        asking = [asyncio.create_task(living.resolve("steps", 2)) for _ in range(5)]
        await asyncio.sleep(0)
        asking[0].cancel()  # it began the loading, and the others get theirs all the same
        await asyncio.sleep(0)
        go.set()
        return list(await asyncio.gather(*asking, return_exceptions=True))

    cancelled, *engines = asyncio.run(ask())
    assert isinstance(cancelled, asyncio.CancelledError)
    assert {id(engine) for engine in engines} == {id(living.engine("steps", 2))}
    assert told.events == [("unloaded", "steps", 1), ("loaded", "steps", 2)]


def test_older_version_that_is_bad_is_not_found_until_it_changes(living: Repository) -> None:
    path = spoil(living, 2)
    publish(living, 3)
    living.poll()
    for _ in range(2):
        with pytest.raises(ModelNotFound, match="version 2 failed its checks"):
            resolve(living, 2)
    assert state(living) == ([3, 2, 1], [3, 1], [2])
    path.write_bytes(step(2).files()["decode.onnx"])
    living.poll()
    assert shift(resolve(living, 2)) == 2


def test_older_versions_are_not_served_where_none_may_be_kept(
    tmp_path: Path, batcher: Batcher
) -> None:
    for version in (1, 2):
        step(version).publish(tmp_path, version=version)
    repository = Repository(tmp_path, Device("cpu"), batcher=batcher, old_versions=0)
    with closing(repository):
        repository.load()
        with pytest.raises(ModelNotFound, match="It is served in: 2"):
            resolve(repository, 1)
        assert shift(resolve(repository, 2)) == 2


def test_closed_repository_loads_nothing_and_says_why(living: Repository) -> None:
    publish(living, 2, 3)
    living.poll()
    living.close()
    with pytest.raises(Draining):
        resolve(living, 2)
    publish(living, 4)
    living.poll()
    assert shift(living.engine("steps")) == 3


def test_removed_version_serves_until_the_other_one_is_warm(
    living: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(living, 2, 3)
    living.poll()
    assert state(living)[1] == [3, 1]
    shutil.rmtree(living.folder / "steps" / "3")
    read = bundle.read

    def look(folder: Path) -> bundle.Bundle:
        assert shift(living.engine("steps")) == 3
        return read(folder)

    monkeypatch.setattr(bundle, "read", look)
    living.poll()
    assert state(living) == ([2, 1], [2, 1], [])
