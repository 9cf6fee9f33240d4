"""Lost modes and copies are seen, and what covers the data is not blamed."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import rankdata
from torch import Tensor

from training import manifolds
from training.manifolds import closest, copying, nearest, radii, support, surroundings


def ring(rows: int, seed: int, modes: int = 8, spread: float = 0.05) -> Tensor:
    """Return rows of so many of eight Gaussians about a circle."""
    generator = torch.Generator().manual_seed(seed)
    angle = 2 * math.pi * torch.randint(modes, (rows,), generator=generator) / 8
    centre = torch.stack((angle.cos(), angle.sin()), dim=1)
    return centre + spread * torch.randn(rows, 2, generator=generator)


def normal(rows: int, seed: int, features: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, features, generator=generator)


def test_all_is_well_where_samples_are_like_the_data() -> None:
    found = support(ring(800, 0), ring(800, 1))
    assert min(found.precision, found.recall, found.coverage) > 0.9
    assert abs(found.density - 1) <= 4.5 * found.density_error


def test_lost_modes_are_missed_and_precision_stays() -> None:
    found = support(ring(800, 0, modes=5), ring(800, 1))
    assert found.precision > 0.9
    # Five modes of eight hold 5/8 of the data.
    assert abs(found.recall - 5 / 8) < 0.08
    assert abs(found.coverage - 5 / 8) < 0.08
    # What the lost ones would have had is where samples are already: 8/5 times as many.
    assert found.density == pytest.approx(1.0, abs=0.1)


def test_one_narrow_mode_is_precise_and_recalls_hardly_anything() -> None:
    found = support(ring(800, 0, modes=1, spread=0.02), ring(800, 1))
    assert found.precision > 0.8
    assert found.recall < 0.3
    assert found.coverage < 0.3


def test_strangers_are_imprecise() -> None:
    found = support(3 + ring(100, 0), ring(100, 1))
    assert (found.precision, found.recall, found.density, found.coverage) == (0, 0, 0, 0)


def test_figures_are_their_definitions(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = normal(37, 0), 0.5 + normal(41, 1)
    whole = support(x, y)
    monkeypatch.setattr(manifolds, "BLOCK", 100)
    assert support(x, y) == whole

    def ball(rows: Tensor, k: int) -> Tensor:
        return torch.cdist(rows, rows).sort(1).values[:, k]

    distance = torch.cdist(x, y)
    assert whole.precision == pytest.approx((distance <= ball(y, 3)).any(1).double().mean().item())
    assert whole.recall == pytest.approx((ball(x, 3) >= distance.T).any(1).double().mean().item())
    inside = (distance <= ball(y, 5)).double()
    assert whole.density == pytest.approx(inside.sum(1).mean().item() / 5)
    assert whole.coverage == pytest.approx(inside.amax(0).mean().item())


def test_coverage_of_samples_like_the_data_is_its_expectation() -> None:
    """Of N and M rows of one distribution, Naeem et al. 2020, appendix."""
    rows, k = 300, 5
    found = [support(normal(rows, 2 * i), normal(rows, 2 * i + 1)).coverage for i in range(20)]
    kept = math.prod((rows - 1 - j) / (2 * rows - 1 - j) for j in range(k))
    assert abs(np.mean(found) - (1 - kept)) <= 4.5 * np.std(found) / math.sqrt(20)


def test_rows_that_are_equal_have_balls_of_nothing_that_hold_themselves() -> None:
    x = torch.tensor([[0.1, 0.7]]).repeat(10, 1)
    assert radii(x, (1, 5)).abs().max() == 0
    found = support(x, x)
    assert (found.precision, found.recall, found.coverage) == (1, 1, 1)


def test_few_rows_make_k_smaller() -> None:
    assert support(normal(2, 0), normal(2, 1)).coverage in (0, 0.5, 1)


def test_nearest_is_exact_where_rows_are_copies_far_from_the_origin() -> None:
    others = 1000 + normal(500, 0)
    assert nearest(others[:20], others).abs().max() == 0
    x = 1000 + normal(20, 1)
    assert torch.allclose(
        nearest(x, others), torch.cdist(x.double(), others.double()).amin(1), rtol=0.05
    )


def test_copies_are_noticed() -> None:
    train, test = normal(1000, 0), normal(300, 1)
    copies = train[:300] + 0.05 * normal(300, 2)
    found = copying(copies, test, train)
    assert found.z < -10
    assert found.share > 0.9
    # A tenth of copies among honest samples.
    some = torch.cat((train[:60] + 0.05 * normal(60, 2), normal(240, 3)))
    assert copying(some, test, train).z < -3


def test_honest_samples_are_as_near_as_test_rows() -> None:
    train = normal(300, 0)
    found = [copying(normal(100, 10 + 2 * i), normal(100, 11 + 2 * i), train) for i in range(200)]
    z = np.array([each.z for each in found])
    assert abs(z.mean()) <= 4.5 / math.sqrt(200)
    assert abs(z.var() - 1) <= 4.5 * math.sqrt(2 / 200)
    assert abs(np.mean([each.share for each in found]) - 0.5) < 0.02


def test_samples_far_from_any_data_are_told_from_copies() -> None:
    assert copying(3 + normal(100, 0), normal(100, 1), normal(500, 2)).z > 5


def test_z_is_mann_and_whitneys_with_ties_as_halves() -> None:
    train = torch.zeros(1, 1)
    samples, test = torch.tensor([[1.0], [2.0], [2.0]]), torch.tensor([[2.0], [3.0]])
    ranks = rankdata([1, 2, 2, 2, 3])[:3].sum()
    further = ranks - 3 * 4 / 2
    found = copying(samples, test, train)
    assert found.z == pytest.approx((further - 3) / math.sqrt(6 * 6 / 12))
    assert found.share == pytest.approx(1 - further / 6)


def test_closest_row_and_mean_distance_of_the_closest_are_those_of_all_distances() -> None:
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    samples, others = x[:20], x[20:] + 5
    distance = torch.cdist(samples, others)
    assert closest(x, x).equal(torch.arange(50))
    assert closest(samples, others).equal(distance.argmin(1))
    near = distance.sort(1).values
    torch.testing.assert_close(surroundings(samples, others, k=7), near[:, :7].mean(1))
    torch.testing.assert_close(surroundings(samples, others, k=99), near.mean(1))
