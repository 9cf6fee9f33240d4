"""What is counted: every metric's name, unit, meaning and bounds, and who moves it.

Each app has a registry of its own. Requests are counted by the middleware in
`api/observing.py`, runs by the batcher's workers through its `Observer`, and what is a state
rather than an event (what waits, which models serve) is read when somebody scrapes.

docs/operations.md lists all of it, and a test compares the two.
"""

import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Protocol

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from service.lanes import Observer

PREFIX = "pushforward_"

REQUEST_BOUNDS_S = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60,
)  # fmt: skip
"""Up to the default of PUSHFORWARD_TIMEOUT_S; streams may take longer."""
WAIT_BOUNDS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
"""Up to the default of PUSHFORWARD_MAX_WAIT_S."""
RUN_BOUNDS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5)
"""Around the default of PUSHFORWARD_MAX_BATCH_MS, 25 ms."""
ROWS_BOUNDS = tuple(2**k for k in range(13))
"""The buckets that rows are padded to, up to the most of PUSHFORWARD_MAX_BATCH_ROWS."""

METHODS = frozenset({"GET", "HEAD", "POST", "OPTIONS", "PUT", "PATCH", "DELETE"})
"""Others are counted as one, so that a stranger cannot fill the memory with made-up ones."""
STATES = ("loading", "ready", "failed", "unloaded")
"""The states of a model's version, as `service.shelf` has them."""


class Named(Protocol):
    """What is known here of a lane: model and role."""

    name: tuple[str, ...]


class Backlog(Protocol):
    """What is known here of a queue."""

    @property
    def waiting(self) -> int:
        """Jobs that wait."""

    @property
    def waiting_rows(self) -> int:
        """Rows that wait."""

    def wait_s(self) -> float:
        """Return how long it would take to serve them."""


@dataclass(frozen=True)
class ModelState:
    """What became of one version of a model.

    Args:
        model: Its name.
        version: Its version.
        state: One of STATES.
    """

    model: str
    version: int
    state: str


class _OfLane:
    """The metrics of one model and role, looked up once: that is most of their cost."""

    def __init__(self, metrics: "Metrics", labels: tuple[str, ...]) -> None:
        self.rows = metrics.rows.labels(*labels)
        self.executions = metrics.executions.labels(*labels)
        self.batch_rows = metrics.batch_rows.labels(*labels)
        self.padded_rows = metrics.padded_rows.labels(*labels)
        self.run_s = metrics.run_s.labels(*labels)
        self.wait_s = metrics.wait_s.labels(*labels)


class _OfRoute:
    """The metrics of one route, likewise."""

    def __init__(self, metrics: "Metrics", route: str) -> None:
        self.duration_s = metrics.request_s.labels(route)
        self.response_bytes = metrics.response_bytes.labels(route)


class Models:
    """What becomes of versions: an observer of the repository.

    Args:
        metrics: Whose part it is.
        clock: Seconds since the epoch.
    """

    def __init__(self, metrics: "Metrics", clock: Callable[[], float]) -> None:
        self._metrics = metrics
        self._clock = clock

    def loaded(self, name: str, version: int, seconds: float) -> None:
        """A version passed its checks, and can serve."""
        self._metrics.load_s.labels(name, version).set(seconds)
        self._metrics.loaded_at.labels(name, version).set(self._clock())

    def refused(self, name: str, version: int, reason: str) -> None:
        """A version did not pass."""
        self._metrics.refused_bundles.labels(name).inc()

    def unloaded(self, name: str, version: int) -> None:
        """A version was let go."""
        for gauge in (self._metrics.load_s, self._metrics.loaded_at):
            gauge.remove(name, version)


class Metrics(Observer):
    """The metrics of one app. An observer of its batcher.

    Args:
        clock: Seconds since the epoch.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        # When each series began is a series of its own otherwise: a third more of them.
        disable_created_metrics()
        self.registry = CollectorRegistry()
        self._lanes: dict[tuple[str, ...], _OfLane] = {}
        self._requests: dict[tuple[str, str, int, str], Counter] = {}
        self._routes: dict[str, _OfRoute] = {}
        self.models = Models(self, clock)
        self._make_request_metrics()
        self._make_lane_metrics()
        self._make_model_metrics()
        ProcessCollector(registry=self.registry)

    def _make_request_metrics(self) -> None:
        self.requests = self._counter(
            "requests", "Requests that are over.", ("route", "method", "status", "outcome")
        )
        self.request_s = self._histogram(
            "request_duration_seconds",
            "From a request's headers to the last byte of its answer.",
            ("route",),
            REQUEST_BOUNDS_S,
        )
        self.in_progress = self._gauge("requests_in_progress", "Requests under way.")
        self.response_bytes = self._counter(
            "response_bytes", "Bytes of answers, without their headers.", ("route",)
        )
        self.streams = self._counter(
            "streams", "Streamed answers that are over.", ("route", "outcome")
        )
        self.stream_rows = self._counter("stream_rows", "Rows sent in streams.", ("model",))
        self.log_lines_lost = self._counter(
            "access_log_lines_lost", "Lines of the access log that could not be written."
        )

    def _make_lane_metrics(self) -> None:
        lane = ("model", "role")
        self.rows = self._counter("rows", "Rows that were run.", lane)
        self.executions = self._counter("executions", "Runs of a graph.", lane)
        self.batch_rows = self._histogram(
            "batch_rows", "Rows of a run that somebody asked for.", lane, ROWS_BOUNDS
        )
        self.padded_rows = self._histogram(
            "batch_padded_rows", "Rows of a run with its padding.", lane, ROWS_BOUNDS
        )
        self.run_s = self._histogram(
            "run_duration_seconds", "What a run took on its device.", lane, RUN_BOUNDS_S
        )
        self.wait_s = self._histogram(
            "queue_wait_seconds", "From a job's arrival to its first batch.", lane, WAIT_BOUNDS_S
        )
        self.refusals = self._counter(
            "refusals", "Jobs refused because too much waited.", (*lane, "reason")
        )
        self.refused_rows = self._counter("refused_rows", "Rows of refused jobs.", lane)
        self.failed_rows = self._counter(
            "failed_rows", "Rows of batches that failed, and their jobs with them.", lane
        )
        self.dropped_rows = self._counter(
            "dropped_rows", "Rows that nobody waited for any more.", lane
        )
        self.non_finite_rows = self._counter(
            "non_finite_rows", "Rows that came out infinite or NaN.", lane
        )

    def _make_model_metrics(self) -> None:
        version_of = ("model", "version")
        self.load_s = self._gauge(
            "model_load_seconds",
            "What it took to read, verify and warm a version that serves.",
            version_of,
        )
        self.loaded_at = self._gauge(
            "model_loaded_timestamp_seconds", "When a version began to serve.", version_of
        )
        self.refused_bundles = self._counter(
            "bundles_refused", "Versions that did not pass their checks.", ("model",)
        )

    # --- requests ---

    def finished(
        self,
        *,
        route: str,
        method: str,
        status: int,
        outcome: str,
        duration_s: float,
        sent_bytes: int,
    ) -> None:
        """Count a request that is over."""
        method = method if method in METHODS else "other"
        key = (route, method, status, outcome)
        counter = self._requests.get(key)
        if counter is None:
            counter = self._requests[key] = self.requests.labels(*key)
        counter.inc()
        of = self._routes.get(route)
        if of is None:
            of = self._routes[route] = _OfRoute(self, route)
        of.duration_s.observe(duration_s)
        of.response_bytes.inc(sent_bytes)

    # --- the batcher's observer ---

    def ran(
        self, lane: Named, *, rows: int, bucket: int, run_s: float, waits_s: Sequence[float]
    ) -> None:
        """A batch was run."""
        of = self._lanes.get(lane.name)
        if of is None:
            of = self._lanes[lane.name] = _OfLane(self, lane.name)
        of.rows.inc(rows)
        of.executions.inc()
        of.batch_rows.observe(rows)
        of.padded_rows.observe(bucket)
        of.run_s.observe(run_s)
        for wait_s in waits_s:
            of.wait_s.observe(wait_s)

    def failed(self, lane: Named, *, rows: int) -> None:
        """A batch failed, and all its jobs with it."""
        self.failed_rows.labels(*lane.name).inc(rows)

    def refused(self, lane: Named, *, rows: int, reason: str) -> None:
        """A job was refused at the door."""
        self.refusals.labels(*lane.name, reason).inc()
        self.refused_rows.labels(*lane.name).inc(rows)

    def dropped(self, lane: Named, *, rows: int) -> None:
        """Rows that nobody wants any more were left out of a batch, or thrown away after it."""
        self.dropped_rows.labels(*lane.name).inc(rows)

    def non_finite(self, lane: Named, *, rows: int) -> None:
        """Rows came out infinite or NaN."""
        self.non_finite_rows.labels(*lane.name).inc(rows)

    # --- what is read when somebody scrapes ---

    def watch(
        self,
        *,
        queue: Backlog,
        models: Callable[[], Iterable[ModelState]],
        device: Mapping[str, str],
        runtime: str,
    ) -> None:
        """Read these at each scrape.

        Args:
            queue: What waits.
            models: What became of every version that lies there or serves.
            device: Where graphs run, in words.
            runtime: Version of ONNX Runtime.
        """
        for name, meaning, read in (
            ("queue_jobs", "Jobs of which rows wait.", lambda: queue.waiting),
            ("queue_rows", "Rows that wait.", lambda: queue.waiting_rows),
            ("queue_expected_wait_seconds", "What serving all that waits would take.",
             queue.wait_s),
        ):  # fmt: skip
            self._gauge(name, meaning).set_function(read)
        about = {
            "version": version("pushforward"),
            "python": platform.python_version(),
            "onnxruntime": runtime,
        }
        self._gauge("build_info", "1, with what runs.", tuple(about)).labels(**about).set(1)
        self._gauge("device_info", "1, with where graphs run.", tuple(device)).labels(**device).set(
            1
        )
        self.registry.register(_States(models))

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """Return all metrics in a format that an Accept header takes, and its media type."""
        encode, media_type = choose_encoder(accept)
        return encode(self.registry), media_type

    def _counter(self, name: str, meaning: str, labels: Sequence[str] = ()) -> Counter:
        return Counter(f"{PREFIX}{name}", meaning, labels, registry=self.registry)

    def _gauge(self, name: str, meaning: str, labels: Sequence[str] = ()) -> Gauge:
        return Gauge(f"{PREFIX}{name}", meaning, labels, registry=self.registry)

    def _histogram(
        self, name: str, meaning: str, labels: Sequence[str], bounds: Sequence[float]
    ) -> Histogram:
        return Histogram(f"{PREFIX}{name}", meaning, labels, buckets=bounds, registry=self.registry)


class _States(Collector):
    """The states of the models, read from who knows them."""

    def __init__(self, models: Callable[[], Iterable[ModelState]]) -> None:
        self._models = models

    def collect(self) -> Iterator[Metric]:
        """Yield a series of 0 or 1 for each version and state."""
        family = GaugeMetricFamily(
            f"{PREFIX}model_state",
            "1 for the state that a version is in, 0 for the others.",
            labels=("model", "version", "state"),
        )
        for each in self._models():
            for state in STATES:
                family.add_metric(
                    (each.model, str(each.version), state), float(state == each.state)
                )
        yield family
