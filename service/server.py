"""The server: uvicorn, and the app that it serves.

Nothing but the command imports this, and only when the models are being loaded already.
"""

import logging
import socket
from types import FrameType

import uvicorn

from service.app import create_app
from service.backend import Backend
from service.settings import Settings

log = logging.getLogger(__name__)

CLOSING_S = 5
"""What a stream has, after the time to drain, to send what it was at."""


class Server(uvicorn.Server):
    """uvicorn's server, which also tells the app that a signal came."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain: readiness goes first, then no more connections, then what runs ends."""
        self.config.app.state.context.drain.begin()  # type: ignore[union-attr]  # ours, see run
        super().handle_exit(sig, frame)


def run(settings: Settings, backend: Backend, listening: socket.socket) -> None:
    """Serve until a signal ends it.

    Args:
        settings: Of the service.
        backend: What it serves.
        listening: Where calls come in.
    """
    server = Server(
        uvicorn.Config(
            create_app(settings, backend),
            host=settings.host,  # for its log: it listens already
            port=settings.port,
            log_config=None,
            access_log=False,  # service/api/observing.py writes one
            timeout_graceful_shutdown=int(settings.drain_s + CLOSING_S),
            server_header=False,
        )
    )
    host = f"[{settings.host}]" if listening.family == socket.AF_INET6 else settings.host
    log.info("listening on http://%s:%d, where the gallery is; /docs has the API",
             host, settings.port)  # fmt: skip
    server.run(sockets=[listening])
