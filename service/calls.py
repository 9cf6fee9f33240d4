"""Calls of a model's graphs: what they are asked about, and whose fault an answer of NaN is."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from service.engine import Engine
from service.errors import EngineFailed, InputInvalid, NotANumber
from service.feeds import Given, Source
from service.interface import Role
from service.manifest import Manifest
from service.runs import Feeds
from service.tensors import Array

Answer = dict[str, Array]
Label = int | Sequence[int] | None


@dataclass(frozen=True)
class Events:
    """What a graph that reads events is asked about.

    Args:
        x: Shape (n, ...).
        label: The class of each; None where the model has no labels.
    """

    x: Array
    label: Given | None = None

    def __len__(self) -> int:
        """How many there are."""
        return len(self.x)

    @property
    def feeds(self) -> dict[str, Array | Source]:
        """By the names of the inputs."""
        return {"x": self.x} if self.label is None else {"x": self.x, "label": self.label}

    def repeated(self, times: int) -> dict[str, Array | Source]:
        """Return the same with each of them so often in a row."""
        feeds: dict[str, Array | Source] = {"x": Given(self.x, times)}
        if self.label is not None:
            feeds["label"] = Given(self.label.array, times)
        return feeds


async def run(
    engine: Engine,
    role: Role,
    feeds: Feeds,
    *,
    outputs: Sequence[str] | None = None,
    given: str | None = None,
    rows: int | None = None,
    first: int = 0,
    repeats: int = 1,
    begun: bool = False,
    follows: int = 0,
) -> Answer:
    """Return what a graph answers, which is never NaN.

    Args:
        engine: The model.
        role: Which graph.
        feeds: Its inputs.
        outputs: Which to return; None for all.
        given: Name of the input whose rows the caller chose. They are finite, but may be beyond
            what float32 can carry through the graph.
        rows: How many, if no feed is an array.
        first: How many of the given ones came in calls before.
        repeats: How often in a row each of the given ones stands there.
        begun: Whether it continues something that has begun to be answered.
        follows: Rows of the same graph that will be asked for next.

    Raises:
        InputInvalid: An answer is NaN, and the caller chose the row that it belongs to.
        EngineFailed: The graph failed, or an answer is NaN and the caller chose nothing.
    """
    try:
        return await engine.run(role, feeds, outputs, rows=rows, begun=begun, follows=follows)
    except NotANumber as error:
        name = engine.manifest.name
        if given is None:
            raise EngineFailed(f"{name}: {role} answered NaN in '{error.output}'.") from error
        raise InputInvalid(
            f"field '{given}': row {first + error.row // repeats} is too large for {name}: the "
            "answer is not a number. Send values of the size of what it was trained on.",
            field=given,
        ) from error


def needed_labels(manifest: Manifest, label: Label, *, n: int) -> Given | None:
    """Return the classes of the caller's rows; None where the model has no labels.

    Raises:
        InputInvalid: `label` is missing, or none of the model's.
    """
    if manifest.labels and label is None:
        raise InputInvalid(
            f"field 'label': {manifest.name} needs one, 0 to {len(manifest.labels) - 1}.",
            field="label",
        )
    return labels_of(manifest, label, n=n)


def labels_of(manifest: Manifest, label: Label, *, n: int) -> Given | None:
    """Return the classes that were asked for, if any were."""
    if label is None:
        return None
    if not manifest.labels:
        raise InputInvalid(
            f"field 'label': {manifest.name} has no labels. Leave it out.", field="label"
        )
    wanted = np.asarray([label] * n if isinstance(label, int) else label, dtype=np.int64)
    if len(wanted) != n:
        raise InputInvalid(
            f"field 'label': expected one label, or {n} (one a row); got {len(wanted)}.",
            field="label",
        )
    return Given(classes_of(manifest, wanted))


def classes_of(manifest: Manifest, label: Array) -> Array:
    """Return labels that are all the model's. A graph would take -1 for the last one.

    Raises:
        InputInvalid: One is not.
    """
    labels = manifest.labels or ()
    outside = (label < 0) | (label >= len(labels))
    if outside.any():
        raise InputInvalid(
            f"field 'label': expected 0 to {len(labels) - 1} ({', '.join(labels)}); "
            f"got {label[outside][0]}.",
            field="label",
        )
    return label
