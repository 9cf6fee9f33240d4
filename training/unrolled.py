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
    return table


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
