"""What a bundle claims of its graphs, tried on the device that is to serve them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from service.bundle import Bundle
from service.errors import BundleInvalid
from service.interface import Role
from service.session import Limit, Session
from service.tensors import Array

ExactAt = Literal[1, 8] | None


class Proof(NamedTuple):
    """What was found of one graph."""

    errors: dict[str, float]
    """By output, the largest |answer - float64 reference| over the golden vectors."""
    rows_exact_at: ExactAt
    """From how many rows on no difference between batches was seen, if the manifest says so."""


class Company:
    """Whether a row's bytes depend on the rows that it is run with, by all runs that it is told of.

    They are runs of golden rows in ever new company, each of which must get the same bytes every
    time. So kernels are found that treat a single row in another way, at the sizes that serve;
    `training.measure` looks longer, and at other rows.

    Args:
        bundle: Whose golden rows.
        role: Of which graph.
    """

    def __init__(self, bundle: Bundle, role: Role) -> None:
        self._where = f"{bundle.folder / bundle.manifest.graphs[role].file}"
        self._inputs = bundle.manifest.graphs[role].inputs
        self._golden = _inputs(bundle, role)
        self._count = len(next(iter(self._golden.values())))
        self._random = np.random.Generator(np.random.Philox(key=0))
        self._known: dict[tuple[str, int | None], Array] = {}
        self._sizes: dict[tuple[str, int | None], Array] = {}
        self._runs: Counter[int | None] = Counter()
        self._differ = 0

    def feeds(self, rows: int, width: int | None) -> tuple[dict[str, Array], Array]:
        """Return inputs of so many golden rows, each of so many draws, and which rows they are."""
        # At random: in turn, they would be the same rows whenever their number divides that.
        which = self._random.integers(self._count, size=rows)
        feeds = {}
        for spec in self._inputs:
            array = self._golden[spec.name][which]
            if "draws" in spec.shape:
                axis = spec.shape.index("draws")
                array = array.take(np.arange(width or 1) % array.shape[axis], axis=axis)
            feeds[spec.name] = np.ascontiguousarray(array)
        return feeds, which

    def saw(self, which: Array, answers: Mapping[str, Array], width: int | None) -> None:
        """Compare a run with those of the same rows before it, and remember it.

        Raises:
            BundleInvalid: It answered for another number of rows.
        """
        self._runs[width] += 1
        for name, answer in answers.items():
            if len(answer) != len(which):
                raise BundleInvalid(
                    f"{self._where}: '{name}' has {len(answer)} rows where {len(which)} went in.",
                    field=self._where,
                )
            key, shape = (name, width), (self._count, *answer.shape[1:])
            known = self._known.setdefault(key, np.zeros(shape, answer.dtype))
            sizes = self._sizes.setdefault(key, np.zeros(self._count, np.int64))
            self._compare(known[which], answer, sizes[which])  # those of size 0 are new
            known[which], sizes[which] = answer, len(which)
            self._compare(known[which], answer, sizes[which])  # rows that came more than once

    def _compare(self, known: Array, answer: Array, sizes: Array) -> None:
        same = (known == answer).reshape(len(answer), -1).all(axis=1)
        smaller = np.minimum(sizes[~same], len(answer))
        self._differ = max(self._differ, int(smaller.max(initial=0)))

    def is_unsure(self, width: int | None) -> bool:
        """Return whether there was but one run of so many draws, and nothing to compare it with."""
        return self._runs[width] < 2

    def holds(self, claimed: ExactAt) -> ExactAt:
        """Return the claim, or what the runs left of it."""
        if claimed is None or not self._differ:
            return claimed
        return 8 if self._differ < 8 else None


def replay(
    bundle: Bundle,
    roles: Sequence[Role],
    session: Session,
    *,
    limit: Limit | None = None,
    company: Company | None = None,
) -> dict[Role, dict[str, float]]:
    """Return, by role and output, the largest |answer - float64 reference| over the golden vectors.

    Args:
        bundle: Has the vectors and the tolerances.
        roles: Of one file. Those of the same vectors are run once.
        session: Runs it.
        limit: Ends the runs when their time is up.
        company: Of the first role. Is told of its run.

    Raises:
        BundleInvalid: An output is farther away than the manifest's tolerance allows.
    """
    graphs = bundle.manifest.graphs
    outputs = [name for role in roles for name in graphs[role].tolerance]
    feeds: dict[str, Array] = {}
    answers: dict[str, Array] = {}
    errors: dict[Role, dict[str, float]] = {}
    for role in roles:
        own = _inputs(bundle, role)
        if not (feeds and all(np.array_equal(own[name], feeds[name]) for name in own)):
            feeds, answers = own, session.run(own, outputs, limit=limit)
        if company and role == roles[0] and not graphs[role].has_draws:
            # With draws they are of no width that serves.
            company.saw(np.arange(len(next(iter(feeds.values())))), answers, None)
        errors[role] = _errors(bundle, role, answers, session.where)
    return errors


def _errors(
    bundle: Bundle, role: Role, answers: Mapping[str, Array], where: str
) -> dict[str, float]:
    errors: dict[str, float] = {}
    for name, tolerance in bundle.manifest.graphs[role].tolerance.items():
        reference = bundle.golden[f"{role}.{name}"]
        error = np.abs(answers[name].astype(np.float64) - reference)
        allowed = tolerance.absolute + tolerance.relative * np.abs(reference)
        if not (error <= allowed).all():  # so written, NaN fails too
            raise BundleInvalid(
                f"{where}: on this device {role}.{name} is off by "
                f"{error.max():.2g} from the golden vectors; {tolerance.absolute:.2g} + "
                f"{tolerance.relative:.2g} relative is allowed.",
                field=f"{role}.{name}",
            )
        errors[name] = float(error.max())
    return errors


def _inputs(bundle: Bundle, role: Role) -> dict[str, Array]:
    inputs = bundle.manifest.graphs[role].inputs
    return {spec.name: bundle.golden[f"{role}.{spec.name}"] for spec in inputs}
