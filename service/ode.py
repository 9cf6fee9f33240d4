"""Continuous flows: from noise to events and back, one evaluation of the velocity at a time.

dw/dt = v(w, t) takes noise z at t = 0 to w at t = 1, and `leave` makes x of that. Here is the
arithmetic of the solver, in float64; each evaluation of v is a job. So calls of different solvers,
steps and directions share their batches, others are served between two evaluations, and
cancelling the caller ends it there.

A flow that can be *guided* is solved along v(w|y) + s (v(w|y) - v(w)): past what its label makes
of the velocity. Its graphs are then asked twice at each place, with the label and without; so is
its divergence, and the density is that of the guided samples.

Source:
    Chen et al. 2018, arXiv:1806.07366 (the density along the way, eq. 8); Grathwohl et al. 2019,
    arXiv:1810.01367 (its estimate by a random direction, kept along a path); Ho and Salimans 2022,
    arXiv:2207.12598 (guidance, eq. 6).
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Protocol, TypeVar

import numpy as np

from service.calls import Answer, Events, run
from service.engine import Engine
from service.errors import CapabilityMissing
from service.feeds import LOG_2PI, Draws, Given, Source
from service.interface import UNTOLD_LABEL, Solver
from service.manifest import Manifest
from service.noise import Floats, Stream
from service.runs import Feeds
from service.schemes import SCHEMES, stages
from service.tensors import Array

INLINE_VALUES = 2**16
"""Numbers of a step that are added up at once on the event loop: a tenth of a millisecond."""
PIECE_VALUES = 2**19
"""Numbers of w that are solved for together. With slopes and noise they take some 50 MB, guided
about twice that."""


Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Method:
    """How a path is solved.

    Args:
        solver: By which scheme.
        steps: All of one length.
        guidance: How far past its label the velocity is led; 0 of most models.
    """

    solver: Solver
    steps: int
    guidance: float = 0.0

    @property
    def runs(self) -> int:
        """How often the velocity is asked for, one time after the other."""
        return self.steps * len(SCHEMES[self.solver].places)

    @property
    def copies(self) -> int:
        """Rows of the graph for each that is solved for: with its label, and without."""
        return 2 if self.guidance else 1

    @property
    def evaluations(self) -> int:
        """Rows of the graph that it takes to solve for one."""
        return self.runs * self.copies


class Choice(Protocol):
    """What a call says of how to solve; None where it leaves that to the model."""

    @property
    def solver(self) -> Solver | None:
        """As of a method."""

    @property
    def steps(self) -> int | None:
        """As of a method."""

    @property
    def guidance(self) -> float | None:
        """As of a method."""


def usual(manifest: Manifest) -> Method | None:
    """Return how a model's ode is solved where nobody says otherwise; None without one."""
    own = manifest.ode
    return Method(own.solver, own.steps, own.guidance or 0.0) if own else None


def chosen(manifest: Manifest, choice: Choice) -> Method | None:
    """Return how to solve a model's ode, by its own choice where none was made; None without one.

    Raises:
        CapabilityMissing: A choice was made for a model that has no ode, or cannot be guided.
    """
    own = usual(manifest)
    fields = {"solver": choice.solver, "steps": choice.steps, "guidance": choice.guidance}
    said: dict[str, Any] = {name: value for name, value in fields.items() if value is not None}
    if said and own is None:
        field = next(iter(said))
        raise CapabilityMissing(
            f"{manifest.name} is no continuous flow: nothing is solved. Leave out '{field}'.",
            field=field,
        )
    if "guidance" in said and manifest.ode and manifest.ode.guidance is None:
        raise CapabilityMissing(
            f"{manifest.name} was not trained to be guided. Leave out 'guidance'.",
            field="guidance",
        )
    return replace(own, **said) if own else None


State = list[Floats]
"""w, shape (n, *latent), and whatever else grows along the path."""


@dataclass(frozen=True, kw_only=True)
class _Path:
    """The rows of a call that are solved for together, between two times.

    Args:
        engine: Of a continuous flow.
        method: How to solve.
        role: The graph that says how fast.
        inputs: What it takes beside w and t, of these rows; see `_inputs`.
        given: Name of what the caller chose, see `calls.run`.
        first: Events of the call before these.
        repeats: Rows of each event.
        begun: Whether the call has begun to be answered.
        later: Rows of the call that come after these.
    """

    engine: Engine
    method: Method
    role: Literal["velocity", "divergence"]
    inputs: Mapping[str, Array]
    given: str | None
    first: int
    repeats: int = 1
    begun: bool
    later: int

    async def solve(self, state: State, *, start: float, stop: float) -> State:
        """Return a state at t = stop, given that at t = start."""
        left = self.method.runs
        found: list[Answer] = []
        names = ("velocity", "divergence")[: len(state)]
        for time, ahead, weights in stages(
            self.method.solver, self.method.steps, start=start, stop=stop
        ):
            left -= 1
            place = state[0]
            if found:
                place = await _off_loop(_ahead, place, [found[-1]["velocity"]], [ahead])
            found.append(await self._slopes(place, time, left))
            if weights:
                state = [
                    await _off_loop(_ahead, part, [each[name] for each in found], weights)
                    for part, name in zip(state, names, strict=True)
                ]
                found = []
        return state

    async def _slopes(self, w: Floats, time: float, left: int) -> Answer:
        """Return how fast the state moves, with so many runs of these rows to come.

        The first of a call is the one that can be refused, and it tells of all others.
        """
        method = self.method
        rows = len(w) * method.copies
        feeds: Feeds = {
            **self.inputs,
            "w": await _off_loop(_single, w, method.copies),
            "t": np.full(rows, time, dtype=np.float32),
        }
        answer = await run(
            self.engine,
            self.role,
            feeds,
            given=self.given,
            first=self.first,
            repeats=self.repeats * method.copies,
            begun=self.begun or left < method.runs - 1,
            follows=rows * left + self.later * method.evaluations,
        )
        if not method.guidance:
            return answer
        return {name: await _off_loop(_led, both, method.guidance) for name, both in answer.items()}


async def decoded(
    engine: Engine,
    z: Array,
    told: Mapping[str, Source],
    method: Method,
    *,
    outputs: Sequence[str],
    given: str | None = None,
    begun: bool = False,
) -> Answer:
    """Return the events that noise becomes.

    Args:
        engine: Of a continuous flow.
        z: Shape (n, *latent).
        told: What the velocity takes beside w and t.
        method: How to solve.
        outputs: `x`, or `pixels` beside it.
        given: Name of what the caller chose, see `calls.run`.
        begun: Whether it continues something that has begun to be answered.
    """
    answers = []
    for first, stop in _pieces(len(z), z[0].size):
        path = _Path(
            engine=engine,
            method=method,
            role="velocity",
            inputs=await asyncio.to_thread(_inputs, told, method, first, stop),
            given=given,
            first=first,
            begun=begun or first > 0,
            later=len(z) - stop,
        )
        start = z[first:stop].astype(np.float64)
        (w,) = await path.solve([start], start=0.0, stop=1.0)
        feeds: Feeds = {"w": await _off_loop(_single, w, 1)}
        answers.append(
            await run(engine, "leave", feeds, outputs=outputs, given=given, first=first, begun=True)
        )
    return {name: np.concatenate([each[name] for each in answers]) for name in outputs}


async def encoded(
    engine: Engine,
    events: Events,
    method: Method,
    *,
    seed: int,
    first: int = 0,
    draws: int = 1,
    begun: bool = False,
    weighs: bool = True,
    given: str | None = "x",
) -> State:
    """Return z and log |det dz/dx| of events, of an image less D log(levels).

    Each event is solved for `draws` times, from draw `first` of its noise on, and these rows
    follow each other: of an image by other noise below its grey levels, and with Hutchinson's
    estimator along another direction. Without `weighs` there is z alone, and nothing is spent on
    the other.

    Raises:
        InputInvalid: A row of x is so large that the graph answers NaN.
    """
    manifest = engine.manifest
    noise = partial(Draws, seed, first=first, draws=draws)
    sources: dict[str, Source] = {
        name: Given(feed) if isinstance(feed, np.ndarray) else feed
        for name, feed in events.repeated(draws).items()
    }
    entering: dict[str, Source] = {"x": sources.pop("x")}
    if manifest.event.levels:
        shape = manifest.event.shape
        entering["noise"] = noise(Stream.DEQUANTISATION, shape, is_normal=False)
    if weighs and manifest.density.estimator == "hutchinson":
        # A direction stays the same along a path, and is asked for at every evaluation.
        sources["probe"] = noise(Stream.PROBE, manifest.latent.shape)
    found: list[State] = []
    for at, end in _pieces(len(events), draws * manifest.latent.size):
        told = await asyncio.to_thread(_rows, entering, at * draws, end * draws)
        # The path is what can be refused: this is nothing beside it.
        entered = await run(engine, "enter", told, given=given, first=at, repeats=draws, begun=True)
        path = _Path(
            engine=engine,
            method=method,
            role="divergence" if weighs else "velocity",
            inputs=await asyncio.to_thread(_inputs, sources, method, at * draws, end * draws),
            given=given,
            first=at,
            repeats=draws,
            begun=begun or at > 0,
            later=(len(events) - end) * draws,
        )
        names = ("w", "log_abs_det") if weighs else ("w",)
        state = [entered[name].astype(np.float64) for name in names]
        found.append(await path.solve(state, start=1.0, stop=0.0))
    return [np.concatenate(parts) for parts in zip(*found, strict=True)]


async def log_density(
    engine: Engine,
    events: Events,
    method: Method,
    *,
    seed: int,
    first: int = 0,
    draws: int = 1,
    begun: bool = False,
    given: str | None = "x",
) -> Floats:
    """Return log N(z) + log |det dz/dx| in nats, shape (n, draws); see `encoded`."""
    z, log_abs_det = await encoded(
        engine, events, method, seed=seed, first=first, draws=draws, begun=begun, given=given
    )
    squares = await _off_loop(_squares, z)
    normal = -0.5 * (squares + engine.manifest.latent.size * LOG_2PI)
    return np.asarray((normal + log_abs_det).reshape(len(events), draws))


def _pieces(rows: int, row_values: int) -> Iterator[tuple[int, int]]:
    """Yield the first row and the end of each part that is solved for at once, for its memory."""
    most = max(1, PIECE_VALUES // row_values)
    for first in range(0, rows, most):
        yield first, min(first + most, rows)


def _rows(sources: Mapping[str, Source], first: int, stop: int) -> dict[str, Array]:
    """Return some rows of each input."""
    return {name: source.rows(first, stop) for name, source in sources.items()}


def _inputs(
    sources: Mapping[str, Source], method: Method, first: int, stop: int
) -> dict[str, Array]:
    """Return some rows of each input; where they are guided twice, the second without a label."""
    rows = _rows(sources, first, stop)
    if method.guidance:
        rows = {name: np.repeat(array, 2, axis=0) for name, array in rows.items()}
        rows["label"][1::2] = UNTOLD_LABEL
    return rows


async def _off_loop(function: Callable[..., Kind], array: Array, *others: object) -> Kind:
    """Return what a function makes of an array, in a thread if that takes long."""
    if array.size < INLINE_VALUES:
        return function(array, *others)
    return await asyncio.to_thread(function, array, *others)


def _ahead(origin: Floats, slopes: Sequence[Array], lengths: Sequence[float]) -> Floats:
    """Return where so far along some slopes leads."""
    total = origin.copy()
    for slope, length in zip(slopes, lengths, strict=True):
        if length:
            total += length * slope.astype(np.float64)
    return total


def _single(w: Floats, copies: int) -> Array:
    with np.errstate(over="ignore"):  # of what runs away: the graph answers NaN, which is told
        single = w.astype(np.float32)
    return single if copies == 1 else np.repeat(single, copies, axis=0)


def _led(both: Array, guidance: float) -> Floats:
    """Return what was answered with a label, led on from what was answered without."""
    told, untold = (rows.astype(np.float64) for rows in (both[::2], both[1::2]))
    with np.errstate(invalid="ignore"):  # likewise, of two infinities
        return np.asarray(told + guidance * (told - untold))


def _squares(z: Floats) -> Floats:
    """Return the sum of the squares of each row."""
    return np.asarray(np.square(z).reshape(len(z), -1).sum(axis=1))
