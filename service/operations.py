"""What a served model does, on arrays: sample, decode, encode, log-density, elbo.

No HTTP here. Each operation takes an engine and arrays that are already checked, makes the noise
that the graph asks for from the seed, and returns arrays by the names of the API.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from functools import partial
from typing import Literal, TypeVar

import numpy as np

from service.engine import Engine
from service.errors import CapabilityMissing, EngineFailed, InputInvalid, NotANumber
from service.estimates import LogMean, Moments
from service.feeds import Draws, Given, Source
from service.manifest import DRAW_WIDTHS, Manifest, Role
from service.noise import Stream
from service.runs import Feeds
from service.tensors import Array
from service.windows import one_ahead

Operation = Literal["sample", "decode", "encode", "log-density", "elbo"]
Extra = Literal["z", "label", "log_density"]
Observation = Literal["mean", "draw"]
Picture = Literal["x", "pixels"]
Answer = dict[str, Array]

DEFAULT_DRAWS = 64
"""Draws of an estimate when the request names none: a standard error within some ten percent."""
WINDOW_DRAWS = 2**16
"""Draws of all rows together whose weights are held at once; more come in several windows."""


def capabilities(manifest: Manifest) -> list[Operation]:
    """Return the operations that a model offers, in the order of the API."""
    offered: dict[Operation, bool] = {
        "sample": "decode" in manifest.graphs,
        "decode": "decode" in manifest.graphs,
        "encode": "encode" in manifest.graphs,
        "log-density": manifest.density.kind != "none",
        "elbo": "elbo" in manifest.graphs,
    }
    return [operation for operation, is_offered in offered.items() if is_offered]


def require(manifest: Manifest, operation: Operation) -> None:
    """Pass if the model offers the operation.

    Raises:
        CapabilityMissing: Saying what the model can do instead.
    """
    offered = capabilities(manifest)
    if operation not in offered:
        implicit = manifest.density.kind == "none" and operation in ("log-density", "elbo")
        why = "is an implicit model and has no density" if implicit else f"cannot {operation}"
        raise CapabilityMissing(
            f"{manifest.name} {why}. It can: {', '.join(offered)}.", field="model"
        )


async def decode(
    engine: Engine,
    z: Array,
    *,
    label: int | Sequence[int] | None = None,
    output: Picture = "x",
) -> Answer:
    """Return x for each row of z. A model with labels wants them named here.

    Raises:
        InputInvalid: `label` is missing, or none of the model's; or a row of z is so large that
            the graph answers NaN.
    """
    manifest = engine.manifest
    if manifest.labels and label is None:
        raise InputInvalid(
            f"field 'label': {manifest.name} needs one, 0 to {len(manifest.labels) - 1}.",
            field="label",
        )
    labels = labels_of(manifest, label, n=len(z))
    feeds: dict[str, Array | Source] = {"z": z}
    if labels is not None:
        feeds["label"] = labels
    # Pixels are integers and hide a NaN; the x that they are made of does not.
    answer = await run(engine, "decode", feeds, outputs=sorted({"x", output}), given="z")
    return {output: answer[output]}


async def encode(engine: Engine, x: Array, *, draws: int | None, seed: int) -> Answer:
    """Return the codes of x.

    A VAE answers mean and scale of q(z|x) and z = mean, or with `draws` K that many draws of z,
    shape (n, K, ...). A flow answers z and log |det dz/dx|; of an image it first adds the
    dequantisation noise of the seed.

    Raises:
        InputInvalid: `draws` was given to a model whose code is not random, or a row of x is so
            large that the graph answers NaN.
    """
    manifest = engine.manifest
    if "mean" in {spec.name for spec in manifest.graphs["encode"].outputs}:
        answer = await run(engine, "encode", {"x": x}, given="x")
        z = answer["mean"]
        if draws:
            shape = manifest.latent.shape
            noise = Draws(seed, Stream.POSTERIOR, shape, draws=draws)
            z = await asyncio.to_thread(_posterior, answer["mean"], answer["scale"], noise)
        return {"z": z, **answer}
    if draws is not None:
        raise InputInvalid(
            f"field 'draws': {manifest.name} has one code for an x. Leave it out.", field="draws"
        )
    feeds: dict[str, Array | Source] = {"x": x}
    if manifest.density.estimator == "dequantisation":
        feeds["noise"] = _below_levels(engine, seed, first=0, draws=1)
    return await run(engine, "encode", feeds, given="x")


def _posterior(mean: Array, scale: Array, noise: Draws) -> Array:
    """Return draws of q(z|x), shape (n, draws, ...)."""
    eps = noise.rows(0, len(mean) * noise.draws).reshape(len(mean), noise.draws, *noise.shape)
    drawn: Array = mean[:, None] + scale[:, None] * eps
    return drawn


async def log_density(engine: Engine, x: Array, *, draws: int | None, seed: int) -> Answer:
    """Return log p(x) in nats: exact, or the log of a mean over draws with its standard error.

    The estimate log (1/K) sum_k w_k is below log p(x) on average and rises to it with K
    (Burda et al. 2016, arXiv:1509.00519). Its standard error is by the delta method, that of the
    mean weight divided by the mean weight; one draw has none (NaN).

    Raises:
        InputInvalid: `draws` was given to a model whose density is exact, or a row of x is so
            large that the graph answers NaN.
    """
    estimator = engine.manifest.density.estimator
    if estimator == "exact":
        if draws is not None:
            raise InputInvalid(
                f"field 'draws': the density of {engine.manifest.name} is exact. Leave it out.",
                field="draws",
            )
        return await run(engine, "log_density", {"x": x}, given="x")
    draws = draws or DEFAULT_DRAWS
    blocks = _importance if estimator == "importance" else _dequantisation
    mean = LogMean(len(x))
    async with aclosing(blocks(engine, x, draws=draws, seed=seed)) as windows:
        async for window in windows:
            mean.add(window["log_weight"])
    return {
        "log_density": mean.value,
        "standard_error": mean.standard_error,
        "effective_sample_size": mean.effective_sample_size,
    }


async def elbo(engine: Engine, x: Array, *, draws: int | None, seed: int) -> Answer:
    """Return the evidence lower bound of each x in nats, by its parts and with its error.

    elbo = reconstruction - kl, where reconstruction is the mean of log p(x|z) over the draws
    and kl = KL(q(z|x) || p(z)) is exact. importance_weighted is the tighter bound of the same
    draws.

    Raises:
        InputInvalid: A row of x is so large that the graph answers NaN.
    """
    reconstruction, tighter = Moments(len(x)), LogMean(len(x))
    kl = np.zeros(len(x))
    draws = draws or DEFAULT_DRAWS
    async with aclosing(_importance(engine, x, draws=draws, seed=seed)) as windows:
        async for window in windows:
            reconstruction.add(window["reconstruction"])
            tighter.add(window["log_weight"])
            kl = window["kl"].astype(np.float64)
    return {
        "elbo": reconstruction.mean - kl,
        "standard_error": reconstruction.standard_error,
        "reconstruction": reconstruction.mean,
        "kl": kl,
        "importance_weighted": tighter.value,
        "effective_sample_size": tighter.effective_sample_size,
    }


async def run(
    engine: Engine,
    role: Role,
    feeds: Feeds,
    *,
    outputs: Sequence[str] | None = None,
    given: str | None = None,
    rows: int | None = None,
    repeats: int = 1,
    begun: bool = False,
) -> Answer:
    """Return what a graph answers, which is never NaN.

    Args:
        engine: The model.
        role: Which graph.
        feeds: Its inputs.
        outputs: Which to return; None for all.
        given: Name of the input whose rows the caller chose. They are finite, but may be beyond
            what float32 can carry through the graph.
        rows: How many, if no feed is an array.
        repeats: How often in a row each of the given ones stands there.
        begun: Whether it continues something that has begun to be answered.

    Raises:
        InputInvalid: An answer is NaN, and the caller chose the row that it belongs to.
        EngineFailed: The graph failed, or an answer is NaN and the caller chose nothing.
    """
    try:
        return await engine.run(role, feeds, outputs, rows=rows, begun=begun)
    except NotANumber as error:
        name = engine.manifest.name
        if given is None:
            raise EngineFailed(f"{name}: {role} answered NaN in '{error.output}'.") from error
        raise InputInvalid(
            f"field '{given}': row {error.row // repeats} is too large for {name}: the "
            "answer is not a number. Send values of the size of what it was trained on.",
            field=given,
        ) from error


async def _importance(
    engine: Engine, x: Array, *, draws: int, seed: int
) -> AsyncGenerator[Answer, None]:
    """Yield the elbo graph's answers, window by window along the draws."""
    shape = engine.manifest.latent.shape

    def call(first: int, draws: int) -> Awaitable[Answer]:
        noise = Draws(seed, Stream.POSTERIOR, shape, first=first, draws=draws)
        feeds: Feeds = {"x": x, "noise": noise}
        return run(engine, "elbo", feeds, given="x", begun=first > 0)

    async with aclosing(one_ahead(_windows(call, len(x), draws))) as windows:
        async for answer in windows:
            yield answer


async def _dequantisation(
    engine: Engine, x: Array, *, draws: int, seed: int
) -> AsyncGenerator[Answer, None]:
    """Yield log p(x + u) of so many draws of u as log_weight (n, draws of the window)."""

    async def call(first: int, draws: int) -> Answer:
        noise = _below_levels(engine, seed, first=first, draws=draws)
        answer = await run(
            engine,
            "log_density",
            {"x": Given(x, draws), "noise": noise},
            given="x",
            rows=len(x) * draws,
            repeats=draws,
            begun=first > 0,
        )
        return {"log_weight": answer["log_density"].reshape(len(x), draws)}

    async with aclosing(one_ahead(_windows(call, len(x), draws))) as windows:
        async for answer in windows:
            yield answer


def _below_levels(engine: Engine, seed: int, *, first: int, draws: int) -> Draws:
    """Return uniform noise below a grey level, so many draws for each event."""
    shape = engine.manifest.event.shape
    return Draws(seed, Stream.DEQUANTISATION, shape, is_normal=False, first=first, draws=draws)


Found = TypeVar("Found")


def _windows(
    call: Callable[[int, int], Awaitable[Found]], rows: int, draws: int
) -> Iterable[Callable[[], Awaitable[Found]]]:
    """Yield calls that together take all draws, each for as many as may be held at once."""
    width = DRAW_WIDTHS[-1]
    window = max(width, WINDOW_DRAWS // rows // width * width)
    for first in range(0, draws, window):
        yield partial(call, first, min(window, draws - first))


def labels_of(manifest: Manifest, label: int | Sequence[int] | None, *, n: int) -> Given | None:
    """Return the classes that were asked for, if any were."""
    if label is None:
        return None
    if not manifest.labels:
        raise InputInvalid(
            f"field 'label': {manifest.name} has no labels. Leave it out.", field="label"
        )
    wanted = np.asarray([label] * n if isinstance(label, int) else label, dtype=np.int64)
    if len(wanted) != n:
        raise InputInvalid(
            f"field 'label': expected one label, or {n} (one a row); got {len(wanted)}.",
            field="label",
        )
    return Given(classes_of(manifest, wanted))


def classes_of(manifest: Manifest, label: Array) -> Array:
    """Return labels that are all the model's. A graph would take -1 for the last one.

    Raises:
        InputInvalid: One is not.
    """
    labels = manifest.labels or ()
    outside = (label < 0) | (label >= len(labels))
    if outside.any():
        raise InputInvalid(
            f"field 'label': expected 0 to {len(labels) - 1} ({', '.join(labels)}); "
            f"got {label[outside][0]}.",
            field="label",
        )
    return label
