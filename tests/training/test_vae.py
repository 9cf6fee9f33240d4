import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from tests.training.cases import VAE_OF_IMAGES, images, vectors
from training import vae
from training.data import Batch
from training.networks import LOG_BOUND, Rescale, bounded_log
from training.observation import Bernoulli, Gaussian
from training.vae import VAE, DiagonalGaussian, VAEConfig

FEATURES, LATENT, SCALE = 5, 3, 0.4


def unbounded(log_scale: Tensor) -> Tensor:
    """The inverse of `bounded_log`."""
    return LOG_BOUND * torch.atanh(log_scale / LOG_BOUND)


class LinearGaussian:
    """Probabilistic PCA, x = m + s (W z + b + noise), as the VAE that it is.

    Its likelihood and its posterior are known. With orthogonal columns of W the posterior is
    diagonal, so that the VAE's own is exact.
    """

    def __init__(self, *, orthogonal: bool) -> None:
        generator = torch.Generator().manual_seed(3)
        options: dict[str, Any] = {"generator": generator, "dtype": torch.float64}
        mean = torch.randn(FEATURES, **options)
        std = torch.rand(FEATURES, **options) + 0.5
        weight, shift = torch.randn(FEATURES, LATENT, **options), torch.randn(FEATURES, **options)
        if orthogonal:
            weight = torch.linalg.qr(weight)[0] * torch.tensor([1.5, 1.0, 0.5])
        self.precision = torch.eye(LATENT).double() + weight.T @ weight / SCALE**2
        covariance = weight @ weight.T + SCALE**2 * torch.eye(FEATURES).double()
        self.marginal = MultivariateNormal(
            mean + std * shift, covariance * std[:, None] * std[None, :]
        )
        config = VAEConfig(observation="normal", latent=LATENT, minimum_scale=0.1)
        self.model = VAE(config, vectors(mean=mean.numpy(), std=std.numpy())).double()
        # Not the float32 moments that the constructor keeps: they differ in the eighth digit.
        self.model.standardise.location, self.model.standardise.unit = mean, std
        gain = torch.linalg.solve(self.precision, weight.T) / SCALE**2
        log_scale = -0.5 * torch.log(self.precision.diagonal())
        encoder, decoder = nn.Linear(FEATURES, 2 * LATENT), nn.Linear(LATENT, FEATURES)
        with torch.no_grad():
            encoder.weight = nn.Parameter(torch.cat([gain, torch.zeros_like(gain)]))
            encoder.bias = nn.Parameter(torch.cat([-gain @ shift, unbounded(log_scale)]))
            decoder.weight, decoder.bias = nn.Parameter(weight), nn.Parameter(shift)
            floor = torch.tensor(SCALE - 0.1, dtype=torch.float64)
            self.model.observation.raw = nn.Parameter(unbounded(torch.log(floor)))
        self.model.encoder = nn.Sequential(encoder)
        self.model.decoder = nn.Sequential(decoder)
        self.x = self.marginal.sample((200,))


def cubature(rows: int) -> Tensor:
    """Noise whose mean of any quadratic is the exact expectation: ±sqrt(d) on each axis."""
    points = math.sqrt(LATENT) * torch.cat([torch.eye(LATENT), -torch.eye(LATENT)]).double()
    return points.expand(rows, -1, -1)


@torch.no_grad()
def test_with_the_exact_posterior_every_log_weight_is_the_log_likelihood() -> None:
    torch.manual_seed(0)
    case = LinearGaussian(orthogonal=True)
    noise = torch.randn(200, 7, LATENT).double()
    _, _, log_weight = case.model.bound(case.x, noise)
    expected = case.marginal.log_prob(case.x).unsqueeze(1).expand_as(log_weight)
    torch.testing.assert_close(log_weight, expected, rtol=0, atol=1e-9)


@torch.no_grad()
def test_with_the_exact_posterior_the_elbo_is_the_log_likelihood() -> None:
    case = LinearGaussian(orthogonal=True)
    reconstruction, kl, _ = case.model.bound(case.x, cubature(200))
    elbo = reconstruction.mean(1) - kl
    torch.testing.assert_close(elbo, case.marginal.log_prob(case.x), rtol=0, atol=1e-9)


@torch.no_grad()
def test_gap_of_the_best_diagonal_posterior_is_the_closed_form_at_every_event() -> None:
    case = LinearGaussian(orthogonal=False)
    reconstruction, kl, _ = case.model.bound(case.x, cubature(200))
    gap = case.marginal.log_prob(case.x) - (reconstruction.mean(1) - kl)
    log_variances = -torch.log(case.precision.diagonal())
    expected = 0.5 * (-torch.logdet(case.precision) - log_variances.sum())
    assert expected > 0.01
    torch.testing.assert_close(gap, expected.expand_as(gap), rtol=0, atol=1e-9)


@torch.no_grad()
def test_importance_weighted_bound_rises_with_the_draws_to_the_log_likelihood() -> None:
    torch.manual_seed(0)
    case = LinearGaussian(orthogonal=False)
    x = case.x[:50]
    _, _, log_weight = case.model.bound(x, torch.randn(50, 4096, LATENT).double())
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
    nats = {name: each.values for name, each in case.model.nats(Batch(case.x)).items()}
    truth = -case.marginal.log_prob(case.x)
    assert nats["negative log-likelihood"].dtype == torch.float64
    assert (nats["negative log-likelihood"] - truth).abs().mean() < 0.05
    assert nats["negative ELBO"].mean() > truth.mean()


def test_gaussian_kl_agrees_with_torch_distributions() -> None:
    torch.manual_seed(0)
    mean, log_scale = torch.randn(2, 9, 4).double()
    posterior = DiagonalGaussian(mean, log_scale)
    standard = Independent(Normal(torch.zeros_like(mean), torch.ones_like(mean)), 1)
    expected = kl_divergence(Independent(Normal(mean, log_scale.exp()), 1), standard)
    torch.testing.assert_close(posterior.kl(), expected, rtol=0, atol=1e-12)


def test_posterior_log_prob_agrees_with_torch_distributions() -> None:
    torch.manual_seed(0)
    mean, log_scale = torch.randn(2, 9, 4).double()
    z = torch.randn(9, 6, 4).double()
    expected = Normal(mean.unsqueeze(1), log_scale.exp().unsqueeze(1)).log_prob(z).sum(-1)
    found = DiagonalGaussian(mean, log_scale).log_prob(z)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


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


def test_scales_stay_finite_whatever_the_networks_say() -> None:
    model = VAE(VAEConfig(latent=2, width=4), images())
    loud = nn.Linear(64, 4)
    nn.init.constant_(loud.weight, 1e30)
    model.encoder = nn.Sequential(nn.Flatten(), loud)
    scale = model.posterior(torch.ones(1, 1, 8, 8)).scale
    assert scale.isfinite().all()
    assert (scale > 0).all()


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


def test_chunks_of_draws_change_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    data = images()
    model = VAE(VAE_OF_IMAGES, data).eval()
    figures = []
    for rows in (vae.CHUNK_ROWS, len(data.test) * vae.DRAWS):
        monkeypatch.setattr(vae, "CHUNK_ROWS", rows)
        torch.manual_seed(0)
        with torch.no_grad():
            figures.append(model.nats(data.test))
    for name, nats in figures[0].items():
        assert abs((nats.values - figures[1][name].values).mean()) < 0.5, name


def test_a_few_steps_lower_the_score() -> None:
    torch.manual_seed(0)
    data = images(64)
    data.train.x.copy_((data.train.x < 0.1).float())
    model = VAE(VAEConfig(latent=2, width=4), data)
    (turn,) = model.turns()
    before = model.score(data.train).item()
    optimiser = torch.optim.Adam(turn.parameters, lr=1e-2)
    for _ in range(30):
        optimiser.zero_grad()
        turn.loss(data.train)["loss"].backward()
        optimiser.step()
    assert model.score(data.train).item() < before - 10


def test_bernoulli_observations_of_vectors_are_refused() -> None:
    data = vectors(mean=np.zeros(2), std=np.ones(2))
    with pytest.raises(ValueError, match="bernoulli expects images"):
        VAE(VAEConfig(), data)


def test_features_that_never_vary_are_refused() -> None:
    data = vectors(mean=np.zeros(2), std=np.array([1.0, 0.0]))
    with pytest.raises(ValueError, match=r"features \[1\] do not"):
        VAE(VAEConfig(observation="normal"), data)
