"""Calls that make events: /sample from a seed, /decode from given z."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from starlette.requests import Request
from starlette.responses import Response

from service import ode, operations, sampling
from service.api import answers, bodies, context, observing, schemas, streams
from service.api.answers import NDJSON, PNG, Result
from service.api.bodies import JSON, NPY
from service.api.documentation import describe
from service.api.routing import plain_router
from service.bundle import digest
from service.calls import Answer
from service.engine import Engine
from service.errors import InputInvalid
from service.runtime import onnxruntime
from service.settings import Settings

router = plain_router()

_SAMPLE = describe(
    schemas.Sample,
    schemas.Sampled,
    pictures=True,
    summary="Sample from a model",
    text="Row i of seed s is a pure function of (bundle, s, i): the same call gives the same "
    "answer, and start = 8, n = 8 the second half of n = 16. An npy answer is x alone. A PNG is "
    "one image, or a grid of `columns`. A GET with model, version and seed may be cached for "
    "ever.",
)


@router.head("/sample", include_in_schema=False)
@router.get("/sample", response_class=Response, openapi_extra=_SAMPLE.of("GET"))
async def sample_by_address(request: Request) -> Response:
    """Return samples at an address that a cache can keep: an `<img src>` works as it is."""
    return await _sample(request)


@router.post("/sample", response_class=Response, openapi_extra=_SAMPLE.of("POST"))
async def sample(request: Request) -> Response:
    """Return samples."""
    return await _sample(request)


async def _sample(request: Request) -> Response:
    here = context.of(request)
    asked = await bodies.read(request, schemas.Sample)
    call = asked.parameters
    engine = await here.engine(request, call.model, call.version)
    media_type = answers.negotiate(request, engine.manifest, makes_events=True, streams=True)
    is_stream = _streams(call, engine, media_type)
    if not is_stream:
        here.check_values(engine, call.n, field="n", advice=_STREAM_IT)
    _check_sample(call, media_type, here.settings)
    observing.note(rows=call.n)

    output = _output(media_type)
    drawing = _drawing(call, seed=context.seed_or_new(call.seed), output=output)
    sampling.check(engine.manifest, drawing)
    here.check_steps_of_solver(call.steps)
    if not is_stream:
        method = ode.chosen(engine.manifest, call)
        here.check_path(engine, method, call.n)
    seed, start = drawing.seed, drawing.start
    headers = context.headers(engine, seed=seed, start=start)
    if request.method != "POST":
        headers |= _caching(call, drawing, engine, media_type)
        if _is_known(request, headers.get("ETag")):
            return Response(status_code=304, headers={"Vary": "Accept", **headers})

    if is_stream:
        return await _stream(request, engine, drawing, headers=headers, media_type=media_type)
    async with here.patience(request):
        answer = await sampling.sample(engine, _counted(drawing))
    if call.rejection:
        headers["Pushforward-Unaccepted"] = str((answer["attempts"] == 0).sum())
        answer = {name: answer[name] for name in answer if name in (output, *call.include)}
    said = {"model": engine.manifest.name, "version": engine.manifest.version}
    result = Result({**said, "seed": seed, "start": start, **answer}, output, headers)
    return await answers.write(result, media_type, columns=call.columns)


def _drawing(call: schemas.Sample, *, seed: int, output: operations.Picture) -> sampling.Drawing:
    return sampling.Drawing(
        n=call.n,
        seed=seed,
        start=call.start,
        condition=call.condition,
        temperature=call.temperature,
        observation=call.observation,
        include=call.include,
        outputs=[output],
        solver=call.solver,
        steps=call.steps,
        guidance=call.guidance,
        rejection=call.rejection,
    )


def _counted(drawing: sampling.Drawing) -> sampling.Drawing:
    """Return what tells, if rows are rejected, which of them were never accepted."""
    if not drawing.rejection:
        return drawing
    return replace(drawing, include=[*drawing.include, "attempts"])


_STREAM_IT = (
    f"Ask for the others by 'start' in further calls, or for {NPY} or {NDJSON}: they stream."
)


def _streams(call: schemas.Sample, engine: Engine, media_type: str) -> bool:
    """Return whether the answer is sent while it is made."""
    if media_type == NPY:
        return call.n * engine.manifest.event.size * 4 > sampling.WINDOW_BYTES
    return media_type == NDJSON


async def _stream(
    request: Request,
    engine: Engine,
    drawing: sampling.Drawing,
    *,
    headers: dict[str, str],
    media_type: str,
) -> Response:
    """Return an answer that is made while it is sent, once its first rows are there."""
    here = context.of(request)
    headers = {"Vary": "Accept", **headers}
    shape = (drawing.n, *engine.manifest.event.shape)
    if media_type == NPY:
        headers["Content-Length"] = str(streams.npy_size(shape))
    if request.method == "HEAD":
        head = Response(headers=headers, media_type=media_type)
        if media_type == NDJSON:  # nobody knows how long it would be
            del head.headers["content-length"]
        return head
    windows = sampling.stream(engine, drawing)
    async with here.patience(request):
        first = await anext(windows)
    all_windows = _chain(first, windows)
    if media_type == NPY:
        chunks = streams.npy(all_windows, shape=shape, drain=here.drain)
    else:
        chunks = streams.ndjson(all_windows, start=drawing.start, drain=here.drain)
    return streams.Stream(chunks, headers=headers, media_type=media_type)


async def _chain(
    first: Answer, others: AsyncGenerator[Answer, None]
) -> AsyncGenerator[Answer, None]:
    async with aclosing(others):
        yield first
        async for each in others:
            yield each


def _output(media_type: str) -> operations.Picture:
    return "pixels" if media_type == PNG else "x"


def _check_sample(call: schemas.Sample, media_type: str, settings: Settings) -> None:
    if call.n > settings.max_stream_rows:
        raise InputInvalid(
            f"field 'n': at most {settings.max_stream_rows} rows in one stream; got {call.n}. "
            "Ask for the others by 'start' in further calls.",
            field="n",
        )
    if call.include and media_type not in (JSON, NDJSON):
        raise InputInvalid(
            f"field 'include': only {JSON} and {NDJSON} have room beside x; {media_type} was "
            "asked for.",
            field="include",
        )


def _caching(
    call: schemas.Sample, drawing: sampling.Drawing, engine: Engine, media_type: str
) -> dict[str, str]:
    """Return what caches may do with a GET: all that decides its bytes is in its address."""
    if call.seed is None:
        return {"Cache-Control": "no-store"}
    # Bytes may differ in their last bit across runtimes, and where a row's answer depends on
    # its batch from one call to the next: then the tag is weak (RFC 9110, section 8.8.1).
    passes = sampling.passes_of(engine.manifest, drawing)
    exact = all(engine.proofs[role].rows_exact_at for role in passes)
    parts = [
        engine.identity,
        engine.device.kind,
        onnxruntime.__version__,
        media_type,
        call.model_dump_json(exclude={"model", "version"}),
    ]
    forever = "public, max-age=31536000, immutable"
    return {
        "ETag": f'{"" if exact else "W/"}"{digest(" ".join(parts).encode())[:32]}"',
        # Which model is meant by none, and which version is served, may change.
        "Cache-Control": forever if call.model and call.version else "no-cache",
    }


def _is_known(request: Request, tag: str | None) -> bool:
    """Return whether the client says that it has this answer (RFC 9110, section 13.1.2)."""
    known = ",".join(request.headers.getlist("if-none-match"))
    tags = [each.strip().removeprefix("W/") for each in known.split(",")]
    return tag is not None and (tag.removeprefix("W/") in tags or "*" in tags)


_DECODE = describe(
    schemas.Decode,
    schemas.Decoded,
    pictures=True,
    summary="Decode latents",
    text="An npy answer is x alone. A PNG is one image, or a grid of `columns`.",
)


@router.post("/decode", response_class=Response, openapi_extra=_DECODE.of("POST"))
async def decode(request: Request) -> Response:
    """Return x of given z."""
    here = context.of(request)
    asked = await bodies.read(request, schemas.Decode)
    call = asked.parameters
    engine = await here.engine(request, call.model, call.version)
    media_type = answers.negotiate(request, engine.manifest, makes_events=True)
    z = await asked.rows(engine.manifest.latent.shape)
    here.check_values(engine, len(z), field="z")
    observing.note(rows=len(z))
    output = _output(media_type)
    method = ode.chosen(engine.manifest, call)
    here.check_steps_of_solver(call.steps)
    here.check_path(engine, method, len(z))
    async with here.patience(request):
        answer = await operations.decode(
            engine, z, condition=call.condition, output=output, method=method
        )
    said = {"model": engine.manifest.name, "version": engine.manifest.version}
    result = Result({**said, **answer}, output, context.headers(engine))
    return await answers.write(result, media_type, columns=call.columns)
