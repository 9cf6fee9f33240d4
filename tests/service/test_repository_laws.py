"""Whatever happens to the folder, after a look at it the newest sound version serves."""

import asyncio
import gc
import shutil
import tempfile
import weakref
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import ModelNotFound
from service.repository import Repository
from tests.service.living import Told, publish, serving_one, shift, spoil

OLD_VERSIONS = 1  # as `living` has it
VERSIONS = st.integers(1, 5)
Step = tuple[str, int]
STEPS = st.tuples(st.sampled_from(["publish", "spoil", "remove", "ask"]), VERSIONS)


def take(repository: Repository, step: Step, sound: dict[int, bool]) -> None:
    """Do one thing to the folder, and note which versions in it are sound."""
    action, version = step
    if action == "remove" and version in sound:
        shutil.rmtree(repository.folder / "steps" / str(version))
        del sound[version]
    elif action in ("publish", "spoil") and version not in sound:
        publish(repository, version) if action == "publish" else spoil(repository, version)
        sound[version] = action == "publish"


def check(repository: Repository, told: Told, sound: dict[int, bool]) -> None:
    """Compare what serves with what ought to, after a look at the folder."""
    newest = max((version for version in sound if sound[version]), default=None)
    assert ("steps" in repository.models) == bool(sound)
    if sound:
        model = repository.find("steps")
        assert model.versions == tuple(sorted(sound, reverse=True))
        assert model.state == ("failed" if newest is None else "ready")
        assert next(iter(model.engines), None) == newest
        assert len(model.engines) <= 1 + OLD_VERSIONS
        assert all(shift(engine) == version for version, engine in model.engines.items())
        assert all(not sound[version] for version in model.problems)
        # Nothing newer than what serves is left untried.
        bad = {version for version in sound if version > (newest or 0)}
        assert bad <= set(model.problems)
    loaded = list(repository.models["steps"].engines) if sound else []
    events = [event for event, _, _ in told.events]
    assert 1 + events.count("loaded") - events.count("unloaded") == len(loaded)


def ask(repository: Repository, version: int, sound: dict[int, bool]) -> None:
    """Ask for a version: it answers if it lies there and is sound, and is not found otherwise."""
    try:
        engine = asyncio.run(repository.resolve("steps", version))
    except ModelNotFound:
        assert not sound.get(version)
    else:
        assert sound[version]
        assert shift(engine) == version


@settings(max_examples=40)
@given(looks=st.lists(st.lists(STEPS, max_size=3), max_size=6))
def test_newest_sound_version_serves_after_any_history(looks: list[list[Step]]) -> None:
    told, sound = Told(), {1: True}
    with (
        tempfile.TemporaryDirectory() as folder,
        serving_one(Path(folder), told) as repository,
    ):
        for steps in looks:
            for step in steps:
                take(repository, step, sound)
            repository.poll()
            check(repository, told, sound)
            for action, version in steps:
                if action == "ask":
                    ask(repository, version, sound)
                    check(repository, told, sound)


def test_engine_that_was_let_go_is_freed(tmp_path: Path) -> None:
    with serving_one(tmp_path, Told()) as repository:
        first = weakref.ref(repository.engine("steps"))
        for version in (2, 3):
            publish(repository, version)
            repository.poll()
        gc.collect()
        assert first() is None
