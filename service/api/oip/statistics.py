"""What was asked of each model and how long it took: the statistics extension."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from starlette.requests import ClientDisconnect

from service.api.oip.models import Served
from service.lanes import SPENT


@dataclass
class Duration:
    """How often something was done, and how long that took in all."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int) -> None:
        """Count one more."""
        self.count += 1
        self.ns += ns

    def said(self) -> dict[str, int]:
        """Return the form of the protocol."""
        return {"count": self.count, "ns": self.ns}


@dataclass
class Counts:
    """Of one model since the service began. Requests that a client gave up are not counted."""

    last_inference_ms: int = 0
    rows: int = 0
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)

    @contextlib.contextmanager
    def request(self) -> Iterator["Watch"]:
        """Yield a watch; count its request when the block ends, as a failure if it raises."""
        watch = Watch()
        try:
            yield watch
        except ClientDisconnect:
            raise
        except Exception:
            self.fail.add(time.perf_counter_ns() - watch.began_ns)
            raise
        now = time.perf_counter_ns()
        self.last_inference_ms = time.time_ns() // 1_000_000
        self.rows += watch.rows
        self.success.add(now - watch.began_ns)
        self.compute_input.add(watch.read_ns - watch.began_ns)
        self.queue.add(watch.waited_ns)
        self.compute_infer.add(watch.ran_ns - watch.read_ns - watch.waited_ns)
        self.compute_output.add(now - watch.ran_ns)

    def said(self, served: Served) -> dict[str, object]:
        """Return the form of the protocol.

        Runs are shared with other requests and other calls, so executions are counted as
        requests.
        """
        nothing = Duration().said()
        return {
            "name": served.name,
            "version": served.version,
            "last_inference": self.last_inference_ms,
            "inference_count": self.rows,
            "execution_count": self.success.count,
            "inference_stats": {
                "success": self.success.said(),
                "fail": self.fail.said(),
                "queue": self.queue.said(),
                "compute_input": self.compute_input.said(),
                "compute_infer": self.compute_infer.said(),
                "compute_output": self.compute_output.said(),
                "cache_hit": nothing,
                "cache_miss": nothing,
            },
            "batch_stats": [],
        }


class Watch:
    """The times of one request, by a clock that is never set back."""

    def __init__(self) -> None:
        self.rows = 0
        self.waited_ns = 0
        self.began_ns = self.read_ns = self.ran_ns = time.perf_counter_ns()

    def has_read(self) -> None:
        """Note that the request's tensors are there."""
        self.read_ns = time.perf_counter_ns()

    def has_run(self, *, rows: int) -> None:
        """Note that the graph has answered so many rows."""
        self.rows = rows
        self.ran_ns = time.perf_counter_ns()
        if spent := SPENT.get():
            self.waited_ns = min(round(spent.wait_s * 1e9), self.ran_ns - self.read_ns)


class Statistics:
    """The counts of all models of one app. Touched by the event loop only."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], Counts] = {}

    def of(self, served: Served) -> Counts:
        """Return the counts of a model, zeros if it was never asked."""
        return self._counts.setdefault((served.name, served.version), Counts())
