"""Inference by event finds what is known of it; what is trained by it is a model like any other."""

import itertools
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from tests.training.cases import BBVI_OF_BITS, BBVI_OF_IMAGES, features, images, vectors
from tests.training.linear_gaussian import LATENT, LinearGaussian
from training import loop
from training.bbvi import BBVI, BBVIConfig
from training.data import Batch, Data, DataConfig, load
from training.gradients import ESTIMATORS, Gradient
from training.loop import TrainConfig, fit, validate

BITS = 6
EVENTS = 3
BINARY: tuple[Gradient, ...] = ("reinforce", "reinforce-baseline")


def principal_components(gradient: Gradient, **options: object) -> tuple[BBVI, LinearGaussian]:
    """Probabilistic PCA with the decoder that it is, and a q for each event."""
    known = LinearGaussian()
    known.x = known.x[:50]
    table = {"gradient": gradient, "observation": "normal", "latent": LATENT, "minimum_scale": 0.1}
    config = BBVIConfig.model_validate(table | options)
    model = BBVI(config, vectors(mean=np.zeros(5), std=np.ones(5))).double()
    model.decoder, model.observation = known.model.decoder, known.model.observation
    return model, known


@torch.no_grad()
def excess(known: LinearGaussian, parameters: Tensor) -> Tensor:
    """ELBO of the best diagonal q less that of this one: of each event, in closed form.

    log p(x) - ELBO = KL(q || posterior) = 1/2 [tr P S + d' P d - k - log det P S], for the
    posterior's precision P, q's covariance S and d the difference of their means.
    """
    posterior, _ = known.model.encoder(known.model.standardise(known.x), None).chunk(2, dim=1)
    mean, log_scale = parameters.chunk(2, dim=1)
    variance, away, precision = (2 * log_scale).exp(), mean - posterior, known.precision
    spread = variance @ precision.diagonal() - LATENT - 2 * log_scale.sum(1)
    gap: Tensor = 0.5 * (spread + ((away @ precision) * away).sum(1) - torch.logdet(precision))
    return gap - known.gap


def inferred(model: BBVI, x: Tensor, *, steps: int) -> Tensor:
    torch.manual_seed(0)
    return model.infer(x, model.first(len(x)).to(x), steps=steps)


def test_the_best_diagonal_normal_has_no_excess() -> None:
    _, known = principal_components("reparametrization")
    mean, _ = known.model.encoder(known.model.standardise(known.x), None).chunk(2, dim=1)
    log_scale = (-0.5 * known.precision.diagonal().log()).expand_as(mean)
    best = excess(known, torch.cat([mean, log_scale], dim=1))
    torch.testing.assert_close(best, torch.zeros_like(best), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("gradient", "close"),
    [("reparametrization", 1e-3), ("reinforce-baseline", 1e-3), ("reinforce", 0.1)],
)
def test_inference_ends_at_the_best_diagonal_normal(gradient: Gradient, close: float) -> None:
    model, known = principal_components(gradient, draws=64)
    gaps = [excess(known, inferred(model, known.x, steps=steps)) for steps in (1, 20, 400)]
    assert gaps[0].mean() > 10 * gaps[1].mean() > 100 * gaps[2].mean()
    assert (gaps[2] >= -1e-9).all()
    assert gaps[2].mean() < close
    assert gaps[2].max() < 10 * close


@torch.no_grad()
def test_nats_of_a_linear_gaussian_agree_with_its_likelihood() -> None:
    model, known = principal_components("reinforce-baseline", draws=32, score_steps=200)
    torch.manual_seed(0)
    nats = {name: each.values for name, each in model.nats(Batch(known.x), 256).items()}
    truth = -known.marginal.log_prob(known.x)
    assert nats["negative log-likelihood"].dtype == torch.float64
    assert (nats["negative log-likelihood"] - truth).abs().mean() < 0.05
    # The same at every event, for whichever q is best: see oracle 7.
    lost = nats["negative ELBO"] - truth
    assert abs(lost.mean() - known.gap) <= 0.002 + 4.5 * lost.std() / math.sqrt(len(lost))


class Enumerated:
    """A small model with binary latents, all of whose states can be gone through."""

    def __init__(self, gradient: Gradient = "reinforce-baseline", **options: object) -> None:
        torch.manual_seed(0)
        table = {"gradient": gradient, "latents": "binary", "observation": "normal"}
        sizes = {"latent": BITS, "width": 6, "depth": 1}
        config = BBVIConfig.model_validate(table | sizes | options)
        self.data = features()
        self.model = BBVI(config, self.data).double()
        with torch.no_grad():
            for weight in self.model.decoder.parameters():
                weight.mul_(2)
        self.x = self.data.train.x[:EVENTS].double()
        states = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=BITS))).double()
        self.states = states.expand(EVENTS, -1, -1)

    def log_p(self) -> Tensor:
        """log p(x) of each event."""
        log_joint = self.model.log_likelihood(self.x, self.states) - BITS * math.log(2)
        return log_joint.logsumexp(1)

    def elbo(self, parameters: Tensor) -> Tensor:
        """The bound of each event, written out."""
        chance = torch.sigmoid(parameters).unsqueeze(1)
        log_q = torch.where(self.states > 0, chance, 1 - chance).log().sum(2)
        log_joint = self.model.log_likelihood(self.x, self.states) - BITS * math.log(2)
        return (log_q.exp() * (log_joint - log_q)).sum(1)


@pytest.mark.parametrize("gradient", BINARY)
def test_gradient_in_q_of_binary_latents_is_that_of_the_enumerated_bound(
    gradient: Gradient,
) -> None:
    case, rows = Enumerated(), 4000
    parameters = torch.randn(EVENTS, BITS).double().requires_grad_()
    (exact,) = torch.autograd.grad(case.elbo(parameters).sum(), parameters)
    for event in range(EVENTS):
        x = case.x[event : event + 1].expand(rows, -1)
        q = parameters[event : event + 1].detach().expand(rows, -1)
        estimate = ESTIMATORS[gradient]
        means = estimate(case.model.q, q, partial(case.model.log_likelihood, x), 8).mean(1)
        z = (means.mean(0) - exact[event]) / means.std(0) * math.sqrt(rows)
        assert (z.abs() <= 4.5).all(), z


def test_gradient_in_the_decoder_is_that_of_the_enumerated_bound() -> None:
    case, repeats = Enumerated(rate=1e-12, steps=1, draws=32), 200
    model, batch = case.model, replace(case.data.train[:EVENTS], x=case.x)
    model.inferred[:EVENTS] = torch.randn(EVENTS, BITS).double()
    (turn,) = model.turns()
    exact = torch.autograd.grad(-case.elbo(model.inferred[:EVENTS]).mean(), turn.parameters)
    found = [
        flat(torch.autograd.grad(turn.loss(batch)["loss"], turn.parameters)) for _ in range(repeats)
    ]
    drawn = torch.stack(found)
    z = (drawn.mean(0) - flat(exact)) / drawn.std(0) * math.sqrt(repeats)
    assert (z.abs() <= 4.5).all(), z


def flat(parts: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([part.flatten() for part in parts])


@torch.no_grad()
def test_figures_of_binary_latents_are_those_of_their_enumeration() -> None:
    case = Enumerated(score_steps=200, draws=16)
    model, truth = case.model, case.log_p()
    torch.manual_seed(0)
    nats = {name: each.values for name, each in model.nats(Batch(case.x), 20_000).items()}
    torch.testing.assert_close(-nats["negative log-likelihood"], truth, rtol=0, atol=0.02)
    torch.manual_seed(0)
    parameters = model.infer(case.x, model.first(EVENTS).double(), steps=200)
    terms = model.terms(case.x, parameters, draws=20_000)
    exact = case.elbo(parameters)
    assert (exact <= truth).all()
    assert (exact > case.elbo(torch.zeros_like(parameters)) + 0.5).all()
    error = terms.elbo.std(1) / math.sqrt(20_000)
    assert ((terms.elbo.mean(1) - exact).abs() <= 4.5 * error).all()


@torch.no_grad()
def test_nothing_of_a_binary_latent_but_its_sign_reaches_the_decoder() -> None:
    model = Enumerated().model
    z = torch.randn(20, BITS).double()
    assert torch.equal(model.decode(z), model.decode(z.sign()))
    assert not torch.equal(model.decode(z), model.decode(-z))


def trained(folder: Path, config: BBVIConfig, data: Data, *, epochs: int = 3) -> BBVI:
    torch.manual_seed(0)
    model = BBVI(config, data)
    train = TrainConfig(epochs=epochs, batch_size=16, ema=0.9, learning_rate=1e-2)
    fit(model, data, train, folder=folder, key="k")
    return model


class Interrupted(BBVI):
    """A run that is killed after some steps, in the middle of one."""

    left = 4

    def infer(self, x: Tensor, parameters: Tensor, *, steps: int) -> Tensor:
        if self.training:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
        return super().infer(x, parameters, steps=steps)


@pytest.mark.parametrize("config", [BBVI_OF_IMAGES, BBVI_OF_BITS], ids=["normal", "binary"])
def test_killed_run_ends_with_the_same_weights_and_the_same_q_of_each_row(
    tmp_path: Path, config: BBVIConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY_S", -1.0)  # at every step
    data = images()
    straight = trained(tmp_path / "straight", config, data)
    torch.manual_seed(0)
    killed = Interrupted(config, data)
    train = TrainConfig(epochs=3, batch_size=16, ema=0.9, learning_rate=1e-2)
    with pytest.raises(KeyboardInterrupt):
        fit(killed, data, train, folder=tmp_path / "killed", key="k")
    resumed = trained(tmp_path / "killed", config, data)
    for name, value in straight.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    assert resumed.inferred.abs().sum() > 0


def test_q_of_a_row_is_kept_for_its_next_visit_and_no_other_row_is_touched() -> None:
    data = images()
    model = BBVI(BBVI_OF_IMAGES, data)
    (turn,) = model.turns()
    rows = torch.tensor([3, 17, 30])
    turn.loss(data.train[rows])
    visited = model.inferred.abs().sum(1) > 0
    assert visited.nonzero().flatten().tolist() == rows.tolist()
    before = model.inferred.clone()
    turn.loss(data.train[rows[:1]])
    moved = (model.inferred - before).abs().sum(1) > 0
    assert moved.nonzero().flatten().tolist() == [3]
    assert (model.inferred[3] - before[3]).norm() < before[3].norm() + 3


def test_score_begins_at_the_prior_and_leaves_what_was_inferred_alone() -> None:
    data = images()
    model = BBVI(BBVI_OF_IMAGES, data)
    before = validate(model, data.validation, seed=0)
    model.inferred.fill_(0.7)
    assert validate(model, data.validation, seed=0) == before
    assert (model.inferred == 0.7).all()


@pytest.mark.parametrize(
    ("latents", "gradient"),
    [*itertools.product(["normal"], ESTIMATORS), *itertools.product(["binary"], BINARY)],
)
def test_a_few_epochs_lower_the_score(
    tmp_path: Path, latents: Literal["normal", "binary"], gradient: Gradient
) -> None:
    data = images(64)
    data.train.x.copy_((data.train.x < 0.1).float())
    update = {"latents": latents, "gradient": gradient}
    config = BBVI_OF_IMAGES.model_copy(update=update)
    torch.manual_seed(0)
    before = validate(BBVI(config, data), data.validation, seed=0).value
    model = trained(tmp_path, config, data, epochs=8)
    assert validate(model, data.validation, seed=0).value < before - 10


def test_training_rows_know_which_they_are_wherever_they_go() -> None:
    data = load(DataConfig(source="sklearn:iris"))
    assert data.validation.row is None
    assert data.test[:3].row is None
    rows = torch.tensor([5, 2])
    batch = data.train[rows].to(torch.device("cpu"))
    assert batch.row is not None
    assert torch.equal(batch.row, rows)
    assert torch.equal(batch.x, data.train.x[rows])


def test_rows_that_do_not_say_which_they_are_cannot_be_trained_on() -> None:
    model = BBVI(BBVI_OF_IMAGES, images())
    (turn,) = model.turns()
    with pytest.raises(ValueError, match="does not say which"):
        turn.loss(images().test)


def test_gradients_that_are_not_there_are_refused() -> None:
    with pytest.raises(ValidationError, match="gradient: reparametrization needs normal latents"):
        BBVIConfig(latents="binary", gradient="reparametrization")
    with pytest.raises(ValidationError, match="draws: a baseline is the mean of the other draws"):
        BBVIConfig(gradient="reinforce-baseline", draws=1)


def test_bernoulli_observations_of_vectors_are_refused() -> None:
    with pytest.raises(ValueError, match="bernoulli expects images"):
        BBVI(BBVIConfig(), features())
