"""Tiny continuous flows whose paths are known in closed form: their velocities are linear in w."""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from service.interface import Context, Density, Event, Interface, Latent, Ode
from tests.service.tiny import Floats, Tiny


def expm(matrix: Floats) -> Floats:
    """Return the exponential of a matrix: a series for a small part of it, then its power."""
    part, total = np.eye(len(matrix)), np.eye(len(matrix))
    for order in range(1, 12):
        part = part @ matrix / 2**10 / order
        total = total + part
    return np.asarray(np.linalg.matrix_power(total, 2**10))


# A vector: dw/dt = 2 t w A, so that w(1) = z expm(A), and x = 3 w + SHIFT.
TURN = np.array([[0.3, 1.1], [-1.4, 0.2]])
SHIFT = np.array([5.0, -2.0])
STRETCH = 3.0


def spiral_decode(z: Floats) -> Floats:
    return np.asarray(STRETCH * (z @ expm(TURN)) + SHIFT)


def spiral_encode(x: Floats) -> tuple[Floats, float]:
    """Return z and log |det dz/dx|."""
    z = (x - SHIFT) / STRETCH @ expm(-TURN)
    return z, -float(np.trace(TURN)) - 2 * float(np.log(STRETCH))


def spiral_log_density(x: Floats) -> Floats:
    z, log_abs_det = spiral_encode(x)
    return np.asarray(-0.5 * (z**2).sum(axis=1) - np.log(2 * np.pi) + log_abs_det)


def _spiral_velocity(w: Floats, t: Floats) -> dict[str, Floats]:
    return {"velocity": 2 * t[:, None] * (w @ TURN)}


_SPIRAL = (
    "a = Unsqueeze(t, last) b = Mul(a, two) c = MatMul(w, turn) velocity = Mul(b, c)"
    " d = Mul(t, trace) divergence = Mul(d, two)"
)

SPIRAL = Tiny(
    name="spiral",
    interface=Interface(
        family="continuous-flow",
        event=Event(kind="vector", shape=(2,)),
        latent=Latent(shape=(2,)),
        density=Density(kind="exact", estimator="exact", measure="per unit of x"),
        ode=Ode(solver="rk4", steps=20),
    ),
    nodes={
        "velocity": _SPIRAL.partition(" d =")[0],
        "divergence": _SPIRAL,
        "enter": "y = Sub(x, shift) w = Div(y, stretch) s = ReduceSum<keepdims=0>(x, last) "
        "o = Mul(s, zero) log_abs_det = Sub(o, log_det)",
        "leave": "y = Mul(w, stretch) x = Add(y, shift)",
    },
    constants={
        "turn": TURN.astype(np.float32),
        "trace": np.array([np.trace(TURN)], np.float32),
        "two": np.array([2], np.float32),
        "shift": SHIFT.astype(np.float32),
        "stretch": np.array([STRETCH], np.float32),
        "last": np.array([1]),
        "zero": np.array([0], np.float32),
        "log_det": np.array([2 * np.log(STRETCH)], np.float32),
    },
    references={
        "velocity": _spiral_velocity,
        "divergence": lambda w, t: {
            **_spiral_velocity(w, t),
            "divergence": 2 * t * np.trace(TURN),
        },
        "enter": lambda x: {
            "w": (x - SHIFT) / STRETCH,
            "log_abs_det": np.full(len(x), -2 * np.log(STRETCH)),
        },
        "leave": lambda w: {"x": STRETCH * w + SHIFT},
    },
)

# A vector that is told where the wind blows: dw/dt = GROWTH w + context, and x = w.
GROWTH = 0.5


def wind_decode(z: Floats, context: Floats) -> Floats:
    return np.asarray(np.exp(GROWTH) * z + np.expm1(GROWTH) / GROWTH * context)


def wind_encode(x: Floats, context: Floats) -> tuple[Floats, float]:
    """Return z and log |det dz/dx|."""
    return np.exp(-GROWTH) * (x - wind_decode(np.zeros(2), context)), -2 * GROWTH


def _wind_velocity(w: Floats, t: Floats, context: Floats) -> dict[str, Floats]:
    return {"velocity": GROWTH * w + context}


_WIND = (
    "o = Mul(t, zero) a = Unsqueeze(o, last) g = Mul(w, growth) h = Add(g, context) "
    "velocity = Add(h, a)"
)

WIND = Tiny(
    name="wind",
    interface=Interface(
        family="continuous-flow",
        event=Event(kind="vector", shape=(2,)),
        latent=Latent(shape=(2,)),
        context=Context(names=("east", "north"), minimum=(-1.0, -2.0), maximum=(1.0, 2.0)),
        density=Density(kind="exact", estimator="exact", measure="per unit of x"),
        ode=Ode(solver="rk4", steps=20),
    ),
    nodes={
        "velocity": _WIND,
        "divergence": f"{_WIND} divergence = Add(o, twice)",
        "enter": "w = Identity(x) s = ReduceSum<keepdims=0>(x, last) log_abs_det = Mul(s, zero)",
        "leave": "x = Identity(w)",
    },
    constants={
        "growth": np.array([GROWTH], np.float32),
        "twice": np.array([2 * GROWTH], np.float32),
        "last": np.array([1]),
        "zero": np.array([0], np.float32),
    },
    references={
        "velocity": _wind_velocity,
        "divergence": lambda w, t, context: {
            **_wind_velocity(w, t, context),
            "divergence": np.full(len(w), 2 * GROWTH),
        },
        "enter": lambda x: {"w": x, "log_abs_det": np.zeros(len(x))},
        "leave": lambda w: {"x": w},
    },
)

# An image of 2 x 2 pixels: dw/dt = w PULL + PUSH[label], w = 2 (level + u) / LEVELS - 1. The last
# push, which ONNX also finds at -1, is that of no label.
LEVELS = 4
PULL = np.random.default_rng(4).normal(size=(4, 4)) * 0.4
PUSH = np.array([[-0.5] * 4, [0.5] * 4, [0.1, 0.2, 0.3, 0.4]])


def drift_path(
    z: Floats, label: npt.NDArray[np.int64], *, time: float = 1.0, guidance: float = 0.0
) -> Floats:
    """Return where a path is after so much time, (n, 4)."""
    # The constant push is one more number that stays 1.
    found = np.empty((len(z), 4))
    for row, which in enumerate(label):
        field = np.zeros((5, 5))
        field[:4, :4], field[4, :4] = PULL, PUSH[which] + guidance * (PUSH[which] - PUSH[-1])
        found[row] = (np.append(z[row], 1.0) @ expm(time * field))[:4]
    return found


def drift_enter(x: Floats, noise: Floats) -> Floats:
    return np.asarray(2 * (np.rint(x * (LEVELS - 1)) + noise) / LEVELS - 1)


def _drift_velocity(w: Floats, t: Floats, label: npt.NDArray[np.int64]) -> dict[str, Floats]:
    return {"velocity": (w.reshape(-1, 4) @ PULL + PUSH[label]).reshape(w.shape)}


def _drift_leave(w: Floats) -> dict[str, npt.NDArray[Any]]:
    x = (((w + 1) / 2 * LEVELS - 0.5) / (LEVELS - 1)).clip(0, 1)
    return {"x": x, "pixels": np.rint(255 * x).transpose(0, 2, 3, 1)}


LOG_STRETCH = 4 * float(np.log(2 / LEVELS))
_DRIFT = (
    "r = Reshape(w, flat) c = MatMul(r, pull) p = Gather(push, label) v = Add(c, p) "
    "tt = Unsqueeze(t, last) nothing = Mul(tt, zero) vv = Add(v, nothing) "
    "velocity = Reshape(vv, shape)"
)

DRIFT = Tiny(
    name="drift",
    interface=Interface(
        family="continuous-flow",
        event=Event(kind="image", shape=(1, 2, 2), minimum=0, maximum=1, levels=LEVELS),
        latent=Latent(shape=(1, 2, 2)),
        labels=("down", "up"),
        density=Density(kind="estimate", estimator="hutchinson", measure="the 2-bit image"),
        ode=Ode(solver="midpoint", steps=40),
    ),
    nodes={
        "velocity": _DRIFT,
        "divergence": f"{_DRIFT} g = Sign(probe) s = Reshape(g, flat) sp = MatMul(s, pull) "
        "q = Mul(s, sp) divergence = ReduceSum<keepdims=0>(q, last)",
        "enter": "a = Mul(x, top) k = Round(a) n = Add(k, noise) h = Div(n, half_levels) "
        "w = Sub(h, unit) f = Reshape(x, flat) s = ReduceSum<keepdims=0>(f, last) "
        "o = Mul(s, zero) log_abs_det = Add(o, log_stretch)",
        "leave": "a = Add(w, unit) b = Mul(a, half_levels) c = Sub(b, half) d = Div(c, top) "
        "e = Max(d, zero) x = Min(e, unit) tr = Transpose<perm=[0, 2, 3, 1]>(x) "
        "fw = Mul(tr, white) i = Round(fw) pixels = Cast<to=2>(i)",
    },
    constants={
        "pull": PULL.astype(np.float32),
        "push": PUSH.astype(np.float32),
        "flat": np.array([-1, 4]),
        "shape": np.array([-1, 1, 2, 2]),
        "last": np.array([1]),
        "zero": np.array([0], np.float32),
        "unit": np.array([1], np.float32),
        "half": np.array([0.5], np.float32),
        "top": np.array([LEVELS - 1], np.float32),
        "half_levels": np.array([LEVELS / 2], np.float32),
        "white": np.array([255], np.float32),
        "log_stretch": np.array([LOG_STRETCH], np.float32),
    },
    references={
        "velocity": _drift_velocity,
        "divergence": lambda w, t, label, probe: {
            **_drift_velocity(w, t, label),
            "divergence": drift_divergence(probe),
        },
        "enter": lambda x, noise: {
            "w": drift_enter(x, noise),
            "log_abs_det": np.full(len(x), LOG_STRETCH),
        },
        "leave": _drift_leave,
    },
)


def drift_divergence(probe: Floats) -> Floats:
    """Return Hutchinson's estimate of the trace of PULL."""
    signs = np.sign(probe).reshape(-1, 4)
    return np.asarray((signs @ PULL * signs).sum(axis=1))


# The same, led past its label unless a request says otherwise.
LED = replace(
    DRIFT,
    name="led",
    interface=DRIFT.interface.model_copy(
        update={"ode": Ode(solver="midpoint", steps=40, guidance=0.5)}
    ),
)


# A vector whose growth depends on its label as well: dw/dt = GROW[label] w + BLOW[label], x = w.
# The last of each, which ONNX also finds at -1, is that of no label.
GROW = np.array([0.5, -0.4, 0.1])
BLOW = np.array([[1.0, -1.0], [0.3, 0.6], [-0.2, 0.5]])


def gust_encode(x: Floats, label: npt.NDArray[np.int64], guidance: float) -> tuple[Floats, Floats]:
    """Return z and log |det dz/dx| of each row."""
    grow, blow = (each[label] + guidance * (each[label] - each[-1]) for each in (GROW, BLOW))
    grow = grow[:, None]
    return np.exp(-grow) * (x - np.expm1(grow) / grow * blow), -2 * grow[:, 0]


def _gust_velocity(w: Floats, t: Floats, label: npt.NDArray[np.int64]) -> dict[str, Floats]:
    return {"velocity": GROW[label][:, None] * w + BLOW[label]}


_GUST = (
    "g = Gather(grow, label) o = Mul(t, zero) u = Unsqueeze(o, last) c = Unsqueeze(g, last) "
    "m = Mul(w, c) b = Gather(blow, label) p = Add(m, b) velocity = Add(p, u)"
)

GUST = Tiny(
    name="gust",
    interface=Interface(
        family="continuous-flow",
        event=Event(kind="vector", shape=(2,)),
        latent=Latent(shape=(2,)),
        labels=("out", "in"),
        density=Density(kind="exact", estimator="exact", measure="per unit of x"),
        ode=Ode(solver="rk4", steps=20, guidance=0.5),
    ),
    nodes={
        "velocity": _GUST,
        "divergence": f"{_GUST} d = Mul(g, two) divergence = Add(d, o)",
        "enter": "w = Identity(x) s = ReduceSum<keepdims=0>(x, last) log_abs_det = Mul(s, zero)",
        "leave": "x = Identity(w)",
    },
    constants={
        "grow": GROW.astype(np.float32),
        "blow": BLOW.astype(np.float32),
        "two": np.array([2], np.float32),
        "last": np.array([1]),
        "zero": np.array([0], np.float32),
    },
    references={
        "velocity": _gust_velocity,
        "divergence": lambda w, t, label: {
            **_gust_velocity(w, t, label),
            "divergence": 2 * GROW[label],
        },
        "enter": lambda x: {"w": x, "log_abs_det": np.zeros(len(x))},
        "leave": lambda w: {"x": w},
    },
)
