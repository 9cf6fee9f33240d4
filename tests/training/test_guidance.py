"""Guided flows: what is solved is the combination of two velocities, and so is its density."""

import asyncio
from contextlib import closing

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from service import operations
from service.batching import Batcher
from service.condition import Condition
from service.engine import Engine
from service.interface import UNTOLD_LABEL, Ode
from service.session import Device
from tests.training.bundled import bundled, recipe_of_a, shaken
from training.continuous import ContinuousFlow
from training.continuous_config import ContinuousFlowConfig
from training.data import Data, DataConfig, load
from training.guidance import dropped, guided
from training.networks import one_hot
from training.recipe import build
from training.representation import labels

GUIDED = {"width": 16, "depth": 1, "conditional": True, "label_dropout": 0.2}


@pytest.fixture(scope="module")
def moons() -> Data:
    return load(DataConfig(source="sklearn:moons", rows=400))


def test_label_that_is_not_told_is_no_class() -> None:
    told = one_hot(torch.tensor([UNTOLD_LABEL, 1]), 3, like=torch.zeros(()))
    assert told.tolist() == [[0, 0, 0], [0, 1, 0]]


def test_share_of_the_labels_is_dropped() -> None:
    torch.manual_seed(0)
    label = torch.arange(10).repeat(1000)
    found = dropped(label, 0.2)
    kept = found == label
    assert (found[~kept] == UNTOLD_LABEL).all()
    share = (~kept).double().mean().item()
    assert abs(share - 0.2) <= 4.5 * (0.2 * 0.8 / len(label)) ** 0.5


def test_rates_are_led_past_those_of_the_label() -> None:
    def rates(w: Tensor, t: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        return w * label + t, label.double()

    w, t, label = torch.tensor([2.0, 3.0]), torch.tensor([0.5, 0.5]), torch.tensor([4, 7])
    first, second = guided(rates, 0.5, label)(w, t)
    # v(w|y) = w y + t, v(w) = -w + t
    assert first.tolist() == [1.5 * 8.5 - 0.5 * -1.5, 1.5 * 21.5 - 0.5 * -2.5]
    assert second.tolist() == [1.5 * 4 + 0.5, 1.5 * 7 + 0.5]


def test_guided_flow_goes_back_where_it_came_from_and_knows_its_density(moons: Data) -> None:
    """Against autograd: log |det dz/dx| of the guided way back as a whole."""
    torch.manual_seed(1)
    config = ContinuousFlowConfig.model_validate(
        {**GUIDED, "guidance": 1.5, "solver": "rk4", "steps": 40}
    )
    model = ContinuousFlow(config, moons).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    z, label = torch.randn(5, 2, dtype=torch.float64), torch.tensor([0, 1, 0, 1, 1])
    x = model.decode(z, label)
    back, log_density = model.encode(x, label)
    np.testing.assert_allclose(back.detach(), z, atol=1e-6)
    for row in range(5):
        jacobian = torch.autograd.functional.jacobian(
            lambda each, row=row: model.encode(each[None], label[row : row + 1])[0][0], x[row]
        )
        normal = torch.distributions.Normal(0.0, 1.0).log_prob(z[row]).sum()
        wanted = normal + torch.linalg.slogdet(jacobian).logabsdet
        assert log_density[row].item() == pytest.approx(wanted.item(), abs=1e-6)
    # It is another flow than the one that was learnt.
    unguided = ContinuousFlow(config.model_copy(update={"guidance": 0.0}), moons).double()
    unguided.load_state_dict(model.state_dict())
    assert (unguided.decode(z, label) - x).abs().max() > 0.01


def test_training_keeps_labels_from_the_network_and_validation_does_not(
    moons: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ContinuousFlow(ContinuousFlowConfig.model_validate(GUIDED), moons)
    seen: list[Tensor] = []
    velocity = model.velocity

    def watched(w: Tensor, t: Tensor, *condition: Tensor) -> Tensor:
        seen.append(condition[0])
        return velocity(w, t, *condition)

    monkeypatch.setattr(model, "velocity", watched)
    torch.manual_seed(2)
    (turn,) = model.turns()
    turn.loss(moons.train)
    assert 0 < (seen[0] == UNTOLD_LABEL).sum() < len(moons.train) / 2
    seen.clear()
    model.score(moons.validation)
    assert all((label >= 0).all() for label in seen)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"guidance": 0.5}, "guidance: wants a network that was trained with label_dropout"),
        ({"objective": "likelihood", "label_dropout": 0.1}, 'label_dropout: is of objective = "fl'),
        ({"label_dropout": 1.0}, "label_dropout"),
        ({"label_dropout": 0.1, "guidance": -1.0}, "guidance"),
    ],
)
def test_options_that_do_nothing_are_refused(options: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        ContinuousFlowConfig.model_validate(options)


def test_labels_must_be_told_to_be_dropped(moons: Data) -> None:
    config = ContinuousFlowConfig.model_validate({**GUIDED, "conditional": False})
    with pytest.raises(ValueError, match=r"model\.label_dropout: is of labels"):
        ContinuousFlow(config, moons)


def test_service_says_the_same_of_the_exported_flow(moons: Data) -> None:
    """Another program solves it there: samples, codes and densities of the same weights."""
    asked = {"family": "continuous-flow", **GUIDED, "guidance": 1.5, "steps": 10}
    recipe = recipe_of_a(asked)
    model = shaken(build(recipe, moons)).eval()
    assert isinstance(model, ContinuousFlow)
    x, label = moons.test.x[:20], labels(moons.test[:20])
    z = torch.randn(20, 2, generator=torch.Generator().manual_seed(4))
    told = Condition(label.tolist())
    with closing(Batcher(devices=1)) as batcher:
        engine = Engine(bundled(model, recipe, moons), Device("cpu"), batcher=batcher)
        assert engine.manifest.ode == Ode(solver="midpoint", steps=10, guidance=1.5)
        code = asyncio.run(operations.encode(engine, x.numpy(), draws=None, seed=0, condition=told))
        made = asyncio.run(operations.decode(engine, z.numpy(), condition=told))
        density = asyncio.run(
            operations.log_density(engine, x.numpy(), draws=None, seed=0, condition=told)
        )
    with torch.no_grad():
        back, log_density = model.encode(x, label)
        wanted = model.decode(z, label)
    np.testing.assert_allclose(code["z"], back, atol=1e-4)
    np.testing.assert_allclose(made["x"], wanted, atol=1e-4)
    np.testing.assert_allclose(density["log_density"], log_density, atol=1e-3)
