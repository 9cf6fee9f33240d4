"""Modes and classes that a model leaves out are told, with errors that hold."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.training.gaussian import Gaussian
from tests.training.small_sets import data
from training.collapse import by_classes, by_modes, divergence, presence
from training.evaluate import EvaluateConfig, evaluate
from training.mixtures import MIXTURES

RING = MIXTURES["ring"]


def test_evaluation_of_a_generator_of_five_of_eight_modes_says_five() -> None:
    class Five(Gaussian):
        def decode(self, z: Tensor, label: Tensor | None = None) -> Tensor:
            centres = torch.from_numpy(RING.centres[[0, 1, 3, 4, 6]]).float()
            which = (z[:, 0].abs() * 1e6).long() % 5
            return centres[which] + RING.spread * z

    rows = data("gaussians:ring", rows=4000, test_fraction=0.25, validation_fraction=0.25)
    found = {each.name: each for each in evaluate(Five(), rows, EvaluateConfig())}
    ours, theirs = (found[f"modes covered of {rows}"] for rows in ("samples", "training rows"))
    assert (ours.value, theirs.value, ours.unit) == (5, 8, "of 8")
    assert ours.standard_error == theirs.standard_error == 0
    for kind in ("samples", "training rows"):
        share = found[f"good share of {kind}"]
        assert share.standard_error
        # The first number of z, which decides the mode, is at its place all the same.
        assert abs(share.value - 0.98889) <= 4.5 * share.standard_error


def test_error_of_a_count_is_that_of_a_mode_at_the_edge() -> None:
    # A mode with exactly what it takes is there about every other time.
    centre, next_one = (torch.from_numpy(RING.centres[[k]]) for k in (0, 1))
    x = torch.cat([centre.expand(990, 2), next_one.expand(10, 2)])
    modes, _ = by_modes(x, RING)
    assert modes.value == 2
    assert modes.standard_error == pytest.approx(0.5, abs=0.01)


class Reader(nn.Module):
    """Reads the class that stands in the first pixel."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.one_hot(x[:, 0, 0, 0].long(), 4).float()


def images(*counts: int) -> Tensor:
    label = torch.repeat_interleave(torch.arange(4), torch.tensor(counts))
    return label[:, None, None, None].expand(-1, 1, 2, 2).float()


def test_classes_that_are_missing_are_told() -> None:
    test = images(100, 100, 100, 0)
    read, far = by_classes(images(200, 91, 9, 0), test, Reader(), "abcd", name="a reader")
    assert (read.value, read.unit) == (2, "of 3")
    q, p = np.array([200.5, 91.5, 9.5, 0.5]) / 302, np.array([100.5, 100.5, 100.5, 0.5]) / 302
    assert far.value == pytest.approx(float((q * np.log(q / p)).sum()))
    assert far.standard_error
    assert far.value > 4.5 * far.standard_error
    assert "by a reader" in far.note


@pytest.mark.parametrize("shares", [(0.25, 0.25, 0.25, 0.25), (0.7, 0.1, 0.1, 0.1)])
def test_error_of_the_divergence_is_its_deviation_over_draws(shares: tuple[float, ...]) -> None:
    generator = np.random.default_rng(0)
    drawn = [
        divergence(generator.multinomial(400, shares), generator.multinomial(300, [0.25] * 4))
        for _ in range(500)
    ]
    values, errors = np.array(drawn).T
    assert errors.mean() == pytest.approx(values.std(), rel=0.3)


def test_a_class_that_is_rare_in_the_data_need_not_be_frequent() -> None:
    theirs = np.array([970, 30])
    assert presence(np.array([496, 4]), theirs)[0] == 2
    assert presence(np.array([499, 1]), theirs)[0] == 1


def test_a_class_that_few_test_rows_are_read_as_is_not_counted() -> None:
    for few, counted in ((9, 3), (10, 4)):
        test = images(100, 100, 100, few)
        read, _ = by_classes(images(103, 103, 103, 0), test, Reader(), "abcd", name="a reader")
        assert (read.value, read.unit) == (3, f"of {counted}")
        assert "10 of these or more" in read.note
    none, _ = by_classes(images(9, 0, 0, 0), images(5, 4, 0, 0), Reader(), "abcd", name="a reader")
    assert (none.value, none.standard_error, none.unit) == (0, 0, "of 0")
