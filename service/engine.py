"""Engines: the sessions of one bundle, and the lanes on which its rows wait for a device.

Asyncio parses and waits; the graphs run in the batcher's workers, where ONNX Runtime frees the
GIL, but for short runs that are alone. Row counts are padded to a few fixed buckets, so that a
row's answer does not depend on its company, and a graph with an axis of draws is always run at one
of two widths, so that draws are rows as well.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext

import numpy as np

from service.batching import Batcher
from service.bundle import Bundle
from service.errors import BundleInvalid, EngineFailed, NotANumber
from service.feeds import Given, Source, in_rows
from service.interface import DRAW_WIDTHS, Role
from service.lanes import Job
from service.manifest import Graph, Manifest
from service.proof import Company, ExactAt, Proof, replay
from service.runs import Feeds, GraphLane, Rows
from service.session import Device, Limit, Session
from service.tensors import Array

LEAST_S = 1e-6
"""What a run takes at least, whatever a coarse clock says: costs are divided by."""
ONCE_S = 5e-3
"""A run that takes longer is timed once while warming up, unless it is the first; a shorter one is
timed again, because the first use of a shape is slower."""
AROUND_S = 3e-4
"""What preparing a run and handing out its answers takes besides (measured for images of 28 x 28,
whose noise is drawn: 0.25 to 0.5 ms)."""
GAIN = 1.05
"""On a CPU, a bucket of more than ONCE_S that does not make so many times as many rows a second
as the one before is the last. Larger ones would hold up others for nothing, and each start."""


class Engine:
    """One served model.

    Args:
        bundle: What to serve.
        device: Where.
        batcher: Whose workers run it. Shared with the other models.
        max_batch_rows: Most rows of one run.
        max_batch_s: A bucket that takes longer is left out, but for the smallest. It bounds how
            long anybody waits for a run of somebody else.
        limit: Ends the golden vectors and the warm-up when they take too long.

    Raises:
        BundleInvalid: A graph cannot be loaded, does not repeat its golden vectors, fails, or
            does not come to an end.
    """

    def __init__(
        self,
        bundle: Bundle,
        device: Device,
        *,
        batcher: Batcher,
        max_batch_rows: int = 512,
        max_batch_s: float = 0.025,
        limit: Limit | None = None,
    ) -> None:
        self.manifest: Manifest = bundle.manifest
        self.identity = bundle.identity
        self.device = device
        self._batcher = batcher
        self._max_rows = max_batch_rows
        self._max_s = max_batch_s
        files = {graph.file: role for role, graph in self.manifest.graphs.items()}
        loaded = {
            file: [Session(bundle, role, device, index) for index in range(batcher.devices)]
            if device.kind == "cuda"
            else [Session(bundle, role, device)] * batcher.devices
            for file, role in files.items()
        }
        self.sessions = {role: loaded[g.file] for role, g in self.manifest.graphs.items()}
        with limit or Limit() as limit:
            try:
                self._prove(bundle, limit)
            except EngineFailed as error:
                raise BundleInvalid(
                    f"{bundle.folder}: its golden vectors and its warm-up did not end within "
                    f"{limit.seconds:g} s. It loops, or is too slow to be served."
                    if limit.is_over
                    else error.detail,
                    field="graphs",
                ) from error

    def _prove(self, bundle: Bundle, limit: Limit) -> None:
        """Hold the graphs to the manifest's claims, and run every bucket."""
        self.proofs: dict[Role, Proof] = {}
        """What was found of each graph where it serves."""
        self.lanes: dict[tuple[Role, int | None], GraphLane] = {}
        for roles in self._sharing():
            company = Company(bundle, roles[0])
            errors: dict[Role, dict[str, float]] = {}
            with ExitStack() as held:
                if not self._is_cpu:  # the first runs are captured, and nobody may run meanwhile
                    for index in range(self._batcher.devices):
                        held.enter_context(self._batcher.hold(index))
                for session in dict.fromkeys(self.sessions[roles[0]]):
                    found = replay(bundle, roles, session, limit=limit, company=company)
                    errors = {role: _larger(errors.get(role, {}), found[role]) for role in roles}
            seconds, exact = self._warm(roles, company, limit)
            for role in roles:
                self.proofs[role] = Proof(errors[role], exact)
                for width, buckets in seconds.items():
                    self.lanes[role, width] = self._lane(role, width, dict(buckets))

    def _sharing(self) -> list[list[Role]]:
        """Return roles by graph, inputs and claim: those together are warm once one has run."""
        groups: dict[object, list[Role]] = {}
        for role, graph in self.manifest.graphs.items():
            names = tuple(spec.name for spec in graph.inputs)
            groups.setdefault((graph.file, names, graph.rows_exact_at), []).append(role)
        return list(groups.values())

    def _warm(
        self, roles: Sequence[Role], company: Company, limit: Limit
    ) -> tuple[dict[int | None, dict[int, float]], ExactAt]:
        """Return the seconds of each bucket, by width, and from how many rows on they are exact.

        Where the runs refute the claim, buckets of fewer rows are no use and others are run.
        """
        graph = self.manifest.graphs[roles[0]]
        exact = graph.rows_exact_at
        while True:
            seconds = {
                width: self._warmed(roles, exact or 1, width, company, limit)
                for width in (DRAW_WIDTHS if graph.has_draws else (None,))
            }
            if (found := company.holds(exact)) == exact:
                return seconds, exact
            exact = found

    async def run(
        self,
        role: Role,
        feeds: Feeds,
        outputs: Sequence[str] | None = None,
        *,
        rows: int | None = None,
        begun: bool = False,
        follows: int = 0,
    ) -> dict[str, Array]:
        """Return the outputs of a graph for any number of rows.

        Args:
            role: Which graph.
            feeds: By input: an array, or where its rows come from.
            outputs: Which to return; None for all.
            rows: How many events, if no feed is an array.
            begun: Whether it continues something that has begun to be answered.
            follows: Rows of the same graph that will be asked for once these are answered.

        Cancelling the caller drops the rows that have not begun.

        Raises:
            QueueFull: So much waits that it was refused.
            NotANumber: An answer is NaN. Whose fault that is depends on who chose the inputs.
            EngineFailed: ONNX Runtime failed.
        """
        graph = self.manifest.graphs[role]
        _check(feeds, graph, where=f"{self.manifest.name}: {role}")
        arrays = [feed for feed in feeds.values() if isinstance(feed, np.ndarray)]
        events = rows if rows is not None else len(arrays[0])
        sources = {
            name: Given(feed) if isinstance(feed, np.ndarray) else feed
            for name, feed in feeds.items()
        }
        if graph.has_draws:
            return await self._run_draws(role, sources, outputs, events=events, begun=begun)
        return await self._run(
            role, None, sources, outputs, rows=events, begun=begun, follows=follows
        )

    async def _run_draws(
        self,
        role: Role,
        sources: dict[str, Source],
        outputs: Sequence[str] | None,
        *,
        events: int,
        begun: bool,
    ) -> dict[str, Array]:
        """Return the outputs of a graph with draws, each event's draws cut into rows."""
        graph = self.manifest.graphs[role]
        drawn = next(spec.name for spec in graph.inputs if "draws" in spec.shape)
        cut, draws, width = in_rows(sources[drawn], DRAW_WIDTHS)
        per_event = -(-draws // width)
        repeated = {
            name: Given(source.array, per_event) if isinstance(source, Given) else source
            for name, source in sources.items()
        }
        rows = events * per_event
        try:
            answer = await self._run(
                role, width, repeated | {drawn: cut}, outputs, rows=rows, begun=begun
            )
        except NotANumber as error:
            error.row //= per_event
            raise
        per_draw = {spec.name for spec in graph.outputs if "draws" in spec.shape}
        return {
            name: array.reshape(events, per_event * width, *array.shape[2:])[:, :draws]
            if name in per_draw
            else array[::per_event]
            for name, array in answer.items()
        }

    async def _run(
        self,
        role: Role,
        width: int | None,
        sources: Mapping[str, Source],
        outputs: Sequence[str] | None,
        *,
        rows: int,
        begun: bool,
        follows: int = 0,
    ) -> dict[str, Array]:
        wanted = outputs or [spec.name for spec in self.manifest.graphs[role].outputs]
        content = Rows(sources, wanted)
        await self._batcher.run(Job(self.lanes[role, width], rows, content, begun, follows))
        if content.broken:
            output, row = content.broken
            raise NotANumber(f"{self.manifest.name}: {role} answered NaN.", output=output, row=row)
        return content.results

    def _warmed(
        self, roles: Sequence[Role], least: int, width: int | None, company: Company, limit: Limit
    ) -> dict[int, float]:
        """Return the seconds of each bucket, all of which were run: no request pays for it."""
        outputs = [spec.name for role in roles for spec in self.manifest.graphs[role].outputs]
        seconds: dict[int, float] = {}
        for bucket in self._candidates(least):
            # On a CPU it takes at least in proportion; on a GPU only a run can tell.
            last = next(reversed(seconds), bucket)
            if seconds and seconds[last] * bucket / last > self._max_s and self._is_cpu:
                break
            took = 0.0
            for index, session in enumerate(dict.fromkeys(self.sessions[roles[0]])):
                with nullcontext() if self._is_cpu else self._batcher.hold(index):
                    took = _time(session, outputs, bucket, width, company, limit)
            if seconds and took > self._max_s:
                break
            no_gain = bool(seconds) and _gain(seconds[last], last, took, bucket) < GAIN
            seconds[bucket] = max(took, LEAST_S)
            if took > self._max_s or (self._is_cpu and took > ONCE_S and no_gain):
                break
        return seconds

    def _lane(self, role: Role, width: int | None, seconds: dict[int, float]) -> GraphLane:
        return GraphLane(
            self.manifest.name,
            role,
            graph=self.manifest.graphs[role],
            sessions=self.sessions[role],
            width=width,
            seconds=seconds,
            observer=self._batcher.observer,
        )

    @property
    def workers(self) -> int:
        """How many runs are under way at once when all are busy."""
        return self._batcher.devices

    @property
    def _is_cpu(self) -> bool:
        return self.device.kind == "cpu"

    def _candidates(self, least: int) -> list[int]:
        """Return the row counts that a graph may be run at: powers of two up to a batch."""
        return [2**k for k in range(13) if least <= 2**k < self._max_rows] + [self._max_rows]


def _larger(errors: Mapping[str, float], others: Mapping[str, float]) -> dict[str, float]:
    return {name: max(error, errors.get(name, 0.0)) for name, error in others.items()}


def _gain(before_s: float, before: int, took_s: float, rows: int) -> float:
    """Return how many times as many rows a second a bucket makes as the one before."""
    return (before_s + AROUND_S) / before / ((took_s + AROUND_S) / rows)


def _check(feeds: Feeds, graph: Graph, *, where: str) -> None:
    """Pass if the feeds are the graph's inputs: a wrong one would fail its batch mates too.

    Raises:
        EngineFailed: They are not. Whoever called did not check what came from outside.
    """
    if feeds.keys() != {spec.name for spec in graph.inputs}:
        raise EngineFailed(f"{where} was given {', '.join(feeds)}. This is a bug.")
    lengths = {len(feed) for feed in feeds.values() if isinstance(feed, np.ndarray)}
    if len(lengths) > 1:
        raise EngineFailed(f"{where} was given inputs of {lengths} rows. This is a bug.")
    for spec in graph.inputs:
        feed = feeds[spec.name]
        if not isinstance(feed, np.ndarray):
            continue
        fits = all(
            isinstance(axis, str) or axis == length
            for axis, length in zip(spec.shape, feed.shape, strict=False)
        )
        if feed.ndim != len(spec.shape) or not fits:
            raise EngineFailed(
                f"{where} was given {spec.name} {feed.shape}, which is {spec.describe()}. "
                "This is a bug."
            )


def _time(
    session: Session,
    outputs: Sequence[str],
    bucket: int,
    width: int | None,
    company: Company,
    limit: Limit,
) -> float:
    """Return the seconds that a run of a bucket takes, after the first one if that is quick."""
    # A graph on a CPU runs in this thread: its own clock leaves out what others do meanwhile.
    # Otherwise a version that is loaded beside a busy one would find itself slow.
    clock = time.thread_time if session.place == "cpu" else time.perf_counter
    took = ONCE_S
    for _ in range(3 if session.is_captured else 2):  # it is captured in the first two
        feeds, rows = company.feeds(bucket, width)
        began = clock()
        answers = session.run(feeds, outputs, limit=limit)
        took = clock() - began
        company.saw(rows, answers, width)
        # On a GPU the first run also makes the buffers, and may take any time.
        if took > ONCE_S and session.place == "cpu" and not company.is_unsure(width):
            break
    return took
