"""What lies in the folder of models, and what became of it: a table of snapshots.

One writes, many read: a `Model` never changes, and the table is replaced as a whole, so that
the event loop reads it without waiting for anybody.
"""

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Literal, Protocol

from service.bundle import Stamp
from service.engine import Engine

log = logging.getLogger(__name__)

Key = tuple[str, int]
"""Name and version."""


class Observer(Protocol):
    """Who is told what becomes of versions, from any thread, and must be quick about it."""

    def loaded(self, name: str, version: int, seconds: float) -> None:
        """A version passed its checks, after so long, and can serve."""

    def refused(self, name: str, version: int, reason: str) -> None:
        """A version did not pass; the reason is a sentence."""

    def unloaded(self, name: str, version: int) -> None:
        """A version was let go. What holds it finishes on it."""


class Silent:
    """An observer that does nothing."""

    def loaded(self, name: str, version: int, seconds: float) -> None:
        """Do nothing."""

    def refused(self, name: str, version: int, reason: str) -> None:
        """Do nothing."""

    def unloaded(self, name: str, version: int) -> None:
        """Do nothing."""


State = Literal["loading", "ready", "failed", "unloaded"]


@dataclass(frozen=True)
class Model:
    """One name in the folder, and what became of its versions.

    Args:
        name: The folder's name.
        versions: What lies there, newest first.
        state: `loading`, `ready`, or `failed` when no version passed.
        engines: By version, newest first: what is loaded.
        problems: By version that was refused, why.
    """

    name: str
    versions: tuple[int, ...]
    state: Literal["loading", "ready", "failed"] = "loading"
    engines: Mapping[int, Engine] = field(default_factory=dict)
    problems: Mapping[int, str] = field(default_factory=dict)

    @property
    def engine(self) -> Engine | None:
        """What serves a request that names no version: the newest that is loaded."""
        return next(iter(self.engines.values()), None)

    @property
    def sound(self) -> tuple[int, ...]:
        """The versions that were not refused, newest first."""
        return tuple(each for each in self.versions if each not in self.problems)

    def state_of(self, version: int) -> State:
        """Return what a version is in.

        One that serves is ready, even where what has taken its place in the folder was refused.
        """
        if version in self.engines:
            return "ready"
        if version in self.problems:
            return "failed"
        newest = next(iter(self.engines), 0)
        return "loading" if self.state == "loading" or version > newest else "unloaded"


class Shelf:
    """All models of a folder. Safe to change from several threads.

    Args:
        lying: By name, the versions that lie in the folder, newest first.
        old_versions: Engines of each model that are kept beside the newest.
        observer: Who is told.
    """

    def __init__(
        self, lying: Mapping[str, tuple[int, ...]], *, old_versions: int, observer: Observer
    ) -> None:
        self.models = {name: Model(name, versions) for name, versions in lying.items()}
        self._old_versions = old_versions
        self._observer = observer
        self._changing = threading.Lock()
        self._tried: dict[Key, Stamp] = {}
        self._used: dict[Key, int] = {}
        self._now = count()

    def tried(self) -> dict[Key, Stamp]:
        """Return what the files of each version were when it was last tried, if it was."""
        with self._changing:
            return dict(self._tried)

    def use(self, key: Key) -> None:
        """Note that an engine is asked for."""
        self._used[key] = next(self._now)

    def is_settled(self, key: Key) -> bool:
        """Return whether a version was tried as it is now, and is still known by its outcome."""
        model = self.models[key[0]]
        return key in self._tried and (key[1] in model.engines or key[1] in model.problems)

    def take_stock(
        self, lying: Mapping[str, tuple[int, ...]], changed: Mapping[Key, Stamp]
    ) -> None:
        """Forget what has gone or changed. What serves a model stays until there is another.

        Args:
            lying: What lies in the folder now.
            changed: Versions that are no longer what was tried, and what that was.
        """
        with self._changing:
            there = {(name, version) for name in lying for version in lying[name]}
            self._tried = {
                key: stamp
                for key, stamp in self._tried.items()
                if key in there and changed.get(key) != stamp
            }
            before, after = self.models, {}
            for name, versions in lying.items():
                model = before.get(name, Model(name, versions))
                engines = {
                    version: engine
                    for version, engine in model.engines.items()
                    if engine is model.engine or (name, version) in self._tried
                }
                problems = {
                    version: why
                    for version, why in model.problems.items()
                    if (name, version) in self._tried
                }
                after[name] = replace(model, versions=versions, engines=engines, problems=problems)
            self.models = after
        for name, model in before.items():
            self._report(model, after.get(name))

    def admit(self, key: Key, stamp: Stamp, engine: Engine) -> bool:
        """Let a version serve, and return whether it does: it may have been removed meanwhile.

        Of too many older ones the least recently used goes.
        """
        name, version = key
        with self._changing:
            before = self.models.get(name)
            if before is None or version not in before.versions:
                return False  # whoever asked for it has it
            self._tried[key] = stamp
            for each in (*list(before.engines)[:1], version):
                self.use((name, each))
            engines = {**before.engines, version: engine}
            going = engines.keys() - set(before.versions)  # it serves until `settle`
            newest, *older = sorted(engines.keys() - going, reverse=True)
            older.sort(key=lambda each: self._used.get((name, each), -1), reverse=True)
            kept = {newest, *older[: self._old_versions]} | going
            model = replace(
                before,
                state="ready",
                engines={each: engines[each] for each in sorted(kept, reverse=True)},
                problems={each: why for each, why in before.problems.items() if each != version},
            )
            self.models = {**self.models, name: model}
        self._report(before, model)
        return version in model.engines

    def refuse(self, key: Key, stamp: Stamp, why: str) -> None:
        """Note why a version does not serve."""
        name, version = key
        with self._changing:
            model = self.models.get(name)
            if model is None or version not in model.versions:
                return
            self._tried[key] = stamp
            model = replace(model, problems={**model.problems, version: why})
            self.models = {**self.models, name: model}
        self._observer.refused(name, version, why)

    def settle(self, name: str) -> None:
        """Let go what served a model and has gone, now that its other versions were tried."""
        with self._changing:
            before = self.models[name]
            engines = {v: engine for v, engine in before.engines.items() if v in before.versions}
            state: Literal["ready", "failed"] = "ready" if engines else "failed"
            model = replace(before, engines=engines, state=state)
            self.models = {**self.models, name: model}
        self._report(before, model)

    def _report(self, before: Model, after: Model | None) -> None:
        kept: Sequence[int] = list(after.engines) if after else ()
        for version in before.engines:
            if version not in kept:
                self._used.pop((before.name, version), None)
                log.info("%s version %d is no longer loaded", before.name, version)
                self._observer.unloaded(before.name, version)
