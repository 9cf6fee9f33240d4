"""Triangular maps and affine couplings against what must be exactly true of them, in float64."""

import math

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from tests.training.cases import of, shaken
from training.elementwise import Affine, Elementwise, Spline
from training.export import to_onnx
from training.flow import Flow
from training.flow_config import FlowConfig
from training.masked import Masked
from training.triangular import Triangular

KINDS = [
    (layer, transform)
    for layer in ("coupling", "autoregressive", "inverse-autoregressive")
    for transform in ("spline", "affine")
]
every_kind = pytest.mark.parametrize(("layer", "transform"), KINDS)


def flow_of(layer: str, transform: str, *, features: int, scale: float = 0.4) -> Flow:
    """Return a flow of three layers that is not the identity."""
    config = FlowConfig.model_validate(
        {"layer": layer, "transform": transform, "layers": 3, "width": 16, "depth": 1}
    )
    torch.manual_seed(0)
    flow = Flow(config, of(2 + 3 * torch.randn(64, features)))
    return shaken(flow, scale).eval().requires_grad_(False).double()


@every_kind
@pytest.mark.parametrize("features", [2, 5, 16])
def test_decode_undoes_encode(layer: str, transform: str, features: int) -> None:
    flow = flow_of(layer, transform, features=features)
    for spread in (0.0, 1.0, 10.0):
        x = 2 + spread * torch.randn(64, features, dtype=torch.float64)
        z, _ = flow.encode(x)
        assert (z - x).abs().max() > 0.1
        assert (flow.decode(z) - x).abs().max() <= 1e-9 * max(1.0, spread)


@every_kind
def test_log_det_is_that_of_the_jacobian(layer: str, transform: str) -> None:
    flow = flow_of(layer, transform, features=5)
    x = 2 + 3 * torch.randn(8, 5, dtype=torch.float64)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda row: flow.encode(row[None])[0][0]))(x)
    assert (torch.linalg.slogdet(jacobian)[1] - flow.encode(x)[1]).abs().max() <= 1e-8


@every_kind
def test_density_in_two_dimensions_integrates_to_one(layer: str, transform: str) -> None:
    flow = flow_of(layer, transform, features=2, scale=0.2)
    side = torch.linspace(-28, 32, 601, dtype=torch.float64)
    total = flow.log_density(torch.cartesian_prod(side, side)).exp().sum()
    assert float(total) * float(side[1] - side[0]) ** 2 == pytest.approx(1, abs=1e-3)


def layer_of(transform: Elementwise, features: int) -> Triangular:
    """Return one map with random weights."""
    torch.manual_seed(0)
    network = Masked(inputs=features, free=transform.free, width=24, depth=2)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return Triangular(transform, network).eval().requires_grad_(False).double()


@pytest.mark.parametrize("transform", [Spline(6, 4.0), Affine()], ids=["spline", "affine"])
def test_jacobian_is_triangular_to_the_last_bit(transform: Elementwise) -> None:
    triangle = layer_of(transform, 7)
    x = torch.randn(4, 7, dtype=torch.float64)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda row: triangle(row[None])[0][0]))(x)
    assert (torch.triu(jacobian, 1) == 0).all()
    below = torch.tril(jacobian, -1)[:, *torch.tril_indices(7, 7, -1)]
    assert (below != 0).float().mean() > 0.9


def test_free_numbers_of_one_feature_are_those_of_all() -> None:
    network = layer_of(Spline(4, 3.0), 6).network
    x = torch.randn(9, 6, dtype=torch.float64)
    for place in range(6):
        alone = network.at(x, torch.tensor(place))
        torch.testing.assert_close(alone[:, 0], network(x)[:, place], rtol=0, atol=1e-12)


@pytest.mark.parametrize("transform", ["spline", "affine"])
def test_exported_samples_take_one_loop_for_each_layer(transform: str) -> None:
    flow = flow_of("autoregressive", transform, features=64).float()
    inputs, outputs = flow.interface.signature("decode")
    file = to_onnx(flow.graphs()["decode"], inputs, outputs)
    graph = onnx.load_from_string(file).graph
    bodies = [a.g for node in graph.node for a in node.attribute if a.name == "body"]
    assert sum(node.op_type == "Loop" for node in graph.node) == 3
    nodes = len(graph.node) + sum(len(body.node) for body in bodies)
    assert nodes < (200 if transform == "affine" else 450)
    session = onnxruntime.InferenceSession(file)
    for rows in (1, 7, 64):
        z = np.random.default_rng(rows).normal(size=(rows, 64)).astype(np.float32)
        (found,) = session.run(None, {"z": z})
        expected = flow.double().decode(torch.from_numpy(z).double()).numpy()
        flow.float()
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_affine_maps_learn_a_gaussian_and_no_more() -> None:
    """Oracle 5: the cross-entropy ends at the target's entropy, and never below."""
    torch.manual_seed(0)
    factor = torch.tensor([[1.0, 0.0, 0.0], [0.8, 0.5, 0.0], [-0.5, 0.3, 0.7]])
    target = torch.distributions.MultivariateNormal(
        torch.tensor([1.0, -2.0, 0.5]), scale_tril=factor
    )
    x = target.sample((4000,))
    config = FlowConfig(layer="autoregressive", transform="affine", layers=2, width=8, depth=1)
    flow = Flow(config, of(x)).train()
    optimiser = torch.optim.Adam(flow.parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 300)
    for _ in range(300):
        optimiser.zero_grad()
        (-flow.log_density(target.sample((512,)))).mean().backward()
        optimiser.step()
        schedule.step()
    flow.eval()
    held_out = target.sample((20_000,))
    with torch.no_grad():
        excess = target.log_prob(held_out) - flow.log_density(held_out)
    error = excess.std().item() / math.sqrt(len(excess))
    assert -4.5 * error <= excess.mean().item() <= 0.01 + 4.5 * error


@pytest.mark.parametrize("option", ["fine_width", "fine_depth"])
def test_options_of_other_maps_are_refused(option: str) -> None:
    with pytest.raises(ValueError, match=f'{option}: is of layer = "coupling"'):
        FlowConfig.model_validate({"layer": "autoregressive", option: 2})
    with pytest.raises(ValueError, match='bins: is of transform = "spline"'):
        FlowConfig(transform="affine", bins=4)
