"""The named extractor is the one it is said to be, and can be made again."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from training import __main__ as command
from training import extractor
from training.classifier import read
from training.extractor import ExtractorInvalid, lenet, load, scaled

SMALL_BYTES = 2**20


def digits(path: Path, rows: int = 300) -> Path:
    """Write images of ten classes, which are told apart by where a square lies."""
    generator = np.random.default_rng(0)
    label = np.arange(rows) % 10
    x = generator.integers(0, 60, (rows, 28, 28))
    for image, which in zip(x, label, strict=True):
        down, right = divmod(which, 4)
        image[4 + 7 * down :, 2 + 6 * right :][:6, :5] = 255
    np.savez(path, x=x.astype(np.uint8), y=label)
    return path


def test_shipped_network_is_small_and_named_with_its_accuracy() -> None:
    network, known = load()
    assert known.name == "mnist-lenet"
    assert known.accuracy > 0.99
    assert known.test_rows == 10_000
    weights = (extractor.FOLDER / "mnist-lenet.npz").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == known.sha256
    assert len(weights) < SMALL_BYTES
    x = torch.rand(5, *extractor.SHAPE)
    features = read(network[:-1], x)
    assert features.shape == (5, known.features)
    assert not network[0].weight.requires_grad


def test_other_weights_are_refused(tmp_path: Path) -> None:
    for path in extractor.FOLDER.iterdir():
        shutil.copy(path, tmp_path)
    weights = tmp_path / "mnist-lenet.npz"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(ExtractorInvalid, match="expected SHA-256"):
        load(tmp_path)


def test_features_are_scaled_and_answers_stay() -> None:
    torch.manual_seed(0)
    network, x = lenet().eval(), torch.rand(50, *extractor.SHAPE)
    before = read(network, x)
    scaled(network, x)
    assert torch.allclose(read(network, x), before, atol=1e-5)
    assert read(network[:-1], x).square().mean().item() == pytest.approx(1.0, rel=1e-4)


def test_command_trains_it_anew_and_says_how_good_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = digits(tmp_path / "squares.npz"), tmp_path / "made"
    options = ["features", "--data", str(data), "--test-tail", "60", "--steps", "40"]
    assert command.main([*options, "--out", str(out)]) == 0
    assert "of 60 test rows right; written to" in capsys.readouterr().out
    _, known = load(out)
    assert known.accuracy > 0.5
    assert (known.test_rows, known.steps) == (60, 40)
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    assert command.main([*options, "--out", str(out)]) == 0
    assert {path.name: path.read_bytes() for path in out.iterdir()} == first


def test_other_data_gets_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["features", "--data", "sklearn:iris"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
