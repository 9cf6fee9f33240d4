"""The app: its routes, its errors, and the loading of its models."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from service.api import (
    catalogue,
    gallery,
    generation,
    health,
    inference,
    observing,
    operating,
    problems,
)
from service.api.context import Context
from service.api.oip import routes as inference_protocol
from service.api.patience import Drain
from service.batching import Batcher
from service.logs import AccessLog
from service.metrics import Metrics, ModelState
from service.repository import Repository
from service.runtime import onnxruntime
from service.session import choose_device, cores
from service.settings import Settings
from service.tracing import Tracing

log = logging.getLogger(__name__)

_ABOUT = (
    "Trained generators over HTTP: sample from them, encode into them, and ask how probable your "
    "data is. Errors are problem+json (RFC 9457) with a stable `code`."
)


def create_app(settings: Settings) -> FastAPI:
    """Return the service, which begins to load its models when it is started.

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
    tracing = Tracing(settings.otlp_endpoint) if settings.otlp_endpoint else None
    app = FastAPIOffline(
        title="Pushforward",
        description=_ABOUT,
        version=version("pushforward"),
        redoc_url=None,
        lifespan=_lifespan,
        telemetry=observing.telemetry(tracing),
    )
    app.state.context = Context(settings, repository, Drain(settings.drain_s))
    app.state.metrics, app.state.tracing = metrics, tracing
    problems.install(app)
    operators = (health, operating)
    # Side by side, and what is asked most first: an included router would be asked in its turn.
    for part in (generation, inference, inference_protocol, gallery, *operators, catalogue):
        app.router.routes.extend(part.router.routes)
    app.mount("/web", gallery.files)
    _observe(app, settings)
    return app


def _observe(app: FastAPI, settings: Settings) -> None:
    """Put the layer that counts and logs around all others, the one that answers 500 too."""
    metrics: Metrics = app.state.metrics
    app.middleware_stack = observing.Observing(
        app.build_middleware_stack(),
        metrics=metrics,
        log=AccessLog(metrics.log_lines_lost.inc) if settings.access_log == "json" else None,
        tracing=app.state.tracing,
    )


def _states(repository: Repository) -> Iterator[ModelState]:
    """Yield the state of every version."""
    for name, model in repository.models.items():
        for each in sorted({*model.versions, *model.engines}):
            yield ModelState(name, each, model.state_of(each))


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Load in a thread, so that /livez answers meanwhile, and leave no thread behind."""
    repository: Repository = app.state.context.repository
    repository.start()
    try:
        yield
    finally:
        await asyncio.to_thread(repository.close)
        await asyncio.to_thread(repository.batcher.close)
        if app.state.tracing:
            await asyncio.to_thread(app.state.tracing.close)
