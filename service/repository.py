"""The models that are served: found in a folder, verified, loaded, and asked for by name.

The folder decides, and it is looked at again and again. What appears is loaded beside what
serves and takes its place when it is warm; what disappears is let go. A request that holds an
engine finishes on it. An older version is loaded when a request names it.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from service import bundle
from service.batching import Batcher
from service.engine import Engine
from service.errors import Draining, ModelNotFound, NotReady, RequestMalformed, ServiceError
from service.session import Device, Limit, cores
from service.shelf import Key, Model, Observer, Shelf, Silent

log = logging.getLogger(__name__)

LOADERS = 4
"""Models that are loaded at once at the start, as far as there are cores. ONNX Runtime frees the
GIL while it makes a session and while it runs one; a third of loading is Python (measured)."""


class Repository:
    """All models of a folder.

    Args:
        folder: Where the bundles lie.
        device: Where their graphs run.
        batcher: Whose workers run them.
        max_batch_rows: Most rows of one run.
        max_batch_s: Longest run, as far as a smaller bucket can help.
        max_load_s: How long the golden vectors and the warm-up of a version may run.
        default: Name of the model that is meant when none is named.
        poll_s: Seconds from one look at the folder to the next; 0 looks once only.
        old_versions: Engines of each model that are kept beside the newest; 0 serves the newest
            version alone.
        observer: Who is told.
    """

    def __init__(
        self,
        folder: Path,
        device: Device,
        *,
        batcher: Batcher,
        max_batch_rows: int = 512,
        max_batch_s: float = 0.025,
        max_load_s: float = 60.0,
        default: str | None = None,
        poll_s: float = 0.0,
        old_versions: int = 2,
        observer: Observer | None = None,
    ) -> None:
        self.folder = folder
        self.device = device
        self.batcher = batcher
        self.loaded = False
        """Whether every model was tried once."""
        self._max_batch_rows = max_batch_rows
        self._max_batch_s = max_batch_s
        self._max_load_s = max_load_s
        self._default = default
        self._poll_s = poll_s
        self._old_versions = old_versions
        self._observer: Observer = observer or Silent()
        self._sees = True
        self._shelf = Shelf(
            self._lying({}) or {}, old_versions=old_versions, observer=self._observer
        )
        self._under_way: dict[Key, Future[Engine | None]] = {}
        self._limits: set[Limit] = set()
        self._beginning = threading.Lock()
        # While one captures a CUDA graph, none may make room on the device for another model.
        self._alone: AbstractContextManager[object] = (
            threading.Lock() if device.kind == "cuda" else nullcontext()
        )
        self._stopped = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="repository", daemon=True)
        self._on_demand = ThreadPoolExecutor(1, thread_name_prefix="repository")

    def start(self) -> None:
        """Load all models, and then whatever appears, in a thread, unless it does so already.

        Raises:
            RuntimeError: It was closed, and its threads have ended.
        """
        if self._stopped.is_set():
            raise RuntimeError("a repository that was closed loads nothing more; make another")
        if not self._watcher.is_alive():
            self._watcher.start()

    def close(self) -> None:
        """Load nothing more, and end the threads. What is being loaded is given up."""
        self._stopped.set()
        with self._beginning:
            for limit in self._limits:
                limit.end()
        if self._watcher.is_alive():
            self._watcher.join()
        self._on_demand.shutdown()

    def load(self) -> None:
        """Load the newest sound version of every model. Blocks; call it from a thread."""
        if not self._take_stock():
            return
        # The largest first, so that it is not what is left at the end, on one core.
        weights = {name: self._weight(model) for name, model in self.models.items()}
        loaders = min(LOADERS, cores())
        with ThreadPoolExecutor(loaders, thread_name_prefix="repository") as threads:
            list(threads.map(self._renew, sorted(weights, key=weights.__getitem__, reverse=True)))
        self.loaded = not self._stopped.is_set()

    def poll(self) -> None:
        """Load what has appeared, and let go what has gone. Blocks; call it from one thread."""
        if self._take_stock():
            for name in self.models:
                self._renew(name)

    @property
    def models(self) -> dict[str, Model]:
        """What became of every model, by name in order: a snapshot."""
        return self._shelf.models

    @property
    def ready(self) -> bool:
        """Whether everything was tried and at least one model serves."""
        return self.loaded and any(model.engine for model in self.models.values())

    @property
    def default(self) -> str | None:
        """Name of the model that is meant when none is named: the setting's, or the only one's."""
        models = self.models
        only = next(iter(models)) if len(models) == 1 else None
        return self._default or only

    def find(self, name: str) -> Model:
        """Return what became of a model.

        Raises:
            ModelNotFound: The folder has no such name.
        """
        models = self.models
        if name not in models:
            raise ModelNotFound(
                f"There is no model '{name}'. There are: {', '.join(models) or 'none'}.",
                field="model",
            )
        return models[name]

    def engine(self, name: str | None, version: int | None = None) -> Engine:
        """Return the engine of a model, if it is loaded.

        Raises:
            RequestMalformed: No name, and no default either.
            ModelNotFound: No such name or version, or none of its versions is sound.
            NotReady: It is still being loaded, or would have to be: `resolve` does that.
        """
        engine = self.at_hand(name, version)
        if engine is None:
            raise NotReady(f"Version {version} is not loaded now.", field="version")
        return engine

    def at_hand(self, name: str | None, version: int | None = None) -> Engine | None:
        """Return the engine of a model, None if it is an older version that is not loaded.

        Raises:
            As `engine` does, but for what is not loaded.
        """
        model = self._named(name)
        newest = model.engine
        if newest is None:
            raise ModelNotFound(
                f"{model.name} failed its checks and is not served: GET /models/{model.name} says "
                "why.",
                field="model",
            )
        if version is None or version == newest.manifest.version:
            return newest
        if version in model.engines:
            self._shelf.use((model.name, version))
            return model.engines[version]
        if version in model.problems:
            raise ModelNotFound(
                f"{model.name} version {version} failed its checks and is not served: "
                f"GET /models/{model.name} says why.",
                field="version",
            )
        if version in model.versions and self._old_versions:
            return None
        there_are = model.sound if self._old_versions else (newest.manifest.version,)
        raise ModelNotFound(
            f"{model.name} has no version {version}. It is served in: "
            f"{', '.join(map(str, there_are))}.",
            field="version",
        )

    async def resolve(self, name: str | None, version: int | None = None) -> Engine:
        """Return the engine of a model, after loading it if it is an older version.

        Whoever asks for the same version meanwhile waits for the same engine. Cancelling a
        caller leaves the others theirs.

        Raises:
            RequestMalformed: No name, and no default either.
            ModelNotFound: No such name or version, or it is not sound.
            NotReady: The model is still being loaded.
            Draining: The service is shutting down.
        """
        engine = self.at_hand(name, version)
        if engine is not None or version is None:  # which it never is without an engine
            return engine or self.engine(name)
        key = (self._named(name).name, version)
        future, is_mine = self._begin(key)
        if is_mine:
            try:
                self._on_demand.submit(self._make, key, future)
            except RuntimeError:  # it is closed
                self._end(key, future, None)
        engine = await asyncio.shield(asyncio.wrap_future(future))
        if engine is None and self._stopped.is_set():
            raise Draining("The service is shutting down. Ask another replica.")
        return engine or self.engine(name, version)

    def _named(self, name: str | None) -> Model:
        name = name or self.default
        if name is None:
            raise RequestMalformed(
                "field 'model': name one, because several are served: "
                f"{', '.join(self.models) or 'none'}.",
                field="model",
            )
        model = self.find(name)
        if model.state == "loading":
            raise NotReady(f"{name} is still being loaded. Ask again in a moment.", field="model")
        return model

    def _watch(self) -> None:
        """Load, and look at the folder again and again until it is stopped."""
        while not self._stopped.is_set():
            try:
                (self.poll if self.loaded else self.load)()
            except Exception:  # nobody else would say so, and the next look may go well
                log.exception("looking at %s failed", self.folder)
            if not self._poll_s:
                return
            self._stopped.wait(self._poll_s)

    def _lying(self, known: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]] | None:
        """Return what lies in the folder; None, and a line in the log, if nobody can tell."""
        try:
            lying = bundle.lying(self.folder, known)
        except OSError as error:  # such as a network's folder: what is loaded goes on serving
            if self._sees:
                log.error("cannot look into %s, and keep what is loaded: %s", self.folder, error)
            self._sees = False
            return None
        self._sees = True
        return lying

    def _take_stock(self) -> bool:
        """Forget what has gone or changed. Return whether the folder could be looked into."""
        lying = self._lying({name: model.versions for name, model in self.models.items()})
        if lying is None:
            return False
        changed = {
            key: stamp
            for key, stamp in self._shelf.tried().items()
            if bundle.stamp(self._place(key)) not in (stamp, None)
        }
        self._shelf.take_stock(lying, changed)
        return True

    def _weight(self, model: Model) -> int:
        """Return the bytes of a model's newest version."""
        files = bundle.stamp(self._place((model.name, model.versions[0]))) or ()
        return sum(size for _, _, size, _ in files)

    def _renew(self, name: str) -> None:
        """Make the newest sound version of a model serve. It may do so already."""
        for version in self.models[name].versions:
            if self._stopped.is_set():
                return
            key = (name, version)
            if not self._shelf.is_settled(key):
                future, is_mine = self._begin(key)
                if is_mine:
                    self._make(key, future)
                future.result()
            if version in self.models[name].engines:
                break
        self._shelf.settle(name)

    def _begin(self, key: Key) -> tuple["Future[Engine | None]", bool]:
        """Return the loading of a version, and whether it is the caller's to do."""
        with self._beginning:
            is_new = key not in self._under_way
            return self._under_way.setdefault(key, Future()), is_new

    def _end(self, key: Key, future: "Future[Engine | None]", engine: Engine | None) -> None:
        with self._beginning:
            del self._under_way[key]
        future.set_result(engine)

    def _make(self, key: Key, future: "Future[Engine | None]") -> None:
        """Load a version, and give whoever waits its engine, or None if it was refused."""
        engine = None
        try:
            engine = self._made(key)
        except Exception:  # such as an observer's: it must not keep anybody waiting
            log.exception("loading %s version %d failed", *key)
        finally:
            self._end(key, future, engine)

    def _made(self, key: Key) -> Engine | None:
        """Load a version, and note what became of it."""
        if self._stopped.is_set():
            return None
        name, version = key
        stamp = bundle.stamp(self._place(key)) or frozenset()
        began = time.perf_counter()
        try:
            engine, is_new = self._engine_of(key)
        except ServiceError as error:
            if self._stopped.is_set():  # it was given up
                return None
            log.error("refused %s version %d: %s", name, version, error.detail)
            self._shelf.refuse(key, stamp, error.detail)
        except Exception as error:  # one unreadable bundle must not take the others with it
            log.exception("refused %s version %d", name, version)
            self._shelf.refuse(key, stamp, f"{type(error).__name__}: {error}")
        else:
            took = time.perf_counter() - began
            if self._shelf.admit(key, stamp, engine) and is_new:
                log.info("%s version %d is ready on %s after %.2f s",
                         name, version, self.device.kind, took)  # fmt: skip
                self._observer.loaded(name, version, took)
            return engine
        return None

    def _engine_of(self, key: Key) -> tuple[Engine, bool]:
        """Return the engine of the version that lies there now, and whether it is a new one.

        Raises:
            BundleInvalid: It breaks the contract.
        """
        name, version = key
        read = bundle.read(self._place(key))
        loaded = self.models[name].engines.get(version) if name in self.models else None
        if loaded and loaded.identity == read.identity:  # its files were merely touched
            return loaded, False
        limit = Limit(self._max_load_s)
        with self._alone, self._ending(limit):
            engine = Engine(
                read,
                self.device,
                batcher=self.batcher,
                max_batch_rows=self._max_batch_rows,
                max_batch_s=self._max_batch_s,
                limit=limit,
            )
        return engine, True

    @contextmanager
    def _ending(self, limit: Limit) -> Iterator[None]:
        """End what is loaded inside when the repository is closed."""
        with self._beginning:
            self._limits.add(limit)
        if self._stopped.is_set():
            limit.end()
        try:
            yield
        finally:
            with self._beginning:
                self._limits.discard(limit)

    def _place(self, key: Key) -> Path:
        name, version = key
        return self.folder / name / str(version)
