"""What a served model does, on arrays: sample, decode, encode, log-density, elbo.

No HTTP here. Each operation takes an engine and arrays that are already checked, makes the noise
that the graph asks for from the seed, and returns arrays by the names of the API.
"""

import asyncio
from contextlib import aclosing
from typing import Literal

import numpy as np

from service import monte_carlo, ode
from service.calls import Answer, Events, run
from service.condition import UNTOLD, Condition
from service.engine import Engine
from service.errors import CapabilityMissing, InputInvalid
from service.estimates import Bound, LogMean, Moments
from service.feeds import Codes, Draws, Source
from service.interface import DEFAULT_DRAWS, Estimator
from service.manifest import Manifest
from service.monte_carlo import Windows
from service.noise import Stream
from service.posterior import gaussian
from service.refinement import amortised, refined
from service.runs import Feeds
from service.tensors import Array

Operation = Literal["sample", "decode", "encode", "log-density", "elbo"]
Extra = Literal["z", "label", "log_density", "log_ratio", "attempts"]
Observation = Literal["mean", "draw"]
Picture = Literal["x", "pixels"]


def capabilities(manifest: Manifest) -> list[Operation]:
    """Return the operations that a model offers, in the order of the API."""
    solved = manifest.ode is not None
    offered: dict[Operation, bool] = {
        "sample": solved or "decode" in manifest.graphs,
        "decode": solved or "decode" in manifest.graphs,
        "encode": solved or "encode" in manifest.graphs,
        "log-density": manifest.density.kind != "none",
        "elbo": manifest.posterior is not None,
    }
    return [operation for operation, is_offered in offered.items() if is_offered]


def estimators(manifest: Manifest) -> list[Estimator]:
    """Return how a model's log-density can be had, its own way first."""
    own = manifest.density.estimator
    if own is None:
        return []
    others: dict[Estimator, bool] = {
        "importance": manifest.posterior is not None,
        "prior": "likelihood" in manifest.graphs,
    }
    return [own, *(each for each, is_offered in others.items() if is_offered and each != own)]


def require(manifest: Manifest, operation: Operation) -> None:
    """Pass if the model offers the operation.

    Raises:
        CapabilityMissing: Saying what the model can do instead.
    """
    offered = capabilities(manifest)
    if operation not in offered:
        why = f"cannot {operation}"
        if manifest.density.kind == "none" and operation in ("log-density", "elbo"):
            why = "is an implicit model and has no density"
        elif _lacks_posterior(manifest):
            why = f"has no posterior and {why}"
        raise CapabilityMissing(
            f"{manifest.name} {why}. It can: {', '.join(offered)}.", field="model"
        )


def require_refinement(manifest: Manifest) -> None:
    """Pass if the model can refine its posterior.

    Raises:
        CapabilityMissing: Saying why it cannot.
    """
    if "refine" in manifest.graphs:
        return
    require(manifest, "elbo")
    why = "it came without a graph for that"
    if manifest.posterior == "flow":
        why = "its posterior is a flow, and the steps move a Gaussian"
    raise CapabilityMissing(
        f"{manifest.name} cannot refine: {why}. Leave out 'refine'.", field="refine"
    )


def _lacks_posterior(manifest: Manifest) -> bool:
    """Return whether it is a latent-variable model that nobody has an encoder of."""
    return manifest.family == "vae" and manifest.posterior is None


def chosen(manifest: Manifest, estimator: Estimator | None) -> Estimator:
    """Return the estimator that was asked for, the model's own if none was.

    Raises:
        CapabilityMissing: The model has not that one, or none at all.
    """
    require(manifest, "log-density")
    offered = estimators(manifest)
    if estimator is None:
        return offered[0]
    if estimator not in offered:
        raise CapabilityMissing(
            f"{manifest.name} has no estimator '{estimator}'. It has: {', '.join(offered)}.",
            field="estimator",
        )
    return estimator


async def decode(
    engine: Engine,
    z: Array,
    *,
    condition: Condition = UNTOLD,
    output: Picture = "x",
    method: ode.Method | None = None,
) -> Answer:
    """Return x for each row of z. A model that is told labels or contexts wants them named here.

    Args:
        engine: The model.
        z: Shape (n, *latent).
        condition: What the model is told of the rows.
        output: `x`, or `pixels` in its place.
        method: Of a continuous flow: how it is solved, if not as usual.

    Raises:
        InputInvalid: The condition is not the model's; or a row of z is so large that
            the graph answers NaN.
    """
    told = condition.needed(engine.manifest, n=len(z))
    # Pixels are integers and hide a NaN; the x that they are made of does not.
    outputs = sorted({"x", output})
    if method := method or ode.usual(engine.manifest):
        answer = await ode.decoded(engine, z, told, method, outputs=outputs, given="z")
    else:
        feeds: Feeds = {"z": z, **told}
        answer = await run(engine, "decode", feeds, outputs=outputs, given="z")
    return {output: answer[output]}


async def encode(
    engine: Engine,
    x: Array,
    *,
    draws: int | None,
    seed: int,
    condition: Condition = UNTOLD,
    method: ode.Method | None = None,
) -> Answer:
    """Return the codes of x.

    Of a Gaussian posterior these are its mean and scale (or scale_tril), and z = mean, or with
    `draws` K that many draws of z, shape (n, K, ...). Of a posterior that is a flow z alone: what
    the flow makes of its base's mean, or draws. A flow answers z and log |det dz/dx|; of an image
    it first adds the dequantisation noise of the seed. A continuous flow whose log |det dz/dx| is
    but estimated leaves it out.

    Raises:
        InputInvalid: `draws` was given to a model whose code is not random; the condition is not
            the model's; or a row of x is so large that the graph answers NaN.
    """
    manifest = engine.manifest
    events = Events(x, condition.needed(manifest, n=len(x)))
    if manifest.posterior == "flow":
        return {"z": await _flow_codes(engine, events, draws=draws, seed=seed)}
    if manifest.posterior:
        answer = await run(engine, "encode", events.feeds, given="x")
        z = answer["mean"]
        if draws:
            shape = manifest.latent.shape
            noise = Draws(seed, Stream.POSTERIOR, shape, draws=draws, width=draws)
            z = await asyncio.to_thread(Codes(gaussian(answer), noise).rows, 0, len(x))
        return {"z": z, **answer}
    if draws is not None:
        raise InputInvalid(
            f"field 'draws': {manifest.name} has one code for an x. Leave it out.", field="draws"
        )
    if method := method or ode.usual(manifest):
        weighs = manifest.density.kind != "none" and manifest.density.estimator != "hutchinson"
        z, *log_abs_det = await ode.encoded(engine, events, method, seed=seed, weighs=weighs)
        return {"z": z.astype(np.float32), **({"log_abs_det": log_abs_det[0]} if weighs else {})}
    feeds = events.feeds
    if manifest.density.estimator == "dequantisation":
        feeds["noise"] = monte_carlo.below_levels(engine, seed, first=0, draws=1)
    return await run(engine, "encode", feeds, given="x")


async def _flow_codes(engine: Engine, events: Events, *, draws: int | None, seed: int) -> Array:
    """Return draws of a posterior that is a flow, or what it makes of its base's mean."""
    shape = engine.manifest.latent.shape
    noise: Array | Source = np.zeros((len(events), 1, *shape), dtype=np.float32)
    if draws:
        noise = Draws(seed, Stream.POSTERIOR, shape, draws=draws)
    answer = await run(engine, "encode", {**events.feeds, "noise": noise}, given="x")
    return answer["z"] if draws else answer["z"][:, 0]


async def log_density(
    engine: Engine,
    x: Array,
    *,
    draws: int | None,
    seed: int,
    condition: Condition = UNTOLD,
    estimator: Estimator | None = None,
    method: ode.Method | None = None,
) -> Answer:
    """Return log p(x) in nats: exact, or the log of a mean over draws with its standard error.

    The estimate log (1/K) sum_k w_k is below log p(x) on average and rises to it with K
    (Burda et al. 2016, arXiv:1509.00519). Its standard error is by the delta method, that of the
    mean weight divided by the mean weight; one draw has none (NaN).

    By Hutchinson's estimator it is the mean over draws of what is right on average; of an image,
    whose noise below its grey levels it is a mean over as well, a lower bound on average.

    Raises:
        CapabilityMissing: The model has not this estimator.
        InputInvalid: `draws` was given to a model whose density is exact; the condition is not
            the model's; or a row of x is so large that the graph answers NaN.
    """
    manifest = engine.manifest
    events = Events(x, condition.needed(manifest, n=len(x)))
    estimator = chosen(manifest, estimator)
    method = method or ode.usual(manifest)
    if estimator == "exact":
        if draws is not None:
            raise InputInvalid(
                f"field 'draws': the density of {manifest.name} is exact. Leave it out.",
                field="draws",
            )
        if method:
            return {"log_density": (await ode.log_density(engine, events, method, seed=seed))[:, 0]}
        return await run(engine, "log_density", events.feeds, given="x")
    draws = draws or DEFAULT_DRAWS
    windows = await _weights(engine, events, estimator, method, draws=draws, seed=seed)
    mean = Moments(len(x)) if estimator == "hutchinson" else LogMean(len(x))
    async with aclosing(windows):
        async for window in windows:
            mean.add(window["log_weight"])
    if isinstance(mean, Moments):
        return {"log_density": mean.mean, "standard_error": mean.standard_error}
    return {
        "log_density": mean.value,
        "standard_error": mean.standard_error,
        "effective_sample_size": mean.effective_sample_size,
    }


async def elbo(
    engine: Engine, x: Array, *, draws: int | None, seed: int, condition: Condition = UNTOLD
) -> Answer:
    """Return the evidence lower bound of each x in nats, by its parts and with its error.

    elbo = reconstruction - kl, where reconstruction is the mean of log p(x|z) over the draws
    and kl = KL(q(z|x) || p(z)) is exact, or where one of them is a flow the mean over the same
    draws. importance_weighted is the tighter bound of these draws.

    Raises:
        InputInvalid: The condition is not the model's; or a row of x is so large that the graph
            answers NaN.
    """
    events = Events(x, condition.needed(engine.manifest, n=len(x)))
    windows = await _importance(engine, events, draws=draws or DEFAULT_DRAWS, seed=seed)
    return await _bound(windows, len(x))


async def refined_elbo(
    engine: Engine,
    x: Array,
    *,
    steps: int,
    draws: int | None,
    seed: int,
    condition: Condition = UNTOLD,
) -> tuple[Answer, Answer]:
    """Return the bound of each x after so many steps of its own q(z|x), and the one before them.

    Both are of the same noise, so that what was gained has little of it.

    Raises:
        InputInvalid: As `elbo`.
    """
    events = Events(x, condition.needed(engine.manifest, n=len(x)))
    before = await amortised(engine, events)
    after = await refined(engine, events, before, steps=steps, seed=seed)
    answers = []
    for q in (after, before):
        windows = monte_carlo.by_likelihood(
            engine, events, q, draws=draws or DEFAULT_DRAWS, seed=seed
        )
        answers.append(await _bound(windows, len(x)))
    return answers[0], answers[1]


async def _bound(windows: Windows, rows: int) -> Answer:
    """Return the bound of each row by its parts."""
    bound = Bound(rows)
    async with aclosing(windows):
        async for window in windows:
            bound.add(window["reconstruction"], window["kl"], window["log_weight"])
    return {**bound.parts}


async def _weights(
    engine: Engine,
    events: Events,
    estimator: Estimator,
    method: ode.Method | None,
    *,
    draws: int,
    seed: int,
) -> Windows:
    """Return the windows of an estimate, whose weights have p(x) for their mean.

    But for Hutchinson's, whose logarithms have log p(x) for theirs, or something less.
    """
    match estimator:
        case "importance":
            return await _importance(engine, events, draws=draws, seed=seed)
        case "prior":
            return monte_carlo.by_prior(engine, events, draws=draws, seed=seed)
        case "dequantisation" | "hutchinson" if method:
            return monte_carlo.by_path(engine, events, method, draws=draws, seed=seed)
        case "dequantisation":
            return monte_carlo.by_dequantisation(engine, events, draws=draws, seed=seed)
        case "exact" | "hutchinson":
            raise TypeError(f"{estimator} takes no draws of {engine.manifest.name}")


async def _importance(engine: Engine, events: Events, *, draws: int, seed: int) -> Windows:
    """Return the windows of draws of the encoder's q(z|x)."""
    if "elbo" in engine.manifest.graphs:
        return monte_carlo.by_elbo(engine, events, draws=draws, seed=seed)
    q = await amortised(engine, events)
    return monte_carlo.by_likelihood(engine, events, q, draws=draws, seed=seed)
