"""The app: its routes, its errors, and the loading of its models."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from service.api import catalogue, gallery, generation, health, inference, problems
from service.api.context import Context
from service.api.oip import routes as inference_protocol
from service.api.patience import Drain
from service.batching import Batcher
from service.repository import Repository
from service.session import choose_device, cores
from service.settings import Settings

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
    batcher = Batcher(
        devices=(settings.threads or cores()) if on_cpu else settings.gpus,
        ahead=0 if on_cpu else 1,
        max_wait_s=settings.max_wait_s,
    )
    repository = Repository(
        settings.models,
        device,
        batcher=batcher,
        max_batch_rows=settings.max_batch_rows,
        max_batch_s=settings.max_batch_ms / 1000,
        default=settings.default_model,
    )
    app = FastAPIOffline(
        title="Pushforward",
        description=_ABOUT,
        version=version("pushforward"),
        redoc_url=None,
        lifespan=_lifespan,
    )
    app.state.context = Context(settings, repository, Drain(settings.drain_s))
    problems.install(app)
    for part in (gallery, health, catalogue, generation, inference, inference_protocol):
        app.include_router(part.router)
    app.mount("/web", gallery.files)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Load in a thread, so that /livez answers meanwhile, and leave no thread behind."""
    repository: Repository = app.state.context.repository
    loading = asyncio.create_task(asyncio.to_thread(repository.load))
    try:
        yield
    finally:
        repository.stop_loading()
        await loading
        await asyncio.to_thread(repository.batcher.close)
