import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal
from torch.nn.functional import logsigmoid

from service.bundle import Bundle, whole
from tests.training.bundled import exported, recipe_of_a, shaken
from tests.training.cases import GAN_CONFIG, GAN_OF_FEATURES, features, images, labelled
from training.adversarial import value
from training.data import Batch, Data
from training.family import Turn
from training.gan import GAN, GANConfig
from training.measure import measured
from training.restore import restore


def jensen_shannon(p: Normal, q: Normal) -> float:
    x = torch.linspace(-12, 12, 20_001, dtype=torch.float64)
    log_p, log_q = p.log_prob(x), q.log_prob(x)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    integrand = 0.5 * (log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m))
    return torch.trapezoid(integrand, x).item()


def normal(mean: float, scale: float) -> Normal:
    return Normal(torch.tensor(mean, dtype=torch.float64), torch.tensor(scale, dtype=torch.float64))


def test_value_of_the_best_critic_is_minus_log_4_where_samples_follow_the_data() -> None:
    logits = torch.zeros(10, dtype=torch.float64)
    assert value(logits, logits).item() == pytest.approx(-math.log(4), abs=1e-12)


def test_value_of_the_best_critic_is_twice_the_jensen_shannon_divergence_less_log_4() -> None:
    torch.manual_seed(0)
    p, q = normal(0.0, 1.0), normal(0.5, 1.5)
    real, fake = p.sample((200_000,)), q.sample((200_000,))
    of_real, of_fake = (p.log_prob(x) - q.log_prob(x) for x in (real, fake))
    terms = torch.stack([-torch.log1p(torch.exp(-of_real)), -torch.log1p(torch.exp(of_fake))])
    error = (terms.var(1).sum() / 200_000).sqrt().item()
    expected = 2 * jensen_shannon(p, q) - math.log(4)
    assert abs(value(of_real, of_fake).item() - expected) <= 4.5 * error
    assert value(0.5 * of_real, 0.5 * of_fake) < value(of_real, of_fake)


def test_a_trained_critic_finds_the_log_ratio_of_two_gaussians() -> None:
    torch.manual_seed(0)
    p, q = normal(0.0, 1.0), normal(0.5, 1.5)
    real, fake = p.sample((20_000,)), q.sample((20_000,))
    # log p - log q is a parabola, so a critic that is one can be perfect.
    weight = torch.zeros(3, dtype=torch.float64, requires_grad=True)

    def logit(x: Tensor) -> Tensor:
        return weight[0] + weight[1] * x + weight[2] * x.square()

    optimiser = torch.optim.LBFGS([weight], max_iter=100)

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = -value(logit(real), logit(fake))
        loss.backward()
        return loss

    optimiser.step(closure)
    x = torch.linspace(-2, 2, 50, dtype=torch.float64)
    best = torch.sigmoid(p.log_prob(x) - q.log_prob(x))
    assert (torch.sigmoid(logit(x)) - best).abs().mean() <= 0.02
    wanted = 2 * jensen_shannon(p, q) - math.log(4)
    assert value(logit(real), logit(fake)).item() == pytest.approx(wanted, abs=0.01)


def test_the_same_noise_makes_another_image_of_another_label() -> None:
    model = GAN(GAN_CONFIG, images(48, classes=3))
    z = torch.randn(1, 5).expand(3, -1)
    x = model.decode(z, torch.arange(3))
    assert (x[0] - x[1]).abs().max() > 1e-4
    assert (x[1] - x[2]).abs().max() > 1e-4


def test_a_label_that_is_missing_or_out_of_place_is_refused() -> None:
    z = torch.randn(2, 5)
    with pytest.raises(ValueError, match="expected a label for each z"):
        GAN(GAN_CONFIG, images(48, classes=3)).decode(z)
    with pytest.raises(ValueError, match="expected no label"):
        GAN(GAN_CONFIG, images()).decode(z, torch.zeros(2, dtype=torch.int64))


def test_depth_of_images_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.depth: is of features"):
        GAN(GANConfig(depth=2), images(48))


def test_score_of_images_that_are_all_alike_is_finite() -> None:
    data = images(48)
    still = replace(data, train=Batch(torch.full_like(data.train.x, 0.5), data.train.label))
    score = GAN(GAN_CONFIG, still).eval().score(still.train)
    assert math.isfinite(score.value)
    assert score.standard_error is not None


def test_score_of_perfect_samples_is_zero_on_average(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = GAN(GAN_CONFIG, images(48, classes=3))
    label = torch.arange(20) % 3

    def perfect(z: Tensor, label: Tensor) -> Tensor:
        return torch.rand(len(z), 1, 8, 8) * 0.5 + label.view(-1, 1, 1, 1) / 6

    monkeypatch.setattr(model, "decode", perfect)
    scores = []
    for _ in range(400):
        drawn = torch.randint(3, (20,))
        scores.append(model.score(Batch(perfect(label, drawn), drawn)).value)
    found = torch.tensor(scores)
    assert abs(found.mean()) <= 4.5 * found.std() / math.sqrt(len(found))
    assert (found < 0).any()


def test_the_best_critics_value_is_exact_by_quadrature() -> None:
    x = torch.linspace(-12, 12, 20_001, dtype=torch.float64)
    p, q = normal(0.0, 1.0), normal(0.5, 1.5)
    logit = p.log_prob(x) - q.log_prob(x)
    of_p, of_q = p.log_prob(x).exp(), q.log_prob(x).exp()
    terms = of_p * logsigmoid(logit) + of_q * logsigmoid(-logit)
    found = torch.trapezoid(terms, x).item() + math.log(4)
    assert found == pytest.approx(2 * jensen_shannon(p, q), abs=1e-10)


def test_vectors_come_in_the_units_of_the_data() -> None:
    data = features()
    model = GAN(GAN_OF_FEATURES, data)
    last = model.generator.get_submodule("network")[-1]  # type: ignore[index]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.fill_(2.0)
        x = model.decode(torch.randn(5, 4))
    assert data.mean is not None
    assert data.std is not None
    expected = torch.as_tensor(data.mean + 2 * data.std).float().expand(5, -1)
    torch.testing.assert_close(x, expected)
    torch.testing.assert_close(model.enter(x), torch.full((5, 3), 2.0), rtol=1e-5, atol=1e-5)


def test_hidden_layers_are_of_vectors() -> None:
    with pytest.raises(ValueError, match=r"model\.depth: is of features"):
        GAN(GANConfig(depth=2), images())


@pytest.mark.parametrize("data", [features(), labelled()], ids=["features", "with labels"])
def test_bundle_of_vectors_repeats_whatever_the_batch_and_is_restored(data: Data) -> None:
    config = {"family": "gan", "latent": 3, "width": 24, "critic_width": 4}
    recipe = recipe_of_a(config)
    model = shaken(GAN(GANConfig.model_validate(config), data).eval())
    manifest, files = exported(model, recipe, data)
    read = Bundle(Path("models/toy/1"), measured(manifest, files), whole(manifest, files))
    assert set(read.manifest.graphs) == {"decode"}
    assert read.manifest.graphs["decode"].rows_exact_at in (1, 8)
    z = torch.randn(6, 3)
    asked = (torch.arange(6) % 3,) if data.labels else ()
    with torch.no_grad():
        found = restore(read, data).decode(z, *asked)
        torch.testing.assert_close(found, model.decode(z, *asked), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "data"),
    [(GAN_CONFIG, images(48, classes=3)), (GAN_OF_FEATURES, labelled(48))],
    ids=["images", "features"],
)
def test_a_few_rounds_of_the_game_lower_the_score(config: GANConfig, data: Data) -> None:
    torch.manual_seed(0)
    model = GAN(config, data)

    def move(turn: Turn, optimiser: torch.optim.Optimizer) -> None:
        model.zero_grad()
        turn.loss(data.train)["loss"].backward()
        optimiser.step()

    turns = model.turns()
    optimisers = [torch.optim.Adam(turn.parameters, lr=2e-3, betas=(0.0, 0.99)) for turn in turns]
    with torch.no_grad():
        before = model.score(data.train).value
    for _ in range(60):
        for turn, optimiser in zip(turns, optimisers, strict=True):
            move(turn, optimiser)
    with torch.no_grad():
        assert model.score(data.train).value < 0.5 * before
