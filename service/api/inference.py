"""Calls that read events: /encode, /log-density, /elbo, /two-sample-test."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import numpy as np
from anyio.to_thread import run_sync as in_thread
from starlette.requests import Request
from starlette.responses import Response

from service import ode, operations, sampling, two_sample
from service.api import answers, bodies, context, observing, schemas
from service.api.answers import OrNull, Result
from service.api.documentation import describe
from service.api.routing import plain_router
from service.calls import Answer
from service.engine import Engine
from service.errors import EngineFailed, InputInvalid
from service.estimates import anomaly_scores
from service.interface import DEFAULT_DRAWS
from service.manifest import Manifest
from service.tensors import Array

router = plain_router()

Call = TypeVar("Call", bound=schemas.Seeded)


@dataclass(frozen=True)
class Reading(Generic[Call]):
    """A request that is known to be sound: its model can do this, its rows are events.

    Args:
        here: Settings and models.
        call: Its parameters.
        engine: The model.
        media_type: What the answer will be.
        x: The events.
        seed: What was asked for, or a new one.
    """

    here: context.Context
    call: Call
    engine: Engine
    media_type: str
    x: Array
    seed: int


async def _read(
    request: Request, schema: type[Call], require: Callable[[Manifest, Call], object]
) -> Reading[Call]:
    """Return a request once `require` has found that its model can do this."""
    here = context.of(request)
    asked = await bodies.read(request, schema)
    call = asked.parameters
    engine = await here.engine(request, call.model, call.version)
    manifest = engine.manifest
    require(manifest, call)
    media_type = answers.negotiate(request, manifest, makes_events=False)
    x = await asked.rows(manifest.event.shape, event=manifest.event)
    observing.note(rows=len(x))
    return Reading(here, call, engine, media_type, x, context.seed_or_new(call.seed))


async def _write(
    reading: Reading[Call], fields: Mapping[str, Any], *, primary: str, seed: int | None
) -> Response:
    manifest = reading.engine.manifest
    said = {"model": manifest.name, "version": manifest.version}
    headers = context.headers(reading.engine, seed=seed)
    result = Result({**said, **fields, "seed": seed}, primary, headers)
    return await answers.write(result, reading.media_type)


_ENCODE = describe(
    schemas.Encode,
    schemas.Encoded,
    summary="Encode events",
    text="A VAE answers its posterior, and z is its mean, or with `draws` K that many draws, "
    "shape (n, K, ...). Of a posterior that is a flow there is z alone. A flow answers z and "
    "log |det dz/dx|. An npy answer is z alone.",
)


@router.post("/encode", response_class=Response, openapi_extra=_ENCODE.of("POST"))
async def encode(request: Request) -> Response:
    """Return z of given x."""
    reading = await _read(
        request, schemas.Encode, lambda manifest, _: operations.require(manifest, "encode")
    )
    engine, draws = reading.engine, reading.call.draws
    method = _method(reading)
    reading.here.check_values(engine, len(reading.x), field="x")
    reading.here.check_path(engine, method, len(reading.x))
    if draws is not None:
        reading.here.check_draws(len(reading.x), draws)
        reading.here.check_values(engine, len(reading.x) * draws, field="draws")
    async with reading.here.patience(request):
        answer = await operations.encode(
            engine,
            reading.x,
            draws=draws,
            seed=reading.seed,
            condition=reading.call.condition,
            method=method,
        )
    z, log_abs_det = answer.pop("z"), answer.pop("log_abs_det", None)
    fields = {"z": z, "posterior": answer or None, "log_abs_det": log_abs_det}
    # The code of an image depends on the noise below its grey levels.
    dequantised = engine.manifest.density.estimator == "dequantisation" or bool(
        method and engine.manifest.event.levels
    )
    is_random = draws is not None if engine.manifest.posterior else dequantised
    return await _write(reading, fields, primary="z", seed=reading.seed if is_random else None)


def _method(
    reading: Reading[schemas.Encode] | Reading[schemas.LogDensity] | Reading[schemas.TwoSampleTest],
) -> ode.Method | None:
    """Return how the model's ode is to be solved, if it has one.

    Raises:
        CapabilityMissing: It has none, and something was said of it.
        InputInvalid: So many steps are not taken here.
    """
    call = reading.call
    reading.here.check_steps_of_solver(call.steps)
    return ode.chosen(reading.engine.manifest, call)


_LOG_DENSITY = describe(
    schemas.LogDensity,
    schemas.LogDensities,
    summary="Ask how probable events are",
    text="In nats: exact where the model has a density, else the log of a Monte-Carlo mean with "
    "its standard error, by one of the model's `estimators`. An npy answer is log_density alone.",
)


@router.post("/log-density", response_class=Response, openapi_extra=_LOG_DENSITY.of("POST"))
async def log_density(request: Request) -> Response:
    """Return log p(x) of given x."""
    reading = await _read(
        request,
        schemas.LogDensity,
        lambda manifest, call: operations.chosen(manifest, call.estimator),
    )
    call, manifest = reading.call, reading.engine.manifest
    estimator = operations.chosen(manifest, call.estimator)
    estimated, method = estimator != "exact", _method(reading)
    draws = call.draws
    if estimated:
        draws = draws or DEFAULT_DRAWS
        reading.here.check_draws(len(reading.x), draws)
    paths = len(reading.x) * (draws or 1)
    reading.here.check_path(reading.engine, method, paths, role="divergence")
    async with reading.here.patience(request):
        answer = await operations.log_density(
            reading.engine,
            reading.x,
            draws=draws,
            seed=reading.seed,
            condition=call.condition,
            estimator=estimator,
            method=method,
        )
    value = answer["log_density"]
    fields: dict[str, Any] = {
        "log_density": value,
        "standard_error": OrNull(answer["standard_error"]) if estimated else None,
        "estimator": estimator,
        "unit": "nats",
        "bits_per_dim": value.astype("float64") / (-manifest.event.size * math.log(2)),
        "draws": draws,
    }
    known = manifest.held_out
    if known and known.draws == draws and method == ode.usual(manifest):
        fields["anomaly_score"] = anomaly_scores(value, known.values)
    if "effective_sample_size" in answer:
        fields["effective_sample_size"] = OrNull(answer["effective_sample_size"])
    seed = reading.seed if estimated else None
    return await _write(reading, fields, primary="log_density", seed=seed)


_ELBO = describe(
    schemas.Elbo,
    schemas.Bounds,
    summary="Bound how probable events are",
    text="In nats: elbo = reconstruction - kl. importance_weighted is the tighter bound of the "
    "same draws. With `refine` it is the bound of each row's own q(z|x) after so many steps, and "
    "`amortised` that of the encoder. An npy answer is elbo alone.",
)


@router.post("/elbo", response_class=Response, openapi_extra=_ELBO.of("POST"))
async def elbo(request: Request) -> Response:
    """Return the evidence lower bound of given x."""
    reading = await _read(request, schemas.Elbo, _require_elbo)
    engine, x, call, seed = reading.engine, reading.x, reading.call, reading.seed
    draws, condition, steps = call.draws or DEFAULT_DRAWS, call.condition, call.refine
    reading.here.check_draws(len(x), draws)
    amortised = None
    if steps:
        reading.here.check_values(engine, len(x), field="x")
        reading.here.check_steps(len(x), steps)
    async with reading.here.patience(request):
        if steps:
            answer, amortised = await operations.refined_elbo(
                engine, x, steps=steps, draws=draws, seed=seed, condition=condition
            )
        else:
            answer = await operations.elbo(engine, x, draws=draws, seed=seed, condition=condition)
    fields = {
        **_parts(answer),
        "unit": "nats",
        "draws": draws,
        "refine": steps,
        "amortised": _parts(amortised) if amortised else None,
    }
    return await _write(reading, fields, primary="elbo", seed=seed)


def _require_elbo(manifest: Manifest, call: schemas.Elbo) -> None:
    if call.refine:
        operations.require_refinement(manifest)
    operations.require(manifest, "elbo")


def _parts(answer: Answer) -> dict[str, Any]:
    """Return a bound as JSON has it: what a single draw cannot tell is null."""
    unknown = ("standard_error", "effective_sample_size")
    return answer | {name: OrNull(answer[name]) for name in unknown}


_TEST = describe(
    schemas.TwoSampleTest,
    schemas.Verdict,
    summary="Ask whether a batch looks like the model's",
    text="As many samples are drawn as there are events, and the two are compared by the unbiased "
    "squared MMD. The p-value is how probable one so large would be, were the events the model's "
    "own: a small one says that they are not. An npy answer is the p-value alone.",
)


@router.post("/two-sample-test", response_class=Response, openapi_extra=_TEST.of("POST"))
async def two_sample_test(request: Request) -> Response:
    """Return how unlike the model's own samples given x are."""
    reading = await _read(
        request, schemas.TwoSampleTest, lambda manifest, _: operations.require(manifest, "sample")
    )
    here, call, engine, x = reading.here, reading.call, reading.engine, reading.x
    _check_rows(len(x))
    here.check_values(engine, len(x), field="x", advice="Send some of them, drawn at random.")
    manifest = engine.manifest
    drawing = sampling.Drawing(
        n=len(x),
        seed=reading.seed,
        condition=call.condition,
        observation=call.observation or ("draw" if manifest.observation else None),
        solver=call.solver,
        steps=call.steps,
        guidance=call.guidance,
    )
    sampling.check(manifest, drawing)
    here.check_path(engine, _method(reading), len(x))
    async with here.patience(request):
        drawn = await sampling.sample(engine, drawing)
        verdict = await in_thread(
            partial(
                two_sample.compare,
                x,
                _finite(drawn["x"], manifest),
                event=manifest.event,
                kernel=call.kernel,
                seed=reading.seed,
            ),
            limiter=here.comparisons,
        )
    found = verdict.p_value
    fields = {
        "n": len(x),
        "kernel": call.kernel,
        "statistic": verdict.statistic,
        "standard_error": verdict.standard_error,
        "p_value": np.asarray(found) if reading.media_type == bodies.NPY else found,
        "permutations": two_sample.PERMUTATIONS,
    }
    return await _write(reading, fields, primary="p_value", seed=reading.seed)


def _finite(x: Array, manifest: Manifest) -> Array:
    """Return samples that can be compared.

    Raises:
        EngineFailed: One of them is infinite.
    """
    if not np.isfinite(x).all():
        raise EngineFailed(f"{manifest.name}: a sample is infinite.")
    return x


def _check_rows(rows: int) -> None:
    """Pass if so many can be compared.

    Raises:
        InputInvalid: Naming the limit.
    """
    least, most = two_sample.LEAST_ROWS, two_sample.MOST_ROWS
    if not least <= rows <= most:
        raise InputInvalid(
            f"field 'x': expected {least} to {most} rows, drawn at random; got {rows}.", field="x"
        )
