"""How long a step of training takes, beside flows of the same structure in zuko.

    python -m benchmarks.zuko_step                    # some two minutes
    python -m benchmarks.zuko_step --report FOLDER    # the table of old results again

A step is the loss, its gradient and Adam's update, by one thread in float32, on the same rows. Both
sides have as many layers, units, bins and parameters, the same activations, and begin with the same
weights; before it is timed each pair must give the same loss where zuko's maps are told to bound
their free numbers as ours do (`zuko_flows.equal_to`). What is timed are zuko's own maps, so that
what still differs is:

- how free numbers are bounded: v / (1 + |v| / limit) in zuko, tanh or a least share in ours;
- the input of a spline's network, which ours clamps to the box;
- couplings: zuko takes its residual blocks from the outside, and its halves by a mask in order.

They take turns within a round, so that a slow minute hits both, and the ratio is taken within the
round; the clock is the process's own on its core. At most as long as zuko is wanted.

Writes results.json and table.md to benchmarks/results/zuko-step-DATE.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from importlib.metadata import version

import torch
from jaxtyping import Float
from torch import Tensor, nn

from benchmarks import machine, reports
from benchmarks.eager import made_up, runs_per_s
from benchmarks.ratios import short, spread
from benchmarks.reports import Results
from benchmarks.table import table
from benchmarks.zuko_flows import equal_to, like
from service.interface import Event
from training.data import Batch
from training.flow import Flow
from training.flow_config import FlowConfig

FEATURES = (8, 64)
BATCH = 512
WIDTH = 126
"""Hidden units: a multiple of 7 and of 63, see `zuko_flows.like`."""
SIZES = {"layers": 5, "width": WIDTH, "depth": 2}
"""Layers: as in the paper of masked autoregressive flows, arXiv:1705.07057."""
LEARNING_RATE = 1e-4
WARM_STEPS = 5
"""Of ours before all else: last layers leave zero, so that there are weights to agree about."""
AGREEMENT = 1e-9
"""Nats that the log-densities of any row may be apart by the same weights, in float64."""
WANTED = 1.0
"""Our time over zuko's, at most."""


@dataclass(frozen=True)
class Case:
    """One kind of flow: what the table calls it, and what a recipe does."""

    title: str
    layer: str
    transform: str

    @property
    def config(self) -> FlowConfig:
        """Return the model's part of a recipe."""
        return FlowConfig.model_validate(
            {"layer": self.layer, "transform": self.transform, **SIZES}
        )


CASES = (
    Case("MAF, affine", "autoregressive", "affine"),
    Case("MAF, splines", "autoregressive", "spline"),
    Case("couplings, affine", "coupling", "affine"),
    Case("couplings, splines", "coupling", "spline"),
)


def main(arguments: Sequence[str]) -> int:
    """Return the exit status."""
    parser = reports.timing("zuko_step", rounds=9, seconds=0.1)
    return reports.run(parser, arguments, "zuko-step", _measured, markdown)


def _measured(chosen: argparse.Namespace) -> Results:
    torch.set_num_threads(1)
    return measure(rounds=chosen.rounds, seconds=chosen.seconds) | {"note": chosen.note}


def measure(*, rounds: int, seconds: float) -> Results:
    """Make all pairs ready, then let both sides take turns at each, round by round."""
    versions = {"torch": torch.__version__, "zuko": version("zuko")}
    described = machine.host() | versions
    began = time.monotonic()
    found, turns = [], []
    for case, features in pairs():
        pair = Pair(case.config, features)
        times: dict[str, list[float]] = {"ours": [], "zuko": []}
        about = {"case": case.title, "features": features, "parameters": pair.parameters}
        found.append({**about, "gap": pair.gap, "step_s": times})
        turns.append((pair.steps, times))
    for number in range(rounds):
        for steps, times in turns:
            for side in ("ours", "zuko") if number % 2 == 0 else ("zuko", "ours"):
                times[side].append(1 / runs_per_s(steps[side], seconds))
        print(f"round {number + 1} after {time.monotonic() - began:.0f} s", flush=True)
    return {
        "machine": described,
        "took_s": round(time.monotonic() - began, 1),
        "rounds": rounds,
        "seconds": seconds,
        "batch": BATCH,
        "sizes": SIZES,
        "cases": found,
    }


def pairs() -> Iterator[tuple[Case, int]]:
    """Yield every kind of flow with every number of features."""
    for case in CASES:
        for features in FEATURES:
            yield case, features


class Pair:
    """A flow of ours and zuko's of the same structure and weights, both of which have stepped.

    Args:
        config: Of ours.
        features: Of each row.

    Raises:
        RuntimeError: They are not of the same structure.
    """

    def __init__(self, config: FlowConfig, features: int) -> None:
        torch.manual_seed(0)
        data = made_up(Event(kind="vector", shape=(features,)), ("-",))
        ours = Flow(config, data)
        x = torch.as_tensor(data.mean) + torch.as_tensor(data.std) * torch.randn(BATCH, features)
        (turn,) = ours.turns()
        batch = Batch(x)
        step = stepping(ours, lambda: turn.loss(batch)["loss"])
        for _ in range(WARM_STEPS):
            step()
        self.gap = gap(ours, x)
        theirs = like(ours)
        self.parameters, other = map(count, (ours, theirs))
        if not (self.gap <= AGREEMENT and self.parameters == other):
            raise RuntimeError(
                f"{config.layer}, {config.transform}: expected zuko's flow to be the same; got "
                f"log-densities {self.gap:.2g} apart, {self.parameters} and {other} parameters"
            )
        self.models = {"ours": ours, "zuko": theirs}
        self.steps = {"ours": step, "zuko": stepping(theirs, lambda: -theirs().log_prob(x).mean())}
        self.steps["zuko"]()


def stepping(model: nn.Module, loss: Callable[[], Float[Tensor, ""]]) -> Callable[[], None]:
    """Return a step of training."""
    optimiser = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)

    def step() -> None:
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()

    return step


@torch.no_grad()
def gap(flow: Flow, x: Float[Tensor, "batch feature"]) -> float:
    """Return how far a log-density is from that of zuko's flow of the same weights, in float64."""
    exact, events = deepcopy(flow).double(), x.double()
    ours, theirs = exact.log_density(events), equal_to(exact)().log_prob(events)
    return float((ours - theirs).abs().max())


def count(model: nn.Module) -> int:
    """Return how many numbers are learnt."""
    return sum(each.numel() for each in model.parameters())


def markdown(results: Results) -> str:
    """Return the report."""
    about, sizes = results["machine"], results["sizes"]
    lines = [
        f"# Steps of training beside zuko, {about['date']}",
        "",
        f"Milliseconds of a step (loss, gradient, Adam) on {results['batch']} rows, one thread, "
        f"float32: {sizes['layers']} layers, networks of {sizes['depth']} residual blocks and "
        f"{sizes['width']} units. Medians of {results['rounds']} rounds of {results['seconds']:g} "
        "s a side and more, of the ratio with the least and the greatest. Seconds are the "
        "process's own on its core, so that what others take of a shared one does not count.",
        f"{about['cpu']}; {about['cores']} cores, shared; Python {about['python']}, torch "
        f"{about['torch']}, zuko {about['zuko']}; commit {about['commit']}; load average before "
        f"it {about['load_before']}; {results['took_s']:.0f} s. {results['note']}",
        "",
    ]
    head = ["flow", "features", "parameters", "ours, ms", "zuko, ms", "ours / zuko",
            f"wanted: ≤ {WANTED:g}"]  # fmt: skip
    return "\n".join([*(each.rstrip() for each in lines), *table(head, [*rows(results)])]) + "\n"


def rows(results: Results) -> Iterator[list[str]]:
    """Yield a row for each pair. The median decides whether what is wanted was met."""
    for case in results["cases"]:
        times = case["step_s"]
        ratio = spread(a / b for a, b in zip(times["ours"], times["zuko"], strict=True))
        if ratio is None:
            continue
        medians = [spread(1000 * each for each in times[side]) for side in ("ours", "zuko")]
        yield [
            case["case"],
            str(case["features"]),
            f"{case['parameters']:,}",
            *(short(each.median) for each in medians if each),
            str(ratio),
            "met" if ratio.median <= WANTED else "missed",
        ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
