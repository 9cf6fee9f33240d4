"""The app: its routes, its errors, and the loading of its models."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
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
from service.backend import Backend, make
from service.logs import AccessLog
from service.metrics import Metrics
from service.settings import Settings
from service.tracing import Tracing

log = logging.getLogger(__name__)

_ABOUT = (
    "Trained generators over HTTP: sample from them, encode into them, and ask how probable your "
    "data is. Errors are problem+json (RFC 9457) with a stable `code`."
)


def create_app(settings: Settings, backend: Backend | None = None) -> FastAPI:
    """Return the service. When it is started it loads its models, if they are not being loaded.

    Args:
        settings: What an operator has chosen.
        backend: What it answers from; made of the settings by default.

    Raises:
        DeviceUnavailable: The device that the settings ask for cannot run graphs.
    """
    backend = backend or make(settings)
    tracing = Tracing(settings.otlp_endpoint) if settings.otlp_endpoint else None
    app = FastAPIOffline(
        title="Pushforward",
        description=_ABOUT,
        version=version("pushforward"),
        redoc_url=None,
        lifespan=_lifespan,
        telemetry=observing.telemetry(tracing),
    )
    app.state.context = Context(settings, backend.repository, Drain(settings.drain_s))
    app.state.backend, app.state.metrics, app.state.tracing = backend, backend.metrics, tracing
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


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Load in a thread, so that /livez answers meanwhile, and leave no thread behind."""
    backend: Backend = app.state.backend
    backend.repository.start()
    try:
        yield
    finally:
        await asyncio.to_thread(backend.close)
        if app.state.tracing:
            await asyncio.to_thread(app.state.tracing.close)
