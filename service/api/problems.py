"""Errors as RFC 9457 problem+json. The only place that knows which class has which status.

Under /v2 they are what the Open Inference Protocol wants instead: {"error": "..."}.
"""

import logging
from typing import Any

import orjson
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match

from service import errors
from service.api import observing
from service.errors import ServiceError

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 2
"""Guess: loading takes a few seconds for each model."""

# What a request can meet. Bundles are refused, and devices chosen, where nobody asks for anything.
STATUS: dict[type[ServiceError], int] = {
    errors.RequestMalformed: 400,
    errors.NotFound: 404,
    errors.ModelNotFound: 404,
    errors.MethodNotAllowed: 405,
    errors.NotAcceptable: 406,
    errors.CapabilityMissing: 409,
    errors.BodyTooLarge: 413,
    errors.MediaTypeUnsupported: 415,
    errors.InputInvalid: 422,
    errors.QueueFull: 429,
    errors.EngineFailed: 500,
    errors.Draining: 503,
    errors.NotReady: 503,
    errors.DeadlineExceeded: 504,
}

_PROTOCOL = "/v2"
PROTOCOL_STATUS = {409: 400, 422: 400}
"""Where the clients of the protocol know another status, as Triton has it."""

_HEADERS: dict[type[ServiceError], dict[str, str]] = {
    errors.NotReady: {"Retry-After": str(RETRY_AFTER_S)},
    errors.Draining: {"Retry-After": str(RETRY_AFTER_S)},
    # What is left of the body was not read, so nothing else can follow on this connection.
    errors.BodyTooLarge: {"Connection": "close"},
}


def install(app: FastAPI) -> None:
    """Make the app answer every error as a problem."""
    app.add_exception_handler(ServiceError, _refuse)
    app.add_exception_handler(HTTPException, _refuse_address)
    app.add_exception_handler(ClientDisconnect, _say_nothing)
    app.add_exception_handler(Exception, _apologise)


def problem(
    *,
    status: int,
    code: str,
    detail: str,
    field: str | None = None,
    instance: str | None = None,
    headers: dict[str, str] | None = None,
) -> Response:
    """Return a problem+json answer. No cache keeps it: what is wrong now may be right soon."""
    body: dict[str, Any] = {
        "type": f"urn:pushforward:problem:{code}",
        "title": code.replace("_", " ").capitalize(),
        "status": status,
        "detail": detail,
        "code": code,
    }
    if field:
        body["field"] = field
    if instance:
        body["instance"] = instance
    return Response(
        orjson.dumps(body, option=orjson.OPT_APPEND_NEWLINE),
        status,
        {"Cache-Control": "no-store", **(headers or {})},
        MEDIA_TYPE,
    )


def _answer(
    request: Request,
    *,
    status: int,
    code: str,
    detail: str,
    field: str | None = None,
    headers: dict[str, str] | None = None,
) -> Response:
    """Return an error in the form that the address's clients read."""
    observing.note(outcome=code)
    path = request.url.path
    if path == _PROTOCOL or path.startswith(f"{_PROTOCOL}/"):
        return Response(
            orjson.dumps({"error": detail}),
            PROTOCOL_STATUS.get(status, status),
            {"Cache-Control": "no-store", **(headers or {})},
            "application/json",
        )
    return problem(
        status=status, code=code, detail=detail, field=field, instance=path, headers=headers
    )


async def _refuse(request: Request, error: Exception) -> Response:
    if not isinstance(error, ServiceError):
        raise error
    # None is left out on purpose; one that comes here all the same is a bug.
    status, detail = STATUS.get(type(error), 500), error.detail
    if status == 500:
        # The trace and the paths in it are for the operator.
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        detail = "The model failed on this request. It is a bug; the service's log has the trace."
    return _answer(
        request,
        status=status,
        code=error.code,
        detail=detail,
        field=error.field,
        headers=_headers(error),
    )


def _headers(error: ServiceError) -> dict[str, str] | None:
    if isinstance(error, errors.QueueFull):
        return {"Retry-After": str(error.retry_after_s)}
    return _HEADERS.get(type(error))


async def _refuse_address(request: Request, error: Exception) -> Response:
    """Return what Starlette's router raises, as our own: no such address, or not so."""
    if not isinstance(error, HTTPException):
        raise error
    path = request.url.path
    ours: ServiceError
    if error.status_code == 404:
        ours = errors.NotFound(f"There is nothing at {path}. See /docs for what there is.")
    elif error.status_code == 405:
        allowed = ", ".join(sorted(_methods(request))) or "GET"  # a file's address has no route
        ours = errors.MethodNotAllowed(f"{path} is not for {request.method}; use {allowed}.")
        answer = await _refuse(request, ours)
        answer.headers["Allow"] = allowed
        return answer
    else:
        ours = errors.RequestMalformed(f"{error.detail}.")
    return await _refuse(request, ours)


def _methods(request: Request) -> set[str]:
    """Return the methods of an address. The router's own answer names those of one route only."""
    return {
        method
        for each in iter_route_contexts(request.app.routes)
        if each.original_route.matches(request.scope)[0] is Match.PARTIAL
        for method in each.methods or ()
    }


async def _say_nothing(request: Request, error: Exception) -> Response:
    """Return something for a client that has gone. Nobody reads it, and nothing is wrong."""
    return Response(status_code=400)


async def _apologise(request: Request, error: Exception) -> Response:
    """Return 500. Starlette raises the error again, so the server logs it with its trace."""
    return _answer(
        request,
        status=500,
        code="internal",
        detail="The service failed on this request. It is a bug; its log has the trace.",
    )
