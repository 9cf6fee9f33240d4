"""Routes whose handlers take the request and return the response, with nothing between.

FastAPI's own way looks at every request for what a handler wants injected, and for the router
that it came through. The handlers here want the request alone: they read query and body
themselves (`service.api.bodies`). FastAPI still describes them in /docs.
"""

from typing import Any

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.routing import Match, Route, request_response
from starlette.types import Receive, Scope, Send


class PlainRoute(APIRoute):
    """A route that is FastAPI's for its description, and Starlette's when it is called."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401  # they are FastAPI's
        super().__init__(*args, **kwargs)
        self.app = request_response(self.endpoint)

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Return whether the address and the method are this route's."""
        match, child = Route.matches(self, scope)
        child["route"] = self
        return match, child

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the handler."""
        await Route.handle(self, scope, receive, send)


def plain_router() -> APIRouter:
    """Return a router of such routes."""
    return APIRouter(route_class=PlainRoute)
