"""A repository that is polled by hand, and what a test does to its folder."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np

from service.batching import Batcher
from service.engine import Engine
from service.repository import Repository
from service.session import Device
from tests.service.bundles import step


class Told:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str, int]] = []
        self.heard = threading.Event()

    def loaded(self, name: str, version: int, seconds: float) -> None:
        assert seconds > 0
        self.events.append(("loaded", name, version))
        self.heard.set()

    def refused(self, name: str, version: int, reason: str) -> None:
        assert reason.endswith(".")
        self.events.append(("refused", name, version))

    def unloaded(self, name: str, version: int) -> None:
        self.events.append(("unloaded", name, version))


@contextmanager
def serving_one(folder: Path, told: Told) -> Iterator[Repository]:
    """Yield a repository that serves version 1 of `steps`, and keeps one older version."""
    step(1).publish(folder, version=1)
    with closing(Batcher(devices=1)) as batcher:
        repository = Repository(
            folder, Device("cpu"), batcher=batcher, max_batch_rows=8, old_versions=1, observer=told
        )
        with closing(repository):
            repository.load()
            told.events.clear()
            yield repository


def publish(repository: Repository, *versions: int, name: str = "steps") -> None:
    for version in versions:
        step(version, name).publish(repository.folder, version=version)


def spoil(repository: Repository, version: int) -> Path:
    """Put a version there that will be refused, and return its broken file."""
    publish(repository, version)
    path = repository.folder / "steps" / str(version) / "decode.onnx"
    path.write_bytes(path.read_bytes()[:-1])
    return path


def shift(engine: Engine) -> float:
    """Return which version an engine really is."""
    answer = asyncio.run(engine.run("decode", {"z": np.zeros((1, 2), np.float32)}))
    return float(answer["x"][0, 0])


def resolve(repository: Repository, version: int | None) -> Engine:
    return asyncio.run(repository.resolve("steps", version))


def state(repository: Repository, name: str = "steps") -> tuple[list[int], list[int], list[int]]:
    """Return which versions of a model lie there, are loaded, and were refused."""
    model = repository.find(name)
    return list(model.versions), list(model.engines), list(model.problems)
