"""Every estimator of log p(x) agrees with the VAE whose log p(x) is known."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.training.cases import case
from tests.training.linear_gaussian import LinearGaussian
from training import marginal
from training.annealing import Effort
from training.data import Batch, Data
from training.evidence import Evidence
from training.family import Family
from training.latent import LatentModel
from training.marginal import Events, by_annealing, by_posterior, by_prior, sandwich

EFFORT = Effort(temperatures=500, chains=16, leapfrogs=4)


@pytest.fixture(scope="module")
def known() -> tuple[Events, Tensor]:
    """Events, and their log p(x)."""
    linear = LinearGaussian()
    linear.model.requires_grad_(False)
    x = linear.x[:30]
    return Events.of(linear.model, Batch(x)), linear.marginal.log_prob(x)


def estimates(events: Events) -> dict[str, Evidence]:
    return {
        "prior": by_prior(events, 20_000, lambda _: None),
        "posterior": by_posterior(events, 500, lambda _: None),
        "annealing": by_annealing(events, EFFORT, lambda _: None),
    }


def test_all_estimators_agree_with_the_truth(known: tuple[Events, Tensor]) -> None:
    events, exact = known
    torch.manual_seed(0)
    for name, found in estimates(events).items():
        z = (found.log_p - exact) / found.standard_error
        assert z.abs().max() <= 4.5, name
        average, _ = found.mean
        assert abs(average - exact.mean().item()) <= 4.5 * found.chance, name
        assert found.chance < 0.1, name


def test_sandwich_of_simulated_events_holds_the_truth_and_is_as_narrow_as_may_be() -> None:
    linear = LinearGaussian()
    model = linear.model.requires_grad_(False)
    torch.manual_seed(0)
    events, _ = marginal._simulated(model, 60)
    exact = linear.marginal.log_prob(events.batch.x)
    torch.manual_seed(0)
    low, high = sandwich(model, 60, EFFORT, lambda _: None)
    # From below w / p(x), and from above p(x) / w, are 1 on average: neither is any bound.
    for ratio in ((low - exact).exp(), (exact - high).exp()):
        assert abs(ratio.mean() - 1) <= 4.5 * ratio.std() / math.sqrt(len(ratio))
        assert ratio.std() < 0.6
    gap = high - low
    assert -4.5 * gap.std() / math.sqrt(len(gap)) < gap.mean() < 0.3


def test_parts_are_events_in_their_order_and_told(
    known: tuple[Events, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    events, exact = known
    monkeypatch.setattr(marginal, "PART_DRAWS", 2000)
    monkeypatch.setattr(marginal, "PART_CHAINS", 100)
    parts = list(events.parts(500, at_once=2000))
    assert [len(part.batch) for part in parts] == [4] * 7 + [2]
    assert torch.equal(torch.cat([part.batch.x for part in parts]), events.batch.x)
    told: list[int] = []
    torch.manual_seed(0)
    found = by_annealing(events, replace(EFFORT, temperatures=100), told.append)
    assert told == [6] * 5
    assert torch.corrcoef(torch.stack([found.log_p, exact]))[0, 1] > 0.9


Estimator = Callable[[Events], Evidence]
BY: dict[str, Estimator] = {
    "prior": lambda events: by_prior(events, 64, lambda _: None),
    "posterior": lambda events: by_posterior(events, 64, lambda _: None),
    "annealing": lambda events: by_annealing(events, Effort(4, 4, 2), lambda _: None),
}


def of_labels(model: Family, data: Data, by: Estimator, labels: list[int]) -> Tensor:
    """Return what the estimator says of one image under these labels, with the same noise always.

    Row by row the noise differs, and from call to call it does not.
    """
    x = data.test.x[:1].expand(len(labels), -1, -1, -1).round()
    events = Events(model, Batch(x, torch.tensor(labels)))  # type: ignore[arg-type]
    torch.manual_seed(0)
    return by(events).log_p


@pytest.mark.parametrize("by", list(BY))
@pytest.mark.parametrize("label", ["vae with labels", "vae with a flow posterior and labels"])
def test_each_event_is_told_its_own_label(
    label: str, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = case(label)
    model.requires_grad_(False)
    # So that labels are cut into parts as well.
    monkeypatch.setattr(marginal, "PART_DRAWS", 128)
    monkeypatch.setattr(marginal, "PART_CHAINS", 8)
    found = of_labels(model, data, BY[by], [0, 1, 2, 2])
    other = of_labels(model, data, BY[by], [0, 2, 2, 1])
    assert torch.equal(found[[0, 2]], other[[0, 2]])
    assert ((found - other).abs()[[1, 3]] > 1e-3).all()


@pytest.mark.parametrize("label", ["vae with labels", "vae with a flow posterior and labels"])
def test_labels_reach_the_encoder_too(label: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = case(label)
    model.requires_grad_(False)
    assert isinstance(model, LatentModel)
    output = model.output
    # With a decoder that is told the same always, what is left is the encoder's.
    monkeypatch.setattr(model, "output", lambda z, label: output(z, torch.zeros_like(label)))
    same = [of_labels(model, data, BY["prior"], labels) for labels in ([0, 1], [0, 2])]
    assert torch.equal(*same)
    found = [of_labels(model, data, BY["posterior"], labels) for labels in ([0, 1], [0, 2])]
    assert found[0][0] == found[1][0]
    assert abs(found[0][1] - found[1][1]) > 1e-4


@pytest.mark.parametrize(
    "label", ["vae of binary images", "vae of grey levels", "vae of grey images", "vae with labels"]
)
def test_events_are_simulated_for_every_observation_model(label: str) -> None:
    model, _ = case(label)
    torch.manual_seed(0)
    low, high = sandwich(model.requires_grad_(False), 6, Effort(20, 4, 3), lambda _: None)  # type: ignore[arg-type]
    assert low.isfinite().all()
    assert high.isfinite().all()


def test_model_without_an_encoder_has_no_importance_weights() -> None:
    model, data = case("bbvi of images")
    events = Events.of(model, data.test)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="no encoder"):
        by_posterior(events, 4, lambda _: None)
    assert by_prior(events, 4, lambda _: None).log_p.isfinite().all()
