"""Draws of an estimate, window by window along the draws: so that it takes constant memory.

Each function yields for its windows what a graph says of so many draws of each event. Whoever
closes the iterator drops the rest.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from functools import partial

import numpy as np

from service import ode
from service.calls import Answer, Events, run
from service.engine import Engine
from service.feeds import Codes, Draws, Source
from service.interface import DRAW_WIDTHS
from service.noise import Stream
from service.posterior import Gaussian
from service.runs import Feeds
from service.tensors import Array
from service.windows import one_ahead

WINDOW_DRAWS = 2**16
"""Draws of all rows together whose weights are held at once; more come in several windows."""

WINDOW_VALUES = 2**22
"""Numbers of those draws that are held at once, where that is more than a weight each."""

Windows = AsyncGenerator[Answer, None]


def by_elbo(engine: Engine, events: Events, *, draws: int, seed: int) -> Windows:
    """Return the windows of the elbo graph: draws of the encoder's q(z|x)."""
    shape = engine.manifest.latent.shape

    def call(first: int, draws: int) -> Awaitable[Answer]:
        noise = Draws(seed, Stream.POSTERIOR, shape, first=first, draws=draws)
        feeds: Feeds = {**events.feeds, "noise": noise}
        return run(engine, "elbo", feeds, given="x", begun=first > 0)

    return one_ahead(_windows(call, events, draws))


def by_likelihood(engine: Engine, events: Events, q: Gaussian, *, draws: int, seed: int) -> Windows:
    """Return what the elbo graph would say of another q(z|x): its draws are made here.

    The noise is that of `by_elbo`, so that two posteriors of the same events differ by little
    but what they are. It continues what has begun: somebody has found q.
    """
    shape = engine.manifest.latent.shape

    async def call(first: int, draws: int) -> Answer:
        codes = Codes(q, Draws(seed, Stream.POSTERIOR, shape, first=first, draws=draws))
        feeds: Feeds = {**events.feeds, "z": codes}
        answer = await run(engine, "likelihood", feeds, given="x", begun=True)
        reconstruction = answer["log_likelihood"].astype(np.float64)
        log_prior = answer.get("log_prior")
        ratios = await asyncio.to_thread(codes.log_ratios, log_prior)
        kl = -ratios if log_prior is not None else await asyncio.to_thread(q.kl)
        log_weight = reconstruction + ratios
        return {"reconstruction": reconstruction, "kl": kl, "log_weight": log_weight}

    return one_ahead(_windows(call, events, draws))


def by_prior(engine: Engine, events: Events, *, draws: int, seed: int) -> Windows:
    """Return log p(x|z) of so many draws z of p(z) as log_weight (n, draws of the window)."""
    shape = engine.manifest.latent.shape
    is_learned = engine.manifest.latent.distribution == "learned"

    async def call(first: int, draws: int) -> Answer:
        z: Array | Source = Draws(seed, Stream.PRIOR, shape, first=first, draws=draws)
        if is_learned:
            rows = len(events) * draws
            made = await run(engine, "prior", {"noise": z}, rows=rows, begun=first > 0)
            z = made["z"].reshape(len(events), draws, *shape)
        feeds: Feeds = {**events.feeds, "z": z}
        answer = await run(engine, "likelihood", feeds, given="x", begun=first > 0)
        return {"log_weight": answer["log_likelihood"]}

    # What a learned prior makes lies in memory between the two graphs.
    held = engine.manifest.latent.size if is_learned else 1
    return one_ahead(_windows(call, events, draws, held=held))


def by_dequantisation(engine: Engine, events: Events, *, draws: int, seed: int) -> Windows:
    """Return log p(x + u) of so many draws of u as log_weight (n, draws of the window)."""

    async def call(first: int, draws: int) -> Answer:
        noise = below_levels(engine, seed, first=first, draws=draws)
        answer = await run(
            engine,
            "log_density",
            {**events.repeated(draws), "noise": noise},
            given="x",
            rows=len(events) * draws,
            repeats=draws,
            begun=first > 0,
        )
        return {"log_weight": answer["log_density"].reshape(len(events), draws)}

    return one_ahead(_windows(call, events, draws))


def by_path(
    engine: Engine, events: Events, method: ode.Method, *, draws: int, seed: int
) -> Windows:
    """Return log p(x + u) along so many paths, as log_weight (n, draws of the window).

    Each path has its own u and, with Hutchinson's estimator, its own direction.
    """

    async def call(first: int, draws: int) -> Answer:
        found = await ode.log_density(
            engine, events, method, seed=seed, first=first, draws=draws, begun=first > 0
        )
        return {"log_weight": found}

    # The paths of an event are solved at once, and each has a place, slopes and a direction.
    return one_ahead(_windows(call, events, draws, held=8 * engine.manifest.latent.size))


def below_levels(engine: Engine, seed: int, *, first: int, draws: int) -> Draws:
    """Return uniform noise below a grey level, so many draws for each event."""
    shape = engine.manifest.event.shape
    return Draws(seed, Stream.DEQUANTISATION, shape, is_normal=False, first=first, draws=draws)


def _windows(
    call: Callable[[int, int], Awaitable[Answer]],
    events: Events,
    draws: int,
    *,
    held: int = 1,
) -> Iterator[Callable[[], Awaitable[Answer]]]:
    """Yield calls that together take all draws, each for as many as may be held at once.

    Args:
        call: Takes the first draw and how many.
        events: Whose.
        draws: Of each event.
        held: Numbers of each draw that lie in memory: its weight, or what it is made of.
    """
    width = DRAW_WIDTHS[-1]
    most = min(WINDOW_DRAWS, WINDOW_VALUES // held)
    window = max(width, most // len(events) // width * width)
    for first in range(0, draws, window):
        yield partial(call, first, min(window, draws - first))
