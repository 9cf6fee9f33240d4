"""How fast samples come from the exported graphs, beside the same modules in PyTorch eager.

    python -m benchmarks.eager                    # less than a minute and a half of one core
    python -m benchmarks.eager --report FOLDER    # the table of old results again

Models of every family: the shipped ones, restored from their bundles, and of what is not shipped
some of a recipe's size with random weights, on which speed does not depend. Their graphs run in the
service's own sessions, by one thread; beside them the modules that they were exported from, in
inference mode, float32 and one thread. Both begin with the same noise and must answer the same.
They take turns within a round, so that a slow minute hits both, and the ratio is taken within the
round; the clock is the process's own on its core. A proposal samples by couplings as a flow does,
and has no row of its own.

Writes results.json and table.md to benchmarks/results/eager-DATE.
"""

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor

from benchmarks import machine, reports
from benchmarks.ratios import short, spread
from benchmarks.reports import Results
from benchmarks.table import table
from service import bundle
from service.bundle import Bundle
from service.interface import Event, Interface, Role
from service.manifest import Graph, Manifest
from service.session import Device, Session
from training import recipe
from training.data import Batch, Data
from training.export import to_onnx
from training.family import Family, outputs_of
from training.ode import solve
from training.restore import restore

RECIPES = Path(__file__).parents[1] / "training" / "recipes"
MODELS = Path(__file__).parents[1] / "models"
BATCHES = (1, 64, 256)
FEATURES = 16
"""Of vectors that are made up: two would flatter maps that go feature by feature."""
SPREAD = 0.1
"""Of what is added to initial weights, which leave some networks at zero."""
AGREEMENT = 1e-3
"""Allowed difference of the answers, relative to 1 + the largest number."""

Run = Callable[[Role, Sequence[Tensor]], Tensor]
"""Runs a graph on its inputs, and returns the first of its outputs."""


@dataclass(frozen=True)
class Case:
    """One model.

    Args:
        title: What the table calls it.
        name: Of a shipped model; or of the recipe of one that is made here.
        changes: What is otherwise in the recipe's model; None takes what is shipped.
        batches: Rows of a run. Fewer where more would take seconds.
    """

    title: str
    name: str
    changes: Mapping[str, object] | None = None
    batches: tuple[int, ...] = BATCHES


MASKED = {"layer": "autoregressive", "layers": 5}
"""Layers: as in the paper of masked autoregressive flows, arXiv:1705.07057."""
CASES = (
    Case("VAE, learned prior", "mnist-vae"),
    Case("GAN", "mnist-gan"),
    Case("flow of images", "digits-flow"),
    Case("flow of images", "mnist-flow", batches=(1, 64)),
    Case("flow, 8 spline couplings", "moons-flow"),
    Case("MAF, 5 affine layers", "moons-flow", MASKED | {"transform": "affine"}),
    Case("MAF, 5 spline layers", "moons-flow", MASKED),
    Case("IAF, 5 spline layers", "moons-flow", MASKED | {"layer": "inverse-autoregressive"}),
    Case("continuous flow, 80 evaluations", "moons-flow-matching"),
    Case("continuous flow, 40 evaluations", "mnist-flow-matching", {}, batches=(1, 16)),
)


def main(arguments: Sequence[str]) -> int:
    """Return the exit status."""
    parser = reports.timing("eager", rounds=5, seconds=0.05)
    return reports.run(parser, arguments, "eager", _measured, markdown)


def _measured(chosen: argparse.Namespace) -> Results:
    torch.set_num_threads(1)
    return measure(rounds=chosen.rounds, seconds=chosen.seconds) | {"note": chosen.note}


def measure(*, rounds: int, seconds: float) -> Results:
    """Make all models ready, then let both ways take turns at each, round by round."""
    versions = {"torch": torch.__version__, "onnxruntime": version("onnxruntime")}
    described = machine.host() | versions
    began = time.monotonic()
    found, turns = [], []
    for case in CASES:
        both = Both(*(_shipped(case.name) if case.changes is None else _made(case)))
        origin = case.name if case.changes is None else f"like {case.name}"
        about = {"case": case.title, "model": origin, **both.about}
        found.append(about | {"batches": {}})
        for rows in case.batches:
            rates: dict[str, list[float]] = {"onnx": [], "eager": []}
            found[-1]["batches"][str(rows)] = rates
            turns.append((both.ways(rows), rates, rows))
        print(f"{case.title}: ready after {time.monotonic() - began:.0f} s", flush=True)
    for number in range(rounds):
        for ways, rates, rows in turns:
            for way in ("onnx", "eager") if number % 2 == 0 else ("eager", "onnx"):
                rates[way].append(rows * runs_per_s(ways[way], seconds))
        print(f"round {number + 1} after {time.monotonic() - began:.0f} s", flush=True)
    return {
        "machine": described,
        "took_s": round(time.monotonic() - began, 1),
        "rounds": rounds,
        "seconds": seconds,
        "cases": found,
    }


class Both:
    """A model's graphs, as modules and as sessions of the service.

    Args:
        model: In evaluation mode.
        of: The bundle whose graphs were exported from it.
    """

    def __init__(self, model: Family, of: Bundle) -> None:
        self.interface = model.interface
        self._modules = model.graphs()
        roles = _roles(self.interface)
        self._sessions = {role: Session(of, role, Device("cpu")) for role in roles}
        files = {role: onnx.load_model_from_string(of.graph(role)) for role in roles}
        self.about: Results = {
            "event": self.interface.event.shape,
            "nodes": {role: nodes(file.graph) for role, file in files.items()},
        }

    def ways(self, rows: int) -> dict[str, Callable[[], Tensor]]:
        """Return both ways to so many samples, each of which has been gone once.

        Raises:
            RuntimeError: They do not lead to the same samples.
        """
        noise = torch.randn(rows, *self.interface.latent.shape)
        label = torch.arange(rows) % len(self.interface.labels or "-")
        runs = {"onnx": self._by_session, "eager": self._by_module}
        ways = {
            name: partial(sampled, self.interface, run, noise, label) for name, run in runs.items()
        }
        served, eager = (way() for way in ways.values())
        gap = float((served - eager).abs().max() / (1 + eager.abs().max()))
        if not gap <= AGREEMENT:
            raise RuntimeError(f"{self.interface.family}: the two ways are {gap:.2g} apart")
        return dict(ways)

    def _by_module(self, role: Role, inputs: Sequence[Tensor]) -> Tensor:
        first: Tensor = self._modules[role](*inputs)[0]
        return first

    def _by_session(self, role: Role, inputs: Sequence[Tensor]) -> Tensor:
        session = self._sessions[role]
        names = (spec.name for spec in session.graph.inputs)
        feeds = {name: each.numpy() for name, each in zip(names, inputs, strict=True)}
        return torch.from_numpy(next(iter(session.run(feeds).values())))


@torch.inference_mode()
def sampled(interface: Interface, run: Run, noise: Tensor, label: Tensor) -> Tensor:
    """Return what noise becomes by a model's graphs, one after the other as in the service."""
    condition = (label,) if interface.labels else ()
    if interface.ode is None:
        z = run("prior", (noise,)) if "prior" in _roles(interface) else noise
        return run("decode", (z, *condition))
    (w,) = solve(
        lambda w, t: (run("velocity", (w, t, *condition)),),
        (noise,),
        solver=interface.ode.solver,
        steps=interface.ode.steps,
    )
    return run("leave", (w,))


def _roles(interface: Interface) -> tuple[Role, ...]:
    """Return the graphs that samples take."""
    if interface.ode is not None:
        return ("velocity", "leave")
    return ("prior", "decode") if interface.latent.distribution == "learned" else ("decode",)


def _shipped(name: str) -> tuple[Family, Bundle]:
    """Return a shipped model, restored, and its bundle."""
    newest = bundle.versions(MODELS, name)[0]
    shipped = bundle.read(MODELS / name / str(newest))
    return restore(shipped, made_up(shipped.manifest.event, shipped.manifest.labels)), shipped


def _made(case: Case) -> tuple[Family, Bundle]:
    """Return a model of a recipe's size with random weights, and a draft of its bundle."""
    chosen = recipe.read(RECIPES / f"{case.name}.toml")
    config = chosen.model.model_copy(update=dict(case.changes or {}))
    shape, levels = chosen.data.shape, chosen.data.levels
    event = Event(kind="vector", shape=(FEATURES,))
    if shape is not None:
        event = Event(kind="image", shape=shape, minimum=0.0, maximum=1.0, levels=levels)
    rows = made_up(event, tuple(map(str, range(10))))
    model = recipe.build(chosen.model_copy(update={"model": config}), rows)
    with torch.no_grad():
        for parameter in model.parameters():
            inputs = max(1, parameter[:1].numel())
            parameter.add_(SPREAD * torch.randn_like(parameter) / inputs**0.5)
    model = model.eval().requires_grad_(False)
    return model, _draft(model)


def _draft(model: Family) -> Bundle:
    """Return a bundle of nothing but the graphs that samples take."""
    modules, files = model.graphs(), {}
    said: dict[str, Any] = {"graphs": {}}
    for role in _roles(model.interface):
        inputs, outputs = model.interface.signature(role)
        name = f"{role}.onnx"
        files[name] = to_onnx(modules[role], inputs, outputs_of(modules, model.interface, role))
        said["graphs"][role] = Graph.model_construct(
            file=name, sha256="", inputs=inputs, outputs=outputs, tolerance={}
        )
    # Unchecked, since no manifest may say so little: a session reads nothing else.
    return Bundle(Path("draft"), Manifest.model_construct(**said), files)


def made_up(event: Event, labels: tuple[str, ...] | None) -> Data:
    """Return made-up events: of a model's data only their kind decides how fast it is."""
    names = labels or ("-",)
    batch = Batch(torch.rand(20, *event.shape), torch.arange(20) % len(names))
    is_vector = event.kind == "vector"
    return Data(
        train=batch,
        validation=batch,
        test=batch,
        event=event,
        labels=names,
        mean=batch.x.mean(0).numpy() if is_vector else None,
        std=batch.x.std(0).numpy() if is_vector else None,
        description="made up",
        sha256="",
    )


def nodes(graph: onnx.GraphProto) -> int:
    """Return how many nodes a graph has, those of its loops once."""
    inner = (each.g for node in graph.node for each in node.attribute if each.HasField("g"))
    return len(graph.node) + sum(map(nodes, inner))


def runs_per_s(run: Callable[[], object], seconds: float) -> float:
    """Return how often something runs in a second, tried for so long and at least once.

    Seconds are those that this process had of a core. One thread has all of them on a quiet
    machine; on a shared one what others take would be most of the noise.
    """
    count, began = 0, time.process_time()
    while not count or time.process_time() - began < seconds:
        run()
        count += 1
    return count / (time.process_time() - began)


def markdown(results: Results) -> str:
    """Return the report."""
    about = results["machine"]
    lines = [
        f"# ONNX Runtime beside PyTorch eager, {about['date']}",
        "",
        "Samples per second from noise, by one thread each, and how many times faster the exported "
        f"graphs are: medians of {results['rounds']} rounds of {results['seconds']:g} s and more, "
        "with the least and the greatest. Seconds are the process's own on its core, so that what "
        "others take of a shared one does not count. Like: of the recipe's sizes otherwise, with "
        "random weights. Nodes: of each graph as exported, those of a loop once.",
        f"{about['cpu']}; {about['cores']} cores, shared; Python {about['python']}, torch "
        f"{about['torch']}, ONNX Runtime {about['onnxruntime']}; commit {about['commit']}; load "
        f"average before it {about['load_before']}; {results['took_s']:.0f} s. {results['note']}",
        "",
    ]
    head = ["model", "of", "event", "nodes", "batch", "ONNX Runtime", "eager",
            "ONNX / eager"]  # fmt: skip
    rows = [row for case in results["cases"] for row in _case_rows(case)]
    return "\n".join([*(line.rstrip() for line in lines), *table(head, rows)]) + "\n"


def _case_rows(case: Results) -> list[list[str]]:
    """Return a row for each batch; what is of the model stands in the first alone."""
    counted = ", ".join(f"{role} {count:,}" for role, count in case["nodes"].items())
    own = [case["case"], case["model"], " x ".join(map(str, case["event"])), counted]
    rows: list[list[str]] = []
    for batch, rates in case["batches"].items():
        pairs = zip(rates["onnx"], rates["eager"], strict=True)
        ratio = spread(onnx / eager for onnx, eager in pairs)
        medians = [spread(rates[way]) for way in ("onnx", "eager")]
        cells = [short(each.median) for each in medians if each]
        rows.append([*(own if not rows else [""] * len(own)), batch, *cells, str(ratio)])
    return rows


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
