"""The command: `python -m benchmarks` measures Pushforward and its peers on this machine."""

import argparse
import json
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks import machine, plot, reports, table
from benchmarks.environments import ROOT
from benchmarks.rounds import Round, read_records
from benchmarks.servers import OURS, SERVERS, SERVING, Server
from benchmarks.workloads import Record


def main(arguments: Sequence[str]) -> int:
    """Return the exit status: 0 measured, 2 it cannot begin."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of what ends the servers
    chosen = _parser().parse_args(arguments)
    if chosen.report:
        return report(chosen.report)
    for tool, advice in (
        ("wrk", "apt-get install wrk"),
        (str(SERVING), "make .venv-serve/.installed"),
    ):
        if not shutil.which(tool):
            print(f"{tool} is not here: {advice}", file=sys.stderr)
            return 2
    names = [] if chosen.only else chosen.peers
    servers = [each for each in SERVERS if each.name == OURS or each.name in names]
    folder = reports.RESULTS / (chosen.name or time.strftime("%Y-%m-%d-%H%M", time.gmtime()))
    folder.mkdir(parents=True, exist_ok=True)
    measure(servers, rounds=chosen.rounds, seconds=chosen.seconds, folder=folder)
    return report(folder)


def _parser() -> argparse.ArgumentParser:
    peers = [each.name for each in SERVERS if each.name != OURS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--peers", type=lambda text: text.split(","), default=peers, metavar="NAME,...",
        help=f"which to measure beside ours (default: {','.join(peers)})",
    )  # fmt: skip
    parser.add_argument("--only", choices=["ours"], help="no peers")
    parser.add_argument(
        "--seconds", type=int, default=1, help="length of a closed loop (default: 1)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="over all servers (default: 3)")
    parser.add_argument("--name", help="of the folder in benchmarks/results (default: the time)")
    parser.add_argument(
        "--report", type=Path, metavar="FOLDER", help="write table and plot of old results again"
    )
    return parser


def measure(servers: Sequence[Server], *, rounds: int, seconds: int, folder: Path) -> None:
    """Measure round by round, and keep what is there after each server."""
    about = {
        each.name: {"title": each.title, "about": each.about, "settings": each.tuned}
        for each in servers
    }
    described = machine.describe()
    records: list[Record] = []

    def keep(record: Record) -> None:
        records.append(record)
        print(_line(record), flush=True)

    for number in range(rounds):
        this = Round(number, seconds)
        keep(this.raw())
        for server in servers:
            for record in this.server(server):
                keep(record)
            results = {
                "machine": described,
                "rounds": rounds,
                "seconds": seconds,
                "servers": about,
                "records": [asdict(each) for each in records],
            }
            (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")


def _line(record: Record) -> str:
    shown = {name: value for name, value in record.figures.items() if name[0].islower()}
    told = record.problem or "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
    return f"round {record.round + 1}  {record.server:12} {record.workload:32} {told}"


def report(folder: Path) -> int:
    """Write table.md and plot.png beside results.json, and print the table."""
    results = json.loads((folder / "results.json").read_text())
    records = read_records(folder / "results.json")
    text = table.markdown(results, records)
    (folder / "table.md").write_text(text)
    plot.draw(results, records, folder / "plot.png")
    shown = folder.resolve()
    print(f"\n{text}\nWritten to {shown.relative_to(ROOT) if ROOT in shown.parents else shown}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
