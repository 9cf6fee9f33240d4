"""Arrays: .npy and .npz files, and folders of images."""

import zlib
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from jaxtyping import Num, UInt8
from PIL import Image

from training.raw import DataInvalid, Parts, Raw, reason

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"})
SPLIT_NAMES = frozenset({"train", "training", "val", "valid", "validation", "test"})


def read_archive(path: Path, parts: Parts) -> Raw:
    """Return the arrays of a .npy file (x) or a .npz file (x, or x_train with x_val, x_test).

    Classes are under y, or under the name that `parts` gives, with the same endings; so are the
    numbers of a context, one of each row or several.

    Raises:
        DataInvalid: Unreadable, a key is missing, or the arrays do not fit together.
    """
    arrays = _arrays(path)
    ends = [""] if "x" in arrays else ["_train", "_val", "_test"]
    ends = [end for end in ends if f"x{end}" in arrays]
    if not ends or ends[0] in ("_val", "_test"):
        raise DataInvalid(
            f"{path}: expected a key x or x_train; its keys are {', '.join(arrays)}; save x, or "
            f"x_train with x_test"
        )
    key = parts.label or "y"
    labelled = parts.label is not None or any(f"{key}{end}" in arrays for end in ends)
    for end in ends:
        _require_fit(path, arrays, x=f"x{end}", y=f"{key}{end}" if labelled else None)
        if arrays[f"x{end}"].shape[1:] != arrays[f"x{ends[0]}"].shape[1:]:
            raise DataInvalid(
                f"{path}: rows of 'x{end}' have shape {arrays[f'x{end}'].shape[1:]}, those of "
                f"'x{ends[0]}' {arrays[f'x{ends[0]}'].shape[1:]}; make them alike"
            )
    told = [_context(path, arrays, key, ends) for key in parts.context or ()]
    length = {end: len(arrays[f"x{end}"]) for end in ends}
    return Raw(
        np.concatenate([arrays[f"x{end}"] for end in ends]),
        source=str(path),
        title=path.name,
        label=np.concatenate([arrays[f"{key}{end}"].ravel() for end in ends]) if labelled else None,
        label_key=key,
        context=np.concatenate([values for values, _ in told], axis=1) if told else None,
        context_names=tuple(name for _, names in told for name in names),
        validation=length.get("_val"),
        test=length.get("_test"),
    )


def _context(
    path: Path, arrays: dict[str, np.ndarray], key: str, ends: list[str]
) -> tuple[Num[np.ndarray, "rows numbers"], list[str]]:
    """Return the numbers of each row under a key, and a name for each of them."""
    if key == "x":
        raise DataInvalid(f"{path}: 'x' is the event itself; choose another context")
    for end in ends:
        values, rows = arrays.get(f"{key}{end}"), len(arrays[f"x{end}"])
        if values is None:
            raise DataInvalid(
                f"{path}: no key '{key}{end}' with the context of 'x{end}'; its keys are "
                f"{', '.join(arrays)}; add it or choose another context"
            )
        if values.dtype.kind not in "buif" or values.ndim not in (1, 2) or len(values) != rows:
            raise DataInvalid(
                f"{path}: expected '{key}{end}' to be numbers of shape ({rows},) or ({rows}, k); "
                f"got {values.dtype} {values.shape}; convert it"
            )
    parts = [arrays[f"{key}{end}"].reshape(len(arrays[f"x{end}"]), -1) for end in ends]
    widths = {part.shape[1] for part in parts}
    if len(widths) > 1 or 0 in widths:
        raise DataInvalid(
            f"{path}: rows of '{key}' have {', '.join(map(str, sorted(widths)))} numbers; make "
            f"them alike, one or more"
        )
    values = np.concatenate(parts).astype(np.float64)
    count = values.shape[1]
    return values, [key] if count == 1 else [f"{key}{k + 1}" for k in range(count)]


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """Return all arrays of a file by key; the one of a .npy file is x."""
    try:
        # numpy leaves a file that it opened itself open when the file is broken.
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return {"x": loaded}
            return {key: loaded[key] for key in loaded}
    # A damaged archive fails in zlib, or seems to ask for a compression that does not exist.
    except (OSError, ValueError, EOFError, BadZipFile, zlib.error, NotImplementedError) as error:
        raise DataInvalid(
            f"{path}: cannot be read as numbers ({reason(error)}); save it anew with numpy.save or "
            f"numpy.savez"
        ) from error


def _require_fit(path: Path, arrays: dict[str, np.ndarray], *, x: str, y: str | None) -> None:
    """Raise unless x is rows of real numbers and y, if wanted, has one class for each."""
    rows = arrays[x]
    if rows.dtype.kind not in "buif" or not 2 <= rows.ndim <= 4 or 0 in rows.shape[1:]:
        raise DataInvalid(
            f"{path}: expected '{x}' to be numbers of shape (rows, features), (rows, height, "
            f"width) or that with channels; got {rows.dtype} {rows.shape}; convert it"
        )
    if y is None:
        return
    if y not in arrays:
        raise DataInvalid(
            f"{path}: no key '{y}' with the labels of '{x}'; its keys are {', '.join(arrays)}; "
            f"add it or choose another label"
        )
    if arrays[y].shape not in ((len(rows),), (len(rows), 1)):
        raise DataInvalid(
            f"{path}: expected one label per row, '{y}' of shape ({len(rows)},); got "
            f"{arrays[y].shape}; make '{x}' and '{y}' equally long"
        )


def read_folder(folder: Path) -> Raw:
    """Return the images of a folder, and its sub-folders as classes if all images lie in one."""
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise DataInvalid(
            f"{folder}: no images in this folder; put .png or .jpg files there, or give another"
        )
    parents = [p.relative_to(folder).parts[:-1] for p in paths]
    names = sorted({parts[0] for parts in parents if parts})
    if names and SPLIT_NAMES.issuperset(name.lower() for name in names):
        raise DataInvalid(
            f"{folder}: the sub-folders {', '.join(names)} are splits and not classes; give one "
            f"of them, or all images together, and the splits are drawn"
        )
    images = [_image(paths[0])]
    for path in paths[1:]:
        images.append(_image(path))
        if images[-1].shape != images[0].shape:
            raise DataInvalid(
                f"{path}: this image is {_size(images[-1])}, but {paths[0].name} is "
                f"{_size(images[0])}; make all images of one size and mode"
            )
    label = np.array([parts[0] for parts in parents]) if all(parents) else None
    return Raw(
        np.stack(images),
        source=str(folder),
        title=f"folder {folder.resolve().name}",
        label=label,
        label_key="sub-folder",
    )


def _image(path: Path) -> UInt8[np.ndarray, "height width *channels"]:
    """Return one grey or RGB image."""
    try:
        with Image.open(path) as image:
            if image.mode not in ("L", "RGB"):
                raise DataInvalid(
                    f"{path}: this image has mode {image.mode}; convert all images to 8-bit grey "
                    f"(L) or to RGB"
                )
            return np.asarray(image)
    # Pillow reports a broken PNG as SyntaxError.
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataInvalid(
            f"{path}: cannot be read as an image ({reason(error)}); replace or remove it"
        ) from error


def _size(image: UInt8[np.ndarray, "height width *channels"]) -> str:
    """Return "8x6 grey" for an image 8 pixels wide."""
    return f"{image.shape[1]}x{image.shape[0]} {'grey' if image.ndim == 2 else 'RGB'}"
