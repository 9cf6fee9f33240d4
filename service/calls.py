"""Calls of a model's graphs: what they are asked about, and whose fault an answer of NaN is."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from service.condition import Told
from service.engine import Engine
from service.errors import EngineFailed, InputInvalid, NotANumber
from service.feeds import Given, Source
from service.interface import Role
from service.runs import Feeds
from service.tensors import Array

Answer = dict[str, Array]


@dataclass(frozen=True)
class Events:
    """What a graph that reads events is asked about.

    Args:
        x: Shape (n, ...).
        told: What else the model is told of each.
    """

    x: Array
    told: Told = field(default_factory=dict)

    def __len__(self) -> int:
        """How many there are."""
        return len(self.x)

    @property
    def feeds(self) -> dict[str, Array | Source]:
        """By the names of the inputs."""
        return {"x": self.x, **self.told}

    def repeated(self, times: int) -> dict[str, Array | Source]:
        """Return the same with each of them so often in a row."""
        feeds = {"x": Given(self.x), **self.told}
        return {name: Given(each.array, times) for name, each in feeds.items()}


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
