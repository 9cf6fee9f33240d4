"""Calibrated log ratios, and bounds on them, where the answer is known."""

import math

import pytest
import torch

from training.calibration import (
    BOUND_SHARE,
    LEAST_ACCEPTANCE,
    Calibration,
    acceptance,
    accuracy,
    bounded,
    cross_entropy,
    regressed,
)

N = 40_000


def pair(shift: float = 1.0, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the log ratio of N(shift, 1) and N(0, 1) at events of the one and of the other."""
    generator = torch.Generator().manual_seed(seed)
    p, q = torch.randn(2, N, generator=generator, dtype=torch.float64)
    return shift * (p + shift) - shift**2 / 2, shift * q - shift**2 / 2


def test_true_ratio_is_left_as_it_is() -> None:
    scale, shift = regressed(*pair())
    # Of the inverse of the information matrix, by quadrature: 2.2 and 0.95 a row of both.
    assert abs(scale - 1) <= 4.5 * math.sqrt(4.6 / N)
    assert abs(shift) <= 4.5 * math.sqrt(3.0 / N)


@pytest.mark.parametrize(("times", "more"), [(0.05, 2.0), (4.0, -1.0)])
def test_a_ratio_that_is_off_is_set_right(times: float, more: float) -> None:
    real, fake = pair()
    scale, shift = regressed(times * real + more, times * fake + more)
    wanted = regressed(real, fake)
    assert scale == pytest.approx(wanted[0] / times, rel=1e-4)
    assert shift == pytest.approx(wanted[1] - wanted[0] / times * more, rel=1e-3, abs=1e-3)
    calibration = Calibration().double()
    calibration.fit(times * real + more, times * fake + more)
    found, _ = cross_entropy(calibration(times * real + more), calibration(times * fake + more))
    assert found <= cross_entropy(real, fake)[0] + 1e-4


def test_a_critic_that_is_wrong_is_believed_nothing() -> None:
    real, fake = pair()
    assert regressed(fake, real) == (0.0, 0.0)


def test_rows_that_are_parted_for_good_get_a_finite_scale() -> None:
    scale, shift = regressed(torch.ones(50), -torch.ones(50))
    # Platt's targets are 51 / 52 and 1 / 52.
    assert scale == pytest.approx(math.log(51), rel=1e-3)
    assert shift == pytest.approx(0, abs=1e-3)


def test_bound_leaves_out_its_share_of_the_largest() -> None:
    log_ratio = pair(0.5)[1]
    log_bound, share = bounded(log_ratio)
    assert (log_ratio > log_bound).double().mean().item() == pytest.approx(BOUND_SHARE, abs=1e-4)
    assert share == pytest.approx(acceptance(log_ratio, log_bound))
    # E_q min(1, ratio / bound) is nearly 1 / bound, where little is above it.
    assert share == pytest.approx(math.exp(-log_bound), rel=0.02)


def test_bound_is_lowered_until_enough_is_accepted() -> None:
    log_ratio = pair(4.0)[1]
    log_bound, share = bounded(log_ratio)
    assert share == pytest.approx(LEAST_ACCEPTANCE, rel=1e-6)
    assert log_bound < log_ratio.quantile(1 - BOUND_SHARE).item()


def test_each_label_is_accepted_often_enough() -> None:
    label = torch.arange(10_000) % 2
    torch.manual_seed(0)
    log_ratio = torch.randn(10_000) - 6.0 * label
    low, share = bounded(log_ratio, label)
    assert acceptance(log_ratio[label == 1].double(), low) == pytest.approx(0.1, abs=1e-9)
    assert acceptance(log_ratio.double(), low) == share > 0.5
    assert bounded(log_ratio)[0] > low + 2


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
def test_answers_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        regressed(torch.tensor([0.0, bad]), torch.tensor([1.0, 0.0]))


def test_entropy_and_accuracy_are_those_of_two_gaussians() -> None:
    x = torch.linspace(-10, 10, 20_001, dtype=torch.float64)
    ratio = x - 0.5
    p = torch.distributions.Normal(torch.ones((), dtype=x.dtype), 1.0).log_prob(x).exp()
    exact = torch.trapezoid(p * torch.log1p((-ratio).exp()), x).item()
    found, error = cross_entropy(*pair())
    assert abs(found - exact) <= 4.5 * error
    share, error = accuracy(*pair())
    assert abs(share - torch.special.ndtr(torch.tensor(0.5)).item()) <= 4.5 * error
    assert error == pytest.approx(math.sqrt(share * (1 - share) / (2 * N)), rel=0.01)


def test_who_never_knows_has_the_entropy_of_a_coin() -> None:
    nothing = torch.zeros(10)
    found, error = cross_entropy(nothing, nothing)
    assert found == pytest.approx(math.log(2))
    assert error == 0
    assert accuracy(nothing, nothing) == (0.5, 0.0)
