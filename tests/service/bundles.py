"""Tiny bundles whose every answer is known in closed form, made without any training code.

Each is a few lines of ONNX text and the same in numpy float64. Those with a posterior are in
`ppca`.
"""

import math
from dataclasses import replace
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from service.interface import ATTEMPTS, Context, Density, Event, Interface, Latent
from service.manifest import Rejection
from tests.service.ppca import PPCA
from tests.service.tiny import Floats, Tiny

# A two-dimensional affine flow: x = z A + c, so that x ~ N(c, A^T A).
MIX = np.array([[2.0, 0.5], [0.0, 0.25]])
SHIFT = np.array([1.0, -1.0])
LOG_DET = float(np.log(np.abs(np.linalg.det(MIX))))


def affine_log_density(x: Floats) -> Floats:
    z = (x - SHIFT) @ np.linalg.inv(MIX)
    return np.asarray(-0.5 * (z**2).sum(axis=1) - np.log(2 * np.pi) - LOG_DET)


AFFINE = Tiny(
    name="affine",
    interface=Interface(
        family="flow",
        event=Event(kind="vector", shape=(2,), features=("left", "right")),
        latent=Latent(shape=(2,)),
        density=Density(kind="exact", estimator="exact", measure="per unit of x"),
    ),
    nodes={
        "decode": "y = MatMul(z, mix) x = Add(y, shift)",
        "encode": "y = Sub(x, shift) z = MatMul(y, unmix) s = ReduceSum<keepdims=0>(z, last) "
        "o = Mul(s, zero) log_abs_det = Sub(o, log_det)",
        "log_density": "y = Sub(x, shift) z = MatMul(y, unmix) q = Mul(z, z) "
        "s = ReduceSum<keepdims=0>(q, last) h = Mul(s, minus_half) log_density = Sub(h, log_norm)",
    },
    constants={
        "mix": MIX.astype(np.float32),
        "unmix": np.linalg.inv(MIX).astype(np.float32),
        "shift": SHIFT.astype(np.float32),
        "last": np.array([1]),
        "zero": np.array([0], np.float32),
        "minus_half": np.array([-0.5], np.float32),
        "log_det": np.array([LOG_DET], np.float32),
        "log_norm": np.array([LOG_DET + np.log(2 * np.pi)], np.float32),
    },
    references={
        "decode": lambda z: {"x": z @ MIX + SHIFT},
        "encode": lambda x: {
            "z": (x - SHIFT) @ np.linalg.inv(MIX),
            "log_abs_det": np.full(len(x), -LOG_DET),
        },
        "log_density": lambda x: {"log_density": affine_log_density(x)},
    },
)

# A conditional generator of 4 x 4 grey images: x = sigmoid(z P + offset of the label).
PATTERN = np.random.default_rng(1).normal(size=(2, 16))
OFFSETS = np.array([[-1.0], [0.0], [1.0]])


def _tiles(z: Floats, label: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[Any]]:
    x = (1 / (1 + np.exp(-(z @ PATTERN + OFFSETS[label])))).reshape(-1, 1, 4, 4)
    return {"x": x, "pixels": np.rint(255 * x).transpose(0, 2, 3, 1)}


TO_PIXELS = "t = Transpose<perm=[0, 2, 3, 1]>(x) f = Mul(t, white) i = Round(f) "
TO_PIXELS += "pixels = Cast<to=2>(i)"

TILES = Tiny(
    name="tiles",
    interface=Interface(
        family="gan",
        event=Event(kind="image", shape=(1, 4, 4), minimum=0, maximum=1),
        latent=Latent(shape=(2,)),
        labels=("dark", "grey", "light"),
        density=Density(kind="none", estimator=None),
    ),
    nodes={
        "decode": "y = MatMul(z, pattern) o = Gather(offsets, label) a = Add(y, o) "
        f"g = Sigmoid(a) x = Reshape(g, shape) {TO_PIXELS}",
    },
    constants={
        "pattern": PATTERN.astype(np.float32),
        "offsets": OFFSETS.astype(np.float32),
        "shape": np.array([-1, 1, 4, 4]),
        "white": np.array([255], np.float32),
    },
    references={"decode": _tiles},
)

# An image flow over 2 x 2 colour pixels of LEVELS greys: y = (level + u) / LEVELS = sigmoid(z).
LEVELS = 4


def grains_log_density(x: Floats) -> Floats:
    """log P(x) in closed form: each value is a logistic-normal that fell into its level."""
    edges = np.arange(1, LEVELS) / LEVELS
    below = np.array([0, *map(NormalDist().cdf, np.log(edges / (1 - edges))), 1])
    level = np.rint(x * (LEVELS - 1)).astype(int)
    return np.asarray(np.log(np.diff(below))[level].reshape(len(x), -1).sum(axis=1))


def _grains_encode(x: Floats, noise: Floats) -> dict[str, Floats]:
    y = (np.rint(x * (LEVELS - 1)) + noise) / LEVELS
    z = np.log(y / (1 - y))
    slopes = np.log(1 / (y * (1 - y)) / LEVELS)
    return {"z": z, "log_abs_det": slopes.reshape(len(x), -1).sum(axis=1)}


def _grains_log_density(x: Floats, noise: Floats) -> dict[str, Floats]:
    code = _grains_encode(x, noise)
    prior = -0.5 * code["z"] ** 2 - 0.5 * np.log(2 * np.pi)
    return {"log_density": prior.reshape(len(x), -1).sum(axis=1) + code["log_abs_det"]}


def _grains_decode(z: Floats) -> dict[str, npt.NDArray[Any]]:
    x = np.floor(LEVELS / (1 + np.exp(-z))) / (LEVELS - 1)
    return {"x": x, "pixels": np.rint(255 * x).transpose(0, 2, 3, 1)}


_TO_CODE = (
    "w = Mul(x, top) k = Round(w) n = Add(k, noise) y = Div(n, levels) i = Sub(unit, y) "
    "r = Div(y, i) z = Log(r) p = Mul(y, i) pl = Mul(p, levels) lp = Log(pl) "
    "sl = ReduceSum<keepdims=0>(lp, inner) log_abs_det = Neg(sl)"
)

GRAINS = Tiny(
    name="grains",
    interface=Interface(
        family="flow",
        event=Event(kind="image", shape=(3, 2, 2), minimum=0, maximum=1, levels=LEVELS),
        latent=Latent(shape=(3, 2, 2)),
        density=Density(kind="estimate", estimator="dequantisation", measure="the 2-bit image"),
    ),
    nodes={
        "decode": "y = Sigmoid(z) s = Mul(y, levels) k = Floor(s) x = Div(k, top) "
        + TO_PIXELS.replace("i = ", "ii = ").replace("(i)", "(ii)"),
        "encode": _TO_CODE,
        "log_density": f"{_TO_CODE} zz = Mul(z, z) h = Mul(zz, minus_half) "
        "sh = ReduceSum<keepdims=0>(h, inner) lp0 = Sub(sh, log_norm) "
        "log_density = Add(lp0, log_abs_det)",
    },
    constants={
        "top": np.array([LEVELS - 1], np.float32),
        "levels": np.array([LEVELS], np.float32),
        "unit": np.array([1], np.float32),
        "inner": np.array([1, 2, 3]),
        "minus_half": np.array([-0.5], np.float32),
        "log_norm": np.array([6 * np.log(2 * np.pi)], np.float32),
        "white": np.array([255], np.float32),
    },
    references={
        "decode": _grains_decode,
        "encode": _grains_encode,
        "log_density": _grains_log_density,
    },
)

_AWAY = "z = Sub(x, context) "
_DENSITY = (
    "q = Mul(z, z) s = ReduceSum<keepdims=0>(q, last) h = Mul(s, minus_half) "
    "log_density = Sub(h, log_norm)"
)


def normal_log_density(x: np.ndarray, context: np.ndarray) -> np.ndarray:
    return np.asarray(-0.5 * ((x - context) ** 2).sum(axis=1) - math.log(2 * math.pi))


SHIFTED = Tiny(
    name="shifted",
    interface=Interface(
        family="flow",
        event=Event(kind="vector", shape=(2,)),
        latent=Latent(shape=(2,)),
        context=Context(names=("left", "right"), minimum=(-1.0, -2.0), maximum=(1.0, 2.0)),
        density=Density(kind="exact", estimator="exact", measure="per unit of x"),
    ),
    nodes={
        "decode": "x = Add(z, context)",
        "encode": _AWAY + "s = ReduceSum<keepdims=0>(z, last) log_abs_det = Mul(s, zero)",
        "log_density": _AWAY + _DENSITY,
    },
    constants={
        "last": np.array([1]),
        "zero": np.array([0], np.float32),
        "minus_half": np.array([-0.5], np.float32),
        "log_norm": np.array([math.log(2 * math.pi)], np.float32),
    },
    references={
        "decode": lambda z, context: {"x": z + context},
        "encode": lambda x, context: {"z": x - context, "log_abs_det": np.zeros(len(x))},
        "log_density": lambda x, context: {"log_density": normal_log_density(x, context)},
    },
)
"""Told two numbers with each row: x = z + context."""

# A generator whose samples are too far apart: x = z + offset of the label, where the data has half
# the spread. p/q is largest at the offset, 4, and all samples are accepted with 1/4 on average.
SIDES = np.array([[-1.0, 0.0], [2.0, 1.0]])


def wide_log_ratio(x: Floats, label: npt.NDArray[np.int64]) -> Floats:
    return np.asarray(math.log(4) - 1.5 * ((x - SIDES[label]) ** 2).sum(axis=1))


WIDE = Tiny(
    name="wide",
    interface=Interface(
        family="gan",
        event=Event(kind="vector", shape=(2,)),
        latent=Latent(shape=(2,)),
        labels=("low", "high"),
        density=Density(kind="none", estimator=None),
    ),
    nodes={
        "decode": "o = Gather(sides, label) x = Add(z, o)",
        "critic": "o = Gather(sides, label) d = Sub(x, o) q = Mul(d, d) "
        "s = ReduceSum<keepdims=0>(q, last) h = Mul(s, steep) log_ratio = Add(h, top)",
    },
    constants={
        "sides": SIDES.astype(np.float32),
        "last": np.array([1]),
        "steep": np.array([-1.5], np.float32),
        "top": np.array([math.log(4)], np.float32),
    },
    references={
        "decode": lambda z, label: {"x": z + SIDES[label]},
        "critic": lambda x, label: {"log_ratio": wide_log_ratio(x, label)},
    },
    rejection=Rejection(log_bound=math.log(4), acceptance=0.25, rows=10_000),
)
"""Those that are accepted are normal around the offset, of variance 1/4."""

STRICT = replace(
    WIDE,
    name="strict",
    rejection=Rejection(log_bound=60.0, acceptance=1 / ATTEMPTS, rows=10_000),
)
"""No ratio is near its bound."""

KEPT_TILES = replace(
    TILES,
    name="kept-tiles",
    nodes={
        **TILES.nodes,
        "critic": "d = Gather(offsets, label) s = ReduceSum<keepdims=0>(x, inner) "
        "f = Squeeze(d, last) e = Mul(f, zero) t = Add(s, e) log_ratio = Mul(t, zero)",
    },
    constants={
        **TILES.constants,
        "inner": np.array([1, 2, 3]),
        "last": np.array([1]),
        "zero": np.array([0], np.float32),
    },
    references={
        **TILES.references,
        "critic": lambda x, label: {"log_ratio": np.zeros(len(x))},
    },
    rejection=Rejection(log_bound=0.0, acceptance=1.0, rows=10_000),
)
"""Its critic tells nothing, and accepts the first candidate of all."""

REJECTING = (WIDE, STRICT, KEPT_TILES)

ALL = (AFFINE, GRAINS, PPCA, TILES)


def step(version: int, name: str = "steps") -> Tiny:
    """A generator that is another one in each version: x = z + version."""
    return Tiny(
        name=name,
        interface=Interface(
            family="gan",
            event=Event(kind="vector", shape=(2,)),
            latent=Latent(shape=(2,)),
            density=Density(kind="none", estimator=None),
        ),
        nodes={"decode": "x = Add(z, shift)"},
        constants={"shift": np.array([version], np.float32)},
        references={"decode": lambda z: {"x": z + version}},
    )
