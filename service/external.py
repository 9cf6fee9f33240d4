"""The weights that the graphs of a bundle share, each of which lies once in `weights.bin`.

An encoder stands in the graphs of `encode`, `elbo` and `refine`, a flow's networks in those of
both directions. On disk these files name their weights by place, as ONNX's external data does, so
that any ONNX tool opens them where they lie. Whoever runs a graph gets it whole: `joined` undoes
`parted`.

Source: https://onnx.ai/onnx/repo-docs/ExternalData.html
"""

from collections.abc import Mapping

import onnx

from service import graphs
from service.errors import BundleInvalid

FILE = "weights.bin"
LEAST_BYTES = 1024
"""Of a weight that is worth a place of its own."""
MAX_WHOLE_BYTES = 2**31 - 1
"""Of a graph with its weights: what one protocol buffer can hold."""


def parted(whole: Mapping[str, bytes]) -> tuple[dict[str, bytes], bytes]:
    """Return ONNX files without their weights, and the weights of all, each once.

    What stands twice in one file lies beside it once and stays in it once: `joined` says why.

    Args:
        whole: ONNX files by name, which hold all that they need.
    """
    weights = bytearray()
    places: dict[bytes, int] = {}
    files: dict[str, bytes] = {}
    for name, data in whole.items():
        model, taken = graphs.parsed(data, where=name), set()
        for tensor in graphs.tensors(model, where=name):
            value = tensor.raw_data
            if len(value) < LEAST_BYTES or value in taken:
                continue
            taken.add(value)
            if value not in places:
                places[value] = len(weights)
                weights += value
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            place = {"location": FILE, "offset": places[value], "length": len(value)}
            for key, said in place.items():
                tensor.external_data.add(key=key, value=str(said))
        files[name] = model.SerializeToString(deterministic=True)
    return files, bytes(weights)


def joined(data: bytes, weights: bytes, *, where: str) -> bytes:
    """Return an ONNX file with the weights that it says lie in `weights.bin`.

    What it says lies elsewhere stays as it is, and is refused by `service.graphs`.

    Args:
        data: An ONNX file.
        weights: What `weights.bin` holds.
        where: The file, for messages.

    Raises:
        BundleInvalid: It is none, or asks for bytes that are not there.
    """
    if len(data) + len(weights) > MAX_WHOLE_BYTES:
        raise BundleInvalid(
            f"{where}: with {FILE} it has {len(data) + len(weights)} bytes; at most "
            f"{MAX_WHOLE_BYTES} are loaded.",
            field="weights",
        )
    model = graphs.parsed(data, where=where)
    left = len(weights)
    for tensor in graphs.tensors(model, where=where):
        said = {entry.key: entry.value for entry in tensor.external_data}
        if said.get("location") != FILE:
            continue
        value = _piece(weights, said, where=f"{where}: weight {tensor.name}")
        # Of a file that asks for the same bytes a thousand times nobody knows how large it grows.
        left -= len(value)
        if left < 0:
            raise BundleInvalid(
                f"{where}: its weights take more bytes than {FILE} has, {len(weights)}.",
                field="weights",
            )
        del tensor.external_data[:]
        tensor.ClearField("data_location")
        tensor.raw_data = value
    return bytes(model.SerializeToString(deterministic=True))


def _piece(weights: bytes, said: Mapping[str, str], *, where: str) -> bytes:
    """Return the bytes that a weight says are its own."""
    offset, length = said.get("offset", ""), said.get("length", "")
    if all(
        number.isascii() and number.isdigit() and len(number) < 12 for number in (offset, length)
    ):
        value = weights[int(offset) : int(offset) + int(length)]
        if len(value) == int(length):
            return value
    raise BundleInvalid(
        f"{where} is said to be {length or 'some'} bytes at {offset or 'no place'} of {FILE}, "
        f"which has {len(weights)}.",
        field="weights",
    )
