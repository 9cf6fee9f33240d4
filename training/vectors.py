"""Golden vectors: the inputs that a graph is held to, and what PyTorch answers them."""

import copy
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from service.errors import BundleInvalid
from service.interface import UNTOLD_LABEL, Interface, Role, TensorSpec
from service.tensors import Array

GOLDEN_ROWS = 16
GOLDEN_DRAWS = 8


def feeds(
    role: Role,
    module: nn.Module,
    interface: Interface,
    events: Array,
    posterior: Mapping[str, Array],
) -> dict[str, Array]:
    """Return inputs of a graph: test rows, what the encoder says of them, and fixed noise."""
    inputs, _ = interface.signature(role)
    rng = np.random.Generator(np.random.Philox(key=20))
    made = {
        spec.name: posterior[spec.name].astype(np.float32)
        if spec.name in posterior
        else _example(spec, interface, events, rng)
        for spec in inputs
    }
    if role == "observe" and interface.observation in _STEPS:
        made["noise"] = _off_the_edge(module, made, rng, _STEPS[interface.observation])
    return made


def _example(
    spec: TensorSpec, interface: Interface, events: Array, rng: np.random.Generator
) -> Array:
    shape = spec.sized(batch=GOLDEN_ROWS, draws=GOLDEN_DRAWS)
    if spec.name == "x":
        return np.resize(events[:GOLDEN_ROWS], shape).astype(np.float32)
    if spec.name == "label":
        # One that can be guided is told none as well.
        least = 0 if interface.ode is None or interface.ode.guidance is None else UNTOLD_LABEL
        classes = len(interface.labels or ())
        return np.arange(GOLDEN_ROWS, dtype=np.int64) % (classes - least) + least
    if spec.name == "context" and interface.context:
        ends = interface.context.minimum, interface.context.maximum
        return rng.uniform(*ends, shape).astype(np.float32)
    if spec.name == "t":
        return np.linspace(0, 1, GOLDEN_ROWS, dtype=np.float32)
    if spec.name == "rate":
        return np.linspace(0, 0.5, GOLDEN_ROWS, dtype=np.float32)
    if spec.noise == "uniform":
        return np.clip(rng.random(shape), *_INSIDE).astype(np.float32)
    return rng.standard_normal(shape).astype(np.float32)


_INSIDE = (1e-6, 1 - 1e-6)
"""Where uniform noise lies in a golden vector."""
_STEPS = {"bernoulli": 1e-3, "logistic": 1e-5}
"""Of an observation that draws one of a few levels: how near noise must not be to where the next
begins. A level of 256 takes far less noise than one of two."""


def _off_the_edge(
    module: nn.Module, feeds: Mapping[str, Array], rng: np.random.Generator, step: float
) -> Array:
    """Return uniform noise that stays clear of where the next level begins.

    There float32 and float64 draw differently and both are right; such a vector proves nothing.
    A pixel whose draw changes when the noise moves by a step gets other noise.

    Raises:
        BundleInvalid: There is no such noise.
    """
    noise = feeds["noise"].astype(np.float64)
    for _ in range(100):
        low, high = (
            _run(module, {**feeds, "noise": np.clip(noise + shift, *_INSIDE)}, torch.float64)[0]
            for shift in (-step, step)
        )
        if (near := low != high).any():
            noise[near] = np.clip(rng.random(int(near.sum())), *_INSIDE)
        else:
            return noise.astype(np.float32)
    raise BundleInvalid(
        f"observe: no noise within {step:g} of which the draw stays the same; a scale is too small."
    )


def answers(
    module: nn.Module,
    feeds: Mapping[str, Array],
    outputs: tuple[TensorSpec, ...],
    dtype: torch.dtype,
) -> dict[str, Array]:
    """Return what PyTorch answers in a precision, by the outputs' names."""
    names = [spec.name for spec in outputs]
    return dict(zip(names, _run(module, feeds, dtype), strict=True))


def _run(module: nn.Module, feeds: Mapping[str, Array], dtype: torch.dtype) -> list[Array]:
    """Return what PyTorch answers in a precision."""
    tensors = [torch.from_numpy(array) for array in feeds.values()]
    inputs = [t.to(dtype) if t.is_floating_point() else t for t in tensors]
    with torch.no_grad():
        return [answer.numpy() for answer in copy.deepcopy(module).to(dtype)(*inputs)]
