"""Runs of a bundle's graphs: inputs filled from their sources, outputs handed to their jobs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from service.feeds import Source, fill
from service.interface import Role
from service.lanes import Lane, Observer, Piece
from service.manifest import Graph
from service.session import Session
from service.tensors import Array


@dataclass
class Rows:
    """What a lane needs to know of a job.

    Args:
        feeds: Where the rows of each input come from.
        outputs: Which outputs its caller wants.
    """

    feeds: Mapping[str, Source]
    outputs: Sequence[str]
    results: dict[str, Array] = field(default_factory=dict, init=False)
    broken: tuple[str, int] | None = field(default=None, init=False)
    """Output and row of an answer that is no number."""


Feeds = Mapping[str, Array | Source]


class GraphLane(Lane[Rows]):
    """One graph of a bundle at one width of draws, on every device that serves.

    Args:
        model: Name of the model.
        role: Which of its graphs.
        sessions: One for each device.
        width: Draws in a row; None for a graph without such an axis.
        seconds: By bucket, what a run takes.
        observer: Hears of answers that are not finite.
    """

    def __init__(
        self,
        model: str,
        role: Role,
        *,
        graph: Graph,
        sessions: Sequence[Session],
        width: int | None,
        seconds: dict[int, float],
        observer: Observer,
    ) -> None:
        super().__init__((model, role), seconds)
        self._graph = graph
        self._width = width
        self.sessions = sessions
        self.observer = observer

    def prepare(self, pieces: Sequence[Piece[Rows]], bucket: int) -> "GraphRun":
        """Return a run: its inputs are filled, its outputs are those that anybody wants."""
        feeds: dict[str, Array] = {}
        for spec in self._graph.inputs:
            shape = spec.sized(batch=bucket, draws=self._width or 1)
            feeds[spec.name] = np.empty(shape, dtype=spec.dtype)
            parts = [(p.job.content.feeds[spec.name], p.first, p.stop) for p in pieces]
            fill(feeds[spec.name], parts)
        wanted = {name for piece in pieces for name in piece.job.content.outputs}
        outputs = [spec.name for spec in self._graph.outputs if spec.name in wanted]
        return GraphRun(self, pieces, feeds, outputs)


@dataclass
class GraphRun:
    """One run of a graph.

    Args:
        lane: Of which graph.
        pieces: Whose rows.
        feeds: The inputs, padded to a bucket.
        outputs: Which of its outputs.
    """

    lane: GraphLane
    pieces: Sequence[Piece[Rows]]
    feeds: Mapping[str, Array]
    outputs: Sequence[str]
    answer: dict[str, Array] = field(default_factory=dict, init=False)

    def execute(self, device: int) -> None:
        """Run the session of a device."""
        self.answer = self.lane.sessions[device].run(self.feeds, self.outputs)

    def deliver(self) -> None:
        """Copy each job's rows to their places, and look for what is no number."""
        for name, array in self.answer.items():
            finite = array.dtype.kind != "f" or bool(np.isfinite(array).all())
            at = 0
            for piece in self.pieces:
                rows = array[at : at + piece.rows]
                at += piece.rows
                if name in piece.job.content.outputs:
                    if not finite:
                        self._report(piece, name, rows)
                    _put(piece, name, rows)

    def _report(self, piece: Piece[Rows], name: str, rows: Array) -> None:
        flat = rows.reshape(len(rows), -1)
        if odd := int((~np.isfinite(flat)).any(axis=1).sum()):
            self.lane.observer.non_finite(self.lane, rows=odd)
        broken = np.isnan(flat).any(axis=1)
        if broken.any():
            row = piece.first + int(broken.argmax())
            known = piece.job.content.broken
            if known is None or row < known[1]:
                piece.job.content.broken = (name, row)


def _put(piece: Piece[Rows], name: str, rows: Array) -> None:
    """Give a job some rows of an output."""
    job = piece.job
    if piece.rows == job.rows:
        job.content.results[name] = rows
        return
    results = job.content.results
    if name not in results:  # of two workers that come here at once, one wins
        results.setdefault(name, np.empty((job.rows, *rows.shape[1:]), dtype=rows.dtype))
    results[name][piece.first : piece.stop] = rows
