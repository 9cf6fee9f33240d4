"""What the runtime that serves makes of a bundle's graphs, measured on this CPU."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from service.bundle import Bundle, whole
from service.interface import DRAW_WIDTHS, Role, TensorSpec
from service.manifest import Graph, Manifest
from service.proof import replay
from service.session import Device, Session
from service.tensors import Array

ROWS = 64
"""Rows of the batch that is taken apart."""
SHUFFLES = 4
"""How often it is, for each size of a part. What depends on a row's place shows in few rows."""


def measured(manifest: Manifest, files: Mapping[str, bytes]) -> Manifest:
    """Return the manifest with each graph's error and from how many rows on it is exact.

    Raises:
        service.errors.BundleInvalid: A graph does not repeat its golden vectors.
    """
    draft = Bundle(Path(manifest.name), manifest, whole(manifest, files))
    graphs: dict[Role, Graph] = {}
    for role, graph in manifest.graphs.items():
        session = Session(draft, role, Device("cpu"))
        graphs[role] = graph.model_copy(
            update={
                "parity": replay(draft, [role], session)[role],
                "rows_exact_at": rows_exact_at(session, draft.golden),
            }
        )
    return manifest.model_copy(update={"graphs": graphs})


def rows_exact_at(session: Session, golden: Mapping[str, Array]) -> int | None:
    """Return from which row count on a row's bytes do not depend on its batch, if from any.

    Every row of a batch of 64 is computed again in smaller batches, at other places and among
    other neighbours: at powers of two, as the engine pads, and at each of its numbers of draws.
    That larger batches do no more than these is an inference.
    """
    rng = np.random.Generator(np.random.Philox(key=21))
    trials = [
        (feeds, session.run(feeds))
        for _ in range(SHUFFLES)
        for feeds in _batches(session.graph, session.role, golden, rng)
    ]
    for least in (1, 8):
        if all(
            _repeats(session, feeds, answers, part)
            for feeds, answers in trials
            for rows in _powers_of_two(least)
            for part in np.split(rng.permutation(ROWS), ROWS // rows)
        ):
            return least
    return None


def _batches(
    graph: Graph, role: Role, golden: Mapping[str, Array], rng: np.random.Generator
) -> Iterator[dict[str, Array]]:
    """Yield inputs of `ROWS` rows; of a graph with draws at each of `DRAW_WIDTHS`.

    What is random in use is random here: the golden rows are few, and repeat.
    """
    for draws in DRAW_WIDTHS if graph.has_draws else (1,):
        yield {
            spec.name: _noise(spec, spec.sized(batch=ROWS, draws=draws), rng)
            if spec.noise or spec.name in ("z", "w")
            else np.resize(vectors := golden[f"{role}.{spec.name}"], (ROWS, *vectors.shape[1:]))
            for spec in graph.inputs
        }


def _noise(spec: TensorSpec, shape: Sequence[int], rng: np.random.Generator) -> Array:
    make = rng.random if spec.noise == "uniform" else rng.standard_normal
    return make(shape, dtype=np.float32)


def _repeats(
    session: Session, feeds: Mapping[str, Array], answers: Mapping[str, Array], rows: Array
) -> bool:
    """Return whether these rows on their own get the bytes that they got in the whole batch."""
    found = session.run({name: array[rows] for name, array in feeds.items()}, list(answers))
    return all(np.array_equal(answer, answers[name][rows]) for name, answer in found.items())


def _powers_of_two(least: int) -> list[int]:
    return [least << k for k in range(7) if least << k <= ROWS]
