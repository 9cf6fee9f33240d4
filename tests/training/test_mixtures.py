"""Modes are counted as they are."""

import numpy as np
import pytest

from tests.training.gaussian import Gaussian
from tests.training.small_sets import data
from training.evaluate import EvaluateConfig, evaluate
from training.mixtures import MIXTURES, Mixture

each_mixture = pytest.mark.parametrize("mixture", MIXTURES.values(), ids=MIXTURES)


@each_mixture
def test_perfect_samples_cover_all_modes(mixture: Mixture) -> None:
    found = mixture.find(mixture.draw(20_000, spread=mixture.spread, seed=0))
    assert found.modes == len(mixture.centres)
    # In the plane, 1 - exp(-9/2) of a Gaussian is within three deviations.
    assert abs(found.good - 0.98889) <= 4.5 * found.good_error


def test_generator_of_five_of_eight_modes_has_five() -> None:
    ring = MIXTURES["ring"]
    part = Mixture(ring.centres[[0, 1, 3, 4, 6]], ring.spread)
    found = ring.find(part.draw(5_000, spread=ring.spread, seed=0))
    assert found.modes == 5
    assert [place for place, hits in enumerate(found.hits) if hits] == [0, 1, 3, 4, 6]
    assert found.good > 0.98


def test_samples_between_the_modes_are_not_good_and_few_do_not_cover_one() -> None:
    ring = MIXTURES["ring"]
    assert ring.find(ring.draw(1_000, spread=0.0, seed=0) * 1.1).modes == 0
    few = np.concatenate([np.repeat(ring.centres[:1], 995, 0), np.repeat(ring.centres[1:2], 5, 0)])
    found = ring.find(few)
    assert (found.modes, found.good) == (1, 1.0)


def test_data_of_a_mixture_knows_it_with_the_noise_that_was_asked_for() -> None:
    mixture = data("gaussians:grid", rows=200).mixture
    assert mixture
    assert mixture.spread == MIXTURES["grid"].spread
    noisy = data("gaussians:ring", rows=200, noise=0.2).mixture
    assert noisy
    assert noisy.spread == 0.2
    assert data("sklearn:moons", rows=200).mixture is None


@pytest.mark.parametrize("noise", [0.0, 0.3, 1.0])
def test_modes_that_are_points_or_overlap_are_not_counted(noise: float) -> None:
    # Of the ring, modes are 1.53 apart: 6 x 0.3 is more.
    rows = data("gaussians:ring", rows=200, noise=noise)
    assert rows.mixture is None
    found = [each.name for each in evaluate(Gaussian(), rows, EvaluateConfig())]
    assert "energy distance of samples" in found
    assert not [name for name in found if name.startswith(("modes covered", "good share"))]
