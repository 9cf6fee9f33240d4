"""Rows as a source holds them, and what is said when they cannot be used."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Shaped


class DataInvalid(Exception):
    """The data cannot be used. The text is one sentence: which file, what is wrong, what to do."""


def reason(error: Exception) -> str:
    """Return the text of a library's error on one line, to be quoted in a sentence."""
    return " ".join(str(error).split())


@dataclass(frozen=True)
class Parts:
    """Which columns of a table, or keys of an archive, are used and as what.

    Args:
        label: The class. None: what the source itself calls its classes.
        context: The numbers that a model is told. None: there are none.
        categorical: Those that hold categories. None: all are numbers.
        columns: The features, in order. None: all that are nothing else.
    """

    label: str | None = None
    context: tuple[str, ...] | None = None
    categorical: tuple[str, ...] | None = None
    columns: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Raw:
    """Rows as their source holds them.

    Where a source brings its own splits, rows are in the order train, validation, test.

    Args:
        x: Rows of a table, or images with their channels first, last, or without any.
        source: As the recipe names it, for messages.
        title: What people call the source, without a machine's path.
        label: Class of each row, as a number or as text. None where there are no classes.
        label_key: Column or key that the classes come from, for messages.
        context: Numbers of each row that a conditional model is told, or None.
        context_names: Of each of these numbers.
        names: Name of class k for labels 0 to k - 1, where the source knows better than `label`.
        columns: Name of each column of a table.
        categories: Of each column the names of its categories, whose numbers it then holds; none
            of a column of numbers. Empty if no column has any.
        levels: Grey levels, where the source knows them.
        validation, test: Length of the official splits at the end. None: to be drawn.
    """

    x: Shaped[np.ndarray, "rows ..."]
    source: str
    title: str
    label: Shaped[np.ndarray, " rows"] | None = None
    label_key: str = "label"
    context: Shaped[np.ndarray, "rows numbers"] | None = None
    context_names: tuple[str, ...] = ()
    names: tuple[str, ...] | None = None
    columns: tuple[str, ...] = ()
    categories: tuple[tuple[str, ...], ...] = ()
    levels: int | None = None
    validation: int | None = None
    test: int | None = None
