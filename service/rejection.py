"""Rejection by a critic: a row becomes the first of its candidates that is accepted.

Candidate k of row i has an address, row k ROWS + i of a stream of its own, and so has the coin that
decides on it: which candidate a row becomes is a function of (bundle, seed, i). How many are tried
at once is not: while many rows wait it is one of each, and more when they are too few for a run.

Source:
    Azadi et al. 2019, arXiv:1810.06758.
"""

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from service import noise
from service.calls import Answer, run
from service.engine import Engine
from service.feeds import Given, Scattered, Source
from service.interface import ATTEMPTS
from service.manifest import Manifest, Rejection
from service.noise import Floats, Stream
from service.tensors import Array


def expected(manifest: Manifest) -> int:
    """Return how many candidates a row takes, on average and rounded up."""
    return math.ceil(1 / _of(manifest).acceptance)


def _of(manifest: Manifest) -> Rejection:
    if manifest.rejection is None:
        raise TypeError(f"{manifest.name} keeps no critic; whoever asks has checked")
    return manifest.rejection


@dataclass
class _Chosen:
    """What the rows are so far: an accepted candidate, or the likeliest of those seen.

    Args:
        rows: How many there are.
        log_bound: Of the ratio.
    """

    rows: int
    log_bound: float
    answer: Answer = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        """Begin with all of them waiting."""
        self.waiting = np.arange(self.rows)
        self.tried = 0
        self.log_ratio = np.full(self.rows, -np.inf)
        self.candidate = np.zeros(self.rows, np.int64)
        self.attempts = np.zeros(self.rows, np.int64)

    def take(self, made: Answer, log_ratio: Array, coins: Floats) -> None:
        """Take in one or more candidates of all rows that wait, then their next, and so on."""
        waits = len(self.waiting)
        ratios = log_ratio.astype(np.float64).reshape(-1, waits)
        accepted = noise.log(coins).reshape(-1, waits) < ratios - self.log_bound
        is_over = accepted.any(axis=0)
        best = np.where(is_over, accepted.argmax(axis=0), ratios.argmax(axis=0))
        row = np.arange(waits)
        # The first round has something for every row, whatever it is worth.
        better = is_over | (ratios[best, row] > self.log_ratio[self.waiting]) | (self.tried == 0)
        for name, array in made.items():
            if name not in self.answer:
                self.answer[name] = np.empty((self.rows, *array.shape[1:]), array.dtype)
            self.answer[name][self.waiting[better]] = array[(best * waits + row)[better]]
        self.log_ratio[self.waiting[better]] = ratios[best, row][better]
        self.candidate[self.waiting[better]] = self.tried + best[better]
        self.attempts[self.waiting[is_over]] = self.tried + best[is_over] + 1
        self.waiting = self.waiting[~is_over]
        self.tried += len(ratios)


@dataclass(frozen=True)
class Rows:
    """Which rows are wanted.

    Args:
        engine: Of a model that keeps its critic.
        seed: Of the noise.
        start: First row.
        count: How many.
        told: What the model is told of them, the same of all candidates of a row.
        outputs: `x`, and `pixels` beside it.
        begun: Whether they continue something that has begun to be answered.
    """

    engine: Engine
    seed: int
    start: int
    count: int
    told: Mapping[str, Source]
    outputs: Sequence[str]
    begun: bool = False


async def chosen(rows: Rows) -> tuple[Answer, Source]:
    """Return accepted samples, and the noise that they were made of.

    Beside the outputs there are `log_ratio` in nats and `attempts`, the number of the candidate
    that was accepted, from 1 on. It is 0 where none of ATTEMPTS was: the row is then the one of
    the largest ratio.

    Raises:
        EngineFailed: A graph failed, or answered NaN.
    """
    found = _Chosen(rows.count, _of(rows.engine.manifest).log_bound)
    condition = {
        name: await asyncio.to_thread(source.rows, 0, rows.count)
        for name, source in rows.told.items()
    }
    while len(found.waiting) and found.tried < ATTEMPTS:
        await _try(rows, condition, found)
    # In the graph's own precision, as it is answered without rejection.
    log_ratio = found.log_ratio.astype(np.float32)
    answer = {**found.answer, "log_ratio": log_ratio, "attempts": found.attempts}
    shape = rows.engine.manifest.latent.shape
    places = noise.ROWS * found.candidate + rows.start + np.arange(rows.count)
    return answer, Scattered(rows.seed, Stream.CANDIDATE, shape, places=places)


async def _try(rows: Rows, condition: Mapping[str, Array], found: _Chosen) -> None:
    """Try one or a few more candidates of each row that waits."""
    engine, waiting = rows.engine, found.waiting
    count = _at_once(engine, found)
    candidates = np.arange(found.tried, found.tried + count)
    places = (noise.ROWS * candidates[:, None] + rows.start + waiting).ravel()
    z = Scattered(rows.seed, Stream.CANDIDATE, engine.manifest.latent.shape, places=places)
    coin = Scattered(rows.seed, Stream.COIN, (1,), is_normal=False, places=places)
    about = {name: Given(array[np.tile(waiting, count)]) for name, array in condition.items()}
    size = len(places)
    ask = partial(run, engine, rows=size, follows=_follows(engine, len(waiting), count))
    # The first of a row's candidates is the one that can be refused.
    begun = rows.begun or found.tried > 0
    made = await ask("decode", {"z": z, **about}, outputs=rows.outputs, begun=begun)
    said = await ask("critic", {"x": made["x"], **about}, begun=True)
    coins = await asyncio.to_thread(coin.uniforms, 0, size)
    await asyncio.to_thread(found.take, made, said["log_ratio"], coins[:, 0])


def _follows(engine: Engine, waiting: int, count: int) -> int:
    """Return how many rows of `decode` take as long as what comes after this round's.

    That is the critic's answer to these, and both of the candidates to come.
    """
    acceptance = _of(engine.manifest).acceptance
    to_come = waiting * (1 - acceptance) ** count / acceptance
    dearer = engine.lanes["critic", None].row_s / engine.lanes["decode", None].row_s
    return round(waiting * count * dearer + to_come * (1 + dearer))


def _at_once(engine: Engine, found: _Chosen) -> int:
    """Return how many candidates of each waiting row to try: as many as fill a run, or are due."""
    fitting = engine.lanes["decode", None].most // len(found.waiting)
    return max(1, min(fitting, expected(engine.manifest), ATTEMPTS - found.tried))
