"""What the app answers from, and what needs no web to begin: a device, its workers, the models."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from service.batching import Batcher
from service.metrics import Metrics, ModelState
from service.repository import Repository
from service.runtime import onnxruntime
from service.session import choose_device, cores
from service.settings import Settings


@dataclass(frozen=True)
class Backend:
    """The models of one service, and what is counted of them."""

    repository: Repository
    metrics: Metrics

    def close(self) -> None:
        """Load nothing more, serve what waits, and end the threads. Blocks."""
        self.repository.close()
        self.repository.batcher.close()


def make(settings: Settings) -> Backend:
    """Return the backend of a service, which loads its models once its repository is started.

    Raises:
        DeviceUnavailable: The device that the settings ask for cannot run graphs.
    """
    device = choose_device(settings.device)
    on_cpu = device.kind == "cpu"
    metrics = Metrics()
    batcher = Batcher(
        devices=(settings.threads or cores()) if on_cpu else settings.gpus,
        ahead=0 if on_cpu else 1,
        max_wait_s=settings.max_wait_s,
        observer=metrics,
    )
    repository = Repository(
        settings.models,
        device,
        batcher=batcher,
        max_batch_rows=settings.max_batch_rows,
        max_batch_s=settings.max_batch_ms / 1000,
        default=settings.default_model,
        max_load_s=settings.max_load_s,
        poll_s=settings.poll_s,
        old_versions=settings.old_versions,
        observer=metrics.models,
    )
    metrics.watch(
        queue=batcher.queue,
        models=partial(_states, repository),
        device={"kind": device.kind, "reason": device.reason},
        runtime=onnxruntime.__version__,
    )
    return Backend(repository, metrics)


def _states(repository: Repository) -> Iterator[ModelState]:
    """Yield the state of every version."""
    for name, model in repository.models.items():
        for each in sorted({*model.versions, *model.engines}):
            yield ModelState(name, each, model.state_of(each))
