"""Lists of layers, and images at several scales, against what must be exactly true of them."""

import copy
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from pydantic import ValidationError
from torch import Tensor

from tests.training.cases import COMPOSED, FLOW, GLOW, features, images, of, shaken
from training.checkpoint import Run
from training.coupling import Bijection
from training.data import Batch
from training.export import to_onnx
from training.flow import Flow
from training.flow_config import FlowConfig
from training.linear import LEAST_DEVIATION, ActNorm, LinearMix
from training.loop import TrainConfig, fit
from training.trace import Trace

SHAPES = [(3,), (4, 2, 3)]
LAYERS: dict[str, Callable[[tuple[int, ...]], ActNorm | LinearMix]] = {
    "actnorm": lambda shape: ActNorm(shape[0], axes=len(shape) - 1),
    "mix": lambda shape: LinearMix(shape[0]),
}
every_layer = pytest.mark.parametrize("kind", LAYERS)
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=["vector", "image"])
NOISE_AND_BACK = ["decode", "log_density"]


def layer_of(kind: str, shape: tuple[int, ...]) -> ActNorm | LinearMix:
    """Return a layer with random weights, in evaluation mode and float64."""
    torch.manual_seed(0)
    return shaken(LAYERS[kind](shape)).eval().requires_grad_(False).double()


def flow_of(config: FlowConfig, shape: tuple[int, ...] = (1, 8, 8)) -> Flow:
    """Return a flow of images that is not the identity."""
    torch.manual_seed(0)
    flow = Flow(config, images(shape=shape))
    return shaken(flow, 0.1).eval().requires_grad_(False).double()


def jacobian_of(layer: Bijection, x: Tensor) -> Tensor:
    """Return the matrix dz/dx of one event, by autograd."""
    size = x.numel()
    derivative: Tensor = torch.func.jacrev(lambda one: layer(one[None])[0][0])(x)
    return derivative.reshape(size, size)


@every_layer
@every_shape
def test_layer_is_undone_and_its_log_det_that_of_the_jacobian(
    kind: str, shape: tuple[int, ...]
) -> None:
    layer, x = layer_of(kind, shape), torch.randn(5, *shape, dtype=torch.float64)
    z, log_abs_det = layer(x)
    assert (z - x).abs().max() > 0.1
    assert (layer.inverse(z) - x).abs().max() <= 1e-12
    for row in range(5):
        expected = torch.linalg.slogdet(jacobian_of(layer, x[row]))[1]
        assert float(log_abs_det[row]) == pytest.approx(float(expected), abs=1e-10)


@every_layer
@every_shape
def test_folded_layer_does_the_same_and_unfolds_to_the_same_weights(
    kind: str, shape: tuple[int, ...]
) -> None:
    layer, x = layer_of(kind, shape).float(), torch.randn(5, *shape, dtype=torch.float64)
    folded = layer.folded()
    assert all(buffer.dtype == torch.float64 for buffer in folded.buffers())
    for found, expected in zip(folded(x), copy.deepcopy(layer).double()(x), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(folded.inverse(folded(x)[0]), x, rtol=0, atol=1e-12)
    before = copy.deepcopy(layer.state_dict())
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(1.0)
    layer.unfold(folded)
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(parameter, before[name], rtol=1e-6, atol=1e-7)


def test_mix_begins_as_a_rotation_and_stays_invertible() -> None:
    torch.manual_seed(0)
    mix = LinearMix(12).double()
    ones = torch.eye(12, dtype=torch.float64)
    matrix = mix.matrix(torch.float64)
    torch.testing.assert_close(matrix @ matrix.T, ones, rtol=0, atol=1e-5)
    other = shaken(LinearMix(12), 1.0).double()
    product = other.matrix(torch.float64) @ other.inverse_matrix(torch.float64)
    torch.testing.assert_close(product, ones, rtol=0, atol=1e-9)


def test_mix_of_a_training_in_bfloat16_is_computed_in_float32() -> None:
    mix, x = LinearMix(4), torch.randn(9, 4, 2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(mix(x)[0], mix(x)[0].float())
        torch.testing.assert_close(mix(x)[0], mix.double()(x.double())[0].float())


@every_shape
def test_actnorm_begins_with_mean_0_and_variance_1_and_then_looks_at_no_batch(
    shape: tuple[int, ...],
) -> None:
    torch.manual_seed(0)
    layer, first = ActNorm(shape[0], axes=len(shape) - 1).train(), 5 + 3 * torch.randn(64, *shape)
    z, log_abs_det = layer(first)
    values = z.detach().transpose(0, 1).flatten(1)
    torch.testing.assert_close(values.mean(1), torch.zeros(shape[0]), rtol=0, atol=1e-5)
    torch.testing.assert_close(values.std(1, correction=0), torch.ones(shape[0]))
    again = layer(2 * first)[0]
    torch.testing.assert_close(again, layer.eval()(2 * first)[0])
    assert again.mean().abs() > 1
    assert torch.equal(log_abs_det, layer(first)[1])


def test_actnorm_of_a_constant_channel_is_finite() -> None:
    layer = ActNorm(2).train()
    z, _ = layer(torch.ones(4, 2))
    torch.testing.assert_close(z, torch.zeros(4, 2), rtol=0, atol=1e-3)
    assert layer.log_scale.exp().max() <= 1.001 / LEAST_DEVIATION


def test_actnorm_in_evaluation_mode_waits_for_training() -> None:
    layer = ActNorm(2).eval()
    x = 5 + torch.randn(8, 2)
    assert torch.equal(layer(x)[0], x)
    assert not layer.is_ready


@pytest.mark.parametrize("transform", ["spline", "affine", "additive"])
@pytest.mark.parametrize("scales", [1, 2, 3])
def test_images_at_several_scales_are_decoded_as_they_were(transform: str, scales: int) -> None:
    config = GLOW.model_copy(update={"transform": transform, "scales": scales})
    flow = flow_of(config, (3, 8, 8))
    x = images(shape=(3, 8, 8)).train.x[:9].double()
    z, _ = flow.encode(x, torch.full_like(x, 0.5))
    assert z.shape == x.shape
    assert (flow.decode(z) - x).abs().max() <= 1e-9


@pytest.mark.parametrize("transform", ["spline", "affine", "additive"])
def test_log_det_of_images_at_several_scales_is_that_of_the_jacobian(transform: str) -> None:
    flow = flow_of(GLOW.model_copy(update={"transform": transform, "scales": 2}), (1, 4, 8))
    x, noise = images(2, shape=(1, 4, 8)).train.x.double(), torch.rand(2, 1, 4, 8).double()

    def code(row: Tensor, below: Tensor) -> Tensor:
        return flow.encode(row[None], below[None])[0].flatten()

    jacobian = torch.func.vmap(torch.func.jacrev(code, argnums=1))(x, noise).reshape(2, 32, 32)
    assert (torch.linalg.slogdet(jacobian)[1] - flow.encode(x, noise)[1]).abs().max() <= 1e-8


def test_half_is_left_at_each_scale_and_comes_back_to_its_place() -> None:
    """What the coarsest layers move is a quarter of an image of two scales, one in each block."""
    flow = flow_of(GLOW)
    last = [part for part in flow.network.modules() if isinstance(part, ActNorm)][-1]
    z = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    before = flow.encode(z, z + 0.5)[0]
    last.shift.add_(1.0)
    changed = (flow.encode(z, z + 0.5)[0] - before).abs() > 1e-12
    assert changed.sum() == 32
    assert changed.reshape(4, 2, 4, 2).sum((1, 3)).eq(2).all()


def test_untrained_glow_is_a_rotation_whose_density_is_that_of_the_identity() -> None:
    data = images(8, levels=256)
    glow, plain = (Flow(config, data).eval().double() for config in (GLOW, FLOW))
    x, noise = data.train.x.double(), torch.rand(8, 1, 8, 8).double()
    with torch.no_grad():
        assert (glow.encode(x, noise)[0] - plain.encode(x, noise)[0]).abs().max() > 0.1
        found, expected = glow.log_density(x, noise), plain.log_density(x, noise)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("config", [COMPOSED, GLOW], ids=["all kinds", "glow"])
def test_density_in_two_dimensions_integrates_to_one(config: FlowConfig) -> None:
    torch.manual_seed(0)
    flow = shaken(Flow(config, of(2 + 3 * torch.randn(64, 2))), 0.2)
    flow.eval().requires_grad_(False).double()
    side = torch.linspace(-38, 42, 801, dtype=torch.float64)
    total = flow.log_density(torch.cartesian_prod(side, side)).exp().sum()
    assert float(total) * float(side[1] - side[0]) ** 2 == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("role", NOISE_AND_BACK)
def test_exported_graph_has_one_constant_matrix_for_each_mix_and_solves_nothing(role: str) -> None:
    flow = flow_of(GLOW).float()
    graph = flow.graphs()[role]  # type: ignore[index]
    inputs, outputs = flow.interface.signature(role)  # type: ignore[arg-type]
    if role == "log_density":
        outputs = (*flow.interface.signature("encode")[1], *outputs)
    nodes = onnx.load_from_string(to_onnx(graph, inputs, outputs)).graph
    assert not any(
        word in node.op_type.lower() for node in nodes.node for word in ("inv", "solve", "det")
    )
    assert {"Scan", "Loop", "Trilu", "Gemm"}.isdisjoint(node.op_type for node in nodes.node)
    constants = {each.name: numpy_helper.to_array(each) for each in nodes.initializer}
    used = [
        constants[node.input[0]]
        for node in nodes.node
        if node.op_type == "MatMul" and node.input[0] in constants
    ]
    mixes = [part for part in flow.modules() if isinstance(part, LinearMix)]
    if role == "decode":
        mixes.reverse()
    assert len(used) == len(mixes) == 4
    for mix, found in zip(mixes, used, strict=True):
        exact = mix.double().inverse_matrix if role == "decode" else mix.double().matrix
        np.testing.assert_allclose(found, exact(torch.float64).numpy(), rtol=0, atol=1e-13)


class Stopping(Flow):
    """A flow whose training is killed at a step."""

    stop_at = -1
    calls = 0

    def _loss(self, batch: Batch) -> Mapping[str, Tensor]:
        self.calls += 1
        if self.calls == self.stop_at:
            raise KeyboardInterrupt
        return super()._loss(batch)


DATA = images(rows=48)
STILL = TrainConfig(epochs=2, batch_size=16, learning_rate=1e-12, ema=0.9, device="cpu")


def trained(folder: Path, config: TrainConfig, *, stop_at: int = -1) -> Flow:
    """Return a flow after training, or after a kill and more training."""
    torch.manual_seed(0)
    flow, again = Stopping(GLOW, DATA), Stopping(GLOW, DATA)
    again.load_state_dict(flow.state_dict())
    flow.stop_at = stop_at
    if stop_at >= 0:
        with pytest.raises(KeyboardInterrupt):
            fit(flow, DATA, config, folder=folder, key="k")
        torch.manual_seed(1234)  # a new process starts with other generators
    fit(again, DATA, config, folder=folder, key="k")
    return again


def norms(flow: Flow) -> list[ActNorm]:
    """Return all layers that begin with the moments of the first batch."""
    return [part for part in flow.modules() if isinstance(part, ActNorm)]


def test_average_has_what_the_first_batch_gave(tmp_path: Path) -> None:
    """Steps that move nothing leave the average where it began: with the batch, not before it."""
    flow = trained(tmp_path, STILL)
    torch.manual_seed(0)
    first = Flow(GLOW, DATA).train()
    rows = torch.randperm(48, generator=torch.Generator().manual_seed(2**31))[:16]
    torch.manual_seed(0)
    first.prepare(DATA.train[rows])
    assert norms(first)[0].log_scale.abs().max() > 0.1
    for found, expected in zip(norms(flow), norms(first), strict=True):
        assert found.is_ready
        torch.testing.assert_close(found.log_scale, expected.log_scale, rtol=0, atol=1e-6)
        torch.testing.assert_close(found.shift, expected.shift, rtol=0, atol=1e-6)


# Calls of the loss: one before the first step, three steps, the validation; then three steps.
@pytest.mark.parametrize("stop_at", [3, 7])
def test_killed_training_begins_no_second_time(tmp_path: Path, stop_at: int) -> None:
    config = STILL.model_copy(update={"learning_rate": 0.01})
    straight = trained(tmp_path / "straight", config)
    resumed = trained(tmp_path / "killed", config, stop_at=stop_at)
    for name, value in straight.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_checkpoint_holds_that_the_layers_have_begun(tmp_path: Path) -> None:
    flow = Flow(GLOW, DATA).train()
    flow.prepare(DATA.train[:16])
    Run(flow, flow, {}, tmp_path / "checkpoint.pt", "k", Trace(1)).save()
    fresh = Flow(GLOW, DATA).train()
    assert Run(fresh, fresh, {}, tmp_path / "checkpoint.pt", "k", Trace(1)).resume()
    before = [layer.log_scale.clone() for layer in norms(fresh)]
    fresh.prepare(DATA.train[16:32])
    assert all(torch.equal(a, b.log_scale) for a, b in zip(before, norms(fresh), strict=True))


def test_flow_without_such_layers_draws_nothing_before_its_first_step() -> None:
    flow = Flow(FLOW, DATA).train()
    state = torch.get_rng_state()
    flow.prepare(DATA.train[:16])
    assert torch.equal(torch.get_rng_state(), state)


def test_glow_learns_a_pattern_of_few_bits() -> None:
    torch.manual_seed(0)
    pattern = (torch.rand(2, 1, 8, 8) > 0.5).float()
    x = pattern[torch.randint(2, (256,))]
    flow = Flow(GLOW, of(x, DATA.event)).train()
    (turn,) = flow.turns()
    adam = torch.optim.Adam(turn.parameters, lr=1e-2)
    for _ in range(60):
        loss = turn.loss(Batch(x[torch.randint(256, (64,))]))
        adam.zero_grad()
        loss["loss"].backward()
        torch.nn.utils.clip_grad_norm_(turn.parameters, 100.0)
        adam.step()
    assert float(flow.eval().turns()[0].loss(Batch(x))["bits_per_dim"]) < 2.5 < math.log2(17)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"layer": []}, "layer: none has a network"),
        ({"layer": ["actnorm", "rotate"]}, "'actnorm', 'mix' or 'reverse'"),
        ({"layer": ["actnorm", "mix"]}, "layer: none has a network; a list needs one of coupling"),
        ({"layer": ["coupling"], "layers": 1}, "layers: expected 2 or more that have a network"),
        ({"layers": 1}, "layers: expected 2 or more that have a network; got 1"),
        ({"layer": [{"kind": "mix", "transform": "affine"}]}, "transform: mix has none"),
        ({"layer": [{"kind": "coupling", "transform": "afine"}]}, "'affine' or 'additive'"),
        ({"layer": "coupling", "scales": 2}, "scales: is of a list of layers; leave it out"),
        ({"layer": ["coupling"], "fine_width": 2}, 'fine_width: is of layer = "coupling"'),
        (
            {"layer": [{"kind": "coupling", "transform": "affine"}], "bins": 4},
            'bins: is of transform = "spline"; leave it out',
        ),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError) as caught:
        FlowConfig.model_validate(options)
    assert sentence in str(caught.value)


def test_transform_of_a_layer_comes_before_that_of_the_model() -> None:
    config = FlowConfig.model_validate(
        {"layer": ["coupling", {"kind": "coupling", "transform": "spline"}], "transform": "affine"}
    )
    names = [type(step.transform).__name__ for step in config.steps]
    assert names == ["Affine", "Spline"] * 8


def test_layers_and_sides_that_an_image_cannot_have_are_refused() -> None:
    triangular = GLOW.model_copy(update={"layer": ("autoregressive", "coupling")})
    with pytest.raises(ValueError, match=r"model\.layer: autoregressive sees an image as one row"):
        Flow(triangular, images())
    with pytest.raises(ValueError, match=r"model\.scales: 3 scales need .* of 8; got 12 x 8"):
        Flow(GLOW.model_copy(update={"scales": 3}), images(4, shape=(1, 12, 8)))
    with pytest.raises(ValueError, match=r"model\.scales: is of images"):
        Flow(GLOW.model_copy(update={"scales": 1}), features())
