"""Calls for operators: is the process alive, and is it ready?"""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from service.api import context
from service.api.bodies import JSON
from service.api.documentation import problems
from service.errors import Draining, NotReady

router = APIRouter()


@router.head("/livez", include_in_schema=False)
@router.get("/livez", response_class=Response, summary="Is it alive?")
async def livez() -> Response:
    """Return 200 as long as the event loop turns."""
    return _status(b"alive")


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", response_class=Response, summary="Is it ready?",
            responses=problems("not_ready", "draining"))  # fmt: skip
async def readyz(request: Request) -> Response:
    """Return 200 once every model was tried and at least one is verified, warm and served."""
    here = context.of(request)
    repository = here.repository
    if here.drain.has_begun:
        raise Draining("The service is shutting down.")
    if not repository.loaded:
        raise NotReady("Models are being loaded.")
    if not repository.ready:
        raise NotReady("No model is served: there is none, or all were refused. See /models.")
    return _status(b"ready")


def _status(word: bytes) -> Response:
    body = b'{"status":"%s"}\n' % word
    return Response(body, headers={"Cache-Control": "no-store"}, media_type=JSON)
