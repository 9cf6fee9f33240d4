"""A folder of models that cannot be looked into for a moment unloads nothing."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from service import bundle
from service.repository import Repository
from tests.service.living import Told, publish, shift


def test_model_that_cannot_be_looked_into_for_a_moment_goes_on_serving(
    living: Repository, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, listdir, scandir = living.engine("steps"), os.listdir, os.scandir

    def stale(look: Callable[[Path], object]) -> Callable[[Path], object]:
        def guarded(path: Path) -> object:
            if "steps" in Path(path).parts:
                raise OSError(errno.ESTALE, "Stale file handle")
            return look(path)

        return guarded

    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", stale(listdir))
        patch.setattr(os, "scandir", stale(scandir))
        living.poll()
        assert living.engine("steps") is before
    living.poll()
    assert told.events == []


def test_folder_that_cannot_be_looked_into_changes_nothing(
    living: Repository, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(models: Path, known: object) -> None:
        raise OSError(116, "Stale file handle")

    with monkeypatch.context() as patch:
        patch.setattr(bundle, "lying", fail)
        living.poll()
        living.poll()
    assert shift(living.engine("steps")) == 1
    assert caplog.text.count("Stale file handle") == 1
    publish(living, 2)
    living.poll()
    assert shift(living.engine("steps")) == 2
