"""Data: from a source named in a recipe to three splits of events."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int, Int64, Num
from pydantic import Field, model_validator
from torch import Tensor

from service.interface import Context, Event, Frozen
from training.events import (
    context_of,
    moments,
    to_classes,
    to_contexts,
    to_features,
    to_pixels,
)
from training.integrands import Integrand, find, is_integrand
from training.mixtures import Mixture
from training.raw import DataInvalid, Parts, Raw
from training.sources import GENERATED_ROWS, mixture_of, read

MINIMUM_ROWS = 20
"""A guess: with fewer, three splits and a standard error mean nothing."""
MINIMUM_SPLIT = 3
"""The unbiased MMD, and so the evaluation, needs three rows on each side."""


class DataConfig(Frozen):
    """What a recipe says of its data."""

    source: str = Field(
        min_length=1,
        description="sklearn:NAME (digits, iris, wine, breast_cancer, moons, circles, blobs, "
        "swiss_roll, s_curve), gaussians:NAME (ring, grid), openml:NAME, or a path to a .npy, "
        ".npz, .csv or .parquet file or to a folder of images, relative to the current directory; "
        "or of family proposal an "
        "integrand: integrand:NAME (camel, gaussian, ring), or python:package.module:function, "
        "which maps points (n, dimensions) to n numbers of 0 or more",
    )
    shape: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(
        None,
        min_length=2,
        max_length=3,
        description="view flat rows as images of this shape: [height, width] for grey, or "
        "[channels, height, width]",
    )
    levels: int | None = Field(
        None,
        ge=2,
        le=256,
        description="grey levels of images; by default 256, or 17 for sklearn:digits",
    )
    label: str | None = Field(
        None,
        description="column of a table, or key of an .npz (y stands for y_train, y_test), that "
        "holds the class; sources that know their classes need none",
    )
    context: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="columns of a table, or keys of an .npz (c stands for c_train, c_test), whose "
        "numbers a conditional flow is told beside each event, in place of the label; of "
        "sklearn:swiss_roll and sklearn:s_curve the position",
    )
    categorical: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="columns of a table, among those to use, that hold categories as text or whole "
        "numbers; a flow makes and weighs them beside the numbers",
    )
    columns: tuple[str, ...] | None = Field(
        None, min_length=1, description="columns of a table to use, in this order; by default all"
    )
    rows: int | None = Field(
        None,
        ge=MINIMUM_ROWS,
        description="use at most this many rows, of each split its share; splits are made first, "
        "so a short run trains on no row that the long run tests on; for a generated set, how "
        "many to generate, and of an integrand at how many uniform points to take it (10,000 by "
        "default)",
    )
    dimensions: int | None = Field(
        None, ge=2, le=256, description="of an integrand: how many variables it has"
    )
    low: float | None = Field(
        None,
        description="of an integrand of your own: the lower end of its box, in every dimension "
        "(0 by default)",
    )
    high: float | None = Field(None, description="likewise the upper end (1 by default)")
    noise: float | None = Field(
        None, ge=0, description="noise of a generated set, in its own units; by default its usual"
    )
    test_fraction: float = Field(
        0.15, gt=0, lt=1, description="share of the rows to test on, unless there is an own split"
    )
    validation_fraction: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="share to select the best weights on, of the rows without an own split",
    )
    test_tail: int | None = Field(
        None, ge=1, description="the last N rows are the official test split"
    )
    seed: int = Field(0, ge=0, description="decides the splits, and the rows of a generated set")

    @model_validator(mode="after")
    def _something_is_left_to_train_on(self) -> "DataConfig":
        if self.test_fraction + self.validation_fraction >= 1:
            raise ValueError(
                "test_fraction: with validation_fraction it must leave rows to train on"
            )
        return self

    @model_validator(mode="after")
    def _options_apply_to_the_source(self) -> "DataConfig":
        foreign = _OF_ROWS if is_integrand(self.source) else _OF_INTEGRANDS
        for name in foreign:
            if getattr(self, name) is not None:
                raise ValueError(f"{name}: does not apply to {self.source}; leave it out")
        if self.label is not None and self.context is not None:
            raise ValueError("context: a model is told this or a label; leave one of them out")
        low, high = self.box
        if not np.float32(low) < np.float32(high):
            raise ValueError(f"low: must be less than high in float32; got {low:g} and {high:g}")
        return self

    @property
    def box(self) -> tuple[float, float]:
        """The sides of an integrand's box."""
        return 0.0 if self.low is None else self.low, 1.0 if self.high is None else self.high


_OF_ROWS = ("shape", "levels", "label", "context", "categorical", "columns", "noise", "test_tail")
"""Options that an integrand does not have."""
_OF_INTEGRANDS = ("dimensions", "low", "high")
"""Those that only an integrand has."""


@dataclass(frozen=True)
class Batch:
    """Events and, where the data has them, their labels and contexts.

    Images are channels first, from 0 to 1, on the data's own grey levels. Dequantisation and
    binarisation belong to the objective and happen there.
    """

    x: Float[Tensor, "batch ..."]
    label: Int[Tensor, " batch"] | None = None
    context: Float[Tensor, "batch numbers"] | None = None
    row: Int[Tensor, " batch"] | None = None
    """Of the training split: which of its rows each event is. None elsewhere."""
    value: Float64[Tensor, " batch"] | None = None
    """Of an integrand, whose events are uniform points: its value at each."""

    def __len__(self) -> int:
        return self.x.shape[0]

    def __getitem__(self, rows: slice | Tensor) -> "Batch":
        return self._each(lambda tensor: tensor[rows])

    def to(self, device: torch.device) -> "Batch":
        """Return the same batch on a device."""
        return self._each(lambda tensor: tensor.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        others = (self.label, self.context, self.row, self.value)
        return Batch(change(self.x), *(None if each is None else change(each) for each in others))


@dataclass(frozen=True)
class Data:
    """Three splits of one data set, and what a model must know of it.

    Args:
        train, validation, test: Disjoint rows. Training never sees the last.
        event: What x is: shape, range, grey levels, feature names.
        labels: Names of the classes, or None.
        context: What the numbers of the contexts are, and their range in training, or None.
        mean, std: Of each feature over the training split, in the data's own units. For a
            vector event only; a model standardises inside, so that x stays in these units.
        description: Where the rows came from and how they were split, in a sentence.
        sha256: Of all rows, labels and contexts, so that two runs can be known to have seen the
            same.
        integrand: What the rows are points of, uniform in its box. None where they are data.
        mixture: What the rows were drawn from, where its modes are known and apart.
    """

    train: Batch
    validation: Batch
    test: Batch
    event: Event
    labels: tuple[str, ...] | None
    mean: np.ndarray | None
    std: np.ndarray | None
    description: str
    sha256: str
    context: Context | None = None
    integrand: Integrand | None = None
    mixture: Mixture | None = None


def told_labels(labels: tuple[str, ...] | None, *, conditional: bool) -> tuple[str, ...] | None:
    """Return the labels that a model is told: those of its data, if it is conditional.

    Raises:
        ValueError: It is, and the data has none.
    """
    if conditional and not labels:
        raise ValueError("model.conditional: this data has no labels to be told; see data.label.")
    return labels if conditional else None


def load(config: DataConfig) -> Data:
    """Return the three splits that a recipe's data section describes.

    The same configuration and the same file give the same splits, in the same order.

    Raises:
        DataInvalid: The data cannot be used. The text says which file, what, and what to do.
    """
    raw, integrand = _read(config)
    if len(raw.x) < MINIMUM_ROWS:
        raise DataInvalid(
            f"{raw.source}: {len(raw.x)} rows are too few; give at least {MINIMUM_ROWS}"
        )
    splits = _split(raw, config)
    x, event = _events(raw, config)
    value = None
    if integrand is not None:
        value = integrand(x)
        event = event.model_copy(update={"minimum": integrand.low, "maximum": integrand.high})
        _require_mass(value[splits["train"]], integrand)
    unit = np.float32(1 if event.levels is None else event.levels - 1)
    label, names = to_classes(raw, wanted=config.label is not None)
    mean, std = (None, None) if event.kind == "image" else moments(raw, x[splits["train"]])
    told = to_contexts(raw)

    def batch(rows: Int64[np.ndarray, " batch"]) -> Batch:
        classes, numbers, values = (
            None if each is None else torch.from_numpy(each[rows]) for each in (label, told, value)
        )
        return Batch(torch.from_numpy(x[rows] / unit), classes, numbers, value=values)

    train = batch(splits["train"])
    return Data(
        train=replace(train, row=torch.arange(len(train))),
        validation=batch(splits["validation"]),
        test=batch(splits["test"]),
        event=event,
        labels=names,
        mean=mean,
        std=std,
        description=f"{raw.title}: {_describe(splits, len(x), event)} (seed {config.seed})",
        sha256=_digest(x, label, told, value),
        context=None if told is None else context_of(raw, told[splits["train"]]),
        integrand=integrand,
        mixture=mixture_of(config.source, noise=config.noise),
    )


def _read(config: DataConfig) -> tuple[Raw, Integrand | None]:
    """Return the rows of a source, or an integrand with uniform points of its box."""
    if not is_integrand(config.source):
        parts = Parts(config.label, config.context, config.categorical, config.columns)
        raw = read(config.source, parts, rows=config.rows, noise=config.noise, seed=config.seed)
        return raw, None
    low, high = config.box
    integrand = find(config.source, dimensions=config.dimensions, low=low, high=high)
    return integrand.points(config.rows or GENERATED_ROWS, seed=config.seed), integrand


def _require_mass(values: Float64[np.ndarray, " points"], integrand: Integrand) -> None:
    """Pass if f is seen at all by uniform points, which is where learning begins.

    Raises:
        DataInvalid: It is not.
    """
    if not values.any():
        raise DataInvalid(
            f"data.source {integrand.source}: the integrand is 0 at all {len(values)} uniform "
            f"points to train on; make the box smaller or data.rows larger"
        )


def _events(raw: Raw, config: DataConfig) -> tuple[Num[np.ndarray, "rows ..."], Event]:
    """Return all rows as grey levels (uint8) or features (float32), and what an event is."""
    if config.shape is not None or raw.x.ndim > 2:
        levels = config.levels or raw.levels or (2 if raw.x.dtype.kind == "b" else 256)
        pixels = to_pixels(raw, config.shape, levels)
        return pixels, Event(
            kind="image", shape=pixels.shape[1:], minimum=0, maximum=1, levels=levels
        )
    if config.levels is not None:
        raise DataInvalid(
            f"{raw.source}: 'levels' goes with images, and rows of shape {raw.x.shape[1:]} are "
            f"none; give their 'shape' or leave 'levels' out"
        )
    x = to_features(raw)
    return x, Event(
        kind="vector", shape=x.shape[1:], features=raw.columns, categories=raw.categories
    )


def _split(raw: Raw, config: DataConfig) -> dict[str, Int64[np.ndarray, " rows"]]:
    """Return the row numbers of train, validation and test, each in a random order.

    Official splits at the end of the rows are kept. What remains is put in a random order, of
    which test takes the first, validation the next, training the rest: so the test rows depend
    on the data, the seed and the test fraction only. `rows` then shortens every split alike.
    """
    n = len(raw.x)
    own_validation, own_test = raw.validation or 0, _official_test(raw, config)
    pool = n - own_validation - own_test
    generator = np.random.default_rng(config.seed)
    order = generator.permutation(pool)
    test = np.arange(n - own_test, n)
    if own_test == 0:
        test, order = np.split(order, [round(config.test_fraction * pool)])
    validation = np.arange(pool, pool + own_validation)
    if own_validation == 0:
        validation, order = np.split(order, [round(config.validation_fraction * pool)])
    # Official splits are often sorted, and the first rows should be of any class. Test is drawn
    # before validation, so that its order does not depend on the length of that.
    test = generator.permutation(test)
    splits = {"train": order, "validation": generator.permutation(validation), "test": test}
    share = min(1.0, (config.rows or n) / n)
    splits = {name: rows[: round(share * len(rows))] for name, rows in splits.items()}
    for name, rows in splits.items():
        if len(rows) < MINIMUM_SPLIT:
            raise DataInvalid(
                f"{raw.source}: expected {MINIMUM_SPLIT} rows or more in the {name} split; got "
                f"{len(rows)} ({n} rows, {own_validation} of them for validation and {own_test} "
                f"for test by the source); give more rows or another "
                f"{'validation' if name == 'train' else name} fraction"
            )
    return splits


def _official_test(raw: Raw, config: DataConfig) -> int:
    """Return how many rows at the end are the official test split; 0 if there is none."""
    if config.test_tail is None:
        return raw.test or 0
    if config.test_tail == raw.test:  # said twice, and the same
        return config.test_tail
    if raw.test or raw.validation:
        raise DataInvalid(
            f"{raw.source}: brings its own splits, with {raw.test or 0} test rows; "
            f"leave out 'test_tail'"
        )
    if config.test_tail >= len(raw.x):
        raise DataInvalid(
            f"{raw.source}: test_tail = {config.test_tail} leaves nothing to train on, the data "
            f"has {len(raw.x)} rows; choose a smaller one"
        )
    return config.test_tail


def _describe(splits: dict[str, Int64[np.ndarray, " rows"]], n: int, event: Event) -> str:
    """Return "1,797 8x8 grey images; 1,347 train, 180 validation, 270 test"."""
    used = sum(len(rows) for rows in splits.values())
    count = f"{n:,}" if used == n else f"{used:,} of {n:,}"
    if event.kind == "vector":
        what = f"rows of {event.size} features"
    else:
        channels, height, width = event.shape
        what = f"{width}x{height} {'grey' if channels == 1 else 'RGB'} images"
    return f"{count} {what}; " + ", ".join(f"{len(rows):,} {name}" for name, rows in splits.items())


def _digest(
    x: Num[np.ndarray, "rows ..."],
    label: Int64[np.ndarray, " rows"] | None,
    context: Float32[np.ndarray, "rows numbers"] | None,
    value: Float64[np.ndarray, " rows"] | None,
) -> str:
    """Return the SHA-256 of all rows: shape, levels or features, labels, contexts, values."""
    digest = hashlib.sha256(f"{x.dtype} {x.shape}".encode())
    # Values in float32: the last digit of an exponential depends on the processor.
    single = None if value is None else value.astype(np.float32)
    for array in (x, label, context, single):
        if array is not None:
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
