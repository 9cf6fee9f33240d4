"""Small data sets of the data tests, and how they are written to disk and loaded."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn import datasets

from training.data import Data, DataConfig, load


def data(source: object, **options: object) -> Data:
    return load(DataConfig.model_validate({"source": str(source), **options}))


def numbered(n: int = 100, features: int = 3) -> np.ndarray:
    """Rows that can be told apart: row k holds k, k + 1000, ..."""
    return (np.arange(n)[:, None] + 1000.0 * np.arange(features)).astype(np.float32)


def grey(n: int = 30, height: int = 4, width: int = 5) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, height, width), dtype=np.uint8)


def save(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, allow_pickle=True, **arrays)
    return path


def save_images(folder: Path, images: np.ndarray, *, classes: tuple[str, ...] = ()) -> Path:
    for k, image in enumerate(images):
        home = folder / classes[k % len(classes)] if classes else folder
        home.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(home / f"{k:03}.png")
    return folder


def fake_openml(monkeypatch: pytest.MonkeyPatch, answer: Callable[[str], object]) -> None:
    monkeypatch.setattr(datasets, "fetch_openml", lambda name, **_: answer(name))
