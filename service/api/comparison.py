"""Calls that compare events with what a model makes: /two-sample-test."""

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from service import ode, sampling, two_sample
from service.api import answers, bodies, context, observing, schemas
from service.api.answers import Result
from service.api.documentation import describe
from service.api.routing import plain_router
from service.errors import InputInvalid
from service.operations import require

router = plain_router()

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
    """Return how unlike the model's own samples a batch is."""
    here = context.of(request)
    asked = await bodies.read(request, schemas.TwoSampleTest)
    call = asked.parameters
    engine = await here.engine(request, call.model, call.version)
    manifest = engine.manifest
    require(manifest, "sample")
    media_type = answers.negotiate(request, manifest, makes_events=False)
    x = await asked.rows(manifest.event.shape, event=manifest.event)
    _check_rows(len(x))
    here.check_values(engine, len(x), field="x", advice="Send some of them, drawn at random.")
    observing.note(rows=len(x))

    seed = context.seed_or_new(call.seed)
    drawing = sampling.Drawing(
        n=len(x),
        seed=seed,
        condition=call.condition,
        observation=call.observation or ("draw" if manifest.observation else None),
        solver=call.solver,
        steps=call.steps,
    )
    sampling.check(manifest, drawing)
    here.check_steps_of_solver(call.steps)
    here.check_path(engine, ode.chosen(manifest, call.solver, call.steps), len(x))
    async with here.patience(request):
        drawn = await sampling.sample(engine, drawing)
        verdict = await bodies.in_thread(
            True,
            two_sample.compare,
            x,
            drawn["x"],
            event=manifest.event,
            kernel=call.kernel,
            seed=seed,
        )
    fields = {
        "model": manifest.name,
        "version": manifest.version,
        "n": len(x),
        "kernel": call.kernel,
        "statistic": verdict.statistic,
        "standard_error": verdict.standard_error,
        "p_value": np.asarray(verdict.p_value) if media_type == bodies.NPY else verdict.p_value,
        "permutations": two_sample.PERMUTATIONS,
        "seed": seed,
    }
    result = Result(fields, "p_value", context.headers(engine, seed=seed))
    return await answers.write(result, media_type)


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
