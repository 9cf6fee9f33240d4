"""Tiny bundles whose every answer is known in closed form, made without any training code.

Each is a few lines of ONNX text and the same in numpy float64.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx.parser

from service import bundle
from service.manifest import (
    Density,
    Event,
    Figure,
    Golden,
    Graph,
    Interface,
    Latent,
    Manifest,
    Provenance,
    Role,
    TensorSpec,
    Tolerance,
)

Floats = npt.NDArray[np.float64]
Arrays = Mapping[str, npt.NDArray[Any]]
Reference = Callable[..., dict[str, npt.NDArray[Any]]]

GOLDEN_ROWS = 8
GOLDEN_DRAWS = 4
TYPES = {"float32": "float", "int64": "int64", "uint8": "uint8"}


@dataclass(frozen=True)
class Tiny:
    """A model small enough to write down.

    `nodes` is the body of each graph in ONNX's text form, `constants` what it may use,
    `references` the same in numpy.
    """

    name: str
    interface: Interface
    nodes: Mapping[Role, str]
    constants: Arrays
    references: Mapping[Role, Reference]

    def graph(self, role: Role) -> bytes:
        inputs, outputs = self.interface.signature(role)
        constants = ", ".join(
            f"{TYPES[str(value.dtype)]}[{','.join(map(str, value.shape))}] {name} = "
            f"{{{','.join(map(str, value.ravel()))}}}"
            for name, value in self.constants.items()
            if f" {name}" in self.nodes[role].replace("(", " ").replace(",", " ")
        )
        text = (
            f'<ir_version: 10, opset_import: ["": 20]> {role} ({_values(inputs)}) => '
            f"({_values(outputs)}) <{constants}> {{ {self.nodes[role]} }}"
        )
        model: bytes = onnx.parser.parse_model(text).SerializeToString()
        return model

    def golden(self) -> dict[str, npt.NDArray[Any]]:
        generator = np.random.default_rng(0)
        arrays: dict[str, npt.NDArray[Any]] = {}
        for role, reference in self.references.items():
            inputs, _ = self.interface.signature(role)
            feeds = {spec.name: self._input(spec, generator) for spec in inputs}
            for name, array in (feeds | reference(**feeds)).items():
                arrays[f"{role}.{name}"] = array
        return arrays

    def files(self) -> dict[str, bytes]:
        stream = BytesIO()
        np.savez(stream, allow_pickle=False, **self.golden())
        graphs = {f"{role}.onnx": self.graph(role) for role in self.nodes}
        return {**graphs, "golden.npz": stream.getvalue(), "card.md": b"# A tiny model\n"}

    def manifest(self, files: Mapping[str, bytes], version: int = 1) -> Manifest:
        return Manifest(
            **dict(self.interface),
            name=self.name,
            version=version,
            title=self.name.capitalize(),
            graphs={role: self._graph(role, files[f"{role}.onnx"]) for role in self.nodes},
            golden=Golden(sha256=bundle.digest(files["golden.npz"]), rows=GOLDEN_ROWS),
            evaluation=(Figure(name="nll", value=1.5, standard_error=0.1, n=100, unit="nats"),),
            provenance=PROVENANCE,
            licence="Apache-2.0",
        )

    def publish(self, models: Path, version: int = 1) -> Path:
        files = self.files()
        return bundle.publish(models, self.manifest(files, version), files)

    def _graph(self, role: Role, data: bytes) -> Graph:
        inputs, outputs = self.interface.signature(role)
        return Graph(
            file=f"{role}.onnx",
            sha256=bundle.digest(data),
            inputs=inputs,
            outputs=outputs,
            tolerance={
                # An image's last grey level may fall to either side of a half.
                spec.name: Tolerance(absolute=1.0 if spec.dtype == "uint8" else 1e-4, relative=1e-5)
                for spec in outputs
            },
            rows_exact_at=8,
        )

    def _input(self, spec: TensorSpec, generator: np.random.Generator) -> npt.NDArray[Any]:
        sizes = {"batch": GOLDEN_ROWS, "draws": GOLDEN_DRAWS}
        shape = [axis if isinstance(axis, int) else sizes[axis] for axis in spec.shape]
        if spec.dtype == "int64":
            return generator.integers(0, len(self.interface.labels or ()), shape)
        if spec.noise == "uniform" or (spec.name == "x" and self.interface.event.kind == "image"):
            return generator.uniform(size=shape).astype(np.float32)
        return generator.normal(size=shape).astype(np.float32)


PROVENANCE = Provenance(
    recipe={},
    data="none: written down by hand",
    data_sha256="0" * 64,
    seed=0,
    versions={"onnx": onnx.__version__},
    git_commit=None,
    wall_time_s=0.0,
    device="none",
    parameters=0,
    created="2026-01-01T00:00:00Z",
)


def _values(specs: tuple[TensorSpec, ...]) -> str:
    return ", ".join(
        f"{TYPES[spec.dtype]}[{','.join(map(str, spec.shape))}] {spec.name}" for spec in specs
    )


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

# Probabilistic PCA (Tipping & Bishop 1999): x = z W + b + s e. The rows of W are orthogonal, so
# the posterior is diagonal. q is wider than it, by WIDER, so that estimates are not exact.
WEIGHT = np.array([[1.0, 1.0, 0.0], [0.5, -0.5, 1.0]])
BIAS = np.array([0.5, 0.0, -0.5])
NOISE = 0.5
WIDER = 1.25
PRECISION = (WEIGHT**2).sum(axis=1) / NOISE**2 + 1
TO_MEAN = WEIGHT.T / NOISE**2 / PRECISION
SCALE = WIDER / np.sqrt(PRECISION)


def ppca_log_density(x: Floats) -> Floats:
    covariance = WEIGHT.T @ WEIGHT + NOISE**2 * np.eye(3)
    apart = x - BIAS
    distance = (apart @ np.linalg.inv(covariance) * apart).sum(axis=1)
    return np.asarray(-0.5 * (distance + np.linalg.slogdet(2 * np.pi * covariance)[1]))


def ppca_elbo(x: Floats) -> Floats:
    """The bound in closed form: log p(x) - KL(q || posterior), the same for every x."""
    gap = 2 * (-np.log(WIDER) + 0.5 * (WIDER**2 - 1))
    return np.asarray(ppca_log_density(x) - gap)


def _ppca_elbo_graph(x: Floats, noise: Floats) -> dict[str, Floats]:
    mean = (x - BIAS) @ TO_MEAN
    z = mean[:, None] + SCALE * noise
    apart = (x[:, None] - z @ WEIGHT - BIAS) / NOISE
    reconstruction = -0.5 * (apart**2).sum(axis=2) - 1.5 * np.log(2 * np.pi * NOISE**2)
    kl = (-np.log(SCALE) + 0.5 * (SCALE**2 + mean**2 - 1)).sum(axis=1)
    ratio = (0.5 * noise**2 - 0.5 * z**2 + np.log(SCALE)).sum(axis=2)
    return {"reconstruction": reconstruction, "kl": kl, "log_weight": reconstruction + ratio}


PPCA = Tiny(
    name="ppca",
    interface=Interface(
        family="vae",
        event=Event(kind="vector", shape=(3,)),
        latent=Latent(shape=(2,)),
        observation="normal",
        density=Density(kind="estimate", estimator="importance", measure="per unit of x"),
    ),
    nodes={
        "decode": "y = MatMul(z, weight) x = Add(y, bias)",
        "observe": "y = MatMul(z, weight) m = Add(y, bias) e = Mul(noise, spread) x = Add(m, e)",
        "encode": "y = Sub(x, bias) mean = MatMul(y, to_mean) o = Mul(mean, zero) "
        "scale = Add(o, posterior)",
        "elbo": "y = Sub(x, bias) mean = MatMul(y, to_mean) m = Unsqueeze(mean, one) "
        "e = Mul(noise, posterior) z = Add(m, e) w = MatMul(z, weight) v = Add(w, bias) "
        "u = Unsqueeze(x, one) d = Sub(u, v) t = Div(d, spread) q = Mul(t, t) "
        "s = ReduceSum<keepdims=0>(q, two) h = Mul(s, minus_half) "
        "reconstruction = Sub(h, log_norm) "
        "mm = Mul(mean, mean) ms = ReduceSum<keepdims=0>(mm, one) mh = Mul(ms, minus_half) "
        "kl = Sub(kl_offset, mh) "
        "zz = Mul(z, z) nn = Mul(noise, noise) nz = Sub(zz, nn) "
        "ns = ReduceSum<keepdims=0>(nz, two) nh = Mul(ns, minus_half) "
        "r = Add(nh, log_scale) log_weight = Add(reconstruction, r)",
    },
    constants={
        "weight": WEIGHT.astype(np.float32),
        "bias": BIAS.astype(np.float32),
        "to_mean": TO_MEAN.astype(np.float32),
        "spread": np.array([NOISE], np.float32),
        "posterior": SCALE.astype(np.float32),
        "zero": np.array([0], np.float32),
        "one": np.array([1]),
        "two": np.array([2]),
        "minus_half": np.array([-0.5], np.float32),
        "log_norm": np.array([1.5 * np.log(2 * np.pi * NOISE**2)], np.float32),
        "log_scale": np.array([np.log(SCALE).sum()], np.float32),
        "kl_offset": np.array([(-np.log(SCALE) + 0.5 * (SCALE**2 - 1)).sum()], np.float32),
    },
    references={
        "decode": lambda z: {"x": z @ WEIGHT + BIAS},
        "observe": lambda z, noise: {"x": z @ WEIGHT + BIAS + NOISE * noise},
        "encode": lambda x: {
            "mean": (x - BIAS) @ TO_MEAN,
            "scale": np.broadcast_to(SCALE, (len(x), 2)),
        },
        "elbo": _ppca_elbo_graph,
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
