"""How a benchmark keeps what it found in a folder, and reports from there, now or later."""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"

Results = dict[str, Any]


def parser(benchmark: str) -> argparse.ArgumentParser:
    """Return a parser of what every benchmark may be told."""
    made = argparse.ArgumentParser(prog=f"python -m benchmarks.{benchmark}")
    made.add_argument("--name", help="of the folder in benchmarks/results (default: the date)")
    made.add_argument(
        "--report", type=Path, metavar="FOLDER", help="measure nothing: report old results again"
    )
    return made


def timing(benchmark: str, *, rounds: int, seconds: float) -> argparse.ArgumentParser:
    """Return the same of a benchmark of speed, whose two sides take turns."""
    made = parser(benchmark)
    made.add_argument(
        "--rounds", type=int, default=rounds, help="over everything (default: %(default)s)"
    )
    made.add_argument(
        "--seconds",
        type=float,
        default=seconds,
        help="of each side in a round (default: %(default)s)",
    )
    made.add_argument("--note", default="", help="what else there is to say of the machine")
    return made


def run(
    parser: argparse.ArgumentParser,
    arguments: Sequence[str],
    benchmark: str,
    measure: Callable[[argparse.Namespace], Results],
    markdown: Callable[[Results], str],
) -> int:
    """Measure and report, or report alone, and return the exit status."""
    chosen = parser.parse_args(arguments)
    place = folder(benchmark, chosen)
    if not chosen.report:
        keep(measure(chosen), place)
    say(markdown(kept(place)), place)
    return 0


def folder(benchmark: str, chosen: argparse.Namespace) -> Path:
    """Return the folder of what is measured now, or of what is reported again."""
    if chosen.report:
        old: Path = chosen.report
        return old
    new = RESULTS / (chosen.name or time.strftime(f"{benchmark}-%Y-%m-%d", time.gmtime()))
    new.mkdir(parents=True, exist_ok=True)
    return new


def keep(results: Results, place: Path) -> None:
    """Write what was measured."""
    (place / "results.json").write_text(json.dumps(results, indent=1) + "\n")


def kept(place: Path) -> Results:
    """Return what was measured."""
    results: Results = json.loads((place / "results.json").read_text())
    return results


def say(text: str, place: Path) -> None:
    """Print a report, and write it beside the results."""
    (place / "table.md").write_text(text)
    print(f"\n{text}\nWritten to {place}")
