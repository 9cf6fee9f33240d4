"""What a served model does, on arrays: sample, decode, encode, log-density, elbo.

No HTTP here. Each operation takes an engine and arrays that are already checked, makes the noise
that the graph asks for from the seed, and returns arrays by the names of the API.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from service import noise
from service.engine import DRAW_BUCKETS, Engine
from service.errors import CapabilityMissing, EngineFailed, InputInvalid
from service.manifest import Manifest, Role
from service.noise import Stream
from service.tensors import Array

Operation = Literal["sample", "decode", "encode", "log-density", "elbo"]
Extra = Literal["z", "label", "log_density"]
Observation = Literal["mean", "draw"]
Answer = dict[str, Array]

DEFAULT_DRAWS = 64
"""Draws of an estimate when the request names none: a standard error within some ten percent."""


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


async def sample(
    engine: Engine,
    *,
    n: int,
    seed: int,
    start: int = 0,
    label: int | Sequence[int] | None = None,
    temperature: float = 1.0,
    observation: Observation | None = None,
    include: Sequence[Extra] = (),
    output: Literal["x", "pixels"] = "x",
) -> Answer:
    """Return rows start .. start + n - 1 of a seed.

    Args:
        engine: The model.
        n: How many rows.
        seed: With the bundle, all that a row depends on.
        start: First row.
        label: One class for all rows, one for each, or None to draw them from the seed.
        temperature: Factor on z. 1 is the model; less is closer to its mode.
        observation: Of a model with p(x|z): its `mean` (default), or a `draw` from it.
        include: What to return beside x.
        output: `pixels` for the same images as uint8 (n, height, width, channel).

    Raises:
        CapabilityMissing: `observation` or `include` asks for what the model has not.
        InputInvalid: `label` is none of the model's.
        EngineFailed: The graph failed, or answered NaN.
    """
    manifest = engine.manifest
    if observation and not manifest.observation:
        raise CapabilityMissing(
            f"{manifest.name} makes x itself, not a distribution of x. Leave out 'observation'.",
            field="observation",
        )
    if "log_density" in include and manifest.density.kind != "exact":
        text = f"{manifest.name} has no exact density to include."
        raise CapabilityMissing(text, field="include")
    labels = _labels(manifest, label, n=n, seed=seed, start=start)
    z = await asyncio.to_thread(
        _normal, seed, Stream.LATENT, start=start, rows=n, shape=manifest.latent.shape
    )
    z *= np.float32(temperature)
    feeds: Answer = {"z": z} if labels is None else {"z": z, "label": labels}
    role: Role = "decode"
    if observation == "draw":
        role = "observe"
        feeds["noise"] = await asyncio.to_thread(
            _noise(engine, role), seed, Stream.OBSERVATION, start=start, rows=n,
            shape=manifest.event.shape,
        )  # fmt: skip
    answer = await _run(engine, role, feeds, outputs=[output])
    if "log_density" in include:
        answer |= await _run(engine, "log_density", {"x": answer["x"]})
    if "z" in include:
        answer["z"] = z
    if "label" in include and labels is not None:
        answer["label"] = labels
    return answer


async def decode(
    engine: Engine,
    z: Array,
    *,
    label: int | Sequence[int] | None = None,
    output: Literal["x", "pixels"] = "x",
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
    labels = _labels(manifest, label, n=len(z), seed=0, start=0)
    feeds = {"z": z} if labels is None else {"z": z, "label": labels}
    # Pixels are integers and hide a NaN; the x that they are made of does not.
    answer = await _run(engine, "decode", feeds, outputs=sorted({"x", output}), given="z")
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
        answer = await _run(engine, "encode", {"x": x}, given="x")
        z = answer["mean"]
        if draws:
            eps = await asyncio.to_thread(
                _cells, _normal, seed, Stream.POSTERIOR, rows=len(x), first=0, draws=draws,
                shape=manifest.latent.shape,
            )  # fmt: skip
            z = answer["mean"][:, None] + answer["scale"][:, None] * eps
        return {"z": z, **answer}
    if draws is not None:
        raise InputInvalid(
            f"field 'draws': {manifest.name} has one code for an x. Leave it out.", field="draws"
        )
    return await _run(engine, "encode", await _dequantised(engine, x, seed=seed), given="x")


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
        return await _run(engine, "log_density", {"x": x}, given="x")
    draws = draws or DEFAULT_DRAWS
    blocks = _importance if estimator == "importance" else _dequantisation
    weights = [block["log_weight"] async for block in blocks(engine, x, draws=draws, seed=seed)]
    log_weight = np.concatenate(weights, axis=1)
    value, error, size = log_mean_exp(log_weight)
    return {"log_density": value, "standard_error": error, "effective_sample_size": size}


async def elbo(engine: Engine, x: Array, *, draws: int | None, seed: int) -> Answer:
    """Return the evidence lower bound of each x in nats, by its parts and with its error.

    elbo = reconstruction - kl, where reconstruction is the mean of log p(x|z) over the draws
    and kl = KL(q(z|x) || p(z)) is exact. importance_weighted is the tighter bound of the same
    draws.

    Raises:
        InputInvalid: A row of x is so large that the graph answers NaN.
    """
    blocks = [
        block async for block in _importance(engine, x, draws=draws or DEFAULT_DRAWS, seed=seed)
    ]
    reconstructions = np.concatenate([b["reconstruction"] for b in blocks], axis=1)
    kl = blocks[0]["kl"].astype(np.float64)
    reconstruction = reconstructions.mean(axis=1, dtype=np.float64)
    tighter, _, size = log_mean_exp(np.concatenate([b["log_weight"] for b in blocks], axis=1))
    return {
        "elbo": reconstruction - kl,
        "standard_error": _standard_error(reconstructions),
        "reconstruction": reconstruction,
        "kl": kl,
        "importance_weighted": tighter,
        "effective_sample_size": size,
    }


async def _run(
    engine: Engine,
    role: Role,
    feeds: Mapping[str, Array],
    *,
    outputs: Sequence[str] | None = None,
    given: str | None = None,
    repeats: int = 1,
) -> Answer:
    """Return what a graph answers, which is never NaN.

    Args:
        engine: The model.
        role: Which graph.
        feeds: Its inputs.
        outputs: Which to return; None for all.
        given: Name of the input whose rows the caller chose. They are finite, but may be beyond
            what float32 can carry through the graph.
        repeats: How often in a row each of them stands there.

    Raises:
        InputInvalid: An answer is NaN, and the caller chose the row that it belongs to.
        EngineFailed: The graph failed, or an answer is NaN and the caller chose nothing.
    """
    answer = await engine.run(role, feeds, outputs)
    name = engine.manifest.name
    for output, array in answer.items():
        broken = np.isnan(array).reshape(len(array), -1).any(axis=1)
        if not broken.any():
            continue
        if given is None:
            raise EngineFailed(f"{name}: {role} answered NaN in '{output}'.")
        raise InputInvalid(
            f"field '{given}': row {broken.argmax() // repeats} is too large for {name}: the "
            "answer is not a number. Send values of the size of what it was trained on.",
            field=given,
        )
    return answer


def log_mean_exp(
    log_weight: Array,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return log-mean-exp over the draws, its standard error, and the effective sample size.

    Args:
        log_weight: Shape (n, draws). Worked on in float64.

    Returns:
        Three arrays of shape (n,). The size is (sum w)^2 / sum w^2 of Kish, from 1 to draws.
    """
    log_weight = log_weight.astype(np.float64)
    draws = log_weight.shape[1]
    top = log_weight.max(axis=1, keepdims=True)
    top = np.where(np.isneginf(top), 0.0, top)  # all draws impossible: the answer is -inf
    weight = np.exp(log_weight - top)
    mean = weight.mean(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = np.log(mean) + top[:, 0]
        error = _standard_error(weight) / mean
        size = weight.sum(axis=1) ** 2 / (weight**2).sum(axis=1)
    return value, error, np.minimum(size, draws)


def _standard_error(values: Array) -> npt.NDArray[np.float64]:
    draws = values.shape[1]
    if draws == 1:
        return np.full(len(values), np.nan)
    with np.errstate(invalid="ignore"):  # impossible events have no error to give
        spread = values.std(axis=1, ddof=1, dtype=np.float64)
    return np.asarray(spread / np.sqrt(draws))


async def _importance(engine: Engine, x: Array, *, draws: int, seed: int) -> AsyncIterator[Answer]:
    """Yield the elbo graph's answers, block by block along the draws."""
    shape = engine.manifest.latent.shape
    block = DRAW_BUCKETS[-1]
    for first in range(0, draws, block):
        eps = await asyncio.to_thread(
            _cells, _normal, seed, Stream.POSTERIOR, rows=len(x), first=first,
            draws=min(block, draws - first), shape=shape,
        )  # fmt: skip
        yield await _run(engine, "elbo", {"x": x, "noise": eps}, given="x")


async def _dequantisation(
    engine: Engine, x: Array, *, draws: int, seed: int
) -> AsyncIterator[Answer]:
    """Yield log p(x + u) of so many draws of u as log_weight (n, draws of the block)."""
    block = max(1, 256 // len(x))  # bounds the copies of x that are alive
    for first in range(0, draws, block):
        width = min(block, draws - first)
        u = await asyncio.to_thread(
            _cells, _uniform, seed, Stream.DEQUANTISATION, rows=len(x), first=first,
            draws=width, shape=engine.manifest.event.shape,
        )  # fmt: skip
        feeds = {"x": np.repeat(x, width, axis=0), "noise": u.reshape(-1, *u.shape[2:])}
        answer = await _run(engine, "log_density", feeds, given="x", repeats=width)
        yield {"log_weight": answer["log_density"].reshape(len(x), width)}


async def _dequantised(engine: Engine, x: Array, *, seed: int) -> Answer:
    """Return the feeds of `encode`: x, and below its grey levels the first draw of noise."""
    if engine.manifest.density.estimator != "dequantisation":
        return {"x": x}
    u = await asyncio.to_thread(
        _cells, _uniform, seed, Stream.DEQUANTISATION, rows=len(x), first=0, draws=1,
        shape=engine.manifest.event.shape,
    )  # fmt: skip
    return {"x": x, "noise": u[:, 0]}


def _labels(
    manifest: Manifest, label: int | Sequence[int] | None, *, n: int, seed: int, start: int
) -> npt.NDArray[np.int64] | None:
    if not manifest.labels:
        if label is not None:
            raise InputInvalid(
                f"field 'label': {manifest.name} has no labels. Leave it out.", field="label"
            )
        return None
    classes = len(manifest.labels)
    if label is None:
        return noise.labels(seed, start=start, rows=n, classes=classes)
    wanted = np.asarray([label] * n if isinstance(label, int) else label, dtype=np.int64)
    if len(wanted) != n:
        raise InputInvalid(
            f"field 'label': expected one label, or {n} (one a row); got {len(wanted)}.",
            field="label",
        )
    if ((wanted < 0) | (wanted >= classes)).any():
        raise InputInvalid(
            f"field 'label': expected 0 to {classes - 1} "
            f"({', '.join(manifest.labels)}); got {wanted[(wanted < 0) | (wanted >= classes)][0]}.",
            field="label",
        )
    return wanted


_Noise = Callable[..., npt.NDArray[np.float32]]


def _noise(engine: Engine, role: Role) -> _Noise:
    """Return the noise that a graph's input asks for."""
    kinds = [spec.noise for spec in engine.manifest.graphs[role].inputs]
    return _normal if "normal" in kinds else _uniform


def _normal(
    seed: int, stream: Stream, *, start: int, rows: int, shape: Sequence[int]
) -> npt.NDArray[np.float32]:
    flat = noise.normal(seed, stream, start=start, rows=rows, size=int(np.prod(shape)))
    return flat.reshape(rows, *shape).astype(np.float32)


def _uniform(
    seed: int, stream: Stream, *, start: int, rows: int, shape: Sequence[int]
) -> npt.NDArray[np.float32]:
    flat = noise.uniform(seed, stream, start=start, rows=rows, size=int(np.prod(shape)))
    rounded = flat.reshape(rows, *shape).astype(np.float32)
    return np.minimum(rounded, noise.BELOW_ONE)


def _cells(
    draw: _Noise, seed: int, stream: Stream, *, rows: int, first: int, draws: int,
    shape: Sequence[int],
) -> npt.NDArray[np.float32]:  # fmt: skip
    """Return noise of shape (rows, draws, *shape): draws first, first + 1, ... of each row."""
    cells = np.empty((rows, draws, *shape), dtype=np.float32)
    for row in range(rows):
        cells[row] = draw(seed, stream, start=row * noise.DRAWS + first, rows=draws, shape=shape)
    return cells
