"""The Open Inference Protocol V2 over REST: /v2. What it serves: docs/inference-protocol.md."""

from importlib.metadata import version
from typing import Any

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from service.api import bodies, context, health, observing
from service.api.bodies import JSON, SMALL_BYTES, in_thread
from service.api.oip import compression, documentation, inference, models, parameters, wire
from service.api.oip.documentation import described
from service.api.oip.inference import Outcome
from service.api.oip.models import Served
from service.api.oip.parameters import Parameters
from service.api.oip.statistics import Statistics
from service.api.patience import Allowance, patience
from service.errors import RequestMalformed

router = APIRouter(prefix="/v2", tags=[documentation.TAG], responses=documentation.errors)

EXTENSIONS = ["binary_tensor_data", "model_configuration", "model_repository", "statistics"]
HEADER_LENGTH = "Inference-Header-Content-Length"
OCTETS = "application/octet-stream"
INDEX_BYTES = 2**10
"""Most bytes of a request for the index: it is one word."""
SMALL_COMPRESSED = 2**16
"""Less than this is compressed at once: it takes a millisecond (measured)."""


@router.get("", openapi_extra=described())
@router.get("/", include_in_schema=False)
async def server() -> Response:
    """Return what this server is and can."""
    about = {"name": "pushforward", "version": version("pushforward"), "extensions": EXTENSIONS}
    return _json(about)


@router.get("/health/live", openapi_extra=described())
async def live() -> Response:
    """Return 200 as long as the event loop turns."""
    return _json({"live": True})


@router.get("/health/ready", openapi_extra=described())
async def ready(request: Request) -> Response:
    """Return 200 once every model was tried and at least one is served."""
    await health.readyz(request)
    # The specification's own example says `live` here; KServe and its client say `ready`.
    return _json({"live": True, "ready": True})


@router.get("/models", openapi_extra=described())
async def names(request: Request) -> Response:
    """Return the names of what is served, as KServe does."""
    served = models.newest(context.of(request).repository)
    return _json({"models": [each.name for each in served]})


@router.get("/models/stats", openapi_extra=described())
async def all_statistics(request: Request) -> Response:
    """Return the counts of every model that is loaded."""
    served = models.loaded(context.of(request).repository)
    counted = _statistics(request)
    return _json({"model_stats": [counted.of(each).said(each) for each in served]})


@router.get("/models/{name}", openapi_extra=described("name"))
@router.get("/models/{name}/versions/{version}", openapi_extra=described("name", "version"))
async def metadata(request: Request) -> Response:
    """Return the tensors of a model."""
    return _json(models.metadata(await _find(request), context.of(request)))


@router.get("/models/{name}/ready", openapi_extra=described("name"))
@router.get("/models/{name}/versions/{version}/ready", openapi_extra=described("name", "version"))
async def model_ready(request: Request) -> Response:
    """Return 200 if a model is served."""
    return _json({"name": (await _find(request)).name, "ready": True})


@router.get("/models/{name}/config", openapi_extra=described("name"))
@router.get("/models/{name}/versions/{version}/config", openapi_extra=described("name", "version"))
async def configuration(request: Request) -> Response:
    """Return a model's configuration in Triton's form."""
    return _json(models.configuration(await _find(request), context.of(request).settings))


@router.get("/models/{name}/stats", openapi_extra=described("name"))
@router.get("/models/{name}/versions/{version}/stats", openapi_extra=described("name", "version"))
async def statistics(request: Request) -> Response:
    """Return the counts of a model."""
    served = await _find(request)
    return _json({"model_stats": [_statistics(request).of(served).said(served)]})


@router.post("/repository/index", openapi_extra=described(listing=True, body=True))
async def index(request: Request) -> Response:
    """Return what became of every model in the folder, or with `ready` of those that serve."""
    here = context.of(request)
    body = await bodies.read_all(request, limit=INDEX_BYTES)
    try:
        asked = orjson.loads(body or b"{}")
    except orjson.JSONDecodeError as error:
        raise RequestMalformed(f"The body is not JSON: {error}.") from error
    only_ready = isinstance(asked, dict) and asked.get("ready") is True
    entries = models.index(here.repository)
    return _json([each for each in entries if not only_ready or each["state"] == "READY"])


@router.post("/repository/models/{name}/load", openapi_extra=described("name"))
@router.post("/repository/models/{name}/unload", openapi_extra=described("name"))
async def change_repository(request: Request) -> Response:
    """Refuse: Triton does so too where models are not loaded on request.

    Raises:
        RequestMalformed: Always.
    """
    raise RequestMalformed(
        "Models are not loaded and unloaded on request: the folder of models decides what is "
        "served. POST /v2/repository/index says what that is."
    )


@router.post("/models/{name}/infer", openapi_extra=described("name", tensors=True))
@router.post(
    "/models/{name}/versions/{version}/infer",
    openapi_extra=described("name", "version", tensors=True),
)
async def infer(request: Request) -> Response:
    """Return the outputs of a model for given inputs."""
    here = context.of(request)
    limit = here.settings.max_body_bytes
    body = await bodies.read_all(request)
    served = await _find(request)
    with _statistics(request).of(served).request() as watch:
        encoding = request.headers.get("content-encoding", "identity")
        length = _header_length(request)
        # What is compressed takes longer by the byte, and nobody knows yet how long.
        is_long = len(body) >= SMALL_BYTES or encoding != "identity"
        call = await in_thread(
            is_long, _read, body, served, encoding=encoding, length=length, limit=limit
        )
        said = parameters.read(served.parameters, call.parameters)
        watch.has_read()
        async with patience(request.receive, _allowance(request, said)):
            outcome = await inference.infer(here, served, call, said)
        watch.has_run(rows=outcome.rows)
        observing.note(rows=outcome.rows)
        accepted = request.headers.get("accept-encoding", "")
        size = sum(array.nbytes for array in outcome.arrays.values())
        is_long = size >= (SMALL_COMPRESSED if compression.choose(accepted) else SMALL_BYTES)
        return await in_thread(is_long, _write, served, call, outcome, accepted=accepted)


def _read(
    body: bytes, served: Served, *, encoding: str, length: int | None, limit: int
) -> wire.Call:
    expanded = compression.expand(body, encoding, limit=limit)
    return wire.read(expanded, length, served.signature)


def _write(served: Served, call: wire.Call, outcome: Outcome, *, accepted: str) -> Response:
    noise = {"seed": outcome.seed, "start": outcome.start}
    header: dict[str, Any] = {"model_name": served.name, "model_version": served.version}
    if known := {name: value for name, value in noise.items() if value is not None}:
        header["parameters"] = known
    parts, length = wire.write(header, outcome.arrays, call)
    headers = context.headers(served.engine, **noise) | {"Vary": "Accept-Encoding"}
    if length is not None:
        headers[HEADER_LENGTH] = str(length)
    chosen = compression.choose(accepted)
    if chosen and compression.is_worthwhile(parts):
        headers["Content-Encoding"] = chosen
        body = compression.compress(parts, chosen)
    else:
        body = b"".join(parts)
    return Response(body, headers=headers, media_type=JSON if length is None else OCTETS)


def _header_length(request: Request) -> int | None:
    """Return how many bytes of JSON the body begins with, None if it does not say.

    Raises:
        RequestMalformed: What it says is no number of bytes.
    """
    text = request.headers.get(HEADER_LENGTH)
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise RequestMalformed(f"{HEADER_LENGTH}: expected a number of bytes; got {text[:40]}.")
    return int(text)


def _allowance(request: Request, said: Parameters) -> Allowance:
    """Return how long an inference may take: by the operator, the header and the parameter."""
    allowed = context.of(request).allowance(request)
    return allowed.at_most(said.timeout / 1e6) if said.timeout else allowed


async def _find(request: Request) -> Served:
    path = request.path_params
    return await models.find(request, path["name"], path.get("version"))


def _statistics(request: Request) -> Statistics:
    """Return the counts of this app, which begin with its first request."""
    state = request.app.state
    if not hasattr(state, "inference_statistics"):
        state.inference_statistics = Statistics()
    counted: Statistics = state.inference_statistics
    return counted


def _json(value: object) -> Response:
    return Response(orjson.dumps(value), headers={"Cache-Control": "no-cache"}, media_type=JSON)
