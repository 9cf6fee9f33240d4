"""Samples: which rows of which seed, all at once or window by window.

No HTTP here. A sample has an address, and nothing that is done with it beside others shows.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from service import ode, rejection
from service.calls import Answer, Events, run
from service.condition import UNTOLD, Condition
from service.engine import Engine
from service.errors import CapabilityMissing, InputInvalid
from service.feeds import Given, Labels, Noise, Source
from service.interface import Role, Solver
from service.manifest import Manifest
from service.noise import ROWS, Stream
from service.operations import Extra, Observation, Picture
from service.runs import Feeds
from service.windows import one_ahead

WINDOW_BYTES = 2**20
"""Of a stream: what is made at once and sent before the next is awaited."""
WINDOW_S = 0.25
"""Of a stream: how long a window may keep one device busy."""


@dataclass(frozen=True)
class Drawing:
    """Which samples: rows start .. start + n - 1 of a seed.

    Args:
        n: How many rows.
        seed: With the bundle, all that a row depends on.
        start: First row.
        condition: What the model is told of the rows. Labels that are not said are drawn.
        temperature: Factor on z, or on the noise that a learned prior makes z of. 1 is the model;
            less is closer to what no noise at all becomes.
        observation: Of a model with p(x|z): its `mean` (default), or a `draw` from it.
        include: What to return beside x.
        outputs: `x`, or `pixels` for the same images as uint8 (n, height, width, channel).
        solver: Of a continuous flow; its own where none is named.
        steps: Of that solver; likewise.
        guidance: Of a continuous flow that can be guided; likewise.
        rejection: Whether each row is the first of its candidates that the critic accepts.
    """

    n: int
    seed: int
    start: int = 0
    condition: Condition = UNTOLD
    temperature: float = 1.0
    observation: Observation | None = None
    include: Sequence[Extra] = ()
    outputs: Sequence[Picture] = ("x",)
    solver: Solver | None = None
    steps: int | None = None
    guidance: float | None = None
    rejection: bool = False

    def __post_init__(self) -> None:
        """Pass if a seed has these rows.

        Raises:
            InputInvalid: It ends before.
        """
        if self.start + self.n > ROWS:
            raise InputInvalid(
                f"field 'start': the last row of a seed is {ROWS - 1}; got {self.start} + {self.n} "
                "rows.",
                field="start",
            )

    def part(self, first: int, rows: int) -> "Drawing":
        """Return what asks for some of these rows."""
        condition = self.condition.part(first, rows)
        return replace(self, n=rows, start=self.start + first, condition=condition)


async def sample(engine: Engine, drawing: Drawing, *, begun: bool = False) -> Answer:
    """Return samples.

    Args:
        engine: The model.
        drawing: Which.
        begun: Whether others of the same request were answered before.

    Raises:
        CapabilityMissing: `observation`, `include` or `rejection` asks for what the model has not.
        InputInvalid: The condition is not the model's.
        EngineFailed: The graph failed, or answered NaN.
    """
    manifest, n = engine.manifest, drawing.n
    _check_capabilities(manifest, drawing)
    told = _told(manifest, drawing)
    # Pixels are integers and hide a NaN; the x that they are made of does not.
    outputs = sorted({"x", *drawing.outputs})
    if drawing.rejection:
        seed, start = drawing.seed, drawing.start
        answer, z = await rejection.chosen(
            rejection.Rows(engine, seed, start, n, told, outputs, begun)
        )
    else:
        answer, z = await _made(engine, drawing, told, outputs, begun=begun)
    answer |= await _weighed(engine, drawing, answer, told)
    if "z" in drawing.include:
        answer["z"] = await asyncio.to_thread(z.rows, 0, n)
    if "label" in drawing.include:
        answer["label"] = told["label"].rows(0, n)
    wanted = {*drawing.outputs, *drawing.include}
    return {name: array for name, array in answer.items() if name in wanted}


async def _made(
    engine: Engine,
    drawing: Drawing,
    told: dict[str, Source],
    outputs: Sequence[str],
    *,
    begun: bool,
) -> tuple[Answer, Source]:
    """Return the outputs of noise, and the noise."""
    manifest, n = engine.manifest, drawing.n
    z: Source = Noise(
        drawing.seed,
        Stream.LATENT,
        manifest.latent.shape,
        start=drawing.start,
        scale=drawing.temperature,
    )
    if manifest.latent.distribution == "learned":
        z = Given((await run(engine, "prior", {"noise": z}, rows=n, begun=begun))["z"])
    if method := ode.chosen(manifest, drawing):
        z = Given(await asyncio.to_thread(z.rows, 0, n))
        return await ode.decoded(engine, z.array, told, method, outputs=outputs, begun=begun), z
    feeds = _feeds(engine, drawing, {"z": z, **told})
    return await run(engine, _role_of(drawing), feeds, outputs=outputs, rows=n, begun=begun), z


async def _weighed(
    engine: Engine, drawing: Drawing, answer: Answer, told: dict[str, Source]
) -> Answer:
    """Return what was to be included of samples that a graph must be asked for."""
    said: Feeds = {"x": answer["x"], **told}
    found: Answer = {}
    if "log_ratio" in drawing.include and "log_ratio" not in answer:
        found |= await run(engine, "critic", said, begun=True)
    if "log_density" not in drawing.include:
        return found
    if method := ode.chosen(engine.manifest, drawing):
        known = {name: Given(each.rows(0, drawing.n)) for name, each in told.items()}
        log_density = await ode.log_density(
            engine, Events(answer["x"], known), method, seed=drawing.seed, begun=True, given=None
        )
        return found | {"log_density": log_density[:, 0]}
    return found | await run(engine, "log_density", said, begun=True)


def _feeds(engine: Engine, drawing: Drawing, feeds: dict[str, Source]) -> dict[str, Source]:
    """Return what the graph that makes x takes: beside z and label perhaps noise."""
    if _role_of(drawing) != "observe":
        return feeds
    manifest = engine.manifest
    noise = Noise(
        drawing.seed,
        Stream.OBSERVATION,
        manifest.event.shape,
        start=drawing.start,
        is_normal=any(spec.noise == "normal" for spec in manifest.graphs["observe"].inputs),
    )
    return {**feeds, "noise": noise}


async def stream(engine: Engine, drawing: Drawing) -> AsyncGenerator[Answer, None]:
    """Yield the same samples window by window, in order.

    One window is made while the one before it is being used, and no more: whoever is slow to
    take them makes the engine wait, not its memory grow. Closing the iterator drops the rest.

    Raises:
        As `sample`: of the first window, before anything was yielded.
    """
    row_bytes = 4 * max(engine.manifest.event.size, engine.manifest.latent.size)
    passes = passes_of(engine.manifest, drawing)
    row_s = sum(times * engine.lanes[role, None].row_s for role, times in passes.items())
    most = engine.lanes[next(iter(passes)), None].most
    window = min(WINDOW_BYTES // row_bytes, int(WINDOW_S / row_s))
    window = max(most, window // most * most)
    calls = (
        partial(
            sample,
            engine,
            drawing.part(first, min(window, drawing.n - first)),
            begun=first > 0,
        )
        for first in range(0, drawing.n, window)
    )
    async with aclosing(one_ahead(calls)) as windows:
        async for answer in windows:
            yield answer


def passes_of(manifest: Manifest, drawing: Drawing) -> dict[Role, int]:
    """Return the graphs that an answer comes from, and how often each row goes through.

    The one that makes x, or the velocity that most of it is spent on, is the first.
    """
    weighed = "log_density" in drawing.include
    if method := ode.chosen(manifest, drawing):
        passes: dict[Role, int] = {"velocity": method.evaluations, "leave": 1}
        return passes | ({"enter": 1, "divergence": method.evaluations} if weighed else {})
    times = rejection.expected(manifest) if drawing.rejection else 1
    passes = {_role_of(drawing): times}
    if drawing.rejection or "log_ratio" in drawing.include:
        passes["critic"] = times
    if manifest.latent.distribution == "learned":
        passes["prior"] = 1
    if weighed:
        passes["log_density"] = 1
    return passes


def _role_of(drawing: Drawing) -> Literal["observe", "decode"]:
    return "observe" if drawing.observation == "draw" else "decode"


def check(manifest: Manifest, drawing: Drawing) -> None:
    """Pass if a model can do this.

    Raises:
        CapabilityMissing: `observation`, `include`, `solver`, `steps`, `guidance` or `rejection`
            asks for what it has not.
        InputInvalid: The condition is not its own, or two of them do not go together.
    """
    drawing.condition.told(manifest, n=drawing.n)
    _check_capabilities(manifest, drawing)


def _check_capabilities(manifest: Manifest, drawing: Drawing) -> None:
    ode.chosen(manifest, drawing)
    if drawing.observation and not manifest.observation:
        raise CapabilityMissing(
            f"{manifest.name} makes x itself, not a distribution of x. Leave out 'observation'.",
            field="observation",
        )
    if "log_density" in drawing.include and manifest.density.kind != "exact":
        text = f"{manifest.name} has no exact density to include."
        if manifest.density.kind == "estimate":
            text += " Ask for an estimate of it, of the x that are answered."
        raise CapabilityMissing(text, field="include")
    if "label" in drawing.include and not manifest.labels:
        raise CapabilityMissing(f"{manifest.name} has no labels to include.", field="include")
    _check_rejection(manifest, drawing)


def _check_rejection(manifest: Manifest, drawing: Drawing) -> None:
    if drawing.rejection and not manifest.rejection:
        raise CapabilityMissing(
            f"{manifest.name} has no critic to reject samples by. Leave out 'rejection'.",
            field="rejection",
        )
    if "log_ratio" in drawing.include and not manifest.rejection:
        text = f"{manifest.name} has no critic, and no log_ratio to include."
        raise CapabilityMissing(text, field="include")
    if "attempts" in drawing.include and not drawing.rejection:
        raise InputInvalid(
            "field 'include': attempts are those of 'rejection'. Say both or neither.",
            field="include",
        )
    if (drawing.rejection or "log_ratio" in drawing.include) and drawing.temperature != 1:
        raise InputInvalid(
            "field 'temperature': the critic that 'rejection' and log_ratio ask knows samples of "
            f"temperature 1; got {drawing.temperature:g}. Leave one of them out.",
            field="temperature",
        )


def _told(manifest: Manifest, drawing: Drawing) -> dict[str, Source]:
    """Return what the model is told of the rows, of labels that nobody named some of the seed."""
    told: dict[str, Source] = {**drawing.condition.told(manifest, n=drawing.n)}
    if manifest.labels and "label" not in told:
        told["label"] = Labels(drawing.seed, drawing.start, len(manifest.labels))
    return told
