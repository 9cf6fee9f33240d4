"""The flow against what must be exactly true of it; small models, float64 where it is maths."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from service.interface import Event
from tests.training.cases import (
    FLOW,
    FLOW_OF_IMAGES,
    features,
    images,
    integrand,
    mixed,
    of,
    shaken,
)
from training.data import Batch, Data
from training.dequantise import Dequantise
from training.flow import Flow
from training.flow_config import FlowConfig
from training.linear import Whiten

IMAGE = Event(kind="image", shape=(1, 8, 8), minimum=0.0, maximum=1.0, levels=17)


def _images(n: int) -> Tensor:
    return torch.randint(0, 17, (n, 1, 8, 8)) / 16


def _ready(flow: Flow, dtype: torch.dtype) -> Flow:
    return flow.eval().requires_grad_(False).to(dtype)


def _vector_flow(features: int = 3, dtype: torch.dtype = torch.float64) -> Flow:
    torch.manual_seed(0)
    x = 2 + 3 * torch.randn(64, features)
    return _ready(shaken(Flow(FLOW, of(x)), scale=0.7), dtype)


def _image_flow(dtype: torch.dtype = torch.float64) -> Flow:
    torch.manual_seed(0)
    return _ready(shaken(Flow(FLOW_OF_IMAGES, of(_images(16), IMAGE))), dtype)


def _train(flow: Flow, x: Tensor, *, steps: int, rows: int, rate: float = 3e-3) -> None:
    """Minimise the loss on random rows of x with Adam and a cosine schedule."""
    (turn,) = flow.turns()
    adam = torch.optim.Adam(turn.parameters, lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    for _ in range(steps):
        loss = turn.loss(Batch(x[torch.randint(len(x), (rows,))]))["loss"]
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(turn.parameters, 10.0)
        adam.step()
        schedule.step()
    flow.eval().requires_grad_(False)


def _gap(flow: Flow, x: Tensor, floor: Tensor) -> tuple[float, float]:
    """Return mean and standard error of -log p(x) minus each row's true -log density."""
    gap = -flow.log_density(x) - floor
    return gap.mean().item(), gap.std().item() / math.sqrt(len(gap))


@pytest.mark.parametrize("features", [2, 3, 16])
def test_vector_decode_undoes_encode_far_out_too(features: int) -> None:
    flow = _vector_flow(features)
    for spread in (0.0, 1.0, 100.0):
        x = 2 + spread * torch.randn(64, features, dtype=torch.float64)
        z, _ = flow.encode(x)
        assert (flow.decode(z) - x).abs().max() <= 1e-9 * max(1.0, spread)


def test_image_decode_undoes_encode_between_grey_levels() -> None:
    flow = _image_flow()
    x = _images(32).double()
    z, _ = flow.encode(x, torch.full_like(x, 0.25))
    # Noise of a quarter lies a quarter of a level below the middle of the bin.
    assert (flow.decode(z) - (x - 0.25 / 16).clamp(0, 1)).abs().max() <= 1e-9
    assert z.shape == (32, *flow.interface.latent.shape)


def test_vector_log_det_is_that_of_the_jacobian() -> None:
    flow = _vector_flow(5)
    x = 2 + 3 * torch.randn(8, 5, dtype=torch.float64)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda row: flow.encode(row[None])[0][0]))(x)
    assert (torch.linalg.slogdet(jacobian)[1] - flow.encode(x)[1]).abs().max() <= 1e-8


def test_image_log_det_is_that_of_the_jacobian() -> None:
    flow = _image_flow()
    x, noise = _images(2).double(), torch.rand(2, 1, 8, 8, dtype=torch.float64)

    def code(row: Tensor, below: Tensor) -> Tensor:
        return flow.encode(row[None], below[None])[0].flatten()

    # y = (k + noise) / L: the Jacobian over the noise is that over y, times L^-D, which is
    # how log_abs_det is defined.
    jacobian = torch.func.vmap(torch.func.jacrev(code, argnums=1))(x, noise).reshape(2, 64, 64)
    assert (torch.linalg.slogdet(jacobian)[1] - flow.encode(x, noise)[1]).abs().max() <= 1e-8


def test_log_density_is_that_of_the_code_plus_the_log_det() -> None:
    flow, x = _vector_flow(), 2 + 3 * torch.randn(16, 3, dtype=torch.float64)
    z, log_abs_det = flow.encode(x)
    normal = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1)
    assert (flow.log_density(x) - normal - log_abs_det).abs().max() <= 1e-12


def test_density_in_two_dimensions_integrates_to_one() -> None:
    flow = _vector_flow(2)
    # Data around 2 with deviation 3: the box of the splines ends 15 away.
    side = torch.linspace(-28, 32, 1201, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)
    total = flow.log_density(grid).exp().sum()
    assert abs(float(total) * float(side[1] - side[0]) ** 2 - 1) <= 1e-3


def test_identity_on_uniform_8_bit_data_is_8_bits_per_dim() -> None:
    """A density of 1 over (0, 1) in y is the logistic's in the logit (alpha nearly 0)."""
    dequantise = Dequantise(levels=256, alpha=1e-12, bound=1.0)
    x = (torch.arange(256, dtype=torch.float64) / 255).reshape(1, 1, 16, 16)
    w, log_abs_det = dequantise(x, torch.full_like(x, 0.5))
    logit = w / dequantise.stretch
    logistic = -logit - 2 * torch.nn.functional.softplus(-logit) - math.log(dequantise.stretch)
    nats = -(logistic.sum() + log_abs_det)
    assert float(nats) / (256 * math.log(2)) == pytest.approx(8.0, abs=1e-9)


@pytest.mark.parametrize("level", [0, 1, 8, 16])
def test_mean_over_noise_is_the_probability_of_the_image(level: int) -> None:
    """An untrained flow is the identity, so P(level) is a difference of normal CDFs."""
    flow = Flow(FLOW_OF_IMAGES, of(_images(2), IMAGE)).double()
    noise = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    noise = noise.reshape(-1, 1, 1, 1).expand(-1, 1, 8, 8)
    with torch.no_grad():
        log_density = flow.log_density(torch.full_like(noise, level / 16), noise)
    alpha, edges = 0.05, torch.tensor([level, level + 1], dtype=torch.float64) / 17
    logit = torch.logit(alpha + (1 - 2 * alpha) * edges)
    ends = torch.special.ndtr(5 / math.log((1 - alpha) / alpha) * logit)
    # All 64 pixels have the same noise, so a 64th of the log-density is that of one of them.
    assert float((log_density / 64).exp().mean()) == pytest.approx(float(ends[1] - ends[0]), 1e-5)


def test_grey_levels_are_rounded_before_anything_else() -> None:
    flow, x = _image_flow(), _images(4).double()
    noise = torch.rand_like(x)
    off = (x + 0.4 / 16 * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
    assert torch.equal(flow.log_density(off, noise), flow.log_density(x, noise))


def test_loss_is_finite_for_black_white_and_absurd_events() -> None:
    image, vector = _image_flow(torch.float32), _vector_flow(dtype=torch.float32)
    for value in (0.0, 1.0):
        nats = image.nats(Batch(torch.full((2, 1, 8, 8), value)), 1)["negative log-density"]
        assert torch.isfinite(nats.values).all()
    assert torch.isfinite(vector.log_density(torch.full((2, 3), 1e6))).all()
    assert torch.isfinite(image.decode(torch.full((1, 1, 8, 8), 100.0))).all()


@pytest.mark.parametrize("shape", [(1, 6, 8), (1, 8, 10)])
def test_image_sides_that_cannot_be_halved_twice_are_refused(shape: tuple[int, int, int]) -> None:
    event = Event(kind="image", shape=shape, minimum=0.0, maximum=1.0, levels=256)
    with pytest.raises(ValueError, match="multiples of 4"):
        Flow(FLOW_OF_IMAGES, of(torch.zeros(2, *shape), event))


def test_one_feature_is_refused() -> None:
    with pytest.raises(ValueError, match="two features"):
        Flow(FLOW, of(torch.randn(8, 1)))


def test_gaussian_target_reaches_its_entropy_and_not_less() -> None:
    torch.manual_seed(0)
    covariance = torch.tensor([[2.0, 1.2], [1.2, 1.0]], dtype=torch.float64)
    target = torch.distributions.MultivariateNormal(
        torch.tensor([1.0, -2.0], dtype=torch.float64), covariance
    )
    x = target.sample((4096,))
    flow = Flow(FlowConfig(layers=4, width=32, depth=1, bins=6), of(x.float())).double()
    _train(flow, x, steps=250, rows=512, rate=5e-3)
    test = target.sample((20_000,))
    gap, error = _gap(flow, test, -target.log_prob(test))
    assert -4.5 * error <= gap <= 0.01 + 4.5 * error


def _eight_gaussians(n: int) -> Tensor:
    """Return rows of the ring of eight: centres 4 from the origin, all divided by sqrt 2."""
    angle = torch.randint(8, (n,)) * math.pi / 4
    centre = 4 * torch.stack((angle.cos(), angle.sin()), dim=1)
    return (centre + 0.5 * torch.randn(n, 2)) / math.sqrt(2)


def _checkerboard(n: int) -> Tensor:
    """Return uniform rows on the black squares of a 4 x 4 board of side 8: density 1 / 32."""
    column, half = torch.randint(4, (n,)), torch.randint(2, (n,))
    corner = torch.stack((column, 2 * half + column % 2), dim=1)
    return 2 * (corner + torch.rand(n, 2)) - 4


@pytest.mark.parametrize(
    ("draw", "entropy"), [(_eight_gaussians, 2.83158), (_checkerboard, math.log(32))]
)
def test_toy_density_falls_towards_its_floor(draw, entropy: float) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    torch.manual_seed(0)
    x = draw(20_000)
    flow = Flow(FlowConfig(layers=4, width=32, depth=1), of(x))
    _train(flow, x, steps=250, rows=256, rate=5e-3)
    test = draw(20_000)
    nats = -flow.log_density(test)
    error = nats.std().item() / math.sqrt(len(nats))
    assert -4.5 * error <= nats.mean().item() - entropy <= 0.4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("draw", "entropy"), [(_eight_gaussians, 2.83158), (_checkerboard, math.log(32))]
)
def test_toy_density_reaches_its_floor(draw, entropy: float) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    torch.manual_seed(0)
    x = draw(200_000)
    flow = Flow(FlowConfig(layers=8, width=64, depth=2, bins=16), of(x))
    _train(flow, x, steps=3000, rows=512, rate=3e-3)
    test = draw(50_000)
    nats = -flow.log_density(test)
    error = nats.std().item() / math.sqrt(len(nats))
    assert -4.5 * error <= nats.mean().item() - entropy <= 0.05


def test_image_flow_learns_a_pattern() -> None:
    """Images that are noise around one of two patterns cost few bits after a short training."""
    torch.manual_seed(0)
    pattern = (torch.rand(2, 1, 8, 8) > 0.5).float()
    x = pattern[torch.randint(2, (512,))]
    flow = Flow(FLOW_OF_IMAGES, of(x, IMAGE))
    losses = []
    (turn,) = flow.turns()
    for _ in range(4):
        flow.requires_grad_(True).train()
        _train(flow, x, steps=15, rows=64, rate=1e-2)
        losses.append(float(turn.loss(Batch(x))["bits_per_dim"]))
    assert all(after < before for before, after in pairwise(losses))
    assert losses[-1] < 2.0 < math.log2(17)


def test_whitened_flow_begins_as_the_gaussian_of_its_rows() -> None:
    """Of many rows, whose covariance is hardly shrunk, in units and scales of their own."""
    generator = np.random.default_rng(0)
    factor = np.array([[1e3, 0, 0], [900.0, 4.0, 0], [-0.02, 0.005, 0.01]])
    x = torch.from_numpy(generator.normal(size=(5000, 3)) @ factor.T + [1e4, -3.0, 0.5]).float()
    flow = Flow(FlowConfig(whiten=True, layers=2, width=8), of(x)).eval()
    rows = x.double()
    gaussian = torch.distributions.MultivariateNormal(rows.mean(0), torch.cov(rows.T, correction=0))
    found = flow.log_density(rows[:500])
    torch.testing.assert_close(found, gaussian.log_prob(rows[:500]), rtol=0, atol=0.05)
    z, _ = flow.encode(rows)
    torch.testing.assert_close(torch.cov(z.T), torch.eye(3, dtype=z.dtype), rtol=0, atol=0.01)
    torch.testing.assert_close(flow.decode(z[:500]), rows[:500], rtol=1e-9, atol=1e-9)


def test_whitened_flow_begins_with_the_noise_that_its_rows_are_seen_with() -> None:
    """Of columns that nearly tell each other it is a hundred times what else varies."""
    torch.manual_seed(0)
    generator = np.random.default_rng(0)
    first = generator.normal(size=(2000, 1))
    x = torch.from_numpy(first + [0.0, 1.0] * generator.normal(scale=2e-3, size=(2000, 2))).float()
    flow = Flow(FlowConfig(whiten=True, noise=0.2, layers=2, width=8), of(x)).eval()
    noisy = x.double() + 0.2 * x.double().std(0) * torch.randn(2000, 2).double()
    z, _ = flow.encode(noisy)
    torch.testing.assert_close(torch.cov(z.T), torch.eye(2, dtype=z.dtype), rtol=0, atol=0.1)


def test_few_rows_are_not_believed_their_covariance() -> None:
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(12, 10))).float()
    z = Whiten(x)(x.double())[0]
    # By their own covariance 12 rows of 10 numbers would all have nearly the same length.
    assert z.square().sum(1).var() > 3


@pytest.mark.parametrize(
    ("x", "says"),
    [
        (torch.randn(4, 2), "got 4, of which 0 columns do not"),
        (torch.tensor([[1.0, 2.0]] * 9), "got 9, of which 2 columns do not"),
    ],
)
def test_rows_that_have_no_covariance_are_refused(x: Tensor, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Whiten(x)


def test_whitening_is_exact_where_training_is_in_bfloat16() -> None:
    torch.manual_seed(0)
    a, b, c = torch.randn(3, 400)
    x = torch.stack((a, a + 1e-3 * b, c), dim=1)
    whiten = Whiten(x)
    z = whiten(x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(whiten(x)[0], z)
        torch.testing.assert_close(whiten.inverse(z), x, rtol=0, atol=1e-4)


@pytest.mark.parametrize("option", [{"whiten": True}, {"noise": 0.1}], ids=str)
@pytest.mark.parametrize("data", [images(), mixed(), integrand()], ids=["image", "mixed", "box"])
def test_what_is_of_numbers_is_refused_of_other_events(
    data: Data, option: dict[str, object]
) -> None:
    with pytest.raises(ValueError, match=rf"model\.{next(iter(option))}: is of rows of numbers"):
        Flow(FlowConfig.model_validate(option), data)


@pytest.mark.parametrize(
    ("option", "of_what"),
    [
        ({"alpha": 0.1}, "images and categories"),
        ({"fine_width": 8}, "images"),
        ({"fine_depth": 1}, "images"),
        ({"bound": 3.0, "transform": "affine"}, 'transform = "spline"'),
    ],
    ids=str,
)
def test_option_that_rows_of_numbers_have_no_use_for_is_refused(
    option: dict[str, object], of_what: str
) -> None:
    with pytest.raises(ValueError, match=rf"model\.{next(iter(option))}: is of {of_what}; leave"):
        Flow(FlowConfig.model_validate(option), features())


def test_true_is_no_amount_of_noise() -> None:
    with pytest.raises(ValidationError, match="noise"):
        FlowConfig.model_validate({"noise": True})


def test_noise_in_training_rows_is_in_units_of_their_columns() -> None:
    """An untrained flow is a normal density: noise of h deviations costs it h^2 / 2 a column."""
    torch.manual_seed(0)
    x = torch.randn(200, 3) * torch.tensor([1e3, 1.0, 1e-2]) + torch.tensor([1e4, -3.0, 0.5])
    flow = Flow(FlowConfig(layers=2, width=8, noise=0.5), of(x))
    (turn,) = flow.turns()
    batch, plain = Batch(x), flow.score(Batch(x)).value
    with torch.no_grad():
        losses = torch.stack([turn.loss(batch)["loss"] for _ in range(400)]).double()
    off = losses.mean() - plain - 3 * 0.5**2 / 2
    assert abs(off) <= 4.5 * losses.std() / math.sqrt(400)
    assert losses.std() > 0
    assert flow.score(batch).value == plain
