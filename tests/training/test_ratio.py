"""A kept critic: what it tells, what becomes of it after training, and what it is worth."""

import math
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from service.bundle import Bundle, whole
from service.interface import ATTEMPTS
from tests.training.bundled import exported, recipe_of_a, shaken
from tests.training.cases import KEPT, features, images, labelled, of
from training.adversarial import CERTAIN, Name, objective, tells_ratio
from training.data import Batch, Data
from training.evaluate import EvaluateConfig, evaluate
from training.gan import GAN, GANConfig
from training.measure import measured
from training.restore import restore

TELLING = {
    "non-saturating", "minimax", "kl", "reverse-kl", "pearson", "squared-hellinger",
    "jensen-shannon", "least-squares",
}  # fmt: skip
DISCRETE_P = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
DISCRETE_Q = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)


class Wide(nn.Module):
    """A generator whose samples have twice the spread of the data."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(2.0))

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        return self.factor * z


def normals(rows: int = 20_000) -> Data:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 2, generator=generator)
    return of(x, mean=np.zeros(2), std=np.ones(2))


def wide(data: Data, **options: Any) -> GAN:  # noqa: ANN401
    """Return a GAN of two normal features whose generator is known."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"latent": 2, "critic_width": 32, "depth": 2, "keep_critic": True}
    model = GAN(GANConfig(**sizes, **options), data)
    model.generator = Wide()  # type: ignore[assignment]
    return model.eval()


def test_objectives_that_tell_a_ratio_are_these() -> None:
    assert {name for name in get_args(Name) if tells_ratio(name)} == TELLING


@pytest.mark.parametrize("name", sorted(TELLING))
def test_the_critic_that_raises_the_objective_most_tells_the_ratio(name: Name) -> None:
    """On four events the best critic is four numbers, which L-BFGS finds from the loss alone."""
    game = objective(name, features=1)
    said = torch.full((4, 1), 0.3, dtype=torch.float64, requires_grad=True)
    other = torch.zeros(1, 1, dtype=torch.float64)
    optimiser = torch.optim.LBFGS(
        [said], max_iter=500, tolerance_grad=1e-14, tolerance_change=1e-16,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> Tensor:
        optimiser.zero_grad()
        # The loss is a sum of terms of each event: weighed, it is that of p and q.
        of_p = [game.critic_loss(said[[i]], other) for i in range(4)]
        of_q = [game.critic_loss(other, said[[i]]) for i in range(4)]
        loss = (torch.stack(of_p) * DISCRETE_P + torch.stack(of_q) * DISCRETE_Q).sum()
        loss.backward()
        return loss

    for _ in range(5):
        optimiser.step(closure)
    found = game.log_ratio(said.detach())
    torch.testing.assert_close(found, (DISCRETE_P / DISCRETE_Q).log(), rtol=0, atol=1e-5)


def test_a_share_of_least_squares_that_is_none_is_certain() -> None:
    said = torch.tensor([[-3.0], [0.5], [7.0]], dtype=torch.float64)
    limit = math.log(CERTAIN / (1 - CERTAIN))
    found = objective("least-squares", features=1).log_ratio(said)
    assert found.tolist() == pytest.approx([-limit, 0.0, limit], abs=1e-12)


@pytest.mark.parametrize("name", sorted({*get_args(Name)} - TELLING))
def test_a_critic_that_tells_no_ratio_cannot_be_kept(name: Name) -> None:
    usual = {"regulariser": "gradient-penalty"}
    with pytest.raises(ValidationError, match=f'keep_critic: no density ratio .* "{name}"'):
        GANConfig.model_validate({"objective": name, "keep_critic": True, **usual})
    with pytest.raises(TypeError, match="tells no ratio"):
        objective(name, features=1).log_ratio(torch.zeros(2, 1))


def test_the_refusal_names_the_field_of_the_recipe() -> None:
    with pytest.raises(ValidationError) as caught:
        recipe_of_a({"family": "gan", "objective": "hinge", "keep_critic": True})
    assert caught.value.errors()[0]["loc"][0] == "model"
    assert "keep_critic: no density ratio" in str(caught.value)


def test_steps_of_a_critic_that_is_not_kept_are_refused() -> None:
    with pytest.raises(ValidationError, match="critic_finish: is of keep_critic"):
        GANConfig(critic_finish=10)


def test_a_critic_that_is_not_kept_is_not_there() -> None:
    model = GAN(GANConfig(), features())
    before = {name: each.clone() for name, each in model.state_dict().items()}
    model.finish(features())
    assert not model.own_figures(features().test)
    assert model.rejection() is None
    assert set(model.graphs()) == {"decode"}
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
    with pytest.raises(TypeError, match="no critic is kept"):
        model.log_ratio(features().test.x)


def test_a_finished_critic_knows_the_ratio_of_two_gaussians() -> None:
    data = normals()
    model = wide(data, critic_finish=1500)
    model.finish(data)
    x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, -1.5], [2.0, 1.0]])
    with torch.no_grad():
        found = model.log_ratio(x)
    # log N(x; 0, I) / N(x; 0, 4 I)
    wanted = math.log(4) - 0.375 * x.square().sum(1)
    assert (found - wanted).abs().max() < 0.25
    rejection = model.rejection()
    assert rejection is not None
    assert rejection.acceptance == pytest.approx(0.25, abs=0.03)
    assert rejection.log_bound == pytest.approx(math.log(4), abs=0.15)
    figures = {figure.name: figure for figure in model.own_figures(data.test)}
    plain, accepted = (figures[f"critic: MMD² of {each}samples"] for each in ("", "accepted "))
    assert plain.standard_error is not None
    assert accepted.standard_error is not None
    assert plain.value > 10 * plain.standard_error
    assert abs(accepted.value) <= 4.5 * accepted.standard_error
    told = figures["critic: cross-entropy, calibrated"]
    assert told.value < math.log(2) - 0.05
    assert told.n == 2 * min(2000, len(data.test))


def test_finishing_repeats_and_leaves_generator_and_random_numbers_alone() -> None:
    data = labelled()
    found = []
    for _ in range(2):
        torch.manual_seed(4)
        model = GAN(KEPT.model_copy(update={"objective": "kl", "critic_finish": 25}), data)
        before = {name: each.clone() for name, each in model.generator.state_dict().items()}
        state = torch.get_rng_state()
        model.finish(data)
        assert torch.equal(torch.get_rng_state(), state)
        assert all(
            torch.equal(each, before[name]) for name, each in model.generator.state_dict().items()
        )
        assert not any("parametrizations" in name for name, _ in model.named_parameters())
        found.append(model.state_dict())
    assert all(torch.equal(each, found[1][name]) for name, each in found[0].items())


def test_no_more_steps_are_made_where_none_are_wanted() -> None:
    data = normals(2000)
    model = wide(data, critic_finish=0, regulariser="r1")
    weights = [each.clone() for each in model.critic.parameters()]
    model.finish(data)
    assert all(map(torch.equal, weights, model.critic.parameters()))
    assert model.calibration is not None
    assert model.calibration.scale != 1


def test_accepted_samples_have_the_labels_that_were_asked_for() -> None:
    data = labelled()
    model = GAN(
        GANConfig(latent=3, width=8, critic_width=8, depth=2, keep_critic=True, critic_finish=20),
        data,
    )
    model.finish(data)
    asked = torch.arange(30) % 3
    with torch.no_grad():
        found = model._accepted(30, asked, 1e9)  # None is ever accepted.
        assert found.label is not None
        assert torch.equal(found.label, asked)
        best = model._said(model.log_ratio, found)
        once = model._said(model.log_ratio, model._drawn(30, 2**40 + 2 + ATTEMPTS, asked))
    assert (best >= once - 1e-6).all()


@pytest.mark.parametrize(
    "data", [features(), labelled(), images(classes=3)], ids=["features", "labels", "images"]
)
def test_bundle_with_a_critic_repeats_whatever_the_batch_and_judges_alike(data: Data) -> None:
    options = {"family": "gan", "latent": 3, "width": 16, "critic_width": 16, "keep_critic": True}
    recipe = recipe_of_a({**options, "critic_finish": 20})
    model = GAN(GANConfig.model_validate({**options, "critic_finish": 20}), data)
    shaken(model).finish(data)
    manifest, files = exported(model, recipe, data)
    read = Bundle(Path("models/toy/1"), measured(manifest, files), whole(manifest, files))
    assert set(read.manifest.graphs) == {"decode", "critic"}
    assert read.manifest.graphs["critic"].rows_exact_at in (1, 8)
    assert read.manifest.rejection == model.rejection()
    found = restore(read, data)
    assert isinstance(found, GAN)
    label = data.test.label if found.labels else None
    with torch.no_grad():
        torch.testing.assert_close(
            found.log_ratio(data.test.x, label),
            model.log_ratio(data.test.x, label),
            rtol=1e-5,
            atol=1e-5,
        )
    ours, theirs = (evaluate(each, data, SHORT) for each in (model, found))
    names = [figure.name for figure in ours if figure.name.startswith("critic: ")]
    assert len(names) == 6
    assert [figure.name for figure in theirs] == [figure.name for figure in ours]


SHORT = EvaluateConfig(rows=20, classifier_steps=2)


def test_figures_need_rows_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    data = features()
    model = GAN(GANConfig(keep_critic=True, critic_finish=0), data)
    model.finish(data)
    found = model.own_figures(Batch(data.test.x[:3]))
    assert all(math.isfinite(figure.value) for figure in found)
