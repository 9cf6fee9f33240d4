"""What a trained proposal is worth beside uniform points and beside vegas.

    python -m benchmarks.integrands                    # about ten minutes on one core
    python -m benchmarks.integrands --report FOLDER    # the table of old results again

Each integrand is learnt by the recipe `camel-proposal.toml`, and by vegas with as many evaluations
in ten iterations. Then both estimate the integral with the same number of fresh points. Their error
is told as the deviation of one evaluation, in units of the integral: error * sqrt(points) / I.

vegas (Lepage, GPL-3) is in the extra `oracles`; nothing that is shipped imports it.
Writes results.json and table.md to benchmarks/results/integrands-DATE.
"""

import json
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import vegas
from jaxtyping import Float64

from benchmarks import machine, reports
from benchmarks.reports import Results
from benchmarks.table import table
from service.manifest import Figure
from training import data, recipe, weights
from training.evaluate import evaluate
from training.integrands import Integrand
from training.loop import fit

RECIPE = Path(__file__).parents[1] / "training" / "recipes" / "camel-proposal.toml"
CASES = (("camel", 2), ("camel", 4), ("camel", 8), ("gaussian", 4), ("ring", 2), ("ring", 4))
ITERATIONS = 10
"""Of vegas while it adapts."""


def main(arguments: Sequence[str]) -> int:
    """Return the exit status."""
    parser = reports.parser("integrands")
    parser.add_argument("--epochs", type=int, help="of training (default: the recipe's)")
    return reports.run(
        parser, arguments, "integrands", lambda chosen: measure(chosen.epochs), markdown
    )


def measure(epochs: int | None) -> Results:
    """Learn each integrand in both ways, and integrate it."""
    torch.set_num_threads(1)
    versions = {"torch": torch.__version__, "vegas": version("vegas")}
    described = machine.host() | versions
    runs = [integrate(name, dimensions, epochs) for name, dimensions in CASES]
    return {"machine": described, "runs": runs}


def integrate(name: str, dimensions: int, epochs: int | None) -> Results:
    """Return what uniform points, vegas and a proposal say of one integrand."""
    overrides = [f"data.source=integrand:{name}", f"data.dimensions={dimensions}"]
    overrides += [f"train.epochs={epochs}"] if epochs else []
    chosen = recipe.read(RECIPE, overrides=overrides)
    rows = data.load(chosen.data)
    if rows.integrand is None or rows.integrand.exact is None:
        raise ValueError(f"{name} is no integrand of known integral; this is a bug")
    began = time.monotonic()
    model = recipe.build(chosen, rows)
    with tempfile.TemporaryDirectory() as folder:
        fit(model, rows, chosen.train, folder=Path(folder), key=chosen.key(rows))
    trained_s = time.monotonic() - began
    figures = {figure.name: figure for figure in evaluate(model, rows, chosen.evaluate)}
    points = figures[weights.INTEGRAL].n
    batches = len(rows.train) // chosen.train.batch_size
    evaluations = batches * chosen.train.batch_size * chosen.train.epochs
    began = time.monotonic()
    by_vegas = _vegas(rows.integrand, learning=evaluations, points=points)
    vegas_s = time.monotonic() - began
    found = {
        "uniform": _said(figures[weights.UNIFORM], rows.integrand.exact),
        "vegas": by_vegas | {"seconds": round(vegas_s, 1)},
        "proposal": _said(figures[weights.INTEGRAL], rows.integrand.exact)
        | {
            "seconds": round(trained_s, 1),
            "effective": figures[weights.EFFECTIVE].value,
            "largest": figures[weights.LARGEST].value,
        },
    }
    print(name, dimensions, json.dumps(found), flush=True)
    return {
        "integrand": name,
        "dimensions": dimensions,
        "exact": rows.integrand.exact,
        "learning": evaluations,
        "points": points,
        **found,
    }


def _said(figure: Figure, exact: float) -> Results:
    return _estimate(figure.value, figure.standard_error or math.nan, figure.n, exact)


def _estimate(value: float, error: float, points: int, exact: float) -> Results:
    """Return an estimate with how far off it is, and the deviation of one evaluation."""
    return {
        "integral": value,
        "error": error,
        "z": (value - exact) / error,
        "deviation": error * math.sqrt(points) / exact,
    }


def _vegas(integrand: Integrand, *, learning: int, points: int) -> Results:
    """Return what vegas says after it has adapted to the integrand."""

    @vegas.lbatchintegrand  # type: ignore[untyped-decorator]
    def function(x: Float64[np.ndarray, "points dimension"]) -> Float64[np.ndarray, " points"]:
        return integrand(np.asarray(x))

    np.random.seed(0)  # noqa: NPY002 - what vegas draws from
    integrator = vegas.Integrator([[integrand.low, integrand.high]] * integrand.dimensions)
    integrator(function, nitn=ITERATIONS, neval=learning // ITERATIONS)
    result = integrator(function, nitn=1, neval=points, adapt=False)
    exact = integrand.exact or math.nan
    return _estimate(float(result.mean), float(result.sdev), int(result.sum_neval), exact)


def markdown(results: Results) -> str:
    """Return the report."""
    about = results["machine"]
    lines = [
        f"# Integrands, {about['date']}",
        "",
        "Deviation of one evaluation in units of the integral, error · √points / I, once learnt; "
        "in brackets how many standard errors the estimate is off. The last column is the variance "
        "of vegas over that of the proposal.",
        f"{about['cpu']}; {about['cores']} cores, shared; Python {about['python']}, torch "
        f"{about['torch']}, vegas {about['vegas']}; commit {about['commit']}.",
        "",
    ]
    head = ["integrand", "learnt from", "points", "uniform", "vegas", "proposal", "learnt in",
            "effective", "largest weight", "vegas / proposal"]  # fmt: skip
    return "\n".join([*lines, *table(head, [_row(run) for run in results["runs"]])]) + "\n"


def _row(run: Results) -> list[str]:
    ways = [run[way] for way in ("uniform", "vegas", "proposal")]
    _, other, ours = ways
    return [
        f"{run['integrand']}, {run['dimensions']}-D",
        f"{run['learning']:,}",
        f"{run['points']:,}",
        *(f"{way['deviation']:.3g} ({way['z']:+.1f})" for way in ways),
        f"{ours['seconds']:.0f} s (vegas {other['seconds']:.1f} s)",
        f"{ours['effective']:.3f}",
        f"{ours['largest']:.2f}",
        f"{(other['deviation'] / ours['deviation']) ** 2:.3g}",
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
