"""Graphs with a gradient inside, written out as plain operators.

`torch.export` cannot look into autograd. Tracing the module once with symbolic shapes, so that
the backward pass becomes operators like any others, can; what comes out is exported as usual.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._decomp import core_aten_decompositions, get_decompositions
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.functional import conv2d, conv_transpose2d

aten = torch.ops.aten

Lengths = Sequence[int | torch.SymInt]
"""Of axes, of which some are free."""


def unrolled(module: nn.Module, examples: Sequence[Tensor]) -> fx.GraphModule:
    """Return what a module computes, the gradients that it asks for included, as one graph.

    Args:
        module: Its parameters must not require gradients.
        examples: Inputs, whose first axis is free.
    """
    # Lengths that are alike become one symbol, and an axis of the batch's length would be free.
    taken = {length for each in examples for length in each.shape[1:]}
    batch = next(length for length in range(3, 1000) if length not in taken)
    examples = [each.new_zeros(batch, *each.shape[1:]) for each in examples]
    trace = make_fx(
        module,
        decomposition_table=_table(),
        tracing_mode="symbolic",
        # The weights are real numbers beside symbolic inputs.
        _allow_non_fake_inputs=True,
    )
    # What asks for a gradient enables it; a gradient of that is not wanted.
    with torch.no_grad():
        graph: fx.GraphModule = trace(*examples)
    return graph


def _table() -> dict[Any, Callable[..., Any]]:
    table = dict(core_aten_decompositions())
    table |= get_decompositions([aten.silu_backward, aten.softplus_backward])
    table[aten.convolution_backward.default] = _convolution_backward
    # The usual ones scatter, and ONNX Runtime's CUDA has no scattered sum of float64 (1.31.1:
    # "element_type 11 not implemented for ScatterND"). In these no order of sums is left to chance.
    table[aten.index_add.default] = _index_add
    table[aten.scatter_add.default] = _scatter_add
    table[aten.slice_backward.default] = _slice_backward
    return table


def _index_add(x: Tensor, dim: int, index: Tensor, source: Tensor, *, alpha: float = 1) -> Tensor:
    """Return x with slices of the source added to those that the index names."""
    shape = [-1 if axis == dim % x.dim() else 1 for axis in range(x.dim())]
    return _scatter_add(x, dim, index.view(shape).expand(source.shape), alpha * source)


def _scatter_add(x: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    """Return x with each number of the source added at the place that the index names."""
    dim = dim % x.dim()
    across = [axis for axis in range(x.dim()) if axis != dim]
    if any(x.shape[axis] != index.shape[axis] for axis in across):
        raise ValueError("a graph with the gradient of a gather of some rows: gather of all")
    places = torch.arange(x.shape[dim], device=index.device)
    # Not a product with ones and zeros: 0 times infinity would spread what is not finite.
    hit = index.unsqueeze(dim) == places.view(-1, *[1] * (x.dim() - dim))
    return x + torch.where(hit, source.unsqueeze(dim), 0).sum(dim + 1)


def _slice_backward(
    gradient: Tensor, sizes: Lengths, dim: int, start: int, end: int, step: int
) -> Tensor:
    """Return the gradient of a slice, with zeros where nothing was taken."""
    if step != 1:
        raise ValueError(f"a graph with the gradient of every {step}th number: take all of them")
    shape = list(gradient.shape)
    dim = dim % len(shape)
    length = sizes[dim]
    first = start if start >= 0 else max(length + start, 0)
    before, after = (
        gradient.new_zeros([*shape[:dim], count, *shape[dim + 1 :]])
        for count in (first, length - first - shape[dim])
    )
    return torch.cat([before, gradient, after], dim)


def _convolution_backward(
    gradient: Tensor,
    input: Tensor,
    weight: Tensor,
    bias_sizes: object,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    output_mask: Sequence[bool],
) -> tuple[Tensor, None, None]:
    """Return the gradient in the input: a convolution's is a transposed one, and vice versa."""
    if output_mask[1] or output_mask[2]:
        raise ValueError("a graph with a gradient in its weights: freeze the parameters first")
    if transposed:
        back = conv2d(gradient, weight, None, stride, padding, dilation, groups)
        return back, None, None
    missing = [
        size - ((out - 1) * s - 2 * p + d * (kernel - 1) + 1)
        for size, out, kernel, s, p, d in zip(
            input.shape[2:], gradient.shape[2:], weight.shape[2:], stride, padding, dilation,
            strict=True,
        )
    ]  # fmt: skip
    back = conv_transpose2d(gradient, weight, None, stride, padding, missing, groups, dilation)
    return back, None, None
