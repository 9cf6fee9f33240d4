"""What the objectives of a GAN want, of both players, and what keeps critics from being steep."""

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from tests.training.cases import GAMES, STEEPNESS, features, labelled, of
from training.adversarial import objective, of_a_kernel
from training.data import Data
from training.gan import GAN, GANConfig
from training.loop import TrainConfig, fit

SIZES: dict[str, Any] = {"latent": 1, "width": 16, "critic_width": 16, "depth": 2}
USUAL: dict[str, dict[str, Any]] = {
    name: options
    | {"regulariser": "gradient-penalty" if name.startswith(("mmd", "wasser")) else "r1"}
    for name, options in GAMES.items()
}
"""Each objective with the regulariser that suits it."""


class Shifted(nn.Module):
    """A generator that adds a number to noise."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(shift))

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        return z + self.shift


def line(rows: int = 4096) -> Data:
    """Return one standard normal feature, at its quantiles."""
    quantiles = (torch.arange(rows) + 0.5) / rows
    x = torch.special.ndtri(quantiles.double()).float()[:, None]
    return of(x, mean=torch.zeros(1).numpy(), std=torch.ones(1).numpy())


def against(shift: float, data: Data, **options: Any) -> GAN:  # noqa: ANN401
    """Return a GAN of one feature whose samples are data, shifted."""
    torch.manual_seed(0)
    model = GAN(GANConfig(**SIZES, **options), data)
    model.generator = Shifted(shift)  # type: ignore[assignment]
    return model.train()


def train_critic(model: GAN, data: Data, *, steps: int, rate: float, rows: int = 128) -> None:
    turn = model.turns()[0]
    adam = torch.optim.Adam(turn.parameters, lr=rate, betas=(0.0, 0.9))
    for step in range(steps):
        adam.param_groups[0]["lr"] = rate * (1 - step / steps)
        adam.zero_grad()
        chosen = torch.randint(len(data.train), (rows,))
        turn.loss(data.train[chosen])["loss"].backward(inputs=list(turn.parameters))
        adam.step()


def train(model: GAN, data: Data, folder: Path, **options: Any) -> dict[str, float]:  # noqa: ANN401
    """Return the losses of the last epoch."""
    config = TrainConfig(epochs=1, batch_size=20, device="cpu", **options)
    return dict(fit(model, data, config, folder=folder, key="").history[-1].losses)


@pytest.mark.parametrize("options", [*GAMES.values(), *STEEPNESS.values()], ids=str)
def test_a_step_moves_both_players_by_finite_losses(
    options: dict[str, Any], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    data = labelled()
    model = GAN(GANConfig(**SIZES, **options), data)
    before = {name: value.clone() for name, value in model.named_parameters()}
    losses = train(model, data, tmp_path)
    assert all(math.isfinite(value) for value in losses.values())
    assert len(losses) >= 3
    moved = {name for name, value in model.named_parameters() if not value.equal(before[name])}
    assert moved == set(before)


@pytest.mark.parametrize("shift", [-2.0, 2.0])
@pytest.mark.parametrize("name", USUAL)
def test_generators_gradient_points_towards_the_data(name: str, shift: float) -> None:
    data = line()
    model = against(shift, data, **USUAL[name])
    train_critic(model, data, steps=40, rate=1e-2)
    generator = model.turns()[1]
    assert isinstance(model.generator, Shifted)
    torch.manual_seed(1)
    generator.loss(data.train[:512])["loss"].backward(inputs=[model.generator.shift])
    assert model.generator.shift.grad is not None
    # Going down the loss takes the samples back by what they are off.
    assert model.generator.shift.grad.item() * shift > 0


def test_critic_with_a_gradient_penalty_has_slope_1_and_measures_the_distance() -> None:
    shift, data = 1.0, line()
    model = against(
        shift, data, objective="wasserstein", regulariser="gradient-penalty", penalty=30.0
    )
    train_critic(model, data, steps=500, rate=5e-3, rows=512)
    # On the way from most of the data to most of the samples.
    x = torch.linspace(-1.0, 2.0, 400)[:, None].requires_grad_()
    (slope,) = torch.autograd.grad(model.critic(x).sum(), x)
    assert slope.abs().mean().item() == pytest.approx(1.0, abs=0.05)
    with torch.no_grad():
        distance = model.critic(data.train.x).mean() - model.critic(data.train.x + shift).mean()
    assert distance.item() == pytest.approx(shift, rel=0.05)


def test_clipped_weights_bound_the_slope(tmp_path: Path) -> None:
    bound, data = 0.05, features()
    torch.manual_seed(0)
    config = GANConfig(**SIZES, objective="wasserstein", regulariser="clip", bound=bound)
    model = GAN(config, data)
    assert max(weight.abs().max() for weight in model.critic.parameters()) <= bound
    train(model, data, tmp_path, learning_rate=0.1)
    # The best epoch's weights are an average's, which cannot leave the bound either.
    weights = [value for value in model.critic.parameters() if value.ndim == 2]
    assert max(weight.abs().max() for weight in model.critic.parameters()) <= bound
    # A matrix of entries within b has a gain of at most b sqrt(rows columns).
    largest = math.prod(bound * math.sqrt(weight.numel()) for weight in weights)
    x = torch.randn(500, 3).requires_grad_()
    (slope,) = torch.autograd.grad(model.critic(x).sum(), x)
    assert slope.norm(dim=1).max() <= largest


def test_without_clipping_the_same_steps_leave_the_bound(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = GAN(GANConfig(**SIZES, objective="wasserstein"), features())
    train(model, features(), tmp_path, learning_rate=0.1)
    assert max(weight.abs().max() for weight in model.critic.parameters()) > 0.05


def test_scaling_divides_the_discrepancy_by_value_and_gradient() -> None:
    """Of features W x the squared gradient is |W|^2, the same everywhere."""
    data = features()
    usual: dict[str, Any] = {"objective": "mmd-gaussian", "critic_features": 2, "latent": 1}
    plain = GAN(GANConfig(regulariser="none", **usual), data)
    scaled = GAN(GANConfig(regulariser="scaling", penalty=3.0, **usual), data)
    weight = torch.randn(2, 3)

    class Linear(nn.Module):
        def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
            return x @ weight.T

    class Diagonal(nn.Module):
        def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
            return z.expand(-1, 3) + 2

    losses = []
    for model in (plain, scaled):
        model.critic = Linear()  # type: ignore[assignment]
        model.generator = Diagonal()  # type: ignore[assignment]
        torch.manual_seed(0)
        losses.append(model._critic_loss(data.train)["loss"].item())
    kernel = of_a_kernel(plain.objective)
    assert kernel.curvature
    steepness = kernel.at_zero + 3.0 * kernel.curvature * weight.square().sum().item()
    assert losses[1] == pytest.approx(losses[0] / steepness, rel=1e-5)


def test_critic_moves_so_many_times_on_fresh_rows_and_noise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    data = labelled(130)
    torch.manual_seed(0)
    model = GAN(GANConfig(**SIZES, critic_steps=3), data)
    noises: list[Tensor] = []
    rows: list[Tensor] = []
    draw = GAN._noise

    def recorded(self: GAN, batch: Any) -> Tensor:  # noqa: ANN401
        rows.append(batch.x)
        noises.append(draw(self, batch))
        return noises[-1]

    monkeypatch.setattr(GAN, "_noise", recorded)
    losses = train(model, data, tmp_path)
    steps = len(data.train) // (3 * 20)
    # Besides three moves and one in a step, the validation and what is drawn for its picture.
    assert len(noises) == 4 * steps + 1
    for one, other in itertools.pairwise(noises):
        assert one.shape != other.shape or not one.equal(other)
    for step in range(steps):
        moves = torch.cat(rows[4 * step : 4 * step + 3])
        assert len(moves.unique(dim=0)) == len(moves) == 60
    # The mean over the three is logged, and not their sum: accuracy is a share.
    assert 0 <= losses["critic/accuracy"] <= 1


REFUSED = {
    "scaling of no MMD": (
        {"regulariser": "scaling"}, "regulariser: scaling needs a kernel with a curvature",
    ),
    "scaling of a kernel with a kink": (
        {"objective": "mmd-distance", "regulariser": "scaling"}, "regulariser: scaling needs",
    ),
    "r1 of several numbers": (
        {"objective": "mmd-gaussian", "regulariser": "r1"}, "regulariser: r1 is of a critic",
    ),
    "a distance without a bound": (
        {"objective": "wasserstein", "regulariser": "none"},
        'regulariser: objective = "wasserstein" has no bound',
    ),
    "an energy distance without a bound": (
        {"objective": "mmd-distance", "regulariser": "none"}, "regulariser: objective =",
    ),
    "a penalty of none": ({"penalty": 2.0}, 'penalty: is of regulariser = "r1" or'),
    "a bound of none": ({"regulariser": "r1", "bound": 0.1}, 'bound: is of regulariser = "clip"'),
    "features of one number": (
        {"objective": "hinge", "critic_features": 4}, "critic_features: are of the mmd objectives",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("options", "sentence"), REFUSED.values(), ids=REFUSED)
def test_what_does_nothing_or_makes_no_sense_is_refused(
    options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        GANConfig(**options)
    assert sentence in str(caught.value)


def test_kernel_of_an_objective_without_one_is_a_bug() -> None:
    with pytest.raises(TypeError, match="expected an MMD; got Hinge"):
        of_a_kernel(objective("hinge", features=1))
