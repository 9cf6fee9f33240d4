"""The estimators are right on average, and the baseline only makes them quieter."""

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import Distribution, kl_divergence
from torch.distributions import Normal as TorchNormal

from training import gradients
from training.gradients import ESTIMATORS, Bernoulli, Estimator, Gradient, MeanField, Normal
from training.networks import LOG_BOUND, normal_log_prob

MEAN, SCALE = 0.7, 0.8
EXACT = {"mean": 1.3, "scale": 0.45}
DRAWS = 1_000_000
BINARY: tuple[Gradient, ...] = ("reinforce", "reinforce-baseline")


def one_normal(draws: int, gradient: Gradient, *, rows: int = 1, level: float = 0.0) -> Tensor:
    """Terms (rows, draws, 2) of the gradient in the mean and the scale of N(.7, .8)."""

    def log_likelihood(z: Tensor) -> Tensor:
        """That with which f(z) is -(z - 2)^2 / 2 - log q(z), and a level."""
        return level + (-0.5 * (z - 2).square() - normal_log_prob(z)).sum(2)

    torch.manual_seed(0)
    parameters = torch.tensor([[MEAN, math.log(SCALE)]]).double().expand(rows, -1)
    terms = ESTIMATORS[gradient](Normal(), parameters, log_likelihood, draws)
    return terms / torch.tensor([1.0, SCALE])  # d/ds = d/d(log s) / s


@pytest.mark.parametrize("gradient", ["reinforce", "reparametrization"])
def test_terms_are_unbiased_on_the_known_normal(gradient: Gradient) -> None:
    terms = one_normal(DRAWS, gradient)[0]
    error = terms.std(0) / math.sqrt(DRAWS)
    z = (terms.mean(0) - torch.tensor(list(EXACT.values()))) / error
    assert (z.abs() <= 4.5).all(), z
    assert (error < 0.01).all()


def test_baseline_leaves_the_mean_and_lowers_the_variance_of_a_likelihood_with_a_level() -> None:
    """A level changes no gradient. Without one f is .03 on average here: nothing to take away."""
    # Draws share their baselines, so what is independent is the mean over each row's draws.
    rows, draws = DRAWS // 10, 10
    plain, quiet = (one_normal(draws, each, rows=rows, level=-20.0).mean(1) for each in BINARY)
    for means in (plain, quiet):
        z = (means.mean(0) - torch.tensor(list(EXACT.values()))) / means.std(0) * math.sqrt(rows)
        assert (z.abs() <= 4.5).all(), z
    assert (quiet.var(0) < 0.02 * plain.var(0)).all()


def test_reparametrization_is_the_quieter_on_the_known_normal() -> None:
    """Not a law: f could be steep where it is small. Measured elsewhere: 6.2 and 6.8."""
    scored, moved = (one_normal(DRAWS, each)[0] for each in ("reinforce", "reparametrization"))
    ratio = scored.var(0) / moved.var(0)
    torch.testing.assert_close(ratio, torch.tensor([6.2, 6.8]).double(), rtol=0.03, atol=0)


def bits(latent: int) -> Tensor:
    """All z of -1 and +1, (2^latent, latent)."""
    return torch.tensor(list(itertools.product([-1.0, 1.0], repeat=latent))).double()


@pytest.mark.parametrize("gradient", BINARY)
def test_terms_are_unbiased_on_enumerated_bits(gradient: Gradient) -> None:
    torch.manual_seed(0)
    latent, rows, draws = 5, 20_000, 8
    weight, pairs = torch.randn(latent).double(), torch.randn(latent, latent).double()

    def log_likelihood(z: Tensor) -> Tensor:
        return z @ weight + ((z @ pairs) * z).sum(-1) - 20

    q, parameters = Bernoulli(), torch.randn(1, latent).double().requires_grad_()
    states = bits(latent).unsqueeze(0)
    log_ratio = q.log_ratio(parameters, states)
    chance = torch.exp(log_ratio - latent * math.log(2))
    torch.testing.assert_close(chance.sum(), torch.ones(()).double())
    (exact,) = torch.autograd.grad(
        (chance * (log_likelihood(states) - log_ratio)).sum(), parameters
    )
    every_row = parameters.detach().expand(rows, -1)
    means = ESTIMATORS[gradient](q, every_row, log_likelihood, draws).mean(1)
    z = (means.mean(0) - exact[0]) / means.std(0) * math.sqrt(rows)
    assert (z.abs() <= 4.5).all(), z
    assert (means.std(0) / math.sqrt(rows) < 0.2).all()


def test_baseline_does_not_see_a_constant_in_the_likelihood() -> None:
    parameters = torch.randn(3, 4).double()

    def found(constant: float) -> Tensor:
        torch.manual_seed(0)
        estimator = ESTIMATORS["reinforce-baseline"]
        return estimator(Normal(), parameters, lambda z: constant + z.sum(2), 6)

    torch.testing.assert_close(found(1000.0), found(0.0), rtol=0, atol=1e-9)


@pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS)
def test_terms_are_of_each_row_and_draw_and_leave_no_graph(estimator: Estimator) -> None:
    parameters = torch.randn(4, 6)
    weight = torch.randn(3, requires_grad=True)
    terms = estimator(Normal(), parameters, lambda z: z @ weight, 5)
    assert terms.shape == (4, 5, 6)
    assert not terms.requires_grad
    assert weight.grad is None


def distribution(q: MeanField, parameters: Tensor) -> Distribution:
    if isinstance(q, Bernoulli):
        return TorchBernoulli(logits=parameters)
    mean, log_scale = parameters.chunk(2, dim=1)
    return TorchNormal(mean, log_scale.exp())


each_kind = pytest.mark.parametrize("q", [Normal(), Bernoulli()], ids=["normal", "binary"])


@each_kind
def test_log_ratio_kl_and_score_agree_with_torch_distributions(q: MeanField) -> None:
    torch.manual_seed(0)
    parameters = torch.randn(3, 2 * q.per_latent).double().requires_grad_()
    z = q.draw(parameters.detach(), 7)
    of, prior = distribution(q, parameters), distribution(q, torch.zeros_like(parameters))
    value = z.transpose(0, 1) if isinstance(q, Normal) else (z.transpose(0, 1) > 0).double()
    log_prob = of.log_prob(value).sum(2).T
    log_ratio = log_prob - prior.log_prob(value).sum(2).T
    torch.testing.assert_close(q.log_ratio(parameters, z), log_ratio, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        q.kl(parameters), kl_divergence(of, prior).sum(1), rtol=0, atol=1e-12
    )
    scores = q.score(parameters, z)
    for draw in range(7):
        (expected,) = torch.autograd.grad(log_prob[:, draw].sum(), parameters, retain_graph=True)
        torch.testing.assert_close(scores[:, draw], expected, rtol=0, atol=1e-12)


@each_kind
def test_draws_follow_their_parameters_and_zero_is_the_prior(q: MeanField) -> None:
    torch.manual_seed(0)
    count = 200_000
    parameters = torch.stack([torch.zeros(2 * q.per_latent), torch.randn(2 * q.per_latent)])
    z = q.draw(parameters, count).double()
    of = distribution(q, parameters.double())
    mean = of.mean if isinstance(q, Normal) else 2 * of.mean - 1
    variance = of.variance if isinstance(q, Normal) else 4 * of.variance
    assert ((z.mean(1) - mean).abs() <= 4.5 * (variance / count).sqrt()).all()
    assert ((z.var(1) / variance - 1).abs() <= 4.5 * math.sqrt(2 / count)).all()
    torch.testing.assert_close(q.kl(parameters[:1]), torch.zeros(1))
    torch.testing.assert_close(q.log_ratio(parameters[:1], z[:1, :9].float()), torch.zeros(1, 9))


@each_kind
def test_a_step_is_along_the_gradient_over_the_information_and_bounded(q: MeanField) -> None:
    torch.manual_seed(0)
    parameters = torch.randn(1, 2 * q.per_latent).double()
    draws = q.draw(parameters, 400_000)
    information = q.score(parameters, draws).square().mean(1)
    gradient = 0.01 * torch.randn_like(parameters)
    moved = q.ascend(parameters, gradient, rate=0.5) - parameters
    torch.testing.assert_close(moved, 0.5 * gradient / information, rtol=0.03, atol=0)
    for wild in (1e30, -1e30):
        parameters = q.ascend(parameters, torch.full_like(parameters, wild), rate=1.0)
        for _ in range(100):
            parameters = q.ascend(parameters, torch.full_like(parameters, wild), rate=1.0)
        assert parameters.isfinite().all()
    assert (parameters[:, -2:].abs() == LOG_BOUND).all()


def test_what_cannot_be_estimated_is_refused() -> None:
    def log_likelihood(z: Tensor) -> Tensor:
        return z.sum(2)

    with pytest.raises(ValueError, match="expected normal latents; got Bernoulli"):
        gradients.reparametrization(Bernoulli(), torch.zeros(1, 2), log_likelihood, 4)
    with pytest.raises(ValueError, match="the mean of the other draws; got 1 in all"):
        gradients.reinforce_with_baseline(Normal(), torch.zeros(1, 2), log_likelihood, 1)
