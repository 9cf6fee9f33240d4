import math

import numpy as np
import pytest
import torch
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import Normal

from tests.training.cases import vectors
from training.networks import Rescale, bounded_log
from training.observation import Bernoulli, Gaussian, Logistic


def test_bernoulli_log_prob_agrees_with_torch_distributions() -> None:
    torch.manual_seed(0)
    logits = 10 * torch.randn(4, 3, 1, 8, 8).double()
    x = (torch.rand(4, 1, 8, 8) < 0.5).double()
    # Not to the last digit: torch takes log(1 + e^l) for l where l > 20, which costs 2e-9.
    expected = TorchBernoulli(logits=logits).log_prob(x.unsqueeze(1)).sum((2, 3, 4))
    torch.testing.assert_close(Bernoulli().log_prob(x, logits), expected, rtol=0, atol=1e-8)


def test_bernoulli_log_prob_is_finite_at_any_logit() -> None:
    logits = torch.tensor([-1e30, -200.0, 200.0, 1e30]).view(1, 1, 1, 2, 2)
    assert Bernoulli().log_prob(torch.ones(1, 1, 2, 2), logits).isfinite().all()


@pytest.mark.parametrize("per_feature", [False, True])
def test_gaussian_log_prob_agrees_with_torch_distributions(per_feature: bool) -> None:
    torch.manual_seed(0)
    data = vectors(mean=np.array([1.0, -50.0]), std=np.array([0.25, 8.0]))
    shape = (2,) if per_feature else ()
    observation = Gaussian(shape, minimum=0.1, standardise=Rescale(data), image=False).double()
    observation.raw.data = torch.randn(shape).double()
    mean, std = torch.tensor([[1.0, -50.0], [0.25, 8.0]]).double()
    scale = std * (0.1 + bounded_log(observation.raw).exp())
    output, x = torch.randn(6, 3, 2).double(), torch.randn(6, 2).double()
    expected = Normal(mean + std * output, scale).log_prob(x.unsqueeze(1)).sum(-1)
    torch.testing.assert_close(observation.log_prob(x, output), expected, rtol=0, atol=1e-9)


def test_greys_are_binarised_afresh_with_their_own_probability() -> None:
    torch.manual_seed(0)
    grey = torch.full((20_000, 1, 1, 1), 0.3)
    first, second = Bernoulli().resample(grey), Bernoulli().resample(grey)
    assert set(first.unique().tolist()) == {0.0, 1.0}
    assert not torch.equal(first, second)
    error = math.sqrt(0.3 * 0.7 / 20_000)
    assert abs(first.mean().item() - 0.3) <= 4.5 * error


def test_bernoulli_draw_is_white_as_often_as_its_mean_says() -> None:
    torch.manual_seed(0)
    logit = torch.full((20_000, 1, 1, 1), -0.8)
    draw = Bernoulli().draw(logit, torch.rand_like(logit))
    p = 1 / (1 + math.exp(0.8))
    assert abs(draw.mean().item() - p) <= 4.5 * math.sqrt(p * (1 - p) / 20_000)


def logistic(levels: int, *, log_scale: float = -2.0) -> Logistic:
    observation = Logistic((), levels=levels).double()
    observation.raw.data.fill_(log_scale)
    return observation


def every_level(levels: int, output: torch.Tensor) -> torch.Tensor:
    """Return log P of each level, shape (levels, outputs)."""
    grey = torch.arange(levels).double() / (levels - 1)
    x = grey.view(-1, 1, 1, 1).expand(-1, 1, 1, 1)
    outputs = output.view(1, -1, 1, 1, 1).expand(levels, -1, 1, 1, 1)
    return outputs.new_tensor(0) + logistic_of(levels).log_prob(x, outputs)


def logistic_of(levels: int) -> Logistic:
    return logistic(levels, log_scale=-3.0 if levels > 2 else -1.0)


OUTPUTS = torch.tensor([-40.0, -3.0, 0.0, 0.7, 40.0]).double()


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_logistic_probabilities_of_all_levels_sum_to_one(levels: int) -> None:
    total = every_level(levels, OUTPUTS).exp().sum(0)
    torch.testing.assert_close(total, torch.ones(5).double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_logistic_probability_is_a_difference_of_sigmoids(levels: int) -> None:
    observation = logistic_of(levels)
    grey = torch.arange(levels).double().unsqueeze(1) / (levels - 1)
    location, scale = observation.location(OUTPUTS), observation.scale
    above = torch.sigmoid((grey + observation.bin / 2 - location) / scale)
    below = torch.sigmoid((grey - observation.bin / 2 - location) / scale)
    above[-1], below[0] = 1, 0
    found = every_level(levels, OUTPUTS).exp()
    torch.testing.assert_close(found, above - below, rtol=0, atol=1e-12)


def test_logistic_log_prob_is_finite_however_far_away() -> None:
    observation = Logistic((), levels=256)
    observation.raw.data.fill_(-1e30)
    output = torch.tensor([-1e30, -200.0, 200.0, 1e30]).view(1, 1, 1, 2, 2)
    for grey in (0.0, 0.2, 1.0):
        assert observation.log_prob(torch.full((1, 1, 2, 2), grey), output).isfinite().all()


@pytest.mark.parametrize("log_scale", [-30.0, -5.0, -2.0])
def test_logistic_mean_is_the_mean_of_its_levels(log_scale: float) -> None:
    """Also where the scale is at its floor, half a bin."""
    levels = 256
    observation = logistic(levels, log_scale=log_scale)
    output = torch.linspace(-6, 6, 101).double()
    grey = torch.arange(levels).double() / (levels - 1)
    x = grey.view(-1, 1, 1, 1)
    outputs = output.view(1, -1, 1, 1, 1).expand(levels, -1, 1, 1, 1)
    expected = (observation.log_prob(x, outputs).exp() * grey.unsqueeze(1)).sum(0)
    found = observation.mean(output)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.03 / (levels - 1))


def test_logistic_draws_have_the_probabilities_that_it_says() -> None:
    torch.manual_seed(0)
    levels, rows = 5, 40_000
    observation = logistic(levels, log_scale=-1.5)
    output = torch.full((rows, 1, 1, 1), 0.4).double()
    draws = observation.draw(output, torch.rand_like(output)).flatten()
    grey = torch.arange(levels).double() / (levels - 1)
    outputs = output[:1].unsqueeze(0).expand(levels, 1, 1, 1, 1)
    expected = observation.log_prob(grey.view(-1, 1, 1, 1), outputs).exp().flatten()
    for level, probability in zip(grey, expected, strict=True):
        share = (draws == level).double().mean()
        assert abs(share - probability) <= 4.5 * (probability * (1 - probability) / rows).sqrt()


def test_logistic_settles_greys_on_their_levels() -> None:
    settled = Logistic((), levels=5).settle(torch.tensor([0.0, 0.12, 0.13, 0.9, 1.0]))
    assert settled.tolist() == [0.0, 0.0, 0.25, 1.0, 1.0]
