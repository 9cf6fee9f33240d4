"""Flows that are told the label or a context: a density for each, and each of them a density."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from tests.training.cases import contextual, images, labelled, shaken, vectors
from tests.training.learning import learn
from training.continuous import ContinuousFlow
from training.continuous_config import ContinuousFlowConfig
from training.data import Batch, Data
from training.flow import Flow
from training.flow_config import FlowConfig

LAYERS = ("coupling", "autoregressive", "inverse-autoregressive")
every_layer = pytest.mark.parametrize("layer", LAYERS)


def flow_of(layer: str, data: Data, *, scale: float = 0.3) -> Flow:
    """Return a conditional flow of two layers that is not the identity."""
    config = FlowConfig.model_validate(
        {"layer": layer, "layers": 2, "width": 16, "depth": 1, "bins": 6, "conditional": True}
    )
    torch.manual_seed(0)
    return shaken(Flow(config, data), scale).eval().requires_grad_(False).double()


@every_layer
def test_density_given_each_label_integrates_to_one_and_is_another(layer: str) -> None:
    flow = flow_of(layer, labelled(classes=5))
    side = torch.linspace(-10, 14, 241, dtype=torch.float64)
    grid, area = torch.cartesian_prod(side, side), float(side[1] - side[0]) ** 2
    densities = []
    for label in range(5):
        densities.append(flow.log_density(grid, torch.full((len(grid),), label)).exp())
        assert float(densities[-1].sum()) * area == pytest.approx(1, abs=2e-3)
    for one, other in pairwise(densities):
        assert float((one - other).abs().sum()) * area > 0.01


@every_layer
def test_decode_undoes_encode_of_the_same_label_and_no_other(layer: str) -> None:
    flow = flow_of(layer, labelled())
    x, label = 3 * torch.randn(30, 2, dtype=torch.float64), torch.arange(30) % 3
    z, _ = flow.encode(x, label)
    torch.testing.assert_close(flow.decode(z, label), x, rtol=0, atol=1e-9)
    assert (flow.decode(z, (label + 1) % 3) - x).abs().max() > 0.01


@every_layer
def test_log_det_given_a_label_is_that_of_the_jacobian(layer: str) -> None:
    flow = flow_of(layer, labelled())
    x, label = torch.randn(6, 2, dtype=torch.float64), torch.arange(6) % 3
    for row in range(6):
        jacobian = torch.autograd.functional.jacobian(
            lambda one, row=row: flow.encode(one[None], label[row : row + 1])[0][0], x[row]
        )
        found = flow.encode(x, label)[1][row]
        assert float(torch.linalg.slogdet(jacobian)[1] - found) == pytest.approx(0, abs=1e-8)


def test_image_is_decoded_as_the_label_it_was_encoded_with() -> None:
    flow = flow_of("coupling", images(classes=3))
    x, label = images(classes=3).train.x[:9].double(), torch.arange(9) % 3
    z, _ = flow.encode(x, label, torch.full_like(x, 0.5))
    torch.testing.assert_close(flow.decode(z, label), x, rtol=0, atol=1e-9)
    assert (flow.decode(z, (label + 1) % 3) - x).abs().max() > 1e-3


def test_learned_density_given_the_label_ends_at_its_entropy() -> None:
    """Of all labels together it would be more: their means are apart."""
    torch.manual_seed(0)
    data = labelled(rows=6000)
    config = FlowConfig(transform="affine", layers=2, width=16, depth=1, conditional=True)
    flow = Flow(config, data)
    learn(flow, data, steps=200, rate=0.01)
    label = torch.arange(9000) % 3
    x = label[:, None] + torch.randn(9000, 2)
    excess = flow.nats(Batch(x, label), 1)["negative log-density"].values
    excess = excess - (0.5 * (x - label[:, None]).square().sum(1) + math.log(2 * math.pi))
    error = excess.std().item() / math.sqrt(len(excess))
    assert -4.5 * error <= excess.mean().item() <= 0.02 + 4.5 * error


@every_layer
def test_density_given_a_context_integrates_to_one_and_is_another(layer: str) -> None:
    flow = flow_of(layer, contextual())
    side = torch.linspace(-16, 16, 321, dtype=torch.float64)
    grid, area = torch.cartesian_prod(side, side), float(side[1] - side[0]) ** 2
    densities = []
    for context in ((-3.0, 0.5), (0.1, 1.3), (3.0, 2.0)):
        told = torch.tensor(context, dtype=torch.float64).expand(len(grid), -1)
        densities.append(flow.log_density(grid, told).exp())
        assert float(densities[-1].sum()) * area == pytest.approx(1, abs=2e-3)
    for one, other in pairwise(densities):
        assert float((one - other).abs().sum()) * area > 0.01


def test_unit_of_a_context_is_of_no_consequence() -> None:
    """It is standardised inside: degrees or radians, the same network sees the same numbers."""
    data, unit = contextual(), torch.tensor([57.3, 1e-3])
    context = data.test.context
    assert context is not None
    train, test = (replace(each, context=context * unit) for each in (data.train, data.test))
    ours = flow_of("coupling", data)
    theirs = flow_of("coupling", replace(data, train=train, validation=test, test=test))
    x = data.test.x.double()
    found = theirs.log_density(x, context.double() * unit.double())
    torch.testing.assert_close(found, ours.log_density(x, context.double()), rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", ["flow", "continuous-flow"])
def test_learned_density_given_the_context_ends_at_its_entropy(family: str) -> None:
    """Of all contexts together it would be more: their means and scales are apart."""
    torch.manual_seed(0)
    data = contextual(rows=6000)
    model: Flow | ContinuousFlow
    if family == "flow":
        config = FlowConfig(transform="affine", layers=2, width=16, depth=1, conditional=True)
        model = Flow(config, data)
    else:
        matching = ContinuousFlowConfig(width=32, depth=1, solver="rk4", steps=8, conditional=True)
        model = ContinuousFlow(matching, data)
    learn(model, data, steps=300 if family == "flow" else 1000, rate=0.01)
    context = torch.stack((torch.linspace(-3, 3, 9000), torch.linspace(2, 0.5, 9000)), dim=1)
    where, scale = context[:, :1], context[:, 1:]
    noise = torch.randn(9000, 2)
    found = model.nats(Batch(where + scale * noise, context=context), 1)
    exact = 0.5 * noise.square().sum(1) + math.log(2 * math.pi) + 2 * scale[:, 0].log()
    excess = found["negative log-density"].values - exact
    error = excess.std().item() / math.sqrt(len(excess))
    assert -4.5 * error <= excess.mean().item() <= 0.03 + 4.5 * error


def test_pairing_by_optimal_transport_of_a_context_is_refused() -> None:
    config = ContinuousFlowConfig(pairing="optimal-transport", conditional=True)
    with pytest.raises(ValueError, match=r"model\.pairing: optimal-transport pairs within a label"):
        ContinuousFlow(config, contextual())


def test_data_without_labels_is_refused() -> None:
    data = replace(vectors(mean=torch.zeros(2).numpy(), std=torch.ones(2).numpy()), labels=None)
    with pytest.raises(ValueError, match=r"model\.conditional: this data has no labels"):
        Flow(FlowConfig(conditional=True), data)
