"""Continuous flows: from noise to events and back, one evaluation of the velocity at a time.

dw/dt = v(w, t) takes noise z at t = 0 to w at t = 1, and `leave` makes x of that. Here is the
arithmetic of the solver, in float64; each evaluation of v is a job. So calls of different solvers,
steps and directions share their batches, others are served between two evaluations, and
cancelling the caller ends it there.

Source:
    Chen et al. 2018, arXiv:1806.07366 (the density along the way, eq. 8); Grathwohl et al. 2019,
    arXiv:1810.01367 (its estimate by a random direction, kept along a path).
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from service.calls import Answer, Events, run
from service.engine import Engine
from service.errors import CapabilityMissing
from service.feeds import LOG_2PI, Draws, Given, Source
from service.interface import Role, Solver
from service.manifest import Manifest
from service.noise import Floats, Stream
from service.schemes import SCHEMES
from service.tensors import Array

INLINE_VALUES = 2**16
"""Numbers of a step that are added up at once on the event loop: a tenth of a millisecond."""


@dataclass(frozen=True)
class Method:
    """How a path is solved: so many steps of one length."""

    solver: Solver
    steps: int

    @property
    def evaluations(self) -> int:
        """How often the velocity is asked for."""
        return self.steps * len(SCHEMES[self.solver].places)


def chosen(manifest: Manifest, solver: Solver | None, steps: int | None) -> Method | None:
    """Return how to solve a model's ode, by its own choice where none was made; None without one.

    Raises:
        CapabilityMissing: A choice was made for a model that has no ode.
    """
    if manifest.ode is None:
        for field, value in (("solver", solver), ("steps", steps)):
            if value is not None:
                raise CapabilityMissing(
                    f"{manifest.name} is no continuous flow: nothing is solved. "
                    f"Leave out '{field}'.",
                    field=field,
                )
        return None
    return Method(solver or manifest.ode.solver, steps or manifest.ode.steps)


def usual(manifest: Manifest) -> Method | None:
    """Return how a model's ode is solved where nobody says otherwise; None without one."""
    return chosen(manifest, None, None)


Condition = dict[str, Source]
"""The label of each row, if the model has labels."""
State = list[Floats]
"""w, shape (n, *latent), and whatever else grows along the path."""
Slopes = Callable[[Floats, float, int], Awaitable[State]]
"""d/dt of a state, given w, t, and how many evaluations are still to come."""


async def decoded(
    engine: Engine,
    z: Array,
    condition: Condition,
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
        condition: The labels.
        method: How to solve.
        outputs: `x`, or `pixels` beside it.
        given: Name of what the caller chose, see `calls.run`.
        begun: Whether it continues something that has begun to be answered.
    """

    async def slopes(w: Floats, t: float, left: int) -> State:
        feeds = {**condition, **_place(w, t)}
        follows = len(w) * left
        is_begun = begun or left < method.evaluations - 1
        answer = await run(engine, "velocity", feeds, given=given, begun=is_begun, follows=follows)
        return [answer["velocity"]]

    (w,) = await _solved(slopes, [z.astype(np.float64)], method, start=0.0, stop=1.0)
    return await run(engine, "leave", {"w": _single(w)}, outputs=outputs, given=given, begun=True)


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
) -> tuple[Floats, Floats | None]:
    """Return z and log |det dz/dx| of events, of an image less D log(levels).

    Each event is solved for `draws` times, from draw `first` of its noise on, and these rows
    follow each other: of an image by other noise below its grey levels, and with Hutchinson's
    estimator along another direction. Without `weighs` there is no log |det dz/dx|, and nothing
    is spent on it.

    Raises:
        InputInvalid: A row of x is so large that the graph answers NaN.
    """
    manifest = engine.manifest
    rows = len(events) * draws
    repeated = events.repeated(draws)
    condition: Condition = {name: _source(feed) for name, feed in repeated.items() if name != "x"}
    noise = partial(Draws, seed, first=first, draws=draws)
    call = partial(run, engine, given="x", repeats=draws, rows=rows)
    below = {}
    if manifest.event.levels:
        shape = manifest.event.shape
        below["noise"] = noise(Stream.DEQUANTISATION, shape, is_normal=False)
    entered = await call("enter", {"x": repeated["x"], **below}, begun=begun)
    if weighs and manifest.density.estimator == "hutchinson":
        probe = noise(Stream.PROBE, manifest.latent.shape)
        # It stays the same along a path, and is asked for at every evaluation.
        condition["probe"] = Given(await asyncio.to_thread(probe.rows, 0, rows))

    async def slopes(w: Floats, t: float, left: int) -> State:
        feeds = {**condition, **_place(w, t)}
        answer = await call(role, feeds, begun=True, follows=rows * left)
        return [answer[name] for name in grown]

    role: Role = "divergence" if weighs else "velocity"
    grown = ("velocity", "divergence") if weighs else ("velocity",)
    state = [entered[name].astype(np.float64) for name in ("w", "log_abs_det")[: len(grown)]]
    z, *log_abs_det = await _solved(slopes, state, method, start=1.0, stop=0.0)
    return z, log_abs_det[0] if weighs else None


async def log_density(
    engine: Engine,
    events: Events,
    method: Method,
    *,
    seed: int,
    first: int = 0,
    draws: int = 1,
    begun: bool = False,
) -> Floats:
    """Return log N(z) + log |det dz/dx| in nats, shape (n, draws); see `encoded`."""
    z, log_abs_det = await encoded(
        engine, events, method, seed=seed, first=first, draws=draws, begun=begun
    )
    squares = np.square(z).reshape(len(z), -1).sum(axis=1)
    normal = -0.5 * (squares + engine.manifest.latent.size * LOG_2PI)
    return np.asarray((normal + log_abs_det).reshape(len(events), draws))


async def _solved(
    slopes: Slopes, state: State, method: Method, *, start: float, stop: float
) -> State:
    """Return a state at t = stop, given that at t = start."""
    scheme = SCHEMES[method.solver]
    length = (stop - start) / method.steps
    left = method.evaluations
    for step in range(method.steps):
        origin = start + step * length
        found: list[State] = []
        for place in scheme.places:
            w = state[0] if not found else await _ahead(state[0], [found[-1][0]], [place * length])
            left -= 1
            found.append(await slopes(w, origin + place * length, left))
        weights = [length * weight for weight in scheme.weights]
        state = [
            await _ahead(each, [slope[i] for slope in found], weights)
            for i, each in enumerate(state)
        ]
    return state


async def _ahead(origin: Floats, slopes: Sequence[Array], lengths: Sequence[float]) -> Floats:
    """Return where so far along some slopes leads."""
    if origin.size < INLINE_VALUES:
        return _sum(origin, slopes, lengths)
    return await asyncio.to_thread(_sum, origin, slopes, lengths)


def _sum(origin: Floats, slopes: Sequence[Array], lengths: Sequence[float]) -> Floats:
    total = origin.copy()
    for slope, length in zip(slopes, lengths, strict=True):
        if length:
            total += length * slope.astype(np.float64)
    return total


def _place(w: Floats, t: float) -> dict[str, Array | Source]:
    return {"w": _single(w), "t": np.full(len(w), t, dtype=np.float32)}


def _single(w: Floats) -> Array:
    with np.errstate(over="ignore"):  # of what runs away: the graph answers NaN, which is told
        return w.astype(np.float32)


def _source(feed: Array | Source) -> Source:
    return Given(feed) if isinstance(feed, np.ndarray) else feed
