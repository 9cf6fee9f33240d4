"""The trace of a run: means over a few steps each, which show what an epoch's mean hides."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

POINTS = 500
"""Of a run at most, however long it is: more than a picture has room for."""


@dataclass(frozen=True)
class Point:
    """What some steps in a row came to.

    Args:
        epoch: Where they end, in epochs: 1.5 is the middle of the second.
        means: Over those steps, by "turn/name".
    """

    epoch: float
    means: dict[str, float]


@dataclass
class Trace:
    """The points of a run so far, and the sums of the next one.

    Args:
        span: Steps of a point.
        points: Complete ones.
        steps: That are complete of the next point.
        sums: Over those.
    """

    span: int
    points: list[Point] = field(default_factory=list)
    steps: int = 0
    sums: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of_length(cls, steps: int) -> "Trace":
        """Return the empty trace of a run that has so many steps.

        Example:
            >>> Trace.of_length(1200).span
            3
        """
        return cls(span=max(1, math.ceil(steps / POINTS)))

    def add(self, values: Mapping[str, float]) -> None:
        """Add what belongs to the step that is being made."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def close_step(self, epoch: float) -> None:
        """End a step, and with each `span`-th a point.

        Args:
            epoch: Where the step ends, in epochs.
        """
        self.steps += 1
        if self.steps == self.span:
            means = {name: total / self.span for name, total in self.sums.items()}
            self.points.append(Point(epoch, means))
            self.steps, self.sums = 0, {}
