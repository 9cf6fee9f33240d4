"""Golden vectors: inputs and outputs that PyTorch computed in float64, in an npz file.

The manifest says which arrays there are and how large; nothing is unpacked that is not so.
"""

import io
import zipfile
from collections.abc import Iterator
from typing import IO

import numpy as np

from service.errors import BundleInvalid
from service.interface import TensorSpec
from service.manifest import Manifest, Tolerance
from service.tensors import Array

MAX_BYTES = 2**30
"""Of all arrays together, unpacked."""
SHARE = 0.1
"""The most that a tolerance may be of the largest number that it is for, or of 1: a graph that
answers something else would pass otherwise."""
GREY_LEVELS = 2.0
"""The most that it may be for pixels, which rounding can move by one."""

_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def read(data: bytes, manifest: Manifest, *, where: str) -> dict[str, Array]:
    """Return the golden vectors by "<role>.<tensor>", all that the manifest asks for.

    Raises:
        BundleInvalid: One sentence that names the array and says how it must be.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            shapes = dict(_shapes(archive, manifest, where=where))
            arrays = {key: _array(archive, key) for key in shapes}
    except BundleInvalid:
        raise
    except Exception as error:  # numpy and zipfile have no common class for a broken file
        raise BundleInvalid(f"{where}: not an npz of numbers ({error}).", field="golden") from error
    for key, spec, is_fed in _tensors(manifest):
        if not np.isfinite(arrays[key]).all():
            raise _unfit(where, key, spec, is_fed, shapes[key], f"{arrays[key].dtype}, not finite")
    for role, graph in manifest.graphs.items():
        for spec in graph.outputs:
            key = f"{role}.{spec.name}"
            _check_tolerance(graph.tolerance[spec.name], spec, arrays[key], field=key, where=where)
    return arrays


def _tensors(manifest: Manifest) -> Iterator[tuple[str, TensorSpec, bool]]:
    """Yield every array's key, what it is of, and whether it is an input."""
    for role, graph in manifest.graphs.items():
        for spec in (*graph.inputs, *graph.outputs):
            yield f"{role}.{spec.name}", spec, spec in graph.inputs


def _shapes(
    archive: zipfile.ZipFile, manifest: Manifest, *, where: str
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the shape that each array must have and says to have, before any is unpacked."""
    there = archive.namelist()
    total = 0
    sizes: dict[str, dict[str, int]] = {role: {} for role in manifest.graphs}
    for key, spec, is_fed in _tensors(manifest):
        if there.count(f"{key}.npy") != 1:
            one = "more than one array" if f"{key}.npy" in there else "no array"
            raise BundleInvalid(f"{where}: there is {one} {key}.", field=key)
        with archive.open(f"{key}.npy") as file:
            actual, dtype = _header(file)
        if dtype.hasobject:
            raise BundleInvalid(
                f"{where}: not an npz of numbers ({key} holds Python objects).", field=key
            )
        axes = sizes[key.partition(".")[0]]
        axes["batch"] = manifest.golden.rows
        # The first array with draws decides how many they are in the others.
        for axis, length in zip(spec.shape, actual, strict=False):
            if axis == "draws" and length:
                axes.setdefault(axis, length)
        shape = tuple(axes.get(a, -1) if isinstance(a, str) else a for a in spec.shape)
        # What is fed has its type; what is compared with only needs to be a number.
        typed = dtype == spec.dtype if is_fed else dtype.kind in "iuf"
        if not typed or actual != shape:
            raise _unfit(where, key, spec, is_fed, shape, f"{dtype} {actual}")
        total += int(np.prod(shape, dtype=object)) * dtype.itemsize
        if total > MAX_BYTES:
            raise BundleInvalid(
                f"{where}: with {key} it unpacks to {total} bytes; at most {MAX_BYTES} are read.",
                field="golden",
            )
        yield key, shape


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], "np.dtype[np.generic]"]:
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"npy version {version}")
    shape, _, dtype = _HEADERS[version](file)
    return shape, dtype


def _array(archive: zipfile.ZipFile, key: str) -> Array:
    with archive.open(f"{key}.npy") as file:
        array: Array = np.lib.format.read_array(file, allow_pickle=False)
    return array


def _unfit(
    where: str, key: str, spec: TensorSpec, is_fed: bool, shape: tuple[int, ...], actual: str
) -> BundleInvalid:
    axes = ", ".join("draws" if length < 0 else str(length) for length in shape)
    dtype = spec.dtype if is_fed else "numbers"
    return BundleInvalid(
        f"{where}: {key} must be finite {dtype} of shape ({axes}); it is {actual}.", field=key
    )


def _check_tolerance(
    tolerance: Tolerance, spec: TensorSpec, reference: Array, *, field: str, where: str
) -> None:
    """Pass if a graph that answers something else would fail its replay."""
    most = SHARE * max(1.0, float(np.abs(reference).max()))
    if spec.dtype == "uint8":
        most = max(most, GREY_LEVELS)
    if tolerance.absolute > most:
        raise BundleInvalid(
            f"{where}: the tolerance of {field} is {tolerance.absolute:g}, which nearly any answer "
            f"would pass; beside these vectors at most {most:.3g} is a check.",
            field=f"{field}.tolerance",
        )
