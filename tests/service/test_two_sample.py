"""The two-sample test: its statistic by brute force, its p-values by their distribution."""

import itertools
import math

import numpy as np
import pytest

from service.interface import Event
from service.tensors import Array
from service.two_sample import PERMUTATIONS, SCALES, Kernel, Verdict, compare

PLANE = Event(kind="vector", shape=(2,))
PICTURE = Event(kind="image", shape=(1, 2, 2), minimum=0.0, maximum=1.0)
KERNELS: tuple[Kernel, ...] = ("rational-quadratic", "energy")


def normal(rows: int, seed: int) -> Array:
    return np.random.default_rng(seed).normal(size=(rows, 2)).astype(np.float32)


@pytest.mark.parametrize("kernel", KERNELS)
def test_statistic_is_the_mean_over_all_pairs_of_different_rows(kernel: Kernel) -> None:
    x, y = (np.random.default_rng(seed).random((9, 1, 2, 2), np.float32) for seed in (1, 2))
    both = np.concatenate([x, y]).reshape(18, 4).astype(np.float64)
    unit = np.mean([np.sum((a - b) ** 2) for a, b in itertools.product(both, both)])

    def k(a: Array, b: Array) -> float:
        distance = np.sum((a.astype(np.float64) - b) ** 2)
        if kernel == "energy":
            return -math.sqrt(distance)
        return float(sum(1 / (1 + distance / (2 * scale * unit)) for scale in SCALES))

    terms = [
        k(x[i], x[j]) + k(y[i], y[j]) - k(x[i], y[j]) - k(x[j], y[i])
        for i, j in itertools.permutations(range(9), 2)
    ]
    found = compare(x, y, event=PICTURE, kernel=kernel, seed=0)
    assert found.statistic == pytest.approx(np.mean(terms), abs=1e-12)


def under_the_null(kernel: Kernel, repetitions: int) -> list[Verdict]:
    return [
        compare(normal(24, 2 * i), normal(24, 2 * i + 1), event=PLANE, kernel=kernel, seed=i)
        for i in range(repetitions)
    ]


def check_calibration(found: list[Verdict]) -> None:
    n, p_values = len(found), np.sort([each.p_value for each in found])
    # Kolmogorov's distance from uniform is above 2.23 / sqrt n once in ten thousand times.
    assert np.abs(p_values - (np.arange(n) + 0.5) / n).max() < 2.23 / math.sqrt(n) + 0.5 / n
    rejected = (p_values <= 0.05).sum()
    assert abs(rejected - 0.05 * n) <= 3.3 * math.sqrt(n * 0.05 * 0.95)
    values = np.array([each.statistic for each in found])
    assert (values < 0).any(), "an unbiased estimate of 0 is often below it"
    assert abs(values.mean()) <= 4.5 * values.std() / math.sqrt(len(values))


@pytest.mark.parametrize("kernel", KERNELS)
def test_p_values_of_equal_distributions_are_uniform(kernel: Kernel) -> None:
    check_calibration(under_the_null(kernel, 200))


@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS)
def test_p_values_of_equal_distributions_are_uniform_by_a_thousand(kernel: Kernel) -> None:
    check_calibration(under_the_null(kernel, 1000))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("rows", "shift"), [(8, 1.0), (40, 0.3), (40, 1.0)])
def test_standard_error_is_how_the_statistic_spreads(
    kernel: Kernel, rows: int, shift: float
) -> None:
    # Of images, which are not scaled by what is drawn.
    found = []
    for i in range(400):
        x, y = (np.random.default_rng(2 * i + k).normal(size=(rows, 1, 2, 2)) for k in range(2))
        found.append(compare(x, y + shift, event=PICTURE, kernel=kernel, seed=0))
    spread = np.std([each.statistic for each in found])
    said = math.sqrt(np.mean([each.standard_error**2 for each in found]))
    assert said == pytest.approx(spread, rel=0.15)


@pytest.mark.parametrize("kernel", KERNELS)
def test_shift_is_noticed(kernel: Kernel) -> None:
    found = [
        compare(normal(50, 2 * i), normal(50, 2 * i + 1) + 0.8, event=PLANE, kernel=kernel, seed=i)
        for i in range(50)
    ]
    assert np.mean([each.p_value <= 0.05 for each in found]) > 0.9
    far = compare(normal(50, 0), normal(50, 1) + 9, event=PLANE, kernel=kernel, seed=0)
    assert far.p_value == 1 / (1 + PERMUTATIONS), "and never 0"


def test_energy_of_normals_is_that_of_theory() -> None:
    # On a line, of N(0, 1) and N(3, 1): 2 E|x - y| - E|x - x'| - E|y - y'|.
    line = Event(kind="vector", shape=(1,))
    x, y = (np.random.default_rng(seed).normal(size=(1000, 1)) for seed in (1, 2))
    y += 3
    sd = np.concatenate([x, y]).std()
    apart = 2 / math.sqrt(math.pi) * math.exp(-9 / 4) + 3 * math.erf(3 / 2)
    wanted = (2 * apart - 2 * 2 / math.sqrt(math.pi)) / sd
    found = compare(x, y, event=line, kernel="energy", seed=0)
    assert abs(found.statistic - wanted) <= 4.5 * found.standard_error


@pytest.mark.parametrize("kernel", KERNELS)
def test_units_of_features_do_not_matter(kernel: Kernel) -> None:
    x, y = normal(30, 1), normal(30, 2) + 0.3
    unit, zero = np.array([1e3, 1e-3], np.float32), np.array([5.0, -7.0], np.float32)
    plain = compare(x, y, event=PLANE, kernel=kernel, seed=3)
    moved = compare(x * unit + zero, y * unit + zero, event=PLANE, kernel=kernel, seed=3)
    assert moved.statistic == pytest.approx(plain.statistic, abs=1e-4)
    assert moved.p_value == pytest.approx(plain.p_value, abs=0.01)


def test_names_of_categories_do_not_matter() -> None:
    event = Event(kind="vector", shape=(2,), categories=((), ("a", "b", "c")))
    rng = np.random.default_rng(5)
    x, y = (np.column_stack([rng.normal(size=60), rng.integers(0, 3, 60)]) for _ in range(2))
    y[:, 1] = rng.choice([0, 1, 2], p=[0.8, 0.1, 0.1], size=60)
    renamed = [np.column_stack([each[:, 0], (each[:, 1] + 1) % 3]) for each in (x, y)]
    plain = compare(x, y, event=event, kernel="energy", seed=1)
    again = compare(*renamed, event=event, kernel="energy", seed=1)
    assert plain.p_value < 0.05
    assert again.p_value == plain.p_value
    assert again.statistic == pytest.approx(plain.statistic, abs=1e-12)


@pytest.mark.parametrize("kernel", KERNELS)
def test_rows_that_are_all_alike_are_like_each_other(kernel: Kernel) -> None:
    x = np.full((8, 2), 3.0, np.float32)
    found = compare(x, x, event=PLANE, kernel=kernel, seed=0)
    assert (found.statistic, found.standard_error, found.p_value) == (0.0, 0.0, 1.0)


def test_seed_is_all_that_the_tosses_depend_on() -> None:
    x, y = normal(20, 1), normal(20, 2)
    first, again, other = (
        compare(x, y, event=PLANE, kernel="energy", seed=seed) for seed in (1, 1, 2)
    )
    assert first == again
    assert first.statistic == other.statistic
    assert first.p_value != other.p_value
