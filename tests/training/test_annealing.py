"""Annealed importance sampling against probabilistic PCA, whose log p(x) is known."""

import math

import pytest
import torch
from torch import Tensor

from tests.training.cases import case
from tests.training.ppca import PPCA
from training import annealing
from training.annealing import PILOTS, Effort, Path, schedule
from training.evidence import from_weights
from training.latent import LatentModel

MODEL = PPCA()
WIDE = PPCA(latent=2, features=3, scale=1.0)


def noise(rows: int, chains: int, model: PPCA) -> Tensor:
    return torch.randn(rows, chains, model.latent, dtype=torch.float64)


def path(x: Tensor, effort: Effort, model: PPCA) -> Path:
    pilots = noise(len(x), PILOTS, model)
    return Path(lambda z: model.log_likelihood(x, z), pilots, effort=effort)


def test_estimate_is_log_p_within_its_error() -> None:
    torch.manual_seed(0)
    x, _ = MODEL.simulate(10)
    effort = Effort(temperatures=200, chains=50, leapfrogs=5)
    way = path(x, effort, MODEL)
    found = from_weights(way.forward(noise(len(x), effort.chains, MODEL)))
    z = (found.log_p - MODEL.log_prob(x)) / found.standard_error
    assert z.abs().max() <= 4.5
    # A naive estimate of as many evaluations is several nats off.
    assert found.standard_error.max() < 0.6
    assert (way.acceptance - annealing.ACCEPTANCE).abs().max() < 0.1


@pytest.mark.parametrize("temperatures", [1, 2, 8])
def test_weights_average_to_p_whatever_the_number_of_temperatures(temperatures: int) -> None:
    torch.manual_seed(0)
    x, _ = WIDE.simulate(8)
    way = path(x, Effort(temperatures=temperatures, leapfrogs=2), WIDE)
    ratio = (way.forward(noise(len(x), 4000, WIDE)) - WIDE.log_prob(x).unsqueeze(1)).exp()
    z = (ratio.mean(1) - 1) / ratio.std(1) * math.sqrt(ratio.shape[1])
    assert z.abs().max() <= 4.5
    assert z.square().mean().sqrt() < 2


def test_weights_of_the_way_back_average_to_p_too() -> None:
    torch.manual_seed(0)
    x, _ = WIDE.simulate(4)
    # Finer than forward: 1 / w has the heavier tail.
    way = path(x, Effort(temperatures=40, leapfrogs=2), WIDE)
    exact = WIDE.posterior(x).sample((2000,)).transpose(0, 1)
    ratio = (WIDE.log_prob(x).unsqueeze(1) - way.back(exact)).exp()
    z = (ratio.mean(1) - 1) / ratio.std(1) * math.sqrt(ratio.shape[1])
    assert z.abs().max() <= 4.5


@pytest.mark.parametrize("temperatures", [20, 100])
def test_sandwich_holds_the_truth_and_closes(temperatures: int) -> None:
    torch.manual_seed(0)
    x, z = MODEL.simulate(100)
    way = path(x, Effort(temperatures=temperatures, leapfrogs=5), MODEL)
    exact = MODEL.log_prob(x)
    low = way.forward(noise(len(x), 2, MODEL)).mean(1) - exact
    # The z that made an event is an exact draw of its posterior.
    high = way.back(z.unsqueeze(1)).mean(1) - exact
    error = 1 / math.sqrt(len(x))
    assert low.mean() <= 4.5 * low.std() * error
    assert high.mean() >= -4.5 * high.std() * error
    # Both bounds are real ones here, and close as the path gets finer.
    assert low.mean() < -4.5 * low.std() * error
    assert high.mean() > 4.5 * high.std() * error
    assert (high.mean() - low.mean() < 3.0) == (temperatures == 100)


def test_moves_leave_the_posterior_alone() -> None:
    torch.manual_seed(0)
    x, _ = MODEL.simulate(4)
    way = path(x, Effort(temperatures=100), MODEL)
    posterior = MODEL.posterior(x)
    point = way._look(posterior.sample((1000,)).transpose(0, 1))
    for _ in range(3):
        point, chance = way._move(point, 1.0, way._steps[-1])
        assert 0.4 < chance.mean() < 0.9
    white = torch.linalg.solve_triangular(
        posterior.scale_tril, (point.z - posterior.mean.unsqueeze(1)).mT, upper=False
    )
    z = white.mean(2) * math.sqrt(white.shape[2])
    assert z.abs().max() <= 4.5
    spread = (white.square().mean(2) - 1) * math.sqrt(white.shape[2] / 2)
    assert spread.abs().max() <= 4.5


def test_trajectory_leads_back_when_its_momentum_is_turned_round() -> None:
    torch.manual_seed(0)
    x, _ = MODEL.simulate(3)
    way = path(x, Effort(temperatures=2, leapfrogs=7), MODEL)
    begin, momentum = way._look(noise(3, 4, MODEL)), noise(3, 4, MODEL)
    size = 0.1 * torch.rand(3, 4, 1, dtype=torch.float64)
    end, turned = way._leap(begin, momentum, 0.7, size)
    assert (end.z - begin.z).norm(dim=2).min() > 0.1
    home, back = way._leap(end, -turned, 0.7, size)
    assert torch.allclose(home.z, begin.z, rtol=0, atol=1e-12)
    assert torch.allclose(back, -momentum, rtol=0, atol=1e-12)


def test_pilots_set_the_steps_and_the_chains_do_not() -> None:
    torch.manual_seed(0)
    x, _ = MODEL.simulate(3)
    way = path(x, Effort(temperatures=30), MODEL)
    before = [step.clone() for step in way._steps]
    way.forward(noise(3, 5, MODEL))
    assert all(torch.equal(a, b) for a, b in zip(before, way._steps, strict=True))
    assert len(before) == 29
    # The posterior is narrower than the prior, and so are the steps.
    assert (before[-1] < 0.7 * before[0]).all()


@pytest.mark.parametrize("frozen", [True, False])
def test_likelihood_that_jumps_with_the_sign_is_averaged_too(frozen: bool) -> None:
    torch.manual_seed(0)
    # Without its weights frozen a decoder of signs has a gradient, and none in z.
    weight = torch.tensor(-4.0).double().requires_grad_(not frozen)

    def signs(z: Tensor) -> Tensor:
        return weight * (z <= 0).double().sum(2)

    way = Path(signs, torch.randn(2, PILOTS, 3), effort=Effort(temperatures=20, leapfrogs=3))
    found = from_weights(way.forward(torch.randn(2, 2000, 3)))
    exact = 3 * math.log((1 + math.exp(-4)) / 2)
    assert ((found.log_p - exact) / found.standard_error).abs().max() <= 4.5
    assert found.standard_error.max() < 0.05


def test_model_of_binary_latents_is_annealed_as_it_was_trained() -> None:
    model, data = case("bbvi of images with binary latents")
    assert isinstance(model, LatentModel)
    x = data.test.x[:3].round()
    found = []
    for needed in (True, False):
        model.requires_grad_(needed)
        torch.manual_seed(0)
        way = Path(
            lambda z: model.log_likelihood(x, z),
            torch.randn(3, PILOTS, model.latent),
            effort=Effort(temperatures=5, leapfrogs=2),
        )
        found.append(way.forward(torch.randn(3, 4, model.latent)))
    assert torch.equal(*found)


def test_schedule_is_dense_at_both_ends() -> None:
    levels = torch.tensor(schedule(100))
    gaps = levels.diff()
    assert levels[[0, -1]].tolist() == [0, 1]
    assert gaps[0] == pytest.approx(float(gaps[-1]), rel=1e-3)
    assert gaps[50] > 5 * gaps[0] > 0


def test_trajectory_that_leaves_all_numbers_is_not_taken() -> None:
    torch.manual_seed(0)

    def steep(z: Tensor) -> Tensor:
        return -(z**8).sum(2).mul(1e30)

    way = Path(steep, torch.randn(2, PILOTS, 3), effort=Effort(temperatures=20))
    found = way.forward(torch.randn(2, 6, 3))
    assert found.isfinite().all()


def test_evaluations_are_counted() -> None:
    calls = 0

    def count(z: Tensor) -> Tensor:
        nonlocal calls
        calls += z.shape[1]
        return WIDE.log_likelihood(torch.zeros(1, 3, dtype=torch.float64), z)

    effort = Effort(temperatures=7, chains=3, leapfrogs=2)
    Path(count, noise(1, PILOTS, WIDE), effort=effort).forward(noise(1, 3, WIDE))
    assert calls == effort.evaluations
