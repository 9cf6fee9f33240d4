"""Where the rows of a graph's inputs come from: the caller's arrays, or an address of noise.

A source says what its rows are, and makes them only when a batch takes them, where that is
run. So a request for a million rows holds no more of them than are being run, and the noise
of all requests in a batch goes through the inverse CDF at once.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from service import noise
from service.noise import Floats, Stream
from service.posterior import Gaussian
from service.tensors import Array

LOG_2PI = math.log(2 * math.pi)
PIECE_VALUES = 2**20
"""Numbers of draws that are looked at at once, where no graph does."""
GAP_VALUES = 1024
"""Numbers of noise that are made for nothing rather than begun anew: that takes as long (measured:
5 microseconds)."""


class Source(Protocol):
    """Rows of one input, of which any slice can be asked for."""

    def rows(self, first: int, stop: int) -> Array:
        """Return rows first .. stop - 1."""


@dataclass(frozen=True)
class Given:
    """Rows that the caller sent.

    Args:
        array: Shape (n, ...).
        repeats: How often in a row each of them stands there.
    """

    array: Array
    repeats: int = 1

    def rows(self, first: int, stop: int) -> Array:
        """Return rows first .. stop - 1, of n times `repeats`."""
        if self.repeats == 1:
            return self.array[first:stop]
        return self.array[np.arange(first, stop) // self.repeats]


@dataclass(frozen=True)
class GivenDraws:
    """Draws that the caller sent, cut into rows of a fixed width.

    Args:
        array: Shape (n, draws, ...).
        width: Draws in a row; what is missing from an event's last row repeats its last draw.
    """

    array: Array
    width: int

    def rows(self, first: int, stop: int) -> Array:
        """Return rows first .. stop - 1, shape (rows, width, ...), event by event."""
        draws = self.array.shape[1]
        per_event = -(-draws // self.width)
        row = np.arange(first, stop)
        column = (row % per_event)[:, None] * self.width + np.arange(self.width)
        chosen: Array = self.array[(row // per_event)[:, None], np.minimum(column, draws - 1)]
        return chosen


@dataclass(frozen=True)
class Labels:
    """Classes drawn from a seed, each equally likely."""

    seed: int
    start: int
    classes: int

    def rows(self, first: int, stop: int) -> Array:
        """Return labels, shape (rows,)."""
        return noise.labels(
            self.seed, start=self.start + first, rows=stop - first, classes=self.classes
        )


@dataclass(frozen=True)
class Noise:
    """Noise of consecutive rows of a stream.

    Args:
        seed: Of the stream.
        stream: What it is for.
        shape: Of one row.
        start: The first row.
        is_normal: N(0, 1); otherwise U(0, 1).
        scale: Factor on a normal: the temperature.
    """

    seed: int
    stream: Stream
    shape: tuple[int, ...]
    start: int = 0
    is_normal: bool = True
    scale: float = 1.0

    @property
    def size(self) -> int:
        """Values of one row."""
        return math.prod(self.shape)

    def uniforms(self, first: int, stop: int) -> Floats:
        """Return what the rows are made of, shape (rows, size)."""
        return noise.uniform(
            self.seed, self.stream, start=self.start + first, rows=stop - first, size=self.size
        )

    def rows(self, first: int, stop: int) -> Array:
        """Return rows first .. stop - 1, shape (rows, *shape), float32."""
        made = np.empty((stop - first, *self.shape), dtype=np.float32)
        fill(made, [(self, first, stop)])
        return made


@dataclass(frozen=True)
class Draws(Noise):
    """Noise for draws first, first + 1, ... of each event.

    A row is one draw, or with a width so many draws side by side: (width, *shape).

    Args:
        first: The first draw.
        draws: How many of each event.
        width: Draws in a row. An event's last row is full, though fewer of it may be wanted.
    """

    first: int = 0
    draws: int = 1
    width: int | None = None

    @property
    def per_event(self) -> int:
        """Rows that each event's draws take."""
        return -(-self.draws // (self.width or 1))

    def uniforms(self, first: int, stop: int) -> Floats:
        """Return what the rows are made of, shape (rows, values of a row)."""
        width = self.width or 1
        made = np.empty((stop - first, width * self.size))
        row = first
        while row < stop:
            event, block = divmod(row, self.per_event)
            count = min(self.per_event - block, stop - row)  # of this event, one after the other
            made[row - first : row - first + count] = noise.uniform(
                self.seed,
                self.stream,
                start=event * noise.DRAWS + self.first + block * width,
                rows=count * width,
                size=self.size,
            ).reshape(count, -1)
            row += count
        return made

    def rows(self, first: int, stop: int) -> Array:
        """Return rows first .. stop - 1, float32."""
        side_by_side = () if self.width is None else (self.width,)
        made = np.empty((stop - first, *side_by_side, *self.shape), dtype=np.float32)
        fill(made, [(self, first, stop)])
        return made


@dataclass(frozen=True, kw_only=True, eq=False)
class Scattered(Noise):
    """Noise of rows of a stream that need not follow each other.

    Args:
        places: Which rows. Where they rise by little, those between are made too and thrown away.
    """

    places: npt.NDArray[np.int64]

    def uniforms(self, first: int, stop: int) -> Floats:
        """Return what the rows are made of, shape (rows, size)."""
        places = self.places[first:stop]
        gap = np.diff(places)
        ends = np.flatnonzero((gap < 1) | (gap * noise.words_of(self.size) > GAP_VALUES)) + 1
        return np.concatenate([self._near(part) for part in np.split(places, ends)])

    def _near(self, places: npt.NDArray[np.int64]) -> Floats:
        """Return the same of rows that lie close together, rising."""
        start = int(places[0])
        made = noise.uniform(
            self.seed,
            self.stream,
            start=start,
            rows=int(places[-1]) - start + 1,
            size=self.size,
        )
        return made[places - start]


@dataclass(frozen=True)
class Codes:
    """Draws z of the q(z|x) of each event.

    Args:
        q: Of the events.
        noise: What they are made of. It has a width: a row is so many of them side by side.
    """

    q: Gaussian
    noise: Draws

    def rows(self, first: int, stop: int) -> Array:
        """Return rows first .. stop - 1, float32 (rows, width, *latent)."""
        return self._draw(self.noise.rows(first, stop), first)

    def log_ratios(self, log_prior: Array | None = None) -> Floats:
        """Return log p(z) - log q(z|x) of each draw in nats, shape (n, draws).

        By the noise eps that they are made of it is 1/2 (eps'eps - z'z) + log |det L|. The noise
        is made once more, a piece at a time: to keep it would take more memory than all else, and
        to make it takes little beside the graph that it was made for.

        Args:
            log_prior: log p(z) likewise, where it is learned; else p(z) is N(0, I).
        """
        single = replace(self, noise=replace(self.noise, width=1))
        found = np.empty(len(self.q.mean) * self.noise.draws)
        piece = max(1, PIECE_VALUES // self.q.row_values)
        for first in range(0, len(found), piece):
            eps = single.noise.rows(first, min(first + piece, len(found)))
            squares = _squares(eps)
            if log_prior is None:
                squares -= _squares(single._draw(eps, first))
            found[first : first + piece] = 0.5 * squares
        ratios = found.reshape(-1, self.noise.draws) + self.q.log_det()[:, None]
        if log_prior is not None:
            # What in the other case is the same in p and q.
            ratios += log_prior + 0.5 * self.noise.size * LOG_2PI
        return ratios

    def _draw(self, eps: Array, first: int) -> Array:
        """Return what some noise becomes in the rows from `first` on."""
        event = np.arange(first, first + len(eps)) // self.noise.per_event
        return self.q.draw(eps, event)


def _squares(rows: Array) -> Floats:
    """Return the sum of the squares of each row."""
    return np.asarray(np.square(rows, dtype=np.float64).reshape(len(rows), -1).sum(axis=1))


def in_rows(source: Source, widths: Sequence[int]) -> tuple[Source, int, int]:
    """Return any number of draws of each event in rows of a width, that number, and the width.

    Args:
        source: `Draws`, `Codes`, or given ones of shape (n, draws, ...).
        widths: To choose from, rising: the least that holds all draws, or the last.

    Raises:
        TypeError: It is another source, which has no draws.
    """
    if isinstance(source, Given):
        draws = source.array.shape[1]
    elif isinstance(source, Codes):
        draws = source.noise.draws
    elif isinstance(source, Draws):
        draws = source.draws
    else:
        raise TypeError(f"{source} has no draws")
    width = next((each for each in widths if each >= draws), widths[-1])
    if isinstance(source, Given):
        return GivenDraws(source.array, width), draws, width
    if isinstance(source, Codes):
        return replace(source, noise=replace(source.noise, width=width)), draws, width
    return replace(source, width=width), draws, width


def fill(target: Array, parts: Sequence[tuple[Source, int, int]]) -> None:
    """Write the rows of some sources one after the other, and repeat the last up to the end.

    Args:
        target: Shape (n, ...). What the parts do not fill is padding: real numbers, no zeros.
        parts: Sources, each with its first row and the one after its last.
    """
    at = 0
    normals: list[tuple[Array, Noise, Floats]] = []
    for source, first, stop in parts:
        rows = target[at : at + stop - first]
        at += stop - first
        if not isinstance(source, Noise):
            rows[...] = source.rows(first, stop)
        elif source.is_normal:
            normals.append((rows, source, source.uniforms(first, stop)))
        else:
            below_one = np.minimum(source.uniforms(first, stop).astype(np.float32), noise.BELOW_ONE)
            rows[...] = below_one.reshape(rows.shape)
    if normals:
        _fill_normals(normals)
    target[at:] = target[at - 1]


def _fill_normals(normals: Sequence[tuple[Array, Noise, Floats]]) -> None:
    """Take all uniforms through the inverse CDF at once: its price is by the call, for a few."""
    values = noise.inverse_normal_cdf(np.concatenate([u.reshape(-1) for *_, u in normals]))
    at = 0
    for rows, source, uniforms in normals:
        rows[...] = values[at : at + uniforms.size].reshape(rows.shape)
        at += uniforms.size
        if source.scale != 1:
            rows *= np.float32(source.scale)
