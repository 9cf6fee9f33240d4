"""A named extractor of features: a small LeNet that reads MNIST's digits, and how it was made.

Figures of features can only be compared where the features are the same. So this network comes with
the package, under a name, with its accuracy and the SHA-256 of its weights:

    python -m training features --data openml:mnist_784

trains it again and puts it in its place.

Source:
    LeCun et al. 1998, "Gradient-based learning applied to document recognition": the architecture,
    here with ReLU and maxima. For features of a LeNet in place of Inception's, which has seen
    photographs and no digits: Binkowski et al. 2018, arXiv:1801.01401, section 5.
"""

import argparse
import hashlib
import io
from pathlib import Path
from typing import cast

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from rich.console import Console
from torch import Tensor, nn

from service.interface import Frozen
from training import data
from training.classifier import fit, read, recognised
from training.data import Data, DataConfig
from training.raw import DataInvalid
from training.representation import share_error

NAME = "mnist-lenet"
FOLDER = Path(__file__).parent / "extractors"
SHAPE = (1, 28, 28)
CLASSES = 10
STEPS = 6000
"""Of training: 14 times through the training rows, four minutes of one core."""
SHIFT = 2
"""Pixels by which the images of a step are moved, at most, along each axis."""


class Extractor(Frozen):
    """What is known of a network whose features figures are of."""

    name: str
    accuracy: float = Field(ge=0, le=1, description="Of test rows, the share whose label it reads.")
    standard_error: float
    test_rows: int
    features: int
    data: str
    data_sha256: str
    steps: int
    seed: int
    sha256: str = Field(description="Of the file of its weights.")


class ExtractorInvalid(Exception):
    """The weights are not those that the description is of; the message says which."""


def lenet() -> nn.Sequential:
    """Return the network with random weights; what its last layer sees are the features."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(512, 84),
        nn.ReLU(),
        nn.Linear(84, CLASSES),
    )


def load(folder: Path = FOLDER) -> tuple[nn.Sequential, Extractor]:
    """Return the trained network, on the CPU, and what is known of it.

    Raises:
        ExtractorInvalid: The weights are others.
    """
    known = Extractor.model_validate_json((folder / f"{NAME}.json").read_text(encoding="utf-8"))
    weights = (folder / f"{NAME}.npz").read_bytes()
    if (found := hashlib.sha256(weights).hexdigest()) != known.sha256:
        raise ExtractorInvalid(
            f"{folder / NAME}.npz: expected SHA-256 {known.sha256}; got {found}. Install the "
            f"package again, or train it: python -m training features"
        )
    network = lenet()
    with np.load(io.BytesIO(weights), allow_pickle=False) as arrays:
        network.load_state_dict({name: torch.from_numpy(arrays[name]) for name in arrays})
    return network.eval().requires_grad_(False), known


def train(rows: Data, *, steps: int, seed: int) -> tuple[bytes, Extractor]:
    """Return the file of the weights of a network trained on digits, and its description."""
    torch.manual_seed(seed)
    network = scaled(fit(lenet(), rows.train, steps=steps, change=_moved), rows.train.x)
    right, count = recognised(network, rows.test), len(rows.test)
    file = io.BytesIO()
    np.savez(file, **{name: each.numpy() for name, each in network.state_dict().items()})
    return file.getvalue(), Extractor(
        name=NAME,
        accuracy=right / count,
        standard_error=share_error(right, count),
        test_rows=count,
        features=cast(nn.Linear, network[-1]).in_features,
        data=rows.description,
        data_sha256=rows.sha256,
        steps=steps,
        seed=seed,
        sha256=hashlib.sha256(file.getvalue()).hexdigest(),
    )


@torch.no_grad()
def scaled(network: nn.Sequential, x: Float[Tensor, "rows ..."]) -> nn.Sequential:
    """Return the network with features whose mean square over events is 1, and the same answers.

    KID's kernel adds 1 to a product of features, and so depends on their unit.
    """
    size = read(network[:-1], x).square().mean().sqrt()
    before, last = (cast(nn.Linear, network[place]) for place in (-3, -1))
    for each in (before.weight, before.bias):
        each.div_(size)
    last.weight.mul_(size)
    return network


def _moved(x: Tensor) -> Tensor:
    """Return images that are moved by a few pixels, all alike; what comes in is black."""
    padded = nn.functional.pad(x, (SHIFT,) * 4)
    down, right = torch.randint(2 * SHIFT + 1, (2,)).tolist()
    return padded[..., down : down + x.shape[-2], right : right + x.shape[-1]]


def run(options: argparse.Namespace) -> None:
    """Train the extractor as the options say and put it in its place.

    Raises:
        training.raw.DataInvalid: The data cannot be used, or is no digits of MNIST's size.
    """
    console = Console(highlight=False, soft_wrap=True)
    config = DataConfig(
        source=options.data, shape=SHAPE, test_tail=options.test_tail, validation_fraction=0.08
    )
    rows = data.load(config)
    if rows.event.shape != SHAPE or len(rows.labels or ()) != CLASSES:
        raise DataInvalid(f"{options.data}: expected images of {SHAPE} in {CLASSES} classes")
    console.print(rows.description, markup=False)
    weights, known = train(rows, steps=options.steps, seed=options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{NAME}.npz").write_bytes(weights)
    text = known.model_dump_json(indent=2) + "\n"
    (options.out / f"{NAME}.json").write_text(text, encoding="utf-8")
    console.print(
        f"{NAME}: {known.accuracy:.4f} ± {known.standard_error:.4f} of {known.test_rows:,} test "
        f"rows right; written to {options.out}",
        markup=False,
    )


def parser() -> argparse.ArgumentParser:
    """Return the parser of `python -m training features`."""
    made = argparse.ArgumentParser(
        prog="python -m training features",
        description=f"Train {NAME}, whose features the figures of MNIST's samples are of, and put "
        "it into the package. Figures of other weights cannot be compared with these.",
    )
    made.add_argument("--data", default="openml:mnist_784", metavar="SOURCE", help="MNIST")
    made.add_argument(
        "--test-tail", type=int, default=10_000, metavar="N", help="its last rows, for the test"
    )
    made.add_argument("--steps", type=int, default=STEPS, metavar="N", help="of training")
    made.add_argument("--seed", type=int, default=0, metavar="N")
    made.add_argument("--out", type=Path, default=FOLDER, metavar="FOLDER")
    return made
