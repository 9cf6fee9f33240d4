"""Tables: named columns of numbers, and perhaps one of classes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float64, Shaped

from training.raw import DataInvalid, Parts, Raw, reason

MAX_CATEGORIES = 256
"""Of a column. A guess: with more, few rows are left of each."""


def read_file(path: Path) -> pd.DataFrame:
    """Return the table of a .csv or .parquet file."""
    try:
        if path.suffix == ".parquet":
            return pd.read_parquet(path)
        # Without low_memory, pandas guesses the type of a column from all of it.
        frame = pd.read_csv(path, low_memory=False)
    # NotImplementedError: a parquet file of a type or compression that Arrow does not read.
    except (OSError, ValueError, NotImplementedError) as error:
        raise DataInvalid(
            f"{path}: cannot be read as a table ({reason(error)}); save it anew"
        ) from error
    if not isinstance(frame.index, pd.RangeIndex):
        raise DataInvalid(
            f"{path}: its lines hold more values than the first line has names; name each column"
        )
    if any(str(name).startswith("Unnamed: ") for name in frame.columns):
        raise DataInvalid(
            f"{path}: a column has no name, as happens to a saved index; name it in the first "
            f"line or save the file without it"
        )
    if all(_is_number(str(name)) for name in frame.columns) and "0" not in frame.columns:
        raise DataInvalid(
            f"{path}: the first line holds numbers only, so it looks like data; put a line of "
            f"column names above it"
        )
    return frame


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def read_table(
    frame: pd.DataFrame,
    parts: Parts,
    *,
    source: str,
    title: str,
    names: tuple[str, ...] | None = None,
) -> Raw:
    """Return the wanted columns of a table as float64, its label and context columns apart.

    Raises:
        DataInvalid: A column is missing, named twice or not numeric, or a label is missing.
    """
    frame = frame.rename(columns=str).reset_index(drop=True)
    label, columns = parts.label, parts.columns
    told, apart = (
        [*(parts.context or ())],
        [*(parts.context or ()), *([] if label is None else [label])],
    )
    chosen = (
        [name for name in frame.columns if name not in apart] if columns is None else [*columns]
    )
    _require_once(frame, [*chosen, *apart], source)
    if not chosen:
        raise DataInvalid(
            f"{source}: no columns are left beside the label and the context; name other columns"
        )
    kinds = parts.categorical or ()
    if twice := [name for name in kinds if kinds.count(name) > 1]:
        raise DataInvalid(f"{source}: categorical column '{twice[0]}' is named twice; name it once")
    if strange := [name for name in kinds if name not in chosen]:
        raise DataInvalid(
            f"{source}: categorical column '{strange[0]}' is no feature; those are "
            f"{', '.join(chosen[:20])}, and neither the label nor a context can be one"
        )
    for name in (*chosen, *told):
        if name not in kinds:
            _require_numeric(frame[name], source)
    codes = {name: _codes(frame[name], source) for name in kinds}
    x = [codes[name][0] if name in codes else _numbers(frame[name]) for name in chosen]
    return Raw(
        np.stack(x, axis=1),
        source=source,
        title=title,
        label=None if label is None else _classes(frame[label], source),
        label_key=label or "label",
        context=np.stack([_numbers(frame[name]) for name in told], axis=1) if told else None,
        context_names=tuple(told),
        names=names,
        columns=tuple(chosen),
        categories=tuple(codes[name][1] if name in codes else () for name in chosen)
        if codes
        else (),
    )


def _require_once(frame: pd.DataFrame, wanted: Sequence[str], source: str) -> None:
    """Raise unless the table has each column that is wanted, and each is wanted as one thing."""
    for name in wanted:
        if name not in frame.columns:
            listing = ", ".join(frame.columns[:20])
            raise DataInvalid(f"{source}: no column '{name}'; choose among {listing}")
        if wanted.count(name) > 1:
            raise DataInvalid(
                f"{source}: column '{name}' is named twice among columns, label and "
                f"context; name it once"
            )


def _numbers(column: "pd.Series[float]") -> Float64[np.ndarray, " rows"]:
    """Return a column of numbers, NaN where one is missing."""
    return column.to_numpy(dtype=np.float64, na_value=np.nan)


def _codes(
    column: "pd.Series[float]", source: str
) -> tuple[Float64[np.ndarray, " rows"], tuple[str, ...]]:
    """Return a column of categories as their numbers, and their names in the order of those."""
    values = _classes(column, source, what="categorical")
    if values.dtype.kind == "f":
        if len(broken := np.flatnonzero(values % 1 != 0)):
            raise DataInvalid(
                f"{source}: categorical column '{column.name}' holds {values[broken[0]]} in row "
                f"{broken[0]} (rows count from 0); use whole numbers or text"
            )
        values = values.astype(np.int64)
    names, codes = np.unique(values, return_inverse=True)
    if not 2 <= len(names) <= MAX_CATEGORIES:
        raise DataInvalid(
            f"{source}: categorical column '{column.name}' has {len(names)} categories; expected 2 "
            f"to {MAX_CATEGORIES}"
        )
    return codes.astype(np.float64), tuple(str(name) for name in names)


def _require_numeric(column: "pd.Series[float]", source: str) -> None:
    """Raise if a column holds anything but real numbers, showing the first thing that is not."""
    kind = pd.api.types
    if kind.is_numeric_dtype(column) and not kind.is_complex_dtype(column):
        return
    text = column.dropna().astype(str)
    bad = text[pd.to_numeric(text, errors="coerce").isna()]
    # Digits stored as text are all numbers to pandas. Then the first value is shown.
    shown = bad if len(bad) else text
    what = f"row {shown.index[0]} holds '{shown.iloc[0]}'" if len(shown) else "it is empty"
    raise DataInvalid(
        f"{source}: column '{column.name}' is not numeric ({what}, rows count from 0); make it "
        f"the label or 'categorical', leave it out through 'columns', or turn it into numbers"
    )


def _classes(
    column: "pd.Series[float]", source: str, *, what: str = "label"
) -> Shaped[np.ndarray, " rows"]:
    """Return a column of classes as numbers where it has numbers, else as text."""
    missing = np.flatnonzero(column.isna().to_numpy())
    if len(missing):
        raise DataInvalid(
            f"{source}: {what} column '{column.name}' has {len(missing)} missing values, the "
            f"first in row {missing[0]} (rows count from 0; empty, NA and null are such); fill "
            f"them or drop those rows"
        )
    numeric = pd.api.types.is_numeric_dtype(column)
    return column.to_numpy(dtype=np.float64) if numeric else column.to_numpy().astype(str)
