"""Sources: where rows come from, each read into one `Raw` value with its numbers unchecked."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float, Num
from sklearn import datasets

from training.arrays import read_archive, read_folder
from training.mixtures import MIXTURES, Mixture
from training.raw import DataInvalid, Parts, Raw, reason
from training.tables import read_file, read_table

GENERATED_ROWS = 10_000
"""Rows of a generated set unless the recipe says otherwise."""


@dataclass(frozen=True)
class Toy:
    """A set that is generated: how, with how much noise by default, and whether with classes."""

    make: Callable[..., tuple[np.ndarray, np.ndarray]]
    noise: float
    labelled: bool


def _blobs(
    *, n_samples: int, noise: float, random_state: int
) -> tuple[Float[np.ndarray, "rows 2"], Num[np.ndarray, " rows"]]:
    """Return blobs, whose noise scikit-learn calls the standard deviation of a cluster."""
    x, label = datasets.make_blobs(n_samples, cluster_std=noise, random_state=random_state)
    return x, label


TOYS = {
    "moons": Toy(datasets.make_moons, 0.05, labelled=True),
    "circles": Toy(datasets.make_circles, 0.05, labelled=True),
    "blobs": Toy(_blobs, 1.0, labelled=True),
    "swiss_roll": Toy(datasets.make_swiss_roll, 0.5, labelled=False),
    "s_curve": Toy(datasets.make_s_curve, 0.05, labelled=False),
}
POSITION = ("position",)
"""What a set without classes knows of each row: how far along the curve it lies."""
TABLES = {
    "iris": datasets.load_iris,
    "wine": datasets.load_wine,
    "breast_cancer": datasets.load_breast_cancer,
}


def read(source: str, parts: Parts, *, rows: int | None, noise: float | None, seed: int) -> Raw:
    """Return the rows of a source, all of them.

    Args:
        source: `sklearn:NAME`, `gaussians:NAME`, `openml:NAME`, or a path: a file or a folder of
            images.
        parts: What of it is used.
        rows: How many to generate, where the set is generated. Others are read whole.
        noise: Of a generated set. None: the set's own.
        seed: Of a generated set.

    Raises:
        DataInvalid: Unknown or unreadable source, or an option that does not apply to it.
    """
    scheme, _, name = source.partition(":")
    if scheme == "sklearn" and name in TOYS:
        _refuse_parts(source, parts, "label", "categorical", "columns")
        return _toy(name, parts.context, rows=rows, noise=noise, seed=seed)
    if scheme == "gaussians":
        _refuse_parts(source, parts, "label", "context", "categorical", "columns")
        return _mixture(name, rows=rows, noise=noise, seed=seed)
    _refuse(source, noise=noise)
    if scheme == "sklearn":
        _refuse_parts(source, parts, "label", "categorical")
        return _built_in(name, parts)
    if scheme == "openml":
        return _openml(name, parts)
    path = Path(source)
    if not path.exists():
        raise DataInvalid(
            f"{source}: no such file or folder; give a path that exists (relative ones start "
            f"at the current directory), sklearn:NAME, gaussians:NAME or openml:NAME"
        )
    if path.is_dir():
        _refuse_parts(source, parts, "label", "context", "categorical", "columns")
        return read_folder(path)
    if path.suffix in (".npy", ".npz"):
        _refuse_parts(source, parts, "categorical", "columns")
        return read_archive(path, parts)
    if path.suffix in (".csv", ".parquet"):
        return read_table(read_file(path), parts, source=source, title=path.name)
    raise DataInvalid(
        f"{source}: cannot read '{path.suffix}' files; give .npy, .npz, .csv, .parquet or a "
        f"folder of images"
    )


def _refuse_parts(source: str, parts: Parts, *names: str) -> None:
    """Raise for a part that the source has not."""
    _refuse(source, **{name: getattr(parts, name) for name in names})


def _refuse(source: str, **options: object) -> None:
    """Raise for an option that was given and would do nothing."""
    for name, value in options.items():
        if value is not None:
            raise DataInvalid(f"{source}: data.{name} does not apply here; leave it out")


def _toy(
    name: str,
    context: tuple[str, ...] | None,
    *,
    rows: int | None,
    noise: float | None,
    seed: int,
) -> Raw:
    """Return freshly generated rows of one of scikit-learn's `make_` sets."""
    toy, source = TOYS[name], f"sklearn:{name}"
    if toy.labelled:
        _refuse(source, context=context)
    elif context not in (None, POSITION):
        raise DataInvalid(f"{source}: its context is {list(POSITION)}; got {list(context)}")
    x, label = toy.make(
        n_samples=GENERATED_ROWS if rows is None else rows,
        noise=toy.noise if noise is None else noise,
        random_state=seed,
    )
    return Raw(
        x,
        source=source,
        title=f"scikit-learn {name}",
        label=label if toy.labelled else None,
        context=label[:, None] if context else None,
        context_names=context or (),
    )


def _mixture(name: str, *, rows: int | None, noise: float | None, seed: int) -> Raw:
    """Return freshly generated rows of Gaussians in the plane, whose noise is their deviation."""
    source = f"gaussians:{name}"
    if name not in MIXTURES:
        known = ", ".join(sorted(MIXTURES))
        raise DataInvalid(f"{source}: unknown set; those of Gaussians known here are {known}")
    count = GENERATED_ROWS if rows is None else rows
    mixture = MIXTURES[name]
    x = mixture.draw(count, spread=mixture.spread if noise is None else noise, seed=seed)
    title = f"{name} of {len(mixture.centres)} Gaussians"
    return Raw(x, source=source, title=title)


def mixture_of(source: str, *, noise: float | None) -> Mixture | None:
    """Return the mixture that the rows of a source are drawn from, if its modes can be counted.

    None of any other source, and where the noise makes of the modes points, or one heap.
    """
    scheme, _, name = source.partition(":")
    if scheme != "gaussians" or name not in MIXTURES:
        return None
    mixture = MIXTURES[name] if noise is None else replace(MIXTURES[name], spread=noise)
    return mixture if mixture.is_apart else None


def _built_in(name: str, parts: Parts) -> Raw:
    """Return one of the sets that scikit-learn carries."""
    source, title = f"sklearn:{name}", f"scikit-learn {name}"
    if name == "digits":
        _refuse_parts(source, parts, "context", "columns")
        digits = datasets.load_digits()
        x = digits.images.astype(np.uint8)
        return Raw(x, source=source, title=title, label=digits.target, levels=17)
    if name not in TABLES:
        known = ", ".join(sorted({"digits", *TABLES, *TOYS}))
        raise DataInvalid(f"{source}: unknown set; scikit-learn's sets known here are {known}")
    bunch = TABLES[name](as_frame=True)
    names = tuple(map(str, bunch.target_names))
    labelled = replace(parts, label="target")
    return read_table(bunch.frame, labelled, source=source, title=title, names=names)


def _openml(name: str, parts: Parts) -> Raw:
    """Return a set of openml.org. Its own target is the label where it is categorical."""
    source = f"openml:{name}"
    try:
        bunch = datasets.fetch_openml(name, as_frame=True, parser="auto")
    except (OSError, ValueError) as error:
        raise DataInvalid(
            f"{source}: could not be fetched ({reason(error)}); check the name and the network, or "
            f"save the table as .csv or .parquet and give its path"
        ) from error
    target = bunch.target.name if isinstance(bunch.target, pd.Series) else None
    numeric = pd.api.types.is_numeric_dtype(bunch.target)
    if parts.label is None and target is not None and not numeric:
        parts = replace(parts, label=str(target))
    return read_table(bunch.frame, parts, source=source, title=f"OpenML {name}")
