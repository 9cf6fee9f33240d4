"""The picture: rates of the closed loops as bars, latencies of the open loops beside them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from benchmarks.ratios import by_round, raw, short, spread
from benchmarks.servers import OURS
from benchmarks.workloads import Record

SHOWN = (
    "sample n=1 bytes x1",
    "sample n=1 bytes x32",
    "sample n=16 bytes x32",
    "sample n=64 bytes x32",
    "sample n=16 json x32",
    "sample n=64 json x32",
    "log-density n=64 json x32",
    "log-density n=64 bytes x32",
)
OURS_COLOUR, PEER_COLOUR = "#1f5fa8", "#b8bec7"


def draw(results: Mapping[str, Any], records: Sequence[Record], file: Path) -> None:
    """Write the picture of a run."""
    titles = {name: each["title"] for name, each in results["servers"].items()}
    figure, axes = plt.subplots(5, 2, figsize=(11, 3 + 0.9 * 5 * max(2, len(titles) / 3)))
    for axis, name in zip(axes.flat, SHOWN, strict=False):
        _rates(axis, titles, records, name)
    for axis, load in zip(axes[4], ("50%", "90%"), strict=True):
        _latencies(axis, titles, records, load)
    about = results["machine"]
    figure.suptitle(
        f"One machine, one run, the same graph: {about['cores']} cores of {about['cpu']}\n"
        f"{about['date']}; rounds: {results['rounds']}; bars: median, lines: range",
        fontsize=11,
    )
    figure.tight_layout(rect=(0, 0, 1, 0.985))
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _rates(axis: Axes, titles: Mapping[str, str], records: Sequence[Record], name: str) -> None:
    sampled = name.startswith("sample")
    unit = "images/s" if sampled else "requests/s"
    wanted = "rows_per_s" if sampled else "requests_per_s"
    _bars(axis, titles, records, name, figure=wanted)
    task, rows, form, connections = name.split(" ")
    plural = "" if connections == "x1" else "s"
    axis.set_title(f"{task}, {rows}, {form}, {connections[1:]} connection{plural}", fontsize=10)
    limit = spread(raw(records, "rows_per_s").values()) if sampled else None
    if limit:
        axis.axvline(limit.median, color="#c0392b", linewidth=1, linestyle="--")
        axis.set_xlim(0, max(axis.get_xlim()[1], 1.2 * limit.median))
    note = " (dashed: session.run alone, at its best)" if limit else ""
    axis.set_xlabel(f"{unit}{note}", fontsize=9)


def _latencies(axis: Axes, titles: Mapping[str, str], records: Sequence[Record], load: str) -> None:
    name = f"sample n=16 bytes at {load}"
    _bars(axis, titles, records, name, figure="p99_ms", inner="p50_ms")
    axis.set_title(f"random arrivals at {load} of its own rate, n=16, bytes", fontsize=10)
    axis.set_xlabel("ms from the arrival: p99, and p50 as a tick (less is better)", fontsize=9)


def _bars(
    axis: Axes,
    titles: Mapping[str, str],
    records: Sequence[Record],
    name: str,
    *,
    figure: str,
    inner: str = "",
) -> None:
    """Draw a bar for each server, with its range, its number, and perhaps a second figure."""
    for place, server in enumerate(titles):
        found = spread(by_round(records, server, name, figure).values())
        if found is None:
            axis.text(0, place, " failed or not measured", va="center", fontsize=8, color="#777777")
            continue
        colour = OURS_COLOUR if server == OURS else PEER_COLOUR
        axis.barh(place, found.median, color=colour, height=0.66)
        axis.plot([found.least, found.greatest], [place, place], color="black", linewidth=1)
        axis.text(found.greatest, place, f"  {short(found.median)}", va="center", fontsize=8)
        second = spread(by_round(records, server, name, inner).values()) if inner else None
        if second:
            axis.plot([second.median] * 2, [place - 0.33, place + 0.33], color="black", linewidth=2)
    axis.set_yticks(range(len(titles)), list(titles.values()), fontsize=9)
    axis.set_ylim(len(titles) - 0.5, -0.5)
    axis.margins(x=0.16)
    axis.set_xlim(left=0)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(axis="x", labelsize=8)
