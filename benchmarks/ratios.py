"""The arithmetic of the report: figures by round, ratios within a round, their spread."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.servers import OURS
from benchmarks.workloads import Record, Workload

ByRound = dict[int, float]


@dataclass(frozen=True)
class Spread:
    """Least, median and greatest of a few rounds."""

    least: float
    median: float
    greatest: float

    def __str__(self) -> str:
        """Return the median and, where there is more than one round, the range."""
        if self.least == self.greatest:
            return short(self.median)
        return f"{short(self.median)} ({short(self.least)}–{short(self.greatest)})"


def spread(values: Iterable[float]) -> Spread | None:
    """Return the spread of some values, None of none."""
    found = list(values)
    return Spread(min(found), median(found), max(found)) if found else None


def short(value: float) -> str:
    """Return a number as people write it: three digits that count."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def by_round(records: Sequence[Record], server: str, workload: str, figure: str) -> ByRound:
    """Return a figure of a server by round; rounds in which it failed are not in it."""
    return {
        each.round: each.figures[figure]
        for each in records
        if each.server == server
        and each.workload == workload
        and figure in each.figures
        and not each.problem
    }


def raw(records: Sequence[Record], figure: str) -> ByRound:
    """Return a figure of session.run by round."""
    return {each.round: each.figures[figure] for each in records if each.server == "raw"}


def ratio(top: Mapping[int, float], bottom: Mapping[int, float]) -> ByRound:
    """Return top / bottom for the rounds that both have."""
    return {key: top[key] / bottom[key] for key in sorted(top.keys() & bottom.keys())}


def difference(left: Mapping[int, float], right: Mapping[int, float]) -> ByRound:
    """Return left - right for the rounds that both have."""
    return {key: left[key] - right[key] for key in sorted(left.keys() & right.keys())}


def best_peer(records: Sequence[Record], workload: str, figure: str) -> ByRound:
    """Return, by round, the greatest value that any peer reached."""
    best: ByRound = {}
    for name in {each.server for each in records} - {OURS, "raw"}:
        for key, value in by_round(records, name, workload, figure).items():
            best[key] = max(value, best.get(key, value))
    return best


@dataclass(frozen=True)
class Promise:
    """What we want of ourselves, and what came.

    Args:
        text: What is wanted of what.
        limit: The number.
        at_least: Whether more is better.
        unit: After the number.
        values: What came, by round.
    """

    text: str
    limit: float
    at_least: bool
    unit: str
    values: ByRound

    @property
    def verdict(self) -> str:
        """Return whether the median keeps it."""
        found = spread(self.values.values())
        if found is None:
            return "not measured"
        kept = found.median >= self.limit if self.at_least else found.median <= self.limit
        return "pass" if kept else "falls short"

    @property
    def wanted(self) -> str:
        """Return the limit in words."""
        return f"{'≥' if self.at_least else '≤'} {short(self.limit)}{self.unit}"


def promises(records: Sequence[Record]) -> list[Promise]:
    """Return all that we promise, with what was measured of it."""

    def ours(workload: str, figure: str) -> ByRound:
        return by_round(records, OURS, workload, figure)

    kept = []
    full = raw(records, "rows_per_s")
    for form, limit in (("bytes", 0.9), ("json", 0.8), ("png", 0.8)):
        for rows in (16, 64):
            name = Workload("sample", rows, "bytes", 32).name.replace("bytes", form)
            share = ratio(ours(name, "rows_per_s"), full)
            text = f"samples/s over HTTP, {form}, n={rows}, 32 connections, of raw session.run"
            kept.append(Promise(text, limit, True, "", share))
    single = Workload("sample", 1, "bytes", 32).name
    beside_best = ratio(
        ours(single, "requests_per_s"), best_peer(records, single, "requests_per_s")
    )
    text = "requests/s, bytes, n=1, 32 connections, of the best peer"
    kept.append(Promise(text, 2.5, True, "", beside_best))
    alone = Workload("sample", 1, "bytes", 1).name
    added = difference(ours(alone, "p50_ms"), raw(records, "run_1_ms"))
    kept.append(Promise("p50 that the service adds to session.run, n=1", 0.5, False, " ms", added))
    over = {key: 2 * value + 5 for key, value in raw(records, "run_64_ms").items()}
    beside = ratio(ours("beside a stream", "p99_ms"), over)
    text = "p99 of one image beside a stream, of two batch times + 5 ms"
    kept.append(Promise(text, 1, False, "", beside))
    growth = ours("beside a stream", "rss_growth_mb")
    kept.append(Promise("memory that the stream takes", 64, False, " MB", growth))
    ready = ours("start", "start_s")
    kept.append(
        Promise("start of the process to ready, all shipped bundles", 3, False, " s", ready)
    )
    return kept
