"""Inference: the tensors of a call, checked as the native API checks them, and their answer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np

from service import noise, ode, sampling, tensors
from service.api import context
from service.api.bodies import SMALL_BYTES, in_thread
from service.api.context import Context
from service.api.oip.models import ROWS, SAMPLE, Served
from service.api.oip.parameters import DrawParameters, NoiseParameters, Parameters, SampleParameters
from service.api.oip.wire import Call
from service.calls import run
from service.condition import Condition, classes_of
from service.engine import Engine
from service.errors import InputInvalid
from service.feeds import Draws, Noise, Source
from service.interface import DEFAULT_DRAWS, REFINE_DRAWS, UNTOLD_LABEL, TensorSpec
from service.manifest import Graph, Manifest
from service.noise import Stream
from service.operations import Extra, Picture
from service.tensors import Array


@dataclass(frozen=True)
class Outcome:
    """What a call found.

    Args:
        arrays: At least the outputs that the call wants.
        rows: How many events it was about.
        seed: Of the noise, if the service made any.
        start: First row, of samples.
    """

    arrays: Mapping[str, Array]
    rows: int
    seed: int | None
    start: int | None = None


async def infer(here: Context, served: Served, call: Call, said: Parameters) -> Outcome:
    """Return what a model answers.

    Args:
        here: Settings and models.
        served: The model.
        call: Its tensors.
        said: Its parameters.

    Cancelling the caller drops the rows that have not begun.

    Raises:
        InputInvalid: A tensor or parameter is missing, unknown, or of the wrong shape or range.
        CapabilityMissing: The model cannot do that, whatever the input.
        EngineFailed: The graph failed.
    """
    if served.task == SAMPLE:
        return await _sample(here, served.engine, call, cast(SampleParameters, said))
    size = sum(array.nbytes for array in call.inputs.values())
    graph = served.engine.manifest.graphs[served.task]
    given = await in_thread(size >= SMALL_BYTES, _check_inputs, served, graph, call.inputs)
    field, array = next(iter(given.items()))
    rows = len(array)
    here.check_values(served.engine, rows, field=field)
    draws = _draws_of(served, given, said)
    if draws is not None:
        here.check_draws(rows, draws)
        if served.task == "encode":
            here.check_values(served.engine, rows * draws, field="draws")
    feeds: dict[str, Array | Source] = {**given}
    seed = _fill(served, feeds, draws=draws or 1, said=said)
    wanted = {each.name for each in call.outputs}
    # Pixels are integers and hide a NaN; the x that they are made of does not.
    asked = sorted(wanted | {"x"} if "pixels" in wanted else wanted)
    answer = await run(served.engine, served.task, feeds, outputs=asked, given=field)
    return Outcome(answer, rows, seed)


async def _sample(here: Context, engine: Engine, call: Call, said: SampleParameters) -> Outcome:
    n = _rows_wanted(call, said)
    here.check_values(engine, n, field="n")
    seed = context.seed_or_new(said.seed)
    wanted = [each.name for each in call.outputs]
    extras = [cast(Extra, name) for name in ("z", "label") if name in wanted]

    # z and label come with one of the two.
    both: tuple[Picture, ...] = ("x", "pixels")
    drawing = sampling.Drawing(
        n=n,
        seed=seed,
        start=said.start,
        condition=Condition(said.label, _numbers(said.context)),
        temperature=said.temperature,
        observation=said.observation,
        include=extras,
        outputs=[name for name in both if name in wanted] or ["x"],
        solver=said.solver,
        steps=said.steps,
        guidance=said.guidance,
        rejection=said.rejection,
    )
    here.check_steps_of_solver(said.steps)
    here.check_path(engine, ode.chosen(engine.manifest, said), n)
    arrays = await sampling.sample(engine, drawing)
    return Outcome(arrays, n, seed, said.start)


def _numbers(text: str | None) -> list[float] | None:
    """Return numbers that came separated by commas: a parameter of the protocol is no list.

    Raises:
        InputInvalid: They are none.
    """
    if text is None:
        return None
    try:
        return [float(each) for each in text.split(",")]
    except ValueError as error:
        raise InputInvalid(
            f"parameter 'context': expected numbers separated by commas; got {text[:40]!r}.",
            field="context",
        ) from error


def _rows_wanted(call: Call, said: SampleParameters) -> int:
    rows = call.inputs.get(ROWS.name)
    if rows is None:
        return said.n or 1
    if rows.ndim != 2 or rows.shape[1] != 1 or len(rows) == 0:
        raise InputInvalid(
            f"input '{ROWS.name}': expected shape (n, 1); got {tuple(rows.shape)}.",
            field=ROWS.name,
        )
    if said.n not in (None, len(rows)):
        raise InputInvalid(
            f"input '{ROWS.name}' has {len(rows)} rows, parameter 'n' says {said.n}. Say it once.",
            field="n",
        )
    return len(rows)


def _check_inputs(served: Served, graph: Graph, given: Mapping[str, Array]) -> dict[str, Array]:
    """Return what the graph is fed of what was given, every value checked.

    Raises:
        InputInvalid: One is missing, or wrong, or they have different numbers of rows.
    """
    signature, manifest = served.signature, served.engine.manifest
    missing = [
        spec.name
        for spec in signature.inputs
        if spec.name not in given and spec.name not in signature.optional
    ]
    if missing:
        raise InputInvalid(
            f"input '{missing[0]}': it is missing. {served.name} needs "
            + ", ".join(f"{spec.name} {spec.describe()}" for spec in signature.inputs)
            + ".",
            field=missing[0],
        )
    feeds = {
        spec.name: _check(manifest, spec, given[spec.name])
        for spec in graph.inputs
        if spec.name in given
    }
    lengths = {name: len(array) for name, array in feeds.items()}
    if len(set(lengths.values())) > 1:
        listing = ", ".join(f"{name} {rows}" for name, rows in lengths.items())
        raise InputInvalid(f"The inputs have different numbers of rows: {listing}.")
    return feeds


def _least_label(manifest: Manifest) -> int:
    """Return the least label: of a flow that can be guided its parts are told none as well."""
    return UNTOLD_LABEL if manifest.ode and manifest.ode.guidance is not None else 0


def _check(manifest: Manifest, spec: TensorSpec, array: Array) -> Array:
    """Return an input of a graph with its shape and every value checked."""
    if spec.shape == ("batch",):
        array = _check_column(spec, array)
        if spec.name == "label":
            return classes_of(manifest, array, least=_least_label(manifest))
        # The others that there are: the rate of a refinement, the time of an ode.
        return tensors.check(array, field=spec.name, shape=(), minimum=0, maximum=1)
    shape = [axis for axis in spec.shape[1:] if isinstance(axis, int)]
    if "draws" in spec.shape:
        shape.insert(0, _check_draws(spec, array))
    minimum = maximum = None
    if spec.noise == "uniform":
        minimum, maximum = 0.0, float(noise.BELOW_ONE)
    elif spec.name == "x":
        minimum, maximum = manifest.event.minimum, manifest.event.maximum
    array = tensors.check(array, field=spec.name, shape=shape, minimum=minimum, maximum=maximum)
    if spec.name == "x" and manifest.event.categories:
        tensors.check_categories(array, manifest.event, field="x")
    if spec.name in ("scale", "scale_tril"):
        _check_scale(spec.name, array)
    return array


def _check_scale(name: str, scale: Array) -> None:
    """Pass if it is a Gaussian's: positive, or lower triangular with a positive diagonal."""
    is_matrix = name == "scale_tril"
    positive = np.diagonal(scale, axis1=1, axis2=2) if is_matrix else scale
    if (positive <= 0).any():
        what = "a positive diagonal" if is_matrix else "positive numbers"
        raise InputInvalid(f"field '{name}': expected {what}; got {positive.min():g}.", field=name)
    if is_matrix and np.triu(scale, 1).any():
        raise InputInvalid(
            f"field '{name}': expected nothing above its diagonal; it is lower triangular.",
            field=name,
        )


def _check_column(spec: TensorSpec, array: Array) -> Array:
    """Return an input that has one value a row as the graph takes it, shape (n,)."""
    if array.ndim == 0 or array.shape[1:] not in ((), (1,)) or len(array) == 0:
        raise InputInvalid(
            f"field '{spec.name}': expected shape (n, 1) or (n); got {tuple(array.shape)}.",
            field=spec.name,
        )
    return array.reshape(-1)


def _check_draws(spec: TensorSpec, array: Array) -> int:
    """Return how many draws there are, 1 if the array has no such axis.

    Raises:
        InputInvalid: The axis is empty, or is not there though others are.
    """
    axis = spec.shape.index("draws")
    if 1 < array.ndim < len(spec.shape):
        expected = ", ".join(["n", *map(str, spec.shape[1:])])
        raise InputInvalid(
            f"field '{spec.name}': expected shape ({expected}); got {tuple(array.shape)}.",
            field=spec.name,
        )
    draws: int = array.shape[axis] if array.ndim > axis else 1
    if not draws:
        raise InputInvalid(
            f"field '{spec.name}': expected at least one draw; got none.", field=spec.name
        )
    return draws


def _draws_of(served: Served, given: Mapping[str, Array], said: Parameters) -> int | None:
    """Return how many draws there are of each row, sent or to be made; None if it takes none."""
    drawn = next((spec for spec in served.signature.inputs if "draws" in spec.shape), None)
    if drawn is None:
        return None
    if drawn.name in given:
        return int(given[drawn.name].shape[1])
    return (said.draws if isinstance(said, DrawParameters) else None) or DEFAULT_DRAWS


def _fill(
    served: Served, feeds: dict[str, Array | Source], *, draws: int, said: Parameters
) -> int | None:
    """Add the noise that was left out. Return its seed, None if there is none to add.

    Raises:
        InputInvalid: Both noise and what to make it of was sent.
    """
    noisy = next((spec for spec in served.signature.inputs if spec.noise), None)
    if noisy is None or not isinstance(said, NoiseParameters):
        return None
    if noisy.name in feeds:
        wanted = said.draws if isinstance(said, DrawParameters) else None
        for name, value in (("seed", said.seed), ("draws", wanted)):
            if value is not None:
                raise InputInvalid(
                    f"parameter '{name}': '{noisy.name}' itself was sent. Send one or the other.",
                    field=name,
                )
        return None
    seed = context.seed_or_new(said.seed)
    feeds[noisy.name] = _noise(served, noisy, seed=seed, draws=draws)
    return seed


def _noise(served: Served, spec: TensorSpec, *, seed: int, draws: int) -> Source:
    """Return the noise of rows 0, 1, ... of a seed: what the native API takes for them."""
    event, latent = served.engine.manifest.event.shape, served.engine.manifest.latent.shape
    is_normal = spec.noise == "normal"
    match served.task:
        case "observe":
            return Noise(seed, Stream.OBSERVATION, event, is_normal=is_normal)
        case "refine":
            pairs = REFINE_DRAWS
            return Draws(seed, Stream.REFINEMENT, latent, draws=pairs, width=pairs)
        case "divergence":
            return Draws(seed, Stream.PROBE, latent)
        case _ if "draws" in spec.shape:
            return Draws(seed, Stream.POSTERIOR, latent, draws=draws)
        case _:
            return Draws(seed, Stream.DEQUANTISATION, event, is_normal=is_normal)
