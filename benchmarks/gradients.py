"""How noisy each gradient of black-box variational inference is, and what is learnt with it.

    python -m benchmarks.gradients                    # about a minute on two cores
    python -m benchmarks.gradients --report FOLDER    # table and plot of old results again

The same small models of scikit-learn's digits are trained with each gradient in λ, the parameters
of each image's q(z|λ). Along one of these runs all gradients are estimated again and again, at the
same λ and the same decoder: their variance is that of what one step of inference follows.

Writes results.json, table.md and plot.png to benchmarks/results/gradients-DATE.
"""

import sys
import time
from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks import gradient_plot, machine, reports
from benchmarks.reports import Results
from benchmarks.table import table
from training.bbvi import BBVI, BBVIConfig
from training.data import Batch, Data, DataConfig, load
from training.gradients import ESTIMATORS, Gradient

DRAWS = 8
BATCH = 64
LEARNING_RATE = 4e-3
WATCHED_ROWS = 32
"""Images whose gradients are looked at."""
REPEATS = 50
"""How often each gradient is estimated anew, for a variance that is right to 20 % a number."""
QUANTILES = {"low": 0.1, "median": 0.5, "high": 0.9}
"""Of the images' variances."""
EVERY = 30
"""Steps between two looks at the gradients, and over which the ELBO is averaged."""
CONFIG = BBVIConfig(draws=DRAWS, observation="normal", scale="per-feature", width=8)
LATENTS = {"normal": 8, "binary": 24}
GRADIENTS: dict[str, tuple[Gradient, ...]] = {
    "normal": ("reparametrization", "reinforce-baseline", "reinforce"),
    "binary": ("reinforce-baseline", "reinforce"),
}
"""By kind of latents; all are measured along the run of the first."""


def main(arguments: Sequence[str]) -> int:
    """Return the exit status."""
    parser = reports.parser("gradients")
    parser.add_argument("--steps", type=int, default=600, help="of training (default: 600)")
    chosen = parser.parse_args(arguments)
    folder = reports.folder("gradients", chosen)
    if not chosen.report:
        torch.set_num_threads(1)  # The work is small: threads wait for each other most of the time.
        reports.keep(measure(steps=chosen.steps), folder)
    results = reports.kept(folder)
    gradient_plot.draw(results, folder / "plot.png")
    reports.say(markdown(results), folder)
    return 0


def measure(*, steps: int) -> Results:
    """Train a model with each gradient, and look at all of them on the way."""
    described = machine.host() | {"torch": torch.__version__}
    data = load(DataConfig(source="sklearn:digits"))
    began = time.monotonic()
    runs = []
    for latents, gradients in GRADIENTS.items():
        for gradient in gradients:
            watched = gradients if gradient == gradients[0] else ()
            run = train(latents, gradient, data, steps=steps, watched=watched)
            print(f"{latents:8} {gradient:20} ELBO {run['elbo'][-1]:9.2f}", flush=True)
            runs.append(run)
    return {
        "machine": described,
        "data": data.description,
        "steps": steps,
        "draws": DRAWS,
        "rows": WATCHED_ROWS,
        "repeats": REPEATS,
        "seconds": round(time.monotonic() - began, 1),
        "runs": runs,
    }


def train(
    latents: str, gradient: Gradient, data: Data, *, steps: int, watched: Sequence[Gradient]
) -> Results:
    """Return the ELBO over training with one gradient, and the variances of the watched ones."""
    torch.manual_seed(0)
    update = {"latents": latents, "latent": LATENTS[latents], "gradient": gradient}
    model = BBVI(CONFIG.model_copy(update=update), data)
    (turn,) = model.turns()
    optimiser = torch.optim.Adam(turn.parameters, lr=LEARNING_RATE)
    elbo, looks = [], []
    for step in range(steps + 1):
        if watched and step % EVERY == 0:
            looks.append({"step": step, "variance": variances(model, data.train, watched)})
        rows = torch.randperm(len(data.train))[:BATCH]
        loss = turn.loss(data.train[rows])["loss"]
        elbo.append(-loss.item())
        optimiser.zero_grad()
        loss.backward(inputs=turn.parameters)
        optimiser.step()
    means = torch.tensor(elbo[: steps // EVERY * EVERY]).unflatten(0, (-1, EVERY)).mean(1)
    return {"latents": latents, "gradient": gradient, "elbo": means.tolist(), "looks": looks}


def variances(
    model: BBVI, train: Batch, gradients: Sequence[Gradient]
) -> dict[str, dict[str, float]]:
    """Return quantiles over images of each gradient's variance, its mean over the numbers of λ.

    The gradient is the mean over `DRAWS` draws, as in a step of inference. What is drawn here is
    not drawn from the training's generator.
    """
    with torch.random.fork_rng():
        torch.manual_seed(1)
        x, parameters = model.observation.resample(train.x[:WATCHED_ROWS]), model.inferred
        log_likelihood = partial(model.log_likelihood, x)
        found: dict[str, dict[str, float]] = {}
        for gradient in gradients:
            estimate = partial(ESTIMATORS[gradient], model.q, parameters[:WATCHED_ROWS])
            means = [estimate(log_likelihood, DRAWS).mean(1) for _ in range(REPEATS)]
            found[gradient] = quantiles(torch.stack(means).var(0).mean(1))
        return found


def quantiles(variance: Float[Tensor, " image"]) -> dict[str, float]:
    """Return what `QUANTILES` names."""
    return {name: variance.quantile(share).item() for name, share in QUANTILES.items()}


def markdown(results: Results) -> str:
    """Return the report."""
    about = results["machine"]
    lines = [
        f"# Gradients in λ, {about['date']}",
        "",
        f"{results['data']}. Variance of a gradient of {results['draws']} draws, the mean over the "
        f"numbers of an image's λ: the median of {results['rows']} images, and in brackets the "
        "10 % and 90 % quantiles. All gradients at the same λ and decoder. ELBO in nats per image, "
        "of training batches, of a run with that gradient.",
        f"{about['cpu']}; {about['cores']} cores; Python {about['python']}, torch "
        f"{about['torch']}; commit {about['commit']}; {results['seconds']:.0f} s.",
    ]
    for latents in GRADIENTS:
        runs = {run["gradient"]: run for run in results["runs"] if run["latents"] == latents}
        looks = next(run["looks"] for run in runs.values() if run["looks"])
        shown = [looks[0], looks[len(looks) // 2], looks[-1]]
        head = [
            "gradient",
            *(f"variance, step {look['step']}" for look in shown),
            "ELBO at the end",
        ]
        rows = [
            [
                gradient,
                *(_spread(look["variance"][gradient]) for look in shown),
                f"{run['elbo'][-1]:.1f}",
            ]
            for gradient, run in runs.items()
        ]
        lines += ["", f"## Latents: {latents}", "", *table(head, rows)]
    return "\n".join(lines) + "\n"


def _spread(found: dict[str, float]) -> str:
    return f"{found['median']:.3g} ({found['low']:.2g} to {found['high']:.2g})"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
