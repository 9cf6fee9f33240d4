"""The table: ratios first, then what was measured."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.ratios import best_peer, by_round, promises, ratio, raw, short, spread
from benchmarks.servers import OURS
from benchmarks.workloads import Record

Results = Mapping[str, Any]


def markdown(results: Results, records: Sequence[Record]) -> str:
    """Return the whole report."""
    about: Mapping[str, str] = results["machine"]
    lines = [
        f"# Benchmark of {about['date']}",
        "",
        f"{about['cpu']}; {about['cores']} cores; Python {about['python']}, ONNX Runtime "
        f"{about['onnxruntime']}, numpy {about['numpy']}, wrk {about['wrk']}; commit "
        f"{about['commit']}; load average before it {about['load_before']}.",
        f"{results['rounds']} rounds, closed loops of {results['seconds']} s and more. Figures "
        "are the median of the rounds, with the least and the greatest. Ratios are taken within a "
        "round.",
        "",
    ]
    for part in (_promises, _beside_peers, _rates, _latencies, _starts, _cores, _raw):
        lines += [*part(results, records), ""]
    return "\n".join(lines)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a Markdown table."""
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def names(records: Sequence[Record]) -> list[str]:
    """Return the workloads in the order in which they ran, without the starts."""
    found = dict.fromkeys(each.workload for each in records if each.server != "raw")
    return [name for name in found if name != "start"]


def _titles(results: Results) -> dict[str, str]:
    return {name: each["title"] for name, each in results["servers"].items()}


def _promises(results: Results, records: Sequence[Record]) -> list[str]:
    rows = [
        [each.text, each.wanted, str(spread(each.values.values()) or "–"), each.verdict]
        for each in promises(records)
    ]
    return ["## What we want", "", *table(["of", "wanted", "measured", "verdict"], rows)]


def _beside_peers(results: Results, records: Sequence[Record]) -> list[str]:
    full = raw(records, "rows_per_s")
    rows = []
    for name in names(records):
        ours = by_round(records, OURS, name, "requests_per_s")
        best = ratio(ours, best_peer(records, name, "requests_per_s"))
        of_raw = {}
        if name.startswith("sample"):
            of_raw = ratio(by_round(records, OURS, name, "rows_per_s"), full)
        if ours:
            cells = [str(spread(each.values()) or "–") for each in (best, of_raw)]
            rows.append([name, *cells])
    head = ["workload", "of the best peer's requests/s", "of raw session.run's rows/s"]
    return ["## Pushforward's ratios", "", *table(head, rows)]


def _cells(results: Results, records: Sequence[Record], workload: str, *figures: str) -> list[str]:
    """Return a cell for each server: its figures, or why there are none."""
    cells = []
    for server in _titles(results):
        own = [each for each in records if each.server == server]
        spreads = [spread(by_round(own, server, workload, each).values()) for each in figures]
        if all(spreads):
            cells.append(" / ".join(map(str, spreads)))
            continue
        problems = [each.problem for each in own if each.workload in (workload, "start")]
        told = next((each for each in problems if each), "")
        cells.append(f"failed: {told[:60]}" if told else "–")
    return cells


def _rates(results: Results, records: Sequence[Record]) -> list[str]:
    rows = [
        [name, *_cells(results, records, name, "requests_per_s")]
        for name in names(records)
        if " x" in name
    ]
    head = ["requests/s", *_titles(results).values()]
    return ["## Closed loops: requests/s", "", *table(head, rows)]


def _latencies(results: Results, records: Sequence[Record]) -> list[str]:
    rows = [
        [name, *_cells(results, records, name, "p50_ms", "p99_ms")]
        for name in names(records)
        if not name.endswith(" x32")
    ]
    head = ["p50 / p99 in ms", *_titles(results).values()]
    note = "`at 50%` and `at 90%`: random arrivals at that share of the server's own rate."
    return ["## Latencies", "", note, "", *table(head, rows)]


def _starts(results: Results, records: Sequence[Record]) -> list[str]:
    cells = _cells(results, records, "start", "start_s")
    rows = [
        [each["title"], cell, each["about"], _settings(each.get("settings", {}))]
        for each, cell in zip(results["servers"].values(), cells, strict=True)
    ]
    return ["## Servers", "", *table(["server", "ready after, s", "how", "settings"], rows)]


def _settings(settings: Mapping[str, str]) -> str:
    return ", ".join(f"{name.lower()} {value}" for name, value in settings.items())


def _cores(results: Results, records: Sequence[Record]) -> list[str]:
    """Return how many cores client and server took: on few cores the client is part of it."""
    rows = [
        [name, *_cells(results, records, name, "client_cores", "server_cores")]
        for name in names(records)
        if " x32" in name or " at " in name
    ]
    head = ["cores of client / server", *_titles(results).values()]
    return ["## Who used the processor", "", *table(head, rows)]


def _raw(results: Results, records: Sequence[Record]) -> list[str]:
    own = [each for each in records if each.server == "raw"]
    settings = [name for name in own[0].figures if name.endswith(" rows_per_s")]
    rows = [
        [name.removesuffix(" rows_per_s"), str(spread(each.figures[name] for each in own))]
        for name in settings
    ]
    best = ", ".join(f"{each.workload} ({short(each.figures['rows_per_s'])})" for each in own)
    times = " and ".join(
        f"{spread(raw(records, f'run_{rows}_ms').values())} ms for {rows}" for rows in (1, 64)
    )
    said = f"Best by round: {best}. One run alone takes {times} rows."
    return ["## session.run alone: rows/s", "", said, "", *table(["setting", "rows/s"], rows)]
