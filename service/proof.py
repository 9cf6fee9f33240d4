"""What a bundle claims of its graphs, tried on the device that is to serve them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from service.bundle import Bundle
from service.errors import BundleInvalid
from service.interface import DRAW_WIDTHS, Role, TensorSpec
from service.manifest import Graph
from service.session import Limit, Session
from service.tensors import Array

ROWS = 16
"""Rows of the batch that is compared with its parts."""
ALONE = (0, 5, 15)
"""Which of them are run alone: first, last, and one that is at no even place."""


class Proof(NamedTuple):
    """What was found of one graph."""

    errors: dict[str, float]
    """By output, the largest |answer - float64 reference| over the golden vectors."""
    rows_exact_at: Literal[1, 8] | None
    """From how many rows on no difference between batches was seen, if the manifest says so."""


def prove(
    bundle: Bundle, role: Role, sessions: Iterable[Session], *, limit: Limit | None = None
) -> Proof:
    """Return how a graph does here.

    Args:
        bundle: Has the vectors, the tolerances and the claims.
        role: Whose.
        sessions: Everything that is to serve this role.
        limit: Ends it when its time is up.

    Raises:
        BundleInvalid: An output is farther from float64 than the manifest's tolerance allows.
    """
    errors: dict[str, float] = {}
    exact = bundle.manifest.graphs[role].rows_exact_at
    for session in sessions:
        for name, error in replay(bundle, role, session, limit=limit).items():
            errors[name] = max(errors.get(name, 0.0), error)
        exact = _still_exact(bundle, role, session, exact, limit)
    return Proof(errors, exact)


def replay(
    bundle: Bundle, role: Role, session: Session, *, limit: Limit | None = None
) -> dict[str, float]:
    """Return, by output, the largest |answer - float64 reference| over the golden vectors.

    Raises:
        BundleInvalid: An output is farther away than the manifest's tolerance allows.
    """
    graph, golden = bundle.manifest.graphs[role], bundle.golden
    errors: dict[str, float] = {}
    answers = session.run(_inputs(bundle, role), list(graph.tolerance), limit=limit)
    for name, answer in answers.items():
        reference = golden[f"{role}.{name}"]
        tolerance = graph.tolerance[name]
        error = np.abs(answer.astype(np.float64) - reference)
        allowed = tolerance.absolute + tolerance.relative * np.abs(reference)
        if not (error <= allowed).all():  # so written, NaN fails too
            raise BundleInvalid(
                f"{session.where}: on this device {role}.{name} is off by "
                f"{error.max():.2g} from the golden vectors; {tolerance.absolute:.2g} + "
                f"{tolerance.relative:.2g} relative is allowed.",
                field=f"{role}.{name}",
            )
        errors[name] = float(error.max())
    return errors


def repeats(
    session: Session,
    feeds: Mapping[str, Array],
    answers: Mapping[str, Array],
    rows: Array,
    *,
    limit: Limit | None = None,
) -> bool:
    """Return whether these rows on their own get the bytes that they got in the whole batch."""
    part = {name: array[rows] for name, array in feeds.items()}
    found = session.run(part, list(answers), limit=limit)
    return all(np.array_equal(answer, answers[name][rows]) for name, answer in found.items())


def _still_exact(
    bundle: Bundle, role: Role, session: Session, claimed: Literal[1, 8] | None, limit: Limit | None
) -> Literal[1, 8] | None:
    """Return the claim, or what of it holds on this device: the exporter's was another one.

    A look at a few rows, which start-up has time for. It finds kernels that treat a single row
    in another way, not every last bit; `training.measure` looks longer.
    """
    if claimed is None:
        return None
    graph, rng = bundle.manifest.graphs[role], np.random.Generator(np.random.Philox(key=0))
    trials = [
        (feeds, session.run(feeds, list(graph.tolerance), limit=limit))
        for feeds in batches(graph, role, bundle.golden, rng, rows=ROWS)
    ]

    def hold(parts: Sequence[Array]) -> bool:
        return all(
            repeats(session, feeds, whole, part, limit=limit)
            for feeds, whole in trials
            for part in parts
        )

    if claimed == 1 and hold([np.array([row]) for row in ALONE]):
        return 1
    return 8 if hold([np.arange(ROWS // 2, ROWS)]) else None


def batches(
    graph: Graph, role: Role, golden: Mapping[str, Array], rng: np.random.Generator, *, rows: int
) -> Iterator[dict[str, Array]]:
    """Yield inputs of so many rows; of a graph with draws at each of `DRAW_WIDTHS`.

    What is random in use is random here: the golden rows are few, and repeat.
    """
    for draws in DRAW_WIDTHS if graph.has_draws else (1,):
        yield {
            spec.name: _noise(spec, spec.sized(batch=rows, draws=draws), rng)
            if spec.noise or spec.name in ("z", "w")
            else np.resize(vectors := golden[f"{role}.{spec.name}"], (rows, *vectors.shape[1:]))
            for spec in graph.inputs
        }


def _noise(spec: TensorSpec, shape: Sequence[int], rng: np.random.Generator) -> Array:
    make = rng.random if spec.noise == "uniform" else rng.standard_normal
    return make(shape, dtype=np.float32)


def _inputs(bundle: Bundle, role: Role) -> dict[str, Array]:
    inputs = bundle.manifest.graphs[role].inputs
    return {spec.name: bundle.golden[f"{role}.{spec.name}"] for spec in inputs}
