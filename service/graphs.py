"""What an ONNX file of a bundle may hold, checked without running it.

Nothing here trusts the file: what it claims to hold is compared with what it holds before
anybody makes room for it.
"""

import math
from collections.abc import Iterator, Sequence

import onnx
from onnx import shape_inference

from service.errors import BundleInvalid
from service.interface import TensorSpec

MAX_NODES = 50_000
"""Of one file, those of its subgraphs and functions included. Loading a thousand takes 50 ms
(measured); shipped flows have 1,300."""
MAX_ROW_VALUES = 2**28
"""Numbers in one tensor, where a free axis counts once: 1 GiB of float32."""
MAX_ALL_VALUES = 2**30
"""Numbers in all tensors of a file together, counted likewise; shipped ones have 2 million."""

RANDOM_OPERATORS = frozenset(
    {
        "Bernoulli",
        "Multinomial",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    }
)
"""Refused: no request can seed them, and every runtime draws them differently."""

_DTYPES: dict[int, str] = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.INT64: "int64",
    onnx.TensorProto.UINT8: "uint8",
}

_STANDARD = ("", "ai.onnx")

Body = onnx.GraphProto | onnx.FunctionProto


def check(
    data: bytes, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], *, where: str
) -> None:
    """Pass if a file holds a graph with exactly these tensors, and nothing that must not be.

    Raises:
        BundleInvalid: One sentence that says what it holds instead.
    """
    model = parsed(data, where=where)
    bodies = list(_bodies(model))
    if (nodes := sum(len(body.node) for body in bodies)) > MAX_NODES:
        raise BundleInvalid(
            f"{where}: it has {nodes} nodes; at most {MAX_NODES} are loaded.", field="graphs"
        )
    functions = {(function.domain, function.name) for function in model.functions}
    for body in bodies:
        for tensor in _tensors(body, where=where):
            _check_tensor(tensor, where=where)
        for node in body.node:
            _check_node(node, functions, where=where)
    _check_interface(model.graph, inputs, outputs, where=where)
    _check_sizes(data, where=where)


def parsed(data: bytes, *, where: str) -> onnx.ModelProto:
    """Return the model in an ONNX file.

    Raises:
        BundleInvalid: It is none.
    """
    try:
        return onnx.load_model_from_string(data)
    except Exception as error:  # protobuf's own class differs between its implementations
        raise BundleInvalid(f"{where}: not an ONNX file ({error}).", field="graphs") from error


def tensors(model: onnx.ModelProto, *, where: str) -> Iterator[onnx.TensorProto]:
    """Yield every tensor that a model holds, in whatever of its graphs and functions.

    Raises:
        BundleInvalid: A sparse one is of a shape that nobody makes room for.
    """
    for body in _bodies(model):
        yield from _tensors(body, where=where)


def _bodies(model: onnx.ModelProto) -> Iterator[Body]:
    """Yield the graph of a model, its functions, and every graph within them."""
    waiting: list[Body] = [model.graph, *model.functions]
    while waiting:
        body = waiting.pop()
        yield body
        for node in body.node:
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    waiting.append(attribute.g)
                waiting += attribute.graphs


def _tensors(body: Body, *, where: str) -> Iterator[onnx.TensorProto]:
    """Yield every tensor that a graph or a function holds, but those of the graphs within it."""
    sparse: list[onnx.SparseTensorProto] = []
    if isinstance(body, onnx.GraphProto):
        yield from body.initializer
        sparse += body.sparse_initializer
    for node in body.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("sparse_tensor"):
                sparse.append(attribute.sparse_tensor)
            sparse += attribute.sparse_tensors
    for each in sparse:
        _length(each.dims, kind="sparse weight", name=each.values.name, where=where)
        yield from (each.values, each.indices)


def _check_tensor(tensor: onnx.TensorProto, *, where: str) -> None:
    name = tensor.name or "(unnamed)"
    if tensor.external_data or tensor.data_location == onnx.TensorProto.EXTERNAL:
        raise BundleInvalid(
            f"{where}: weight {name} lies in another file. Export with external_data=False, or "
            "name the bundle's own weights.bin in the manifest.",
            field="graphs",
        )
    length = _length(tensor.dims, kind="weight", name=name, where=where)
    if length > 2 * tensor.ByteSize():  # the smallest types have four bits
        raise BundleInvalid(
            f"{where}: weight {name} has the shape ({', '.join(map(str, tensor.dims))}), and "
            f"{tensor.ByteSize()} bytes to fill it with.",
            field="graphs",
        )


def _length(dims: Sequence[int], *, kind: str, name: str, where: str) -> int:
    """Return how many numbers a tensor of this shape has.

    Raises:
        BundleInvalid: Nobody would make room for so many.
    """
    length = math.prod(dims)
    if length > MAX_ROW_VALUES or min(dims, default=0) < 0:
        raise BundleInvalid(
            f"{where}: {kind} {name}: its shape is ({', '.join(map(str, dims))}); at most "
            f"{MAX_ROW_VALUES} numbers are loaded.",
            field="graphs",
        )
    return length


def _check_node(node: onnx.NodeProto, functions: set[tuple[str, str]], *, where: str) -> None:
    who = f"{where}: node {node.name or '(unnamed)'} is {node.op_type}"
    # Since opset 12 a third input switches Dropout's training mode on.
    trains = node.op_type == "Dropout" and len(node.input) > 2 and node.input[2]
    if node.op_type in RANDOM_OPERATORS or trains:
        raise BundleInvalid(
            f"{who}, which draws its own random numbers. Make the noise an input of the graph.",
            field="graphs",
        )
    if node.domain not in _STANDARD and (node.domain, node.op_type) not in functions:
        raise BundleInvalid(
            f"{who} of the domain {node.domain}, which is not ONNX's own. Export to its standard "
            "operators.",
            field="graphs",
        )


def _check_interface(
    graph: onnx.GraphProto,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    *,
    where: str,
) -> None:
    fed = {tensor.name for tensor in graph.input} - {tensor.name for tensor in graph.initializer}
    for side, values, specs in (
        ("inputs", [value for value in graph.input if value.name in fed], inputs),
        ("outputs", list(graph.output), outputs),
    ):
        actual = sorted(map(_describe, values))
        expected = sorted(f"{spec.name} {_erase_names(spec)}" for spec in specs)
        if actual != expected:
            raise BundleInvalid(
                f"{where}: its {side} are {actual}; the manifest says {expected}.", field="graphs"
            )


def _check_sizes(data: bytes, *, where: str) -> None:
    """Pass if no tensor on the way is absurdly large, as far as shapes follow from the file.

    What a graph computes its shapes from at run time is seen by nobody before it runs.
    """
    try:
        model = shape_inference.infer_shapes(data, data_prop=True)
    except Exception as error:  # ONNX's checker has several classes for it
        raise BundleInvalid(
            f"{where}: its shapes do not fit together ({error}).", field="graphs"
        ) from error
    total = 0
    for body in _bodies(model):
        if isinstance(body, onnx.GraphProto):
            for value in body.value_info:
                dims = [d.dim_value for d in value.type.tensor_type.shape.dim if d.dim_value]
                total += _length(dims, kind="value", name=value.name, where=where)
    if total > MAX_ALL_VALUES:
        raise BundleInvalid(
            f"{where}: a row of it takes {total} numbers on the way; at most {MAX_ALL_VALUES} are "
            "computed.",
            field="graphs",
        )


def _describe(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    dtype = _DTYPES.get(tensor.elem_type, f"type {tensor.elem_type}")
    axes = [str(d.dim_value) if d.HasField("dim_value") else "*" for d in tensor.shape.dim]
    return f"{value.name} {dtype} ({', '.join(axes)})"


def _erase_names(spec: TensorSpec) -> str:
    axes = ["*" if isinstance(axis, str) else str(axis) for axis in spec.shape]
    return f"{spec.dtype} ({', '.join(axes)})"
