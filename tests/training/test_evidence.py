"""Estimates of log p(x) against probabilistic PCA, whose log p(x) is known."""

import math
import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.training.ppca import PPCA
from training import evidence
from training.evidence import Evidence, estimate, from_weights, joined
from training.networks import normal_log_prob

MODEL = PPCA(latent=2, features=3, scale=1.0)


def of_prior(x: Tensor, draws: int) -> Evidence:
    return estimate(lambda z: MODEL.log_likelihood(x, z), x, latent=2, draws=draws)


def of_posterior(x: Tensor, draws: int, *, width: float = 1.3) -> Evidence:
    """Weigh draws of a q(z|x) that is wider than the posterior."""
    posterior = MODEL.posterior(x)
    factor = width * posterior.scale_tril

    def weigh(noise: Tensor) -> Tensor:
        z = posterior.mean.unsqueeze(1) + noise @ factor.mT
        log_q = normal_log_prob(noise).sum(2)
        log_q = log_q - factor.diagonal(dim1=-2, dim2=-1).log().sum(-1, keepdim=True)
        log_p = normal_log_prob(z).sum(2)
        return MODEL.log_likelihood(x, z) + log_p - log_q

    return estimate(weigh, x, latent=2, draws=draws)


@pytest.mark.parametrize("by", [of_prior, of_posterior])
def test_estimate_is_log_p_within_its_error(by: Callable[[Tensor, int], Evidence]) -> None:
    torch.manual_seed(0)
    x, _ = MODEL.simulate(30)
    found = by(x, 20_000)
    z = (found.log_p - MODEL.log_prob(x)) / found.standard_error
    assert z.abs().max() <= 4.5
    # The errors are no larger than they need be.
    assert 0.5 < z.square().mean().sqrt() < 1.5
    assert (found.standard_error > 0).all()


def test_exact_posterior_needs_one_draw() -> None:
    x, _ = MODEL.simulate(10)
    found = of_posterior(x, 2, width=1.0)
    assert torch.allclose(found.log_p, MODEL.log_prob(x), rtol=0, atol=1e-12)
    assert torch.allclose(found.effective, torch.full((10,), 2.0).double())


def test_more_draws_are_higher_on_average_and_never_above() -> None:
    torch.manual_seed(0)
    x, _ = MODEL.simulate(4000)
    exact = MODEL.log_prob(x)
    means = []
    for draws in (1, 4, 16, 64):
        gap = of_prior(x, draws).log_p - exact
        assert gap.mean() <= 4.5 * gap.std() / math.sqrt(len(gap))
        means.append(gap.mean().item())
    assert means == sorted(means)


def test_blocks_change_only_the_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    x, _ = MODEL.simulate(5)
    seen: list[Tensor] = []

    def weigh(z: Tensor) -> Tensor:
        seen.append(MODEL.log_likelihood(x, z))
        return seen[-1]

    monkeypatch.setattr(evidence, "BLOCK_ROWS", 35)
    found = estimate(weigh, x, latent=2, draws=100)
    assert [block.shape[1] for block in seen] == [7] * 14 + [2]
    whole = torch.cat(seen, dim=1)
    assert torch.allclose(found.log_p, whole.logsumexp(1) - math.log(100), rtol=0, atol=1e-12)
    in_memory = from_weights(whole)
    for each in ("log_p", "standard_error", "effective"):
        assert torch.allclose(getattr(found, each), getattr(in_memory, each), atol=1e-12)


def test_blocks_are_as_wide_as_fit_and_a_draw_at_least() -> None:
    assert list(evidence.blocks(evidence.BLOCK_ROWS // 2, 5)) == [2, 2, 1]
    assert list(evidence.blocks(10 * evidence.BLOCK_ROWS, 3)) == [1, 1, 1]


def test_one_draw_has_no_error_to_tell() -> None:
    x, _ = MODEL.simulate(5)
    assert of_prior(x, 1).standard_error.isnan().all()


def test_memory_does_not_grow_with_the_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(8)
    made: list[weakref.ref[Tensor | np.ndarray]] = []
    alive: list[int] = []
    array = evidence._array

    def watched(log_weight: Tensor) -> np.ndarray:
        found = array(log_weight)
        made.append(weakref.ref(found))
        return found

    def weigh(z: Tensor) -> Tensor:
        weight = z.sum(2)
        made.extend([weakref.ref(z), weakref.ref(weight)])
        alive.append(sum(each() is not None for each in made))
        return weight

    monkeypatch.setattr(evidence, "_array", watched)
    estimate(weigh, x, latent=1, draws=20 * evidence.BLOCK_ROWS // len(x))
    # Of all blocks' noise, weights and arrays the noise and the weights of this one.
    assert alive == [2] * 20


def test_weights_below_all_floats_and_impossible_events_are_told() -> None:
    found = from_weights(torch.tensor([[-1e5, -1e5 - 1], [-math.inf, -math.inf]]))
    assert found.log_p[0].item() == pytest.approx(-1e5 + math.log((1 + math.exp(-1)) / 2))
    assert found.log_p[1].item() == -math.inf


def test_parts_are_joined_in_their_order() -> None:
    weights = torch.randn(7, 20, generator=torch.Generator().manual_seed(0))
    whole = from_weights(weights)
    parts = joined([from_weights(part) for part in weights.split(3)])
    for each in ("log_p", "standard_error", "effective"):
        assert torch.equal(getattr(parts, each), getattr(whole, each))
    assert parts.draws == 20


def test_error_of_the_mean_is_of_the_events_and_says_what_the_draws_have_of_it() -> None:
    found = Evidence(
        torch.tensor([1.0, 3.0]).double(),
        torch.tensor([0.3, 0.4]).double(),
        torch.ones(2).double(),
        5,
    )
    assert found.mean == pytest.approx((2.0, 1.0))
    assert found.chance == pytest.approx(0.25)
