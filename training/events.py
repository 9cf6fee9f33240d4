"""Events: rows of a source turned into pixels on grey levels, features, and classes."""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, Shaped, UInt8

from service.interface import Context
from training.raw import DataInvalid, Raw

CONSTANT = 1e-12
"""Relative deviation of a column that is constant but for the rounding of float64 numbers."""
COARSEST = 0.01
"""What rounding to float32 may move the numbers of a column by, root mean square, in deviations of
it. A guess at what shows in no figure."""


def to_pixels(
    raw: Raw, shape: tuple[int, ...] | None, levels: int
) -> UInt8[np.ndarray, "rows channel height width"]:
    """Return images as grey levels 0 to levels - 1.

    Whole numbers up to levels - 1 are grey levels. Fractions from 0 to 1 are rounded to the
    nearest level. Anything else is refused, and so are integers that are all 0 or 1: black and
    white, or the two darkest of 256 greys?

    Args:
        raw: Flat rows, or images with their channels first, last, or without any.
        shape: What to view flat rows as, channels first. Images must have it already.
        levels: Number of grey levels, 2 to 256.

    Raises:
        DataInvalid: Wrong shape, or values that are neither grey levels nor from 0 to 1.
    """
    x = _channels_first(raw, shape)
    low, high = float(x.min()), float(x.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        bad = np.flatnonzero(~np.isfinite(x).all(axis=(1, 2, 3)))
        raise DataInvalid(
            f"{raw.source}: {len(bad)} images hold NaN or infinity, the first is row {bad[0]} "
            f"(rows count from 0); repair or drop them"
        )
    if x.dtype.kind in "iu" and high <= 1 and levels > 2:
        raise DataInvalid(
            f"{raw.source}: whole numbers from {low:g} to {high:g} could be black and white or "
            f"nearly black; set levels = 2 for black and white"
        )
    if low >= 0 and high <= 1:
        scaled = x.astype(np.float32) * np.float32(levels - 1)
        return scaled.round().astype(np.uint8)
    if low < 0 or high > levels - 1 or (x.dtype.kind == "f" and (x % 1 != 0).any()):
        raise DataInvalid(
            f"{raw.source}: expected images of whole numbers from 0 to {levels - 1}, or from 0 to "
            f"1; got {x.dtype} from {low:g} to {high:g}; rescale them or set 'levels'"
        )
    return x.astype(np.uint8)


def _channels_first(
    raw: Raw, shape: tuple[int, ...] | None
) -> Shaped[np.ndarray, "rows channel height width"]:
    """Return the images with one or three channels on axis 1."""
    x = raw.x
    wanted = None if shape is None else (1,) * (3 - len(shape)) + shape
    if x.ndim == 2 and wanted is not None:
        if math.prod(wanted) != x.shape[1]:
            raise DataInvalid(
                f"{raw.source}: rows of {x.shape[1]} numbers cannot be viewed as {list(wanted)} "
                f"images, which have {math.prod(wanted)}; correct 'shape'"
            )
        x = x.reshape(len(x), *wanted)
    elif x.ndim == 3:
        x = x[:, None]
    else:
        first, last = x.shape[1] in (1, 3), x.shape[3] in (1, 3)
        if first == last:
            raise DataInvalid(
                f"{raw.source}: cannot tell the channels of images of shape {x.shape[1:]}; store "
                f"(rows, height, width), or 1 or 3 channels first or last"
            )
        x = x if first else np.moveaxis(x, 3, 1)
    if x.shape[1] not in (1, 3) or (wanted is not None and x.shape[1:] != wanted):
        raise DataInvalid(
            f"{raw.source}: images are {list(x.shape[1:])}, channels first, and 'shape' is "
            f"{list(shape or ())}; give 1 or 3 channels and the shape that they have"
        )
    return x


def to_features(raw: Raw) -> Float32[np.ndarray, "rows feature"]:
    """Return the rows of a table as float32, in the data's own units.

    Raises:
        DataInvalid: NaN, infinity, or numbers that float32 cannot hold, or not tell apart.
    """
    return _single(raw, raw.x, lambda column: _column(raw, column))


def _single(
    raw: Raw, values: Shaped[np.ndarray, "rows feature"], name: Callable[[int], str]
) -> Float32[np.ndarray, "rows feature"]:
    """Return numbers as float32, all of them finite, and apart where they are.

    Args:
        raw: Where they come from.
        values: Each row's.
        name: What a message calls a column.
    """
    with np.errstate(over="ignore"):
        x = values.astype(np.float32)
    bad: Bool[np.ndarray, "rows feature"] = ~np.isfinite(x)
    if bad.any():
        column = int(np.flatnonzero(bad.any(axis=0))[0])
        rows = np.flatnonzero(bad[:, column])
        raise DataInvalid(
            f"{raw.source}: {name(column)} has {len(rows)} values that are missing (NaN), "
            f"infinite or too large for float32, the first in row {rows[0]} (rows count from 0); "
            f"fill them or drop those rows"
        )
    if values.dtype != x.dtype:
        _check_that_it_tells_apart(raw, values, x, name)
    return x


def _check_that_it_tells_apart(
    raw: Raw,
    values: Shaped[np.ndarray, "rows feature"],
    x: Float32[np.ndarray, "rows feature"],
    name: Callable[[int], str],
) -> None:
    """Pass if rounding to float32 loses little beside what each column varies by.

    Raises:
        DataInvalid: It loses more.
    """
    for column in range(x.shape[1]):
        wide = values[:, column].astype(np.float64)
        lost, deviation = math.sqrt(np.square(x[:, column] - wide).mean()), wide.std()
        # A constant, but for what was rounded before, is refused by who takes its moments.
        if lost > COARSEST * deviation > COARSEST * CONSTANT * abs(wide.mean()):
            raise DataInvalid(
                f"{raw.source}: {name(column)} deviates by {deviation:.3g} about "
                f"{wide.mean():.6g}, and rounding to float32 moves its numbers by {lost:.3g}; "
                "subtract an offset from it, or give it another unit, first"
            )


def moments(
    raw: Raw, train: Float32[np.ndarray, "rows feature"]
) -> tuple[Float64[np.ndarray, " feature"], Float64[np.ndarray, " feature"]]:
    """Return mean and standard deviation of each feature over the training split.

    Raises:
        DataInvalid: A column that is constant there; it has no density and no scale.
    """
    # Not std == 0: rounding leaves the deviation of a constant 0.1 a little above zero.
    constant = np.flatnonzero(np.ptp(train, axis=0) == 0)
    if len(constant):
        first = int(constant[0])
        raise DataInvalid(
            f"{raw.source}: {_column(raw, first)} is constant ({train[0, first]:g} in every "
            f"training row); leave it out"
        )
    wide = train.astype(np.float64)
    return wide.mean(axis=0), wide.std(axis=0)


def to_contexts(raw: Raw) -> Float32[np.ndarray, "rows numbers"] | None:
    """Return the numbers that a conditional model is told, as float32 in their own units.

    Raises:
        DataInvalid: As `to_features`.
    """
    if raw.context is None:
        return None
    return _single(raw, raw.context, lambda column: f"context '{raw.context_names[column]}'")


def context_of(raw: Raw, train: Float32[np.ndarray, "rows numbers"]) -> Context:
    """Return what the numbers of a context are, and their range over the training split.

    Raises:
        DataInvalid: One is constant there; nothing can be learned of what it does.
    """
    low, high = (
        tuple(float(each) for each in ends) for ends in (train.min(axis=0), train.max(axis=0))
    )
    for name, least, most in zip(raw.context_names, low, high, strict=True):
        if least == most:
            raise DataInvalid(
                f"{raw.source}: context '{name}' is constant ({least:g} in every training row); "
                f"leave it out"
            )
    return Context(names=raw.context_names, minimum=low, maximum=high)


def _column(raw: Raw, index: int) -> str:
    """Return how a message names a column."""
    return f"column '{raw.columns[index]}'" if raw.columns else f"column {index} (of 'x', from 0)"


def to_classes(
    raw: Raw, *, wanted: bool
) -> tuple[Int64[np.ndarray, " rows"] | None, tuple[str, ...] | None]:
    """Return labels as 0 to k - 1 and the names of the classes; None and None without classes.

    Args:
        raw: With a label of whole numbers or text.
        wanted: Whether the recipe asked for labels. If not, one class for all rows is no label.

    Raises:
        DataInvalid: Labels that are no classes, or only one class where they were asked for.
    """
    if raw.label is None:
        return None, None
    where, values = f"{raw.source}: label '{raw.label_key}'", raw.label
    if values.dtype.kind not in "buifU":
        raise DataInvalid(f"{where} is {values.dtype}; use whole numbers or text")
    if values.dtype.kind == "f":
        broken = np.flatnonzero(values % 1 != 0)
        if len(broken):
            raise DataInvalid(
                f"{where} is not a class: row {broken[0]} holds {values[broken[0]]} (rows count "
                f"from 0); use whole numbers or text, or choose another label"
            )
        values = values.astype(np.int64)
    classes, codes = np.unique(values, return_inverse=True)
    if len(classes) > 1:
        return codes.astype(np.int64), raw.names or tuple(str(name) for name in classes)
    if wanted:
        raise DataInvalid(f"{where} has one class only, '{classes[0]}'; leave 'label' out")
    return None, None
