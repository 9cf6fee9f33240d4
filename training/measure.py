"""What the runtime that serves makes of a bundle's graphs, measured on this CPU."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from service.bundle import Bundle
from service.manifest import DRAW_WIDTHS, Graph, Manifest, Role
from service.session import Device, Session, replay
from service.tensors import Array

ROWS = 64
"""Rows of the largest batch: what the service runs at once unless it is told otherwise."""


def measured(manifest: Manifest, files: Mapping[str, bytes]) -> Manifest:
    """Return the manifest with each graph's error and from how many rows on it is exact.

    Raises:
        service.errors.BundleInvalid: A graph does not repeat its golden vectors.
    """
    draft = Bundle(Path(manifest.name), manifest, files)
    graphs: dict[Role, Graph] = {}
    for role, graph in manifest.graphs.items():
        session = Session(draft, role, Device("cpu"))
        graphs[role] = graph.model_copy(
            update={
                "parity": replay(draft, role, [session]),
                "rows_exact_at": rows_exact_at(session, draft.golden),
            }
        )
    return manifest.model_copy(update={"graphs": graphs})


def rows_exact_at(session: Session, golden: Mapping[str, Array]) -> int | None:
    """Return from which row count on a row's bytes do not depend on its batch, if from any.

    Every row of a batch of 64 is computed again in smaller batches, at other places and among
    other neighbours, as the engine would: at powers of two, and at each of its numbers of draws.
    """
    rng = np.random.Generator(np.random.Philox(key=21))
    trials = [(feeds, session.run(feeds)) for feeds in _batches(session, golden, rng)]
    for least in (1, 8):
        if all(
            _repeats(session, feeds, answers, rng.permutation(ROWS)[:rows])
            for feeds, answers in trials
            for rows in _powers_of_two(least)
            for _ in range(4)
        ):
            return least
    return None


def _batches(
    session: Session, golden: Mapping[str, Array], rng: np.random.Generator
) -> Iterator[dict[str, Array]]:
    """Yield a batch of `ROWS`, of a graph with draws one for each of `DRAW_WIDTHS`."""
    inputs = session.graph.inputs
    feeds = {
        spec.name: np.resize(
            golden[f"{session.role}.{spec.name}"],
            (ROWS, *golden[f"{session.role}.{spec.name}"].shape[1:]),
        )
        for spec in inputs
    }
    drawn = [spec for spec in inputs if "draws" in spec.shape]
    for draws in DRAW_WIDTHS if drawn else (1,):
        lengths = {"batch": ROWS, "draws": draws}
        yield feeds | {
            spec.name: rng.standard_normal(
                [axis if isinstance(axis, int) else lengths[axis] for axis in spec.shape],
                dtype=np.float32,
            )
            for spec in drawn
        }


def _powers_of_two(least: int) -> list[int]:
    return [least << k for k in range(7) if least << k <= ROWS]


def _repeats(
    session: Session, feeds: Mapping[str, Array], answers: Mapping[str, Array], rows: Array
) -> bool:
    """Return whether these rows on their own get the bytes that they got in the whole batch."""
    found = session.run({name: array[rows] for name, array in feeds.items()})
    return all(np.array_equal(answer, answers[name][rows]) for name, answer in found.items())
