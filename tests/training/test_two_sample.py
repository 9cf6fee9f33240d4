"""p-values are uniform where both samples are of one distribution, and small where not."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from training.kernels import energy, mean_squared_distance, rational_quadratics
from training.two_sample import DRAWS, Verdict, classifier_test, mmd_test

Test = Callable[[Tensor, Tensor, int], Verdict]


def normal(rows: int, seed: int, *, shift: float = 0.0, features: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, features, generator=generator, dtype=torch.float64) + shift


def by_rational_quadratics(x: Tensor, y: Tensor, seed: int) -> Verdict:
    unit = mean_squared_distance(torch.cat((x, y)))
    return mmd_test(x, y, rational_quadratics(unit), seed=seed)


def by_energy(x: Tensor, y: Tensor, seed: int) -> Verdict:
    return mmd_test(x, y, energy, seed=seed)


def by_classifier(x: Tensor, y: Tensor, seed: int) -> Verdict:
    return classifier_test(x, y, seed=seed)


BY_KERNEL = {
    "rational quadratics": by_rational_quadratics,
    "energy": by_energy,
}
TESTS: dict[str, Test] = {**BY_KERNEL, "classifier": by_classifier}
every_kernel = pytest.mark.parametrize("test", BY_KERNEL.values(), ids=BY_KERNEL)
every_test = pytest.mark.parametrize("test", TESTS.values(), ids=TESTS)


def null(test: Test, repetitions: int, rows: int = 30) -> np.ndarray:
    """Return p-values of pairs of samples of one distribution."""
    return np.array(
        [test(normal(rows, 2 * i), normal(rows, 2 * i + 1), i).p_value for i in range(repetitions)]
    )


@every_kernel
def test_p_values_are_uniform_where_samples_agree(test: Test) -> None:
    found = null(test, 300)
    # Standard errors of a mean of 300 uniform numbers, and of the share of them below .05.
    assert abs(found.mean() - 0.5) <= 4.5 * np.sqrt(1 / 12 / 300)
    assert abs((found <= 0.05).mean() - 0.05) <= 4.5 * np.sqrt(0.05 * 0.95 / 300)


@pytest.mark.slow
@every_kernel
def test_a_twentieth_of_a_thousand_true_hypotheses_is_rejected(test: Test) -> None:
    found = null(test, 1000)
    assert 30 <= (found <= 0.05).sum() <= 72
    shares = np.arange(1, 20) / 20
    below = (found[:, None] <= shares).mean(0)
    assert (abs(below - shares) <= 4.5 * np.sqrt(shares * (1 - shares) / 1000)).all()


@every_kernel
def test_p_values_are_uniform_where_partners_share_a_label(test: Test) -> None:
    """By permutations of all rows they would be far too large: labels are as often in both."""
    found = []
    for i in range(200):
        label = 10.0 * (torch.arange(30) % 3)[:, None]
        found.append(test(normal(30, 2 * i) + label, normal(30, 2 * i + 1) + label, i).p_value)
    assert abs(np.mean(found) - 0.5) <= 4.5 * np.sqrt(1 / 12 / 200)


@every_test
def test_a_shift_is_seen(test: Test) -> None:
    repetitions = 20 if test is by_classifier else 60
    shift = 1.5 if test is by_classifier else 0.8
    found = [
        test(normal(60, 2 * i), normal(60, 2 * i + 1, shift=shift), i).p_value
        for i in range(repetitions)
    ]
    assert np.mean(np.array(found) <= 0.05) > 0.9


@every_test
def test_the_least_p_value_is_one_over_the_draws_and_one(test: Test) -> None:
    found = test(normal(60, 0), normal(60, 1, shift=50.0), 0)
    assert found.p_value == 1 / (1 + DRAWS)
    assert found.p_error > 0


@every_test
def test_equal_samples_are_the_least_surprising(test: Test) -> None:
    x = normal(20, 0)
    assert test(x, x, 0).p_value == 1.0


@every_test
def test_same_seed_same_answer_and_torchs_generator_is_left_alone(test: Test) -> None:
    x, y = normal(20, 0), normal(20, 1)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = test(x, y, 5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(2)
    assert test(x, y, 5) == first
    assert 0 < first.p_value <= 1


@every_kernel
def test_draws_are_what_the_statistic_is_after_partners_changed_places(test: Test) -> None:
    """The p-value by its definition, with every statistic computed anew."""
    x, y = normal(8, 0), normal(8, 1, shift=0.4)
    generator = torch.Generator().manual_seed(7)
    signs = torch.randint(2, (DRAWS, 8), generator=generator) > 0
    seen = test(x, y, 7)
    drawn = [
        test(torch.where(each[:, None], x, y), torch.where(each[:, None], y, x), 7).value
        for each in signs
    ]
    assert seen.p_value == (1 + sum(value >= seen.value - 1e-12 for value in drawn)) / (1 + DRAWS)


def test_a_classifier_is_right_in_half_of_the_cases_where_samples_agree() -> None:
    found = [classifier_test(normal(200, 2 * i), normal(200, 2 * i + 1), seed=i) for i in range(20)]
    right = np.array([each.value for each in found])
    assert abs(right.mean() - 0.5) <= 4.5 * 0.5 / np.sqrt(20 * 200)
    assert all(each.rows == 200 for each in found)
    assert (np.array([each.p_value for each in found]) <= 0.05).mean() <= 0.25


def test_a_classifier_nears_the_best_there_is() -> None:
    """Of N(0, 1) and N(2, 1), told by the side of 1, it is right in 84.1 % of the cases."""
    x, y = normal(2000, 0, features=1), normal(2000, 1, shift=2.0, features=1)
    found = classifier_test(x, y, seed=0)
    assert abs(found.value - 0.8413) <= 4.5 * found.standard_error


def test_a_classifier_of_what_never_varied_before_stays_finite() -> None:
    x = torch.cat((normal(20, 0), torch.zeros(20, 1)), dim=1)
    y = torch.cat((normal(20, 1), torch.ones(20, 1)), dim=1)
    assert classifier_test(x, x.flip(0), seed=0).rows == 20
    assert classifier_test(x, y, seed=0).p_value < 0.05


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="4 rows or more of each sample; got 3"):
        classifier_test(normal(3, 0), normal(3, 1), seed=0)
    with pytest.raises(ValueError, match="three rows or more"):
        mmd_test(normal(2, 0), normal(2, 1), energy, seed=0)
