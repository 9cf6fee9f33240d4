"""The models that are served: found in a folder, verified, loaded, and asked for by name."""

import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from service import bundle
from service.batching import Batcher
from service.engine import Engine
from service.errors import ModelNotFound, NotReady, RequestMalformed, ServiceError
from service.session import Device

log = logging.getLogger(__name__)


@dataclass
class Model:
    """One name in the folder, and what became of its versions.

    Args:
        name: The folder's name.
        versions: What lies there, newest first.
        state: `loading`, `ready`, or `failed` when no version passed.
        engine: What serves, when ready: the newest version that passed.
        problems: By version that was refused, why.
    """

    name: str
    versions: list[int]
    state: Literal["loading", "ready", "failed"] = "loading"
    engine: Engine | None = None
    problems: dict[int, str] = field(default_factory=dict)


class Repository:
    """All models of a folder.

    Args:
        folder: Where the bundles lie.
        device: Where their graphs run.
        batcher: Whose workers run them.
        max_batch_rows: Most rows of one run.
        max_batch_s: Longest run, as far as a smaller bucket can help.
        default: Name of the model that is meant when none is named.
    """

    def __init__(
        self,
        folder: Path,
        device: Device,
        *,
        batcher: Batcher,
        max_batch_rows: int = 512,
        max_batch_s: float = 0.025,
        default: str | None = None,
    ) -> None:
        self.folder = folder
        self.device = device
        self._default = default
        self.models = {n: Model(n, bundle.versions(folder, n)) for n in bundle.names(folder)}
        self.loaded = False
        self._stopped = False
        self.batcher = batcher
        self._max_batch_rows = max_batch_rows
        self._max_batch_s = max_batch_s

    def load(self) -> None:
        """Load the newest sound version of every model. Blocks; call it from a thread."""
        for model in self.models.values():
            if self._stopped:
                return
            self._load(model)
        self.loaded = True

    def stop_loading(self) -> None:
        """Make `load` return after the model that it is at."""
        self._stopped = True

    @property
    def ready(self) -> bool:
        """Whether everything was tried and at least one model serves."""
        return self.loaded and any(model.engine for model in self.models.values())

    @property
    def default(self) -> str | None:
        """Name of the model that is meant when none is named: the setting's, or the only one's."""
        only = next(iter(self.models)) if len(self.models) == 1 else None
        return self._default or only

    def find(self, name: str) -> Model:
        """Return what became of a model.

        Raises:
            ModelNotFound: The folder has no such name.
        """
        if name not in self.models:
            raise ModelNotFound(
                f"There is no model '{name}'. There are: {', '.join(self.models) or 'none'}.",
                field="model",
            )
        return self.models[name]

    def engine(self, name: str | None, version: int | None = None) -> Engine:
        """Return the engine of a model.

        Raises:
            RequestMalformed: No name, and no default either.
            ModelNotFound: No such name or version, or none of its versions is sound.
            NotReady: It is still being loaded.
        """
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
        if model.engine is None:
            raise ModelNotFound(
                f"{name} failed its checks and is not served: GET /models/{name} says why.",
                field="model",
            )
        served = model.engine.manifest.version
        if version not in (None, served):
            raise ModelNotFound(
                f"{name} is served in version {served}; version {version} is not.",
                field="version",
            )
        return model.engine

    def _load(self, model: Model) -> None:
        for version in model.versions:
            began = time.perf_counter()
            try:
                model.engine = Engine(
                    bundle.read(self.folder / model.name / str(version)),
                    self.device,
                    batcher=self.batcher,
                    max_batch_rows=self._max_batch_rows,
                    max_batch_s=self._max_batch_s,
                )
            except ServiceError as error:
                model.problems[version] = error.detail
                log.error("refused %s version %d: %s", model.name, version, error.detail)
                continue
            except Exception as error:  # one unreadable bundle must not take the others with it
                model.problems[version] = f"{type(error).__name__}: {error}"
                log.exception("refused %s version %d", model.name, version)
                continue
            model.state = "ready"
            log.info(
                "%s version %d is ready on %s after %.2f s",
                model.name, version, self.device.kind, time.perf_counter() - began,
            )  # fmt: skip
            return
        model.state = "failed"
