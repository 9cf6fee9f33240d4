"""What a bundle claims of its graphs, tried on the device that is to serve them."""

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

import numpy as np

from service.bundle import Bundle
from service.errors import BundleInvalid
from service.manifest import Role
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
    feeds = {
        name: np.resize(array, (ROWS, *array.shape[1:]))
        for name, array in _inputs(bundle, role).items()
    }
    whole = session.run(feeds, list(bundle.manifest.graphs[role].tolerance), limit=limit)
    if claimed == 1 and all(
        repeats(session, feeds, whole, np.array([row]), limit=limit) for row in ALONE
    ):
        return 1
    second_half = np.arange(ROWS // 2, ROWS)
    return 8 if repeats(session, feeds, whole, second_half, limit=limit) else None


def _inputs(bundle: Bundle, role: Role) -> dict[str, Array]:
    inputs = bundle.manifest.graphs[role].inputs
    return {spec.name: bundle.golden[f"{role}.{spec.name}"] for spec in inputs}
