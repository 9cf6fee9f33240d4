import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.training.cases import images, vectors
from tests.training.linear_gaussian import FEATURES, LATENT, LinearGaussian, cubature
from training.data import Batch
from training.observation import Gaussian
from training.vae import VAE, VAEConfig


@torch.no_grad()
def test_with_the_exact_posterior_every_log_weight_is_the_log_likelihood() -> None:
    torch.manual_seed(0)
    case = LinearGaussian(orthogonal=True)
    noise = torch.randn(200, 7, LATENT).double()
    log_weight = case.model.terms(case.x, noise).log_weight
    expected = case.marginal.log_prob(case.x).unsqueeze(1).expand_as(log_weight)
    torch.testing.assert_close(log_weight, expected, rtol=0, atol=1e-9)


@torch.no_grad()
def test_with_the_exact_posterior_the_elbo_is_the_log_likelihood() -> None:
    case = LinearGaussian(orthogonal=True)
    elbo = case.model.terms(case.x, cubature(200)).elbo.mean(1)
    torch.testing.assert_close(elbo, case.marginal.log_prob(case.x), rtol=0, atol=1e-9)


@torch.no_grad()
def test_gap_of_the_best_diagonal_posterior_is_the_closed_form_at_every_event() -> None:
    case = LinearGaussian(orthogonal=False)
    gap = case.marginal.log_prob(case.x) - case.model.terms(case.x, cubature(200)).elbo.mean(1)
    assert case.gap > 0.01
    torch.testing.assert_close(gap, case.gap.expand_as(gap), rtol=0, atol=1e-9)


@torch.no_grad()
def test_full_covariance_closes_that_gap() -> None:
    case = LinearGaussian(posterior="full")
    elbo = case.model.terms(case.x, cubature(200)).elbo.mean(1)
    torch.testing.assert_close(elbo, case.marginal.log_prob(case.x), rtol=0, atol=1e-9)


@torch.no_grad()
def test_importance_weighted_bound_rises_with_the_draws_to_the_log_likelihood() -> None:
    torch.manual_seed(0)
    case = LinearGaussian(orthogonal=False)
    x = case.x[:50]
    log_weight = case.model.terms(x, torch.randn(50, 4096, LATENT).double()).log_weight
    truth = case.marginal.log_prob(x)
    means, errors = [], []
    for draws in (1, 4, 16, 256):
        bounds = torch.logsumexp(log_weight.unflatten(1, (-1, draws)), 2) - math.log(draws)
        gaps = bounds - truth.unsqueeze(1)
        means.append(gaps.mean().item())
        errors.append(gaps.std().item() / math.sqrt(gaps.numel()))
    for before, after, error in zip(means, means[1:], errors, strict=False):
        assert after >= before - 4.5 * error
    assert means[0] < means[2] < means[3]
    # What is left at K draws is about half the weights' variance over K.
    left = 0.5 * torch.exp(log_weight - truth.unsqueeze(1)).var().item() / 256
    assert abs(means[-1]) <= left + 4.5 * errors[-1]


@torch.no_grad()
def test_nats_of_a_linear_gaussian_agree_with_its_likelihood() -> None:
    torch.manual_seed(0)
    case = LinearGaussian(orthogonal=False)
    nats = {name: each.values for name, each in case.model.nats(Batch(case.x), 256).items()}
    truth = -case.marginal.log_prob(case.x)
    assert nats["negative log-likelihood"].dtype == torch.float64
    assert (nats["negative log-likelihood"] - truth).abs().mean() < 0.05
    assert nats["negative ELBO"].mean() > truth.mean()


def test_scales_stay_finite_whatever_the_networks_say() -> None:
    model = VAE(VAEConfig(latent=2, width=4), images())
    loud = nn.Linear(64, 4)
    nn.init.constant_(loud.weight, 1e30)
    model.encoder.network = nn.Sequential(nn.Flatten(), loud)
    _, scale = model.encode(torch.ones(1, 1, 8, 8))
    assert scale.isfinite().all()
    assert (scale > 0).all()


def test_a_few_steps_lower_the_score() -> None:
    torch.manual_seed(0)
    data = images(64)
    data.train.x.copy_((data.train.x < 0.1).float())
    model = VAE(VAEConfig(latent=2, width=4), data)
    (turn,) = model.turns()
    before = model.score(data.train).value
    optimiser = torch.optim.Adam(turn.parameters, lr=1e-2)
    for _ in range(30):
        optimiser.zero_grad()
        turn.loss(data.train)["loss"].backward()
        optimiser.step()
    assert model.score(data.train).value < before - 10


def test_features_that_never_vary_are_refused() -> None:
    data = vectors(mean=np.zeros(2), std=np.array([1.0, 0.0]))
    with pytest.raises(ValueError, match=r"features \[1\] do not"):
        VAE(VAEConfig(observation="normal"), data)


@pytest.mark.parametrize("observation", ["bernoulli", "logistic"])
def test_observations_of_pixels_refuse_vectors(observation: str) -> None:
    data = vectors(mean=np.zeros(2), std=np.ones(2))
    config = VAEConfig.model_validate({"observation": observation})
    with pytest.raises(ValueError, match=f"{observation} expects images"):
        VAE(config, data)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"free_bits": 0.1, "objective": "iwae"}, "free_bits: needs objective"),
        ({"free_bits": 0.1, "posterior": "full"}, "free_bits: needs objective"),
        ({"objective": "dreg", "posterior": "flow"}, "dreg needs a Gaussian posterior"),
        ({"free_bits": 0.1, "prior": "flow"}, "free_bits: needs objective"),
        ({"flow_width": 8}, 'flow_width: is of posterior = "flow"'),
        ({"prior_width": 8}, 'prior_width: is of prior = "flow"'),
        ({"scale": "global"}, "scale: a bernoulli observation has none"),
        ({"observation": "logistic", "minimum_scale": 0.1}, "minimum_scale: is of observation"),
        ({"draws": [[5, 1], [9, 2]]}, "the steps begin with 0 and rise"),
        ({"draws": [[0, 1], [9, 2], [9, 3]]}, "the steps begin with 0 and rise"),
        ({"draws": []}, "the steps begin with 0 and rise"),
        ({"draws": 0}, "greater than or equal to 1"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        VAEConfig.model_validate(options)


def test_conditional_model_of_data_without_labels_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.conditional: this data has no labels"):
        VAE(VAEConfig(conditional=True), images())


def test_draws_follow_their_schedule() -> None:
    config = VAEConfig(draws=((0, 1), (10, 5), (20, 50)))
    assert [config.draws_at(step) for step in (0, 9, 10, 19, 20, 10**6)] == [1, 1, 5, 5, 50, 50]
    assert VAEConfig(draws=7).draws_at(3) == 7


def losses(config: VAEConfig, steps: int) -> list[dict[str, float]]:
    data = images(16)
    torch.manual_seed(0)
    model = VAE(config, data).train()
    (turn,) = model.turns()
    found = []
    for _ in range(steps):
        torch.manual_seed(1)  # of the binarised images and of z
        found.append({name: value.item() for name, value in turn.loss(data.train).items()})
    return found


def test_divergence_warms_up_in_a_line() -> None:
    for step, loss in enumerate(losses(VAEConfig(latent=3, width=4, kl_warmup_steps=4), 6)):
        beta = (loss["loss"] - loss["distortion"]) / loss["kl"]
        assert beta == pytest.approx(min(1, (step + 1) / 4), rel=1e-3)


def test_beta_is_the_price_of_the_divergence() -> None:
    (loss,) = losses(VAEConfig(latent=3, width=4, beta=3.0), 1)
    assert loss["loss"] == pytest.approx(loss["distortion"] + 3 * loss["kl"], rel=1e-5)


def test_free_nats_are_not_paid_for() -> None:
    (loss,) = losses(VAEConfig(latent=3, width=4, free_bits=2.0), 1)
    assert loss["kl"] < 3 * 2
    assert loss["loss"] == pytest.approx(loss["distortion"] + 3 * 2, rel=1e-5)


def test_validation_sees_no_warm_up_and_leaves_the_step_alone() -> None:
    data = images(16)
    torch.manual_seed(0)
    model = VAE(VAEConfig(latent=3, width=4, kl_warmup_steps=10**6), data)
    torch.manual_seed(1)
    with torch.no_grad():
        score = model.score(data.train)
        torch.manual_seed(1)
        x = model.observation.resample(data.train.x)
        expected = -model.terms(x, torch.randn(len(x), 1, 3)).elbo.mean()
    assert score.value == pytest.approx(expected.item())
    assert score.standard_error is not None
    assert model.step == 0


@torch.no_grad()
def test_label_says_what_is_drawn_and_what_is_read() -> None:
    data = images(classes=3)
    torch.manual_seed(0)
    model = VAE(VAEConfig(latent=3, width=4, conditional=True), data)
    z, noise = torch.randn(4, 3), torch.randn(4, 2, 3)
    zeros, ones = torch.zeros(4, dtype=torch.int64), torch.ones(4, dtype=torch.int64)
    x = data.test.x[:4]
    assert model.interface.labels == ("0", "1", "2")
    assert not torch.equal(model.decode(z, zeros), model.decode(z, ones))
    assert not torch.equal(model.encode(x, zeros)[0], model.encode(x, ones)[0])
    assert not torch.equal(model.elbo(x, zeros, noise)[0], model.elbo(x, ones, noise)[0])


@pytest.mark.parametrize("posterior", ["diagonal", "full"])
def test_training_finds_the_best_linear_gaussian(posterior: str) -> None:
    """Oracle 7. A diagonal q ends there too: of all rotations of z, it prefers the one whose
    posterior is diagonal.
    """
    truth = LinearGaussian()
    torch.manual_seed(0)
    x = truth.marginal.sample((300,))
    standard = (x - x.mean(0)) / x.std(0, correction=0)
    best = principal_components(standard)
    config = VAEConfig.model_validate(
        {"observation": "normal", "latent": LATENT, "minimum_scale": 0.01, "posterior": posterior}
    )
    torch.manual_seed(0)
    data = vectors(mean=np.zeros(FEATURES), std=np.ones(FEATURES))
    model = VAE(config, data).double()
    outputs = 2 * LATENT + (LATENT * (LATENT - 1) // 2 if posterior == "full" else 0)
    model.encoder.network = nn.Sequential(nn.Linear(FEATURES, outputs)).double()
    linear = nn.Linear(LATENT, FEATURES).double()
    model.decoder = nn.Sequential(linear)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.03)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 700)
    noise = cubature(len(standard))  # the exact ELBO, without noise
    loss = torch.zeros(())
    for _ in range(700):
        loss = -model.terms(standard, noise).elbo.mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    assert isinstance(model.observation, Gaussian)
    weight, scale = linear.weight.detach(), model.observation.log_scale.exp().detach()
    covariance = weight @ weight.T + scale.square() * torch.eye(FEATURES).double()
    found = normal_log_likelihood(standard, linear.bias.detach(), covariance)
    assert found <= best + 1e-9
    assert found >= best - 0.02
    gap = found + loss.item()
    assert -1e-9 <= gap < 0.02


def principal_components(x: Tensor) -> float:
    """The maximum of the likelihood of probabilistic PCA (Tipping & Bishop 1999), per row."""
    values, vectors = torch.linalg.eigh(x.T @ x / len(x))
    noise = values[:-LATENT].mean()
    top = vectors[:, -LATENT:] * (values[-LATENT:] - noise).sqrt()
    covariance = top @ top.T + noise * torch.eye(FEATURES).double()
    return normal_log_likelihood(x, torch.zeros(FEATURES).double(), covariance)


def normal_log_likelihood(x: Tensor, mean: Tensor, covariance: Tensor) -> float:
    marginal = torch.distributions.MultivariateNormal(mean, covariance)
    return float(marginal.log_prob(x).mean())
