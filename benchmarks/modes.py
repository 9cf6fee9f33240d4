"""Which modes GANs of each objective find, of eight Gaussians on a ring and 25 on a grid.

    python -m benchmarks.modes                    # about half an hour of one core
    python -m benchmarks.modes --report FOLDER    # table and picture of old results again

One architecture and one budget for all of them; what keeps the critic from being too steep is what
suits the objective. A sample is good within three standard deviations of the nearest mode. A mode
is covered if at least one in a hundred samples is good and nearest to it: of the ring each should
have 12.5 in a hundred, of the grid 4. It is touched if any sample is, which is what Srivastava et
al. 2017 (arXiv:1705.07761) and others after them count.

Writes results.json, table.md, plot.png and samples.npz, of which the picture is made, to
benchmarks/results/modes-DATE.
"""

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from jaxtyping import Float

from benchmarks import machine, modes_plot, reports
from benchmarks.reports import Results
from benchmarks.table import table
from training.adversarial import Name, is_mmd
from training.data import Data, DataConfig, load
from training.gan import GAN, PENALTIES, GANConfig
from training.loop import TrainConfig, fit
from training.mixtures import MIXTURES, NEAR, SHARE, Mixture

ROWS, HELD_OUT = 700_000, 0.005
"""Of each mixture, and which share of them is for validation, and for the test. There are as many
as one epoch takes, so that no row is seen twice and the last weights are kept: the discrepancy by
which an epoch is chosen is too coarse for modes as narrow as these (measured: of the grid, weights
of the second of eight epochs, before there was any)."""
SAMPLES, SHOWN = 10_000, 1_000
SIZES: dict[str, Any] = {"latent": 2, "width": 128, "critic_width": 128, "depth": 3}
TRAINING = TrainConfig(
    epochs=1,
    batch_size=128,
    learning_rate=1e-3,
    betas=(0.5, 0.99),
    ema=0.998,
    device="cpu",
)


def _usual(name: Name) -> dict[str, Any]:
    """Return an objective with what suits it."""
    if name == "wasserstein" or is_mmd(name):
        usual: dict[str, Any] = {"regulariser": "gradient-penalty", "penalty": 0.1}
    else:
        usual = {"regulariser": "r1", "penalty": 0.003}
    return {"objective": name, **usual, **({"critic_features": 4} if is_mmd(name) else {})}


GAMES: dict[str, dict[str, Any]] = {name: _usual(name) for name in get_args(Name)} | {
    "non-saturating, unregularised": {"regulariser": "none"},
    "wasserstein, clipped": {"objective": "wasserstein", "regulariser": "clip", "bound": 0.1},
}
"""What is told of each GAN beside its sizes."""

Pictures = dict[str, np.ndarray]
"""Arrays of samples.npz: of each mixture's name and, behind a colon, of which game."""


def main(arguments: Sequence[str]) -> int:
    """Return the exit status."""
    parser = reports.parser("modes")
    parser.add_argument("--rows", type=int, default=ROWS, help="of each (default: 700,000)")
    parser.add_argument("--only", nargs="+", choices=GAMES, help="which games (default: all)")
    chosen = parser.parse_args(arguments)
    folder = reports.folder("modes", chosen)
    if not chosen.report:
        results, pictures = measure(chosen.only or list(GAMES), rows=chosen.rows)
        reports.keep(results, folder)
        np.savez_compressed(folder / "samples.npz", **pictures)  # type: ignore[arg-type]
    results = reports.kept(folder)
    with np.load(folder / "samples.npz") as kept:
        modes_plot.draw(results, dict(kept), folder / "plot.png")
    reports.say(markdown(results), folder)
    return 0


def measure(games: Sequence[str], *, rows: int) -> tuple[Results, Pictures]:
    """Train each game on each mixture, and count."""
    torch.set_num_threads(1)  # The work is small: threads wait for each other most of the time.
    results: Results = {
        "machine": machine.host() | {"torch": torch.__version__},
        "sizes": SIZES,
        "training": TRAINING.model_dump(mode="json"),
        "samples": SAMPLES,
        "mixtures": {name: len(mixture.centres) for name, mixture in MIXTURES.items()},
        "games": {game: GAMES[game] for game in games},
        "found": {},
        "data": {},
    }
    pictures: Pictures = {}
    began = time.process_time()
    for mixture in MIXTURES:
        data = sampled(mixture, rows)
        results["data"][mixture] = judged(data.test.x.double().numpy(), MIXTURES[mixture])
        results["steps"] = len(data.train) // TRAINING.batch_size
        pictures[f"{mixture}:data"] = data.test.x[:SHOWN].numpy().astype(np.float16)
        for game in games:
            x, seconds = learnt(GAMES[game], data)
            found = judged(x, MIXTURES[mixture]) | {"seconds": round(seconds, 1)}
            results["found"].setdefault(game, {})[mixture] = found
            pictures[f"{mixture}:{game}"] = x[:SHOWN].astype(np.float16)
            print(mixture, game, json.dumps(found), flush=True)
    results["seconds"] = round(time.process_time() - began, 1)
    return results, pictures


def sampled(mixture: str, rows: int) -> Data:
    """Return rows of a mixture in three splits."""
    return load(
        DataConfig(
            source=f"gaussians:{mixture}",
            rows=rows,
            validation_fraction=HELD_OUT,
            test_fraction=HELD_OUT,
        )
    )


def learnt(options: dict[str, Any], data: Data) -> tuple[Float[np.ndarray, "samples 2"], float]:
    """Return samples of a trained GAN, and how many seconds of the processor it took."""
    torch.manual_seed(TRAINING.seed)
    model = GAN(GANConfig(**SIZES, **options), data)
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        fit(model, data, TRAINING, folder=Path(folder), key="")
    seconds = time.process_time() - began
    z = torch.randn(SAMPLES, SIZES["latent"], generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model.decode(z).double().numpy(), seconds


def judged(x: Float[np.ndarray, "samples 2"], mixture: Mixture) -> Results:
    """Return how many modes samples cover, and which share of them is good, with its error."""
    found = mixture.find(x)
    return {
        "modes": found.modes,
        "good": [found.good, found.good_error],
        "hits": found.hits.tolist(),
    }


def markdown(results: Results) -> str:
    """Return the report."""
    about, training, sizes = results["machine"], results["training"], results["sizes"]
    lines = [
        f"# Modes that GANs find, {about['date']}",
        "",
        f"Perceptrons of {sizes['depth']} layers of {sizes['width']} units, z of "
        f"{sizes['latent']}, {results['steps']:,} steps of {training['batch_size']} rows, one "
        f"seed. Of {results['samples']:,} samples: good are those within {NEAR:g} standard "
        f"deviations of the nearest mode, and a mode is covered if at least {SHARE:.0%} of all are "
        "good and nearest to it; touched, in brackets, if any sample is. Seconds are of the "
        "processor, for both trainings.",
        f"{about['cpu']}; {about['cores']} cores, shared, one used; Python {about['python']}, "
        f"torch {about['torch']}; commit {about['commit']}; {results['seconds'] / 60:.0f} minutes "
        "of the processor.",
        "",
    ]
    of = results["mixtures"]
    head = ["objective", "regulariser"]
    for mixture, modes in of.items():
        head += [f"{mixture}: modes of {modes} (touched)", "good"]
    rows = [
        [
            game,
            regulariser(GANConfig(**results["games"][game])),
            *(cell for mixture in of for cell in _cells(found[mixture])),
            f"{sum(found[mixture]['seconds'] for mixture in of):.0f}",
        ]
        for game, found in results["found"].items()
    ]
    data = [cell for mixture in of for cell in _cells(results["data"][mixture])]
    rows.append(["test rows", "", *data, ""])
    return "\n".join([*lines, *table([*head, "seconds"], rows)]) + "\n"


def regulariser(config: GANConfig) -> str:
    """Return what keeps a GAN's critic from being too steep, and how much of it."""
    if config.regulariser in PENALTIES:
        return f"{config.regulariser} {config.penalty:g}"
    return f"clip {config.bound:g}" if config.regulariser == "clip" else config.regulariser


def _cells(found: Results) -> list[str]:
    share, error = found["good"]
    touched = sum(hits > 0 for hits in found["hits"])
    return [f"{found['modes']} ({touched})", f"{share:.3f} ± {error:.3f}"]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
