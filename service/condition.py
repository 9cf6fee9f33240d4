"""What a conditional model is told of each row: its class, or the numbers of its context."""

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from service.errors import InputInvalid
from service.feeds import Given
from service.manifest import Manifest
from service.tensors import Array

Label = int | str
"""A class: its number, or its name."""
Told = Mapping[str, Given]
"""By the name of the graphs' input; nothing of a model that is told nothing."""


@dataclass(frozen=True)
class Condition:
    """What a caller says of the rows that a call is about.

    Args:
        label: One class for all rows, or one for each; a number from 0 on, or a name.
        context: The numbers of one row, bare or as the only one, for all rows; or of each.
    """

    label: Label | Sequence[Label] | None = None
    context: Sequence[Any] | None = None

    def part(self, first: int, rows: int) -> "Condition":
        """Return what is said of some of the rows."""
        label, context = self.label, self.context
        if isinstance(label, Sequence) and not isinstance(label, str):
            label = label[first : first + rows]
        if context is not None and len(context) > 1 and _is_of_each(context):
            context = context[first : first + rows]
        return replace(self, label=label, context=context)

    def needed(self, manifest: Manifest, *, n: int) -> Told:
        """Return all that a model must be told of so many rows.

        Raises:
            InputInvalid: Something is missing, or none of the model's.
        """
        if manifest.labels and self.label is None:
            raise InputInvalid(
                f"field 'label': {manifest.name} needs one, 0 to {len(manifest.labels) - 1} "
                f"({', '.join(manifest.labels)}).",
                field="label",
            )
        return self.told(manifest, n=n)

    def told(self, manifest: Manifest, *, n: int) -> Told:
        """Return the same; the label may be missing, since a service can draw it.

        Raises:
            InputInvalid: Likewise.
        """
        label, context = self._labels(manifest, n), self._contexts(manifest, n)
        found = {"label": label, "context": context}
        return {name: Given(array) for name, array in found.items() if array is not None}

    def _labels(self, manifest: Manifest, n: int) -> Array | None:
        if self.label is None:
            return None
        if not manifest.labels:
            raise InputInvalid(
                f"field 'label': {manifest.name} has no labels. Leave it out.", field="label"
            )
        if isinstance(self.label, int | str):
            return np.broadcast_to(_numbered(manifest, [self.label]), (n,))
        if len(self.label) != n:
            raise InputInvalid(
                f"field 'label': expected one label, or {n} (one a row); got {len(self.label)}.",
                field="label",
            )
        return _numbered(manifest, self.label)

    def _contexts(self, manifest: Manifest, n: int) -> Array | None:
        known = manifest.context
        if known is None:
            if self.context is None:
                return None
            raise InputInvalid(
                f"field 'context': {manifest.name} is told none. Leave it out.", field="context"
            )
        names = ", ".join(known.names)
        if self.context is None:
            raise InputInvalid(
                f"field 'context': {manifest.name} needs it: {names}.", field="context"
            )
        size, context = len(known.names), self.context
        rows = context if _is_of_each(context) else [context]
        bad = next((row for row in rows if len(row) != size), None)
        if bad is not None:
            raise InputInvalid(
                f"field 'context': expected {size} a row ({names}); got {len(bad)}.",
                field="context",
            )
        if len(rows) not in (1, n):
            raise InputInvalid(
                f"field 'context': expected one row of it, or {n} (one a row); got {len(rows)}.",
                field="context",
            )
        return np.broadcast_to(_single(rows, size), (n, size))


def _numbered(manifest: Manifest, label: Sequence[Label]) -> Array:
    """Return classes by their numbers. A name of digits alone is a number.

    Raises:
        InputInvalid: One is not the model's.
    """
    found = np.asarray(label)
    if found.dtype.kind != "i":
        numbers = {name: number for number, name in enumerate(manifest.labels or ())}
        found = np.asarray([_number(each, numbers) for each in label])
    return classes_of(manifest, found.astype(np.int64), said=label)


def _number(label: Label, numbers: Mapping[str, int]) -> int:
    """Return the number of a class, or -1 where there is none."""
    if isinstance(label, str) and not (label.isascii() and label.isdecimal()):
        return numbers.get(label, -1)
    return int(label) if len(str(label)) < 10 else -1


UNTOLD = Condition()
"""What is said of rows by who says nothing."""


def classes_of(
    manifest: Manifest, label: Array, *, least: int = 0, said: Sequence[Label] | None = None
) -> Array:
    """Return labels that are all the model's. A graph would take -1 for the last one.

    Args:
        manifest: Of the model.
        label: Shape (n,).
        least: `UNTOLD_LABEL`, where none may be told.
        said: What they were called, if not by these numbers.

    Raises:
        InputInvalid: One is not.
    """
    labels = manifest.labels or ()
    outside = (label < least) | (label >= len(labels))
    if outside.any():
        first = int(outside.argmax())
        got = label[first] if said is None else reprlib.repr(said[first])
        raise InputInvalid(
            f"field 'label': expected 0 to {len(labels) - 1} ({', '.join(labels)}); got {got}.",
            field="label",
        )
    return label


def _is_of_each(context: Sequence[object]) -> bool:
    """Return whether it is a row for each, and not the numbers of one."""
    return len(context) > 0 and isinstance(context[0], Sequence)


def _single(rows: Sequence[object], size: int) -> Array:
    """Return numbers in the precision of the graphs.

    Raises:
        InputInvalid: One is too large for it.
    """
    with np.errstate(over="ignore"):
        found = np.asarray(rows, dtype=np.float32).reshape(-1, size)
    if not np.isfinite(found).all():
        raise InputInvalid(
            "field 'context': expected finite numbers, none of them too large for float32.",
            field="context",
        )
    return found
