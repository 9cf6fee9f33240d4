"""The picture shows counts, distances and neighbours: of each kind of events what there is."""

import io
from dataclasses import replace

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

from tests.training.small_sets import data
from training.classifier import train_classifier
from training.data import Data
from training.diagnostics import _images, _likest, _shortened, draw_diagnostics
from training.pictures import png
from training.samples import Compared, Features

DIGITS = data("sklearn:digits", rows=400)


def compared(rows: Data, samples: Tensor, reader: nn.Module | None = None) -> Compared:
    test = rows.test.x[: len(samples)]
    own = (samples.flatten(1), test.flatten(1), rows.train.x.flatten(1))
    features = Features(lambda x: x.flatten(1), "the features of a test", reader)
    return Compared(rows, samples, test, *own, features)


def titles(figure: Figure) -> list[str]:
    return [axes.get_title() for axes in figure.axes]


def test_copies_stand_above_the_rows_that_they_are_copies_of() -> None:
    x = torch.rand(30, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    x[20:28] = DIGITS.train.x[50:58]
    image = _images(compared(DIGITS, x))
    assert image.shape == (4 * 68, 8 * 68, 1)
    first, others, copies, originals = image.reshape(4, 68, 8 * 68)
    assert np.array_equal(copies, originals)
    assert not np.array_equal(first, others)
    assert np.array_equal(first[4:, 4:68:8], np.repeat(x[0, 0].numpy(), 8, axis=0))


def test_copies_of_a_row_that_is_there_twice_are_found_like_others() -> None:
    train = DIGITS.train.x.clone()
    train[51] = train[50]
    rows = replace(DIGITS, train=replace(DIGITS.train, x=train))
    x = DIGITS.test.x[:30].clone()
    x[10], x[20] = train[50] + 1e-3, train[60] + 1e-3
    assert set(_likest(compared(rows, x))[:2].tolist()) == {10, 20}


def test_long_names_are_cut_and_short_ones_are_not() -> None:
    assert [_shortened(name) for name in ("chrysanthemum", "aster rose", "8")] == [
        "chrysanth…", "aster rose", "8",
    ]  # fmt: skip


def test_labelled_images_are_counted_and_others_are_not() -> None:
    torch.manual_seed(0)
    reader = train_classifier(DIGITS, 10, steps=20)
    one_class = DIGITS.train.x[DIGITS.train.label == 3][:25]
    picture = draw_diagnostics(compared(DIGITS, one_class, reader))
    assert titles(picture)[0].startswith("classes read ")
    assert "class divergence " in titles(picture)[0]
    assert titles(picture)[1:] == ["distance to the nearest training row", ""]
    with Image.open(io.BytesIO(png(picture))) as image:
        assert image.width >= 700
    without = draw_diagnostics(compared(replace(DIGITS, labels=None), one_class))
    assert titles(without) == ["distance to the nearest training row", ""]


def test_modes_of_a_mixture_are_counted_and_other_vectors_have_distances_alone() -> None:
    ring = data("gaussians:ring", rows=400)
    picture = draw_diagnostics(compared(ring, ring.train.x[:60]))
    assert titles(picture)[0].startswith("modes covered 8")
    assert len(picture.axes) == 2
    iris = data("sklearn:iris")
    # Copies all of them: a logarithm has no 0.
    assert len(draw_diagnostics(compared(iris, iris.train.x[:20])).axes) == 1
