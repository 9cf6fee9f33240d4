"""Engines: the sessions of one bundle, and the threads that run them.

Asyncio parses and waits; the graphs run in dispatcher threads, where ONNX Runtime frees the
GIL. Row counts are padded to a few fixed buckets, so that a row's answer does not depend on its
company. The batcher, which joins rows of different requests, will stand between `Engine.run`
and the threads.
"""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor

import numpy as np

from service.bundle import Bundle
from service.manifest import Graph, Manifest, Role
from service.session import Device, Session, replay
from service.tensors import Array

DRAW_BUCKETS = (4, 16, 64)
"""Draws are padded to one of these: sums over a multiple of 4 are the same at any position."""


class Engine:
    """One served model.

    Args:
        bundle: What to serve.
        device: Where.
        executor: The dispatcher threads. Shared between engines on a CPU.
        max_batch_rows: Most rows of one run. Draws count as rows.

    Raises:
        BundleInvalid: A graph cannot be loaded, or does not repeat its golden vectors.
    """

    def __init__(
        self, bundle: Bundle, device: Device, *, executor: Executor, max_batch_rows: int
    ) -> None:
        self.manifest: Manifest = bundle.manifest
        self.identity = bundle.identity
        self.device = device
        self._executor = executor
        self._max_rows = max_batch_rows
        self.sessions = {role: Session(bundle, role, device) for role in self.manifest.graphs}
        self.golden_errors = {
            role: replay(bundle, session) for role, session in self.sessions.items()
        }
        """What the replay of the golden vectors measured on this device, by role and output."""
        for session in self.sessions.values():
            self._warm(session)

    async def run(
        self, role: Role, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None
    ) -> dict[str, Array]:
        """Return the outputs of a graph for any number of rows.

        Rows beyond a batch are cut into slices and joined again. If the graph has a draws axis,
        `feeds` may hold at most `DRAW_BUCKETS[-1]` draws.

        Cancelling the caller drops the slices that have not begun. Nothing here watches the
        connection, so a client that leaves does not cancel: its rows are computed to the end,
        until there is a batcher to drop them.

        Raises:
            EngineFailed: ONNX Runtime failed. An answer may be NaN: whose fault that is depends
                on who chose the inputs.
        """
        session = self.sessions[role]
        loop = asyncio.get_running_loop()
        pieces = await asyncio.gather(
            *(
                loop.run_in_executor(self._executor, self._run_slice, session, part, outputs)
                for part in self._slices(session.graph, feeds)
            )
        )
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}

    def buckets(self, graph: Graph) -> list[int]:
        """Return the row counts this graph is run at: powers of two up to a whole batch."""
        least = graph.rows_exact_at or 1
        return [2**k for k in range(13) if least <= 2**k < self._max_rows] + [self._max_rows]

    def _slices(self, graph: Graph, feeds: Mapping[str, Array]) -> Iterator[dict[str, Array]]:
        rows = len(next(iter(feeds.values())))
        step = self._max_rows
        if _has_draws(graph):
            step = max(graph.rows_exact_at or 1, step // _draw_bucket(feeds["noise"].shape[1]))
        for first in range(0, rows, step):
            yield {name: array[first : first + step] for name, array in feeds.items()}

    def _run_slice(
        self, session: Session, feeds: Mapping[str, Array], outputs: Sequence[str] | None
    ) -> dict[str, Array]:
        graph = session.graph
        rows = len(next(iter(feeds.values())))
        bucket = next(size for size in self.buckets(graph) if size >= rows)
        padded = {name: _pad(array, axis=0, length=bucket) for name, array in feeds.items()}
        draws = feeds["noise"].shape[1] if _has_draws(graph) else None
        if draws is not None:
            padded["noise"] = _pad(padded["noise"], axis=1, length=_draw_bucket(draws))
        answer = {name: array[:rows] for name, array in session.run(padded, outputs).items()}
        for spec in graph.outputs:
            if spec.name in answer and "draws" in spec.shape:
                answer[spec.name] = answer[spec.name][:, :draws]
        return answer

    def _warm(self, session: Session) -> None:
        """Run every bucket once, so that no request pays for the first use of a shape."""
        graph = session.graph
        for rows in self.buckets(graph):
            for draws in DRAW_BUCKETS if _has_draws(graph) else (1,):
                if rows * draws > self._max_rows and rows > (graph.rows_exact_at or 1):
                    continue
                axes = {"batch": rows, "draws": draws}
                session.run(
                    {
                        spec.name: np.full(
                            [axis if isinstance(axis, int) else axes[axis] for axis in spec.shape],
                            0.5 if spec.noise == "uniform" else 0,
                            dtype=spec.dtype,
                        )
                        for spec in graph.inputs
                    }
                )


def _has_draws(graph: Graph) -> bool:
    return any("draws" in spec.shape for spec in graph.inputs)


def _draw_bucket(draws: int) -> int:
    return next(size for size in DRAW_BUCKETS if size >= draws)


def _pad(array: Array, *, axis: int, length: int) -> Array:
    """Return the array with its last slice repeated up to a length: real numbers, no zeros."""
    missing = length - array.shape[axis]
    if missing == 0:
        return array
    widths = [(0, missing if each == axis else 0) for each in range(array.ndim)]
    return np.pad(array, widths, mode="edge")
