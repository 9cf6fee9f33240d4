"""Routes whose handlers take the request and return the response, with nothing between.

FastAPI's own way looks at every request for what a handler wants injected. The handlers here
want the request alone: they read query and body themselves (`service.api.bodies`).
"""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response


class PlainRoute(APIRoute):
    """A route that calls its endpoint and does no more."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the endpoint itself."""
        handler: Callable[[Request], Coroutine[Any, Any, Response]] = self.endpoint
        return handler


def plain_router() -> APIRouter:
    """Return a router of such routes."""
    return APIRouter(route_class=PlainRoute)
