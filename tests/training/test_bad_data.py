"""Every way in which data can be unusable, and its one sentence."""

import re
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pydantic import ValidationError

from tests.training.small_sets import data, fake_openml, grey, numbered, save, save_images
from training.data import DataConfig
from training.raw import DataInvalid


def refused(source: object, words: str, **options: object) -> None:
    """The sentence names the source first, then holds `words`; it is one line and has no dot."""
    with pytest.raises(DataInvalid) as caught:
        data(source, **options)
    text = str(caught.value)
    assert text.startswith(str(source)), text
    assert re.search(words, text), text
    assert "\n" not in text
    assert not text.endswith(".")


@pytest.mark.parametrize(
    ("source", "words", "options"),
    [
        ("no/such/file.csv", "no such file or folder", {}),
        ("sklearn:diggits", "unknown set.*blobs, breast_cancer, circles, digits, iris", {}),
        ("gaussians:rnig", "unknown set.*known here are grid, ring", {}),
        ("gaussians:ring", "data.label does not apply", {"label": "y"}),
        ("sklearn:moons", "data.label does not apply", {"label": "y"}),
        ("sklearn:digits", "data.columns does not apply", {"columns": ["a"]}),
        ("sklearn:iris", "data.noise does not apply", {"noise": 0.1}),
        ("sklearn:iris", "no column 'petals'; choose among sepal length", {"columns": ["petals"]}),
        ("sklearn:iris", "'levels' goes with images", {"levels": 17}),
        ("sklearn:iris", "4 numbers cannot be viewed as \\[1, 3, 3\\].*9", {"shape": [3, 3]}),
        ("sklearn:digits", "images are \\[1, 8, 8\\].*'shape' is \\[4, 16\\]", {"shape": [4, 16]}),
        ("sklearn:digits", "expected images of whole numbers from 0 to 7", {"levels": 8}),
        ("sklearn:moons", "data.context does not apply", {"context": ["position"]}),
        ("sklearn:digits", "data.context does not apply", {"context": ["position"]}),
        ("sklearn:s_curve", "its context is \\['position'\\]", {"context": ["t"]}),
        ("sklearn:iris", "test_tail = 150 leaves nothing to train on", {"test_tail": 150}),
        ("sklearn:iris", "3 rows or more in the test split; got 0", {"test_fraction": 0.001}),
        ("sklearn:iris", "3 rows or more in the test split; got 2", {"test_fraction": 0.012}),
        ("sklearn:iris", "in the validation split; got 2", {"rows": 20}),
        (
            "sklearn:iris",
            "3 rows or more in the train split; got 0",
            {"test_fraction": 0.16, "validation_fraction": 0.8399},
        ),
    ],
)
def test_wrong_option_is_a_sentence(source: str, words: str, options: dict[str, Any]) -> None:
    refused(source, words, **options)


BAD_ARRAYS: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "no x": ({"data": numbered()}, "expected a key x or x_train; its keys are data", {}),
    "test only": ({"x_test": numbered()}, "its keys are x_test", {}),
    "no such label": ({"x": numbered(), "y": np.zeros(100)}, "no key 'age'", {"label": "age"}),
    "half labelled": (
        {"x_train": numbered(), "y_train": np.zeros(100), "x_test": numbered()},
        "no key 'y_test' with the labels of 'x_test'",
        {},
    ),
    "short labels": ({"x": numbered(), "y": np.zeros(99)}, "'y' of shape \\(100,\\); got", {}),
    "too coarse": (
        {"x": 1.7e9 + numbered().astype(float)},
        "about 1.7e\\+09, .*; subtract an offset",
        {},
    ),
    "label not a class": (
        {"x": numbered(), "y": np.append(np.zeros(99), 0.5)},
        "label 'y' is not a class: row 99 holds 0.5",
        {},
    ),
    "one class": ({"x": numbered(), "y": np.ones(100)}, "'y' has one class only", {"label": "y"}),
    "dates as labels": (
        {"x": numbered(), "y": np.arange(100).astype("datetime64[D]")},
        "label 'y' is datetime64",
        {},
    ),
    "one axis": ({"x": np.zeros(100)}, "expected 'x' to be numbers of shape .* float64", {}),
    "text": ({"x": np.full((100, 2), "a")}, "expected 'x' to be numbers", {}),
    "objects": ({"x": np.full((100, 2), None)}, "cannot be read as numbers", {}),
    "unlike splits": (
        {"x_train": numbered(), "x_test": numbered(100, 2)},
        "rows of 'x_test' have shape \\(2,\\), those of 'x_train' \\(3,\\)",
        {},
    ),
    "own test and tail": (
        {"x_train": numbered(), "x_test": numbered()},
        "brings its own splits, with",
        {"test_tail": 5},
    ),
    "few rows": ({"x": numbered(19)}, "19 rows are too few; give at least 20", {}),
    "columns": ({"x": numbered()}, "data.columns does not apply", {"columns": ["a"]}),
    "nan": (
        {"x": np.where(numbered() % 50 == 7, np.nan, numbered())},
        "column 0 .* has 2 values that are missing \\(NaN\\), .* the first in row 7 ",
        {},
    ),
    "too large": ({"x": numbered().astype(float) * 1e38}, "column 0 .* too large for float32", {}),
    "constant": ({"x": np.ones((100, 2)) * 0.1}, "column 0 .* is constant \\(0.1 in every", {}),
    "nan image": (
        {"x": np.full((30, 4, 4), np.nan)},
        "30 images hold NaN.* the first is row 0",
        {},
    ),
    "no such context": ({"x": numbered()}, "no key 'c' with the context", {"context": ["c"]}),
    "short context": (
        {"x": numbered(), "c": np.zeros(99)},
        "expected 'c' to be numbers of shape \\(100,\\) or \\(100, k\\); got float64 \\(99,\\)",
        {"context": ["c"]},
    ),
    "context of text": (
        {"x": numbered(), "c": np.full(100, "u")},
        "expected 'c' to be numbers",
        {"context": ["c"]},
    ),
    "unlike contexts": (
        {
            "x_train": numbered(),
            "c_train": np.zeros((100, 2)),
            "x_test": numbered(),
            "c_test": np.zeros((100, 3)),
        },
        "rows of 'c' have 2, 3 numbers",
        {"context": ["c"]},
    ),
    "black or binary": ({"x": grey() // 200}, "set levels = 2 for black and white", {}),
    "signed image": ({"x": grey() / 127.5 - 1}, "whole numbers from 0 to 255, or from 0 to 1", {}),
    "negative level": (
        {"x": grey().astype(np.int16) - 1},
        "whole numbers from 0 to 255, or from 0 to 1; got int16 from -1",
        {},
    ),
    "fractions above one": ({"x": grey() / 2.1}, "expected images of whole numbers", {}),
    "four channels": ({"x": np.zeros((30, 8, 8, 4))}, "cannot tell the channels", {}),
    "two candidates": ({"x": np.zeros((30, 3, 8, 3))}, "cannot tell the channels", {}),
    "two channels": ({"x": np.zeros((30, 8))}, "give 1 or 3 channels", {"shape": [2, 2, 2]}),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_bad_arrays_are_a_sentence(tmp_path: Path, case: str) -> None:
    arrays, words, options = BAD_ARRAYS[case]
    refused(save(tmp_path / "bad.npz", **arrays), words, **options)


def test_broken_array_files_are_a_sentence(tmp_path: Path) -> None:
    for name in ("broken.npy", "broken.npz"):
        (tmp_path / name).write_bytes(b"PK\x03\x04 no archive")
        refused(tmp_path / name, "cannot be read as numbers")


def test_archive_that_was_damaged_on_its_way_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "damaged.npz"
    np.savez_compressed(path, allow_pickle=True, x=numbered())
    whole = path.read_bytes()
    # Within the compressed numbers, and in both places that say how they are compressed.
    start, method = 200, b"\x08\x00"
    path.write_bytes(whole[:start] + b"\xff" * 50 + whole[start + 50 :])
    refused(path, "cannot be read as numbers")
    directory = whole.index(b"PK\x01\x02")
    assert whole[8:10] == whole[directory + 10 : directory + 12] == method
    unknown = bytearray(whole)
    unknown[8:10] = unknown[directory + 10 : directory + 12] = b"\x63\x00"
    path.write_bytes(unknown)
    refused(path, "cannot be read as numbers")


BAD_TABLES: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "text": ({"a": [1, "?", *range(98)]}, "column 'a' is not numeric \\(row 1 holds '\\?'", {}),
    "nan": (
        {"a": [*range(40), None, *range(58), None]},
        "column 'a' has 2 values that are missing .* first in row 40 ",
        {},
    ),
    "infinite": ({"a": [*range(99), float("inf")]}, "column 'a' has 1 .* row 99 ", {}),
    "constant": ({"a": range(100), "b": [2] * 100}, "column 'b' is constant \\(2 in every", {}),
    "no column": ({"a": range(100)}, "no column 'z'; choose among a", {"columns": ["z"]}),
    "no label": ({"a": range(100)}, "no column 'z'; choose among a", {"label": "z"}),
    "missing label": (
        {"a": range(100), "y": ["u", None] * 50},
        "label column 'y' has 50 missing values, the first in row 1 ",
        {"label": "y"},
    ),
    "label is no class": (
        {"a": range(100), "y": np.linspace(0, 1, 100)},
        "label 'y' is not a class: row 1 holds 0.01",
        {"label": "y"},
    ),
    "one class": ({"a": range(100), "y": ["u"] * 100}, "one class only, 'u'", {"label": "y"}),
    "twice": ({"a": range(100)}, "column 'a' is named twice", {"columns": ["a", "a"]}),
    "label as feature": (
        {"a": range(100)},
        "column 'a' is named twice",
        {"columns": ["a"], "label": "a"},
    ),
    "label only": ({"a": range(100)}, "no columns are left beside the label", {"label": "a"}),
    "context only": ({"a": range(100)}, "left beside the label and the con", {"context": ["a"]}),
    "no context": ({"a": range(100)}, "no column 'z'; choose among a", {"context": ["z"]}),
    "context as feature": (
        {"a": range(100)},
        "column 'a' is named twice",
        {"columns": ["a"], "context": ["a"]},
    ),
    "context of text": (
        {"a": range(100), "c": ["u", "v"] * 50},
        "column 'c' is not numeric",
        {"context": ["c"]},
    ),
    "missing context": (
        {"a": range(100), "c": [None, *range(99)]},
        "context 'c' has 1 values that are missing .* row 0 ",
        {"context": ["c"]},
    ),
    "constant context": (
        {"a": range(100), "c": [3] * 100},
        "context 'c' is constant \\(3 in every",
        {"context": ["c"]},
    ),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_bad_tables_are_a_sentence(tmp_path: Path, case: str) -> None:
    columns, words, options = BAD_TABLES[case]
    pd.DataFrame(columns).to_csv(tmp_path / "bad.csv", index=False)
    refused(tmp_path / "bad.csv", words, **options)


def test_columns_without_numbers_are_a_sentence_in_parquet_too(tmp_path: Path) -> None:
    path = tmp_path / "bad.parquet"
    pd.DataFrame({"day": pd.date_range("2020", periods=30)}).to_parquet(path)
    refused(path, "column 'day' is not numeric \\(row 0 holds '2020-01-01")
    pd.DataFrame({"size": [str(k) for k in range(30)]}).to_parquet(path)
    refused(path, "column 'size' is not numeric \\(row 0 holds '0'")
    pd.DataFrame({"none": [None] * 30}).to_parquet(path)
    refused(path, "column 'none' is not numeric \\(it is empty")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "cannot be read as a table"),
        ("a,b\n1,2\n1,2,3\n", "cannot be read as a table"),
        ("a,b\n" + "1,2,3\n" * 30, "more values than the first line has names"),
        (",a\n0,1\n", "a column has no name"),
        ("5.1,3.5\n4.9,3.0\n", "first line holds numbers only"),
        ("a\n" + "1\n2\n" * 5, "10 rows are too few"),
    ],
)
def test_malformed_csv_is_a_sentence(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "bad.csv").write_text(text)
    refused(tmp_path / "bad.csv", words)


def test_binary_file_under_a_table_name_is_a_sentence(tmp_path: Path) -> None:
    for name in ("bad.csv", "bad.parquet"):
        (tmp_path / name).write_bytes(bytes(range(128, 256)))
        refused(tmp_path / name, "cannot be read as a table")


def test_parquet_that_arrow_does_not_read_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(_: Path) -> None:
        raise NotImplementedError("Lists with structs are not supported")

    monkeypatch.setattr(pd, "read_parquet", unsupported)
    (tmp_path / "new.parquet").write_bytes(b"PAR1")
    refused(tmp_path / "new.parquet", "cannot be read as a table .Lists with structs")


def test_unknown_file_type_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "model.h5").write_bytes(b"")
    refused(tmp_path / "model.h5", "cannot read '.h5' files; give .npy, .npz, .csv, .parquet")


def test_empty_folder_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    refused(tmp_path, "no images in this folder")


def test_folder_of_splits_is_not_taken_for_classes(tmp_path: Path) -> None:
    save_images(tmp_path, grey(), classes=("train", "test"))
    refused(tmp_path, "sub-folders test, train are splits and not classes")


@pytest.mark.parametrize(
    ("mode", "size", "words"),
    [
        ("L", (9, 9), "is 9x9 grey, but 000.png is 5x4 grey"),
        ("RGB", (5, 4), "is 5x4 RGB, but 000.png is 5x4 grey"),
        ("RGBA", (5, 4), "has mode RGBA; convert"),
    ],
)
def test_odd_image_is_named(tmp_path: Path, mode: str, size: tuple[int, int], words: str) -> None:
    save_images(tmp_path, grey())
    Image.new(mode, size).save(tmp_path / "zebra.png")
    with pytest.raises(DataInvalid, match=f"zebra.png: this image {words}"):
        data(tmp_path)


@pytest.mark.parametrize("keep", [0, 20, 60])
def test_unreadable_image_is_named(tmp_path: Path, keep: int) -> None:
    save_images(tmp_path, grey(30, 16, 16))
    broken = tmp_path / "007.png"
    broken.write_bytes(broken.read_bytes()[:keep])
    with pytest.raises(DataInvalid, match=r"007\.png: cannot be read as an image"):
        data(tmp_path)


def test_fractions_must_leave_rows_to_train_on() -> None:
    with pytest.raises(ValidationError, match="must leave rows to train on"):
        DataConfig(source="sklearn:iris", test_fraction=0.5, validation_fraction=0.5)


def test_offline_openml_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(_: str) -> None:
        raise URLError("no route to host")

    fake_openml(monkeypatch, offline)
    with pytest.raises(DataInvalid, match=r"openml:wine: could not be fetched .*no route to host"):
        data("openml:wine")
