"""The learned prior against what must be true of it, and of all that goes by it."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.training.bundled import shaken
from tests.training.cases import images, vectors
from training import marginal
from training.annealing import Effort
from training.data import Batch
from training.marginal import Events
from training.observation import Gaussian
from training.prior import BOUND, FlowPrior
from training.refine import Refine
from training.vae import VAE, VAEConfig


def prior(latent: int, scale: float = 0.5) -> FlowPrior:
    """Return a prior far from normal, in float64."""
    torch.manual_seed(0)
    made = FlowPrior(latent=latent, layers=3, width=16).eval().requires_grad_(False)
    torch.manual_seed(1)
    for parameter in made.parameters():
        parameter.add_(scale * torch.randn_like(parameter) / max(1, parameter.shape[-1]) ** 0.5)
    return made.double()


def grid(side: int = 400, reach: float = 8.0) -> tuple[Tensor, float]:
    """Return the middles of cells of the plane, as one event's draws, and the area of each."""
    axis = (torch.arange(side).double() + 0.5) / side * 2 * reach - reach
    return torch.cartesian_prod(axis, axis).unsqueeze(0), (2 * reach / side) ** 2


@pytest.mark.parametrize("latent", [2, 5, 16])
def test_density_is_that_of_the_pushed_noise(latent: int) -> None:
    learned = prior(latent)
    noise = torch.randn(50, latent).double()
    z = learned.push(noise)
    assert (z - noise).abs().max() > 0.5
    jacobian = torch.func.vmap(torch.func.jacrev(lambda row: learned.push(row[None])[0]))(noise)
    normal = -0.5 * (noise.square().sum(1) + latent * math.log(2 * math.pi))
    expected = normal - torch.linalg.slogdet(jacobian)[1]
    torch.testing.assert_close(learned.log_prob(z[:, None])[:, 0], expected, rtol=0, atol=1e-8)


def test_density_integrates_to_one() -> None:
    z, area = grid()
    assert prior(2).log_prob(z).exp().sum().item() * area == pytest.approx(1, abs=1e-3)


def test_noise_comes_back_from_inside_and_outside_of_the_box() -> None:
    learned = prior(4)
    noise = torch.randn(100, 4).double() * torch.tensor([0.1, 1, BOUND, 20 * BOUND]).double()
    back, _ = learned.flow(learned.push(noise))
    torch.testing.assert_close(back, noise, rtol=1e-9, atol=1e-9)


def test_untrained_prior_is_normal() -> None:
    learned = FlowPrior(latent=3, layers=4, width=8).double().eval()
    z = torch.randn(6, 2, 3).double()
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
    torch.testing.assert_close(learned.log_prob(z), expected, rtol=0, atol=1e-9)


def test_one_latent_has_nothing_to_be_coupled_with() -> None:
    with pytest.raises(ValueError, match=r"model\.prior: a flow couples two latents or more"):
        VAE(VAEConfig(latent=1, prior="flow"), images())


# --- a model of two latents, whose likelihood a grid knows ---


@pytest.fixture(scope="module")
def model() -> VAE:
    config = VAEConfig(
        observation="normal", latent=2, width=8, depth=2, prior="flow", minimum_scale=0.2
    )
    torch.manual_seed(0)
    data = vectors(mean=np.zeros(3), std=np.ones(3))
    made = VAE(config, data).eval().requires_grad_(False)
    shaken(made)
    made.prior = prior(2)
    return made.double()


@pytest.fixture(scope="module")
def events(model: VAE) -> Events:
    torch.manual_seed(2)
    z = model.prior.push(torch.randn(12, 2).double())
    return Events(model, Batch(model.observe(z, torch.randn(12, 3).double())))


@pytest.fixture(scope="module")
def truth(model: VAE, events: Events) -> Tensor:
    """Return log p(x) of each event, by quadrature."""
    z, area = grid()
    log_prior = model.prior.log_prob(z)
    found = [
        torch.logsumexp(model.log_likelihood(x[None], z) + log_prior, 1) for x in events.batch.x
    ]
    return torch.cat(found) + math.log(area)


@torch.no_grad()
def test_draws_of_prior_and_posterior_agree_with_the_integral(
    events: Events, truth: Tensor
) -> None:
    torch.manual_seed(3)
    for found in (
        marginal.by_prior(events, 20_000, lambda _: None),
        marginal.by_posterior(events, 20_000, lambda _: None),
    ):
        assert ((found.log_p - truth).abs() < 4.5 * found.standard_error).all()
        assert found.standard_error.max() < 0.15


def test_annealing_agrees_with_the_integral(events: Events, truth: Tensor) -> None:
    torch.manual_seed(3)
    found = marginal.by_annealing(events, Effort(100, 32), lambda _: None)
    assert ((found.log_p - truth).abs() < 4.5 * found.standard_error + 1e-3).all()
    assert found.standard_error.max() < 0.1


@torch.no_grad()
def test_simulated_events_come_with_the_noise_that_they_are_made_of(model: VAE) -> None:
    """From z in its place, the way back would begin elsewhere than in the posterior."""
    torch.manual_seed(3)
    events, noise = marginal._simulated(model, 2000)
    assert isinstance(model.observation, Gaussian)
    residual = events.batch.x - model.decode(model.prior.push(noise))
    squares = (residual / model.observation.log_scale.exp()).square()
    error = squares.std().item() / math.sqrt(squares.numel())
    assert abs(squares.mean().item() - 1) < 4.5 * error
    low, high = marginal.sandwich(model, 40, Effort(100, 16), lambda _: None)
    gap = high - low
    assert abs(gap.mean().item()) < 4.5 * gap.std().item() / math.sqrt(len(gap)) + 0.05


@torch.no_grad()
def test_bound_is_by_draws_and_below_the_integral(
    model: VAE, events: Events, truth: Tensor
) -> None:
    torch.manual_seed(4)
    terms = model.terms(events.batch.x, torch.randn(12, 4096, 2).double())
    assert terms.kl is None
    error = terms.elbo.std(1) / 64
    assert (terms.elbo.mean(1) < truth + 4.5 * error).all()


def test_refinement_climbs_by_the_learned_prior(model: VAE, events: Events, truth: Tensor) -> None:
    """By the gradient of N(0, I) in its place the mean gain would be 0.75 and not 3.4."""
    refine, x = Refine(model, full=False), events.batch.x
    mean, scale = model.encode(x)
    torch.manual_seed(5)
    noise = torch.randn(12, 4096, 2).double()

    def bound(mean: Tensor, scale: Tensor) -> Tensor:
        z = mean[:, None] + scale[:, None] * noise
        log_q = torch.distributions.Normal(mean[:, None], scale[:, None]).log_prob(z).sum(-1)
        found: Tensor = model.log_likelihood(x, z) + model.prior.log_prob(z) - log_q
        return found.mean(1)

    before = bound(mean, scale)
    for step in range(40):
        rate = torch.full((12,), 0.5 / (1 + step / 20)).double()
        mean, scale = refine(x, mean, scale, rate, torch.randn(12, 4, 2).double())
    after = bound(mean, scale)
    assert (after > before - 0.02).all()
    assert (after - before).mean() > 2
    assert (after < truth + 0.1).all()


@torch.no_grad()
def test_likelihood_graph_tells_the_prior_of_each_draw(model: VAE) -> None:
    x, z = torch.randn(4, 3).double(), torch.randn(4, 7, 2).double()
    log_likelihood, log_prior = model.likelihood(x, z)
    torch.testing.assert_close(log_likelihood, model.log_likelihood(x, z))
    torch.testing.assert_close(log_prior, model.prior.log_prob(z))
