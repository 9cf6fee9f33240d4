"""The trace of a run: means over a few steps each, which show what an epoch's mean hides.

Nobody knows how long a run will be, as patience may end it. So a point is of one step at first, and
each time that there are twice as many as wanted, neighbours are made one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

POINTS = 500
"""Of a run that has so many steps at least, and fewer than twice as many: what a picture has room
for."""


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

    span: int = 1
    points: list[Point] = field(default_factory=list)
    steps: int = 0
    sums: dict[str, float] = field(default_factory=dict)

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
        if self.steps < self.span:
            return
        self.points = [*self.until(epoch)]
        self.steps, self.sums = 0, {}
        if len(self.points) >= 2 * POINTS:
            pairs = zip(self.points[::2], self.points[1::2], strict=True)
            self.points = [_merged(first, second) for first, second in pairs]
            self.span *= 2

    def until(self, epoch: float) -> tuple[Point, ...]:
        """Return all points, the last of which may be of fewer steps.

        Args:
            epoch: Where the last step ended, in epochs.
        """
        if not self.steps:
            return tuple(self.points)
        means = {name: total / self.steps for name, total in self.sums.items()}
        return (*self.points, Point(epoch, means))


def _merged(first: Point, second: Point) -> Point:
    """Return the point of the steps of both, of which each has as many."""
    means = {name: (value + second.means[name]) / 2 for name, value in first.means.items()}
    return Point(second.epoch, means)
