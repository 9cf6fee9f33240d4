"""What every peer computes: images of a seed, and log-densities. The same code for all of them.

It runs in the peers' own environments, with numpy, onnxruntime and orjson and nothing of ours.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before the import, as the service does

import numpy as np
from onnxruntime import InferenceSession as InferenceSession
from onnxruntime import SessionOptions

MODELS = Path(__file__).parents[2] / "models"
LATENT, LABELS = 64, 10
ROWS_AT_ONCE = 32
"""Most rows of one run: the fastest of 1 to 128 on the machine this was written on, or near it."""

Array = np.ndarray[Any, Any]


def session(file: str, threads: int = 1) -> InferenceSession:
    """Return a session of a shipped graph, with so many threads inside a run."""
    options = SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return InferenceSession(MODELS / file, options, providers=["CPUExecutionProvider"])


def noise(seed: int, n: int) -> tuple[Array, Array]:
    """Return z (n, 64) and labels (n,) of a seed, by numpy's fastest way."""
    generator = np.random.default_rng(seed)
    z = generator.standard_normal((n, LATENT), dtype=np.float32)
    return z, generator.integers(0, LABELS, n)


class Generator:
    """Images of seeds. Safe to call from several threads."""

    def __init__(self) -> None:
        self._session = session("mnist-gan/1/decode.onnx")
        self.images([(0, ROWS_AT_ONCE)])

    def images(self, asked: Sequence[tuple[int, int]]) -> list[Array]:
        """Return x (n, 1, 28, 28) for each (seed, n), computed together."""
        drawn = [noise(seed, n) for seed, n in asked]
        z = np.concatenate([each for each, _ in drawn])
        label = np.concatenate([each for _, each in drawn])
        return np.split(self.decode(z, label), np.cumsum([n for _, n in asked])[:-1])

    def decode(self, z: Array, label: Array) -> Array:
        """Return x for each row of z."""
        parts: list[Array] = []
        for first in range(0, len(z), ROWS_AT_ONCE):
            part = slice(first, first + ROWS_AT_ONCE)
            parts += self._session.run(["x"], {"z": z[part], "label": label[part]})
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


class Density:
    """Log-densities of points in the plane. Safe to call from several threads."""

    def __init__(self) -> None:
        self._session = session("moons-flow/1/encode.onnx")
        self.log_density([np.zeros((64, 2), dtype=np.float32)])

    def log_density(self, asked: Sequence[Array]) -> list[Array]:
        """Return log p (n,) for each x (n, 2), computed together."""
        (values,) = self._session.run(["log_density"], {"x": np.concatenate(asked)})
        return np.split(values, np.cumsum([len(x) for x in asked])[:-1])


def to_json(name: str, array: Array) -> bytes:
    """Return {name: nested lists}, by the fastest library for it."""
    import orjson  # not in Triton's environment, which writes JSON itself

    return orjson.dumps({name: array}, option=orjson.OPT_SERIALIZE_NUMPY)
