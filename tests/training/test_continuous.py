"""Continuous flows against what must be exactly true of them, and against known Gaussians."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.linalg import sqrtm
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from tests.training.cases import images, labelled, of, shaken, vectors
from training.continuous import ContinuousFlow
from training.continuous_config import ContinuousFlowConfig
from training.data import Batch
from training.dequantise import Spread
from training.matching import Times, miss, optimal_transport
from training.velocity import PlaneWaves

SMALL = ContinuousFlowConfig(width=16, depth=1, solver="rk4", steps=40)
COVARIANCE = torch.tensor([[2.0, 1.2], [1.2, 1.0]], dtype=torch.float64)
TARGET = torch.distributions.MultivariateNormal(
    torch.tensor([1.0, -2.0], dtype=torch.float64), COVARIANCE
)


def ready(flow: ContinuousFlow) -> ContinuousFlow:
    return flow.eval().requires_grad_(False).double()


def vector_flow(features: int = 2, **changes: Any) -> ContinuousFlow:  # noqa: ANN401
    torch.manual_seed(0)
    data = vectors(mean=np.arange(features) - 1.0, std=np.arange(features) + 0.5)
    return ready(shaken(ContinuousFlow(SMALL.model_copy(update=changes), data), scale=0.7))


def train(flow: ContinuousFlow, x: Tensor, *, steps: int, rows: int) -> None:
    """Minimise the loss on random rows of x with Adam and a cosine schedule."""
    (turn,) = flow.train().turns()
    adam = torch.optim.Adam(turn.parameters, lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    for _ in range(steps):
        loss = turn.loss(Batch(x[torch.randint(len(x), (rows,))]))["loss"]
        adam.zero_grad()
        loss.backward()
        adam.step()
        schedule.step()


@pytest.fixture(scope="module")
def matched() -> ContinuousFlow:
    """A flow that learned a Gaussian by flow matching."""
    torch.manual_seed(0)
    x = TARGET.sample((20_000,)).float()
    flow = ContinuousFlow(ContinuousFlowConfig(width=32, depth=2, solver="rk4", steps=10), of(x))
    train(flow, x, steps=700, rows=512)
    return ready(flow)


def test_decode_undoes_encode() -> None:
    flow = vector_flow(3)
    x = 2 * torch.randn(64, 3, dtype=torch.float64)
    z, _ = flow.encode(x)
    assert (z - flow.enter(x)[0]).abs().max() > 0.1
    assert (flow.decode(z) - x).abs().max() <= 1e-5


def test_image_decode_undoes_encode_between_grey_levels() -> None:
    config = SMALL.model_copy(update={"width": 4, "steps": 10})
    flow = ready(shaken(ContinuousFlow(config, images(4))))
    x = torch.randint(0, 17, (1, 1, 8, 8)).double() / 16
    z, _ = flow.encode(x, noise=torch.full_like(x, 0.25))
    # Noise of a quarter lies a quarter of a level below the middle of the bin.
    assert (flow.decode(z) - (x - 0.25 / 16).clamp(0, 1)).abs().max() <= 1e-5


def test_log_density_is_that_of_the_jacobian_of_decode() -> None:
    flow = vector_flow(3)
    x = torch.randn(8, 3, dtype=torch.float64)
    z, log_density = flow.encode(x)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda row: flow.decode(row[None])[0]))(z)
    normal = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1)
    assert (normal - torch.linalg.slogdet(jacobian)[1] - log_density).abs().max() <= 1e-5


def test_density_in_two_dimensions_integrates_to_one() -> None:
    flow = vector_flow(2, steps=10)
    # Samples are within (-13, 3) and (-21, 7).
    across = torch.linspace(-18, 8, 181, dtype=torch.float64)
    up = torch.linspace(-34, 16, 181, dtype=torch.float64)
    with torch.no_grad():
        total = flow.encode(torch.cartesian_prod(across, up))[1].exp().sum()
    cell = float((across[1] - across[0]) * (up[1] - up[0]))
    assert abs(float(total) * cell - 1) <= 1e-3


def test_untrained_flow_is_the_standardised_normal() -> None:
    data = vectors(mean=np.array([1.0, -50.0, 3.0]), std=np.array([0.25, 8.0, 1.0]))
    flow = ready(ContinuousFlow(SMALL, data))
    x = data.test.x.double()
    mean, std = torch.tensor([1.0, -50.0, 3.0]), torch.tensor([0.25, 8.0, 1.0])
    exact = torch.distributions.Normal(mean.double(), std.double()).log_prob(x).sum(1)
    assert (flow.encode(x)[1] - exact).abs().max() <= 1e-10


def test_identity_on_uniform_8_bit_data_is_8_bits_per_dim() -> None:
    x = (torch.arange(256, dtype=torch.float64) / 255).reshape(1, 1, 16, 16)
    w, log_abs_det = Spread(256)(x, torch.full_like(x, 0.5))
    assert w.abs().max() < 1
    # A density of 1 / 2 over (-1, 1), for each of 256 numbers.
    nats = -(256 * math.log(1 / 2) + log_abs_det)
    assert float(nats) / (256 * math.log(2)) == pytest.approx(8.0, abs=1e-12)


def test_probes_estimate_the_exact_log_density(monkeypatch: pytest.MonkeyPatch) -> None:
    flow = vector_flow(6, steps=10)
    row = torch.randn(1, 6, dtype=torch.float64)
    exact = flow.encode(row)[1]
    monkeypatch.setattr(ContinuousFlow, "is_exact", False)
    probe = torch.randn(4000, 6, dtype=torch.float64)
    found = flow.encode(row.expand(4000, -1), probe=probe)[1]
    standard_error = found.std().item() / math.sqrt(len(found))
    assert 0 < standard_error < 0.1
    assert abs(found.mean().item() - exact.item()) <= 4.5 * standard_error


def test_figure_by_probes_is_a_mean_of_logarithms() -> None:
    flow = ContinuousFlow(SMALL.model_copy(update={"steps": 2}), images(2, shape=(1, 12, 12)))
    shaken(flow.eval().requires_grad_(False))
    batch = Batch(torch.full((2, 1, 12, 12), 0.5))
    torch.manual_seed(0)
    single = [flow.nats(batch, 1)["negative log-density"].values for _ in range(5)]
    torch.manual_seed(0)
    found = flow.nats(batch, 5)["negative log-density"]
    assert torch.allclose(found.values, torch.stack(single).mean(0))
    assert found.note.endswith("noise and probes of the divergence, draws per event: 5")


def test_matched_velocity_is_the_closed_form(matched: ContinuousFlow) -> None:
    """E[w1 - w0 | w_t] of w0 ~ N(0, I) and w1 ~ N(0, C), here the matrix of correlations."""
    torch.manual_seed(1)
    correlation = COVARIANCE / COVARIANCE.diag().outer(COVARIANCE.diag()).sqrt()
    identity, squares = torch.eye(2, dtype=torch.float64), []
    for t in np.linspace(0.05, 0.95, 10):
        spread = (1 - t) ** 2 * identity + t**2 * correlation
        w = torch.randn(4000, 2, dtype=torch.float64) @ torch.linalg.cholesky(spread).T
        exact = w @ torch.linalg.solve(spread, t * correlation - (1 - t) * identity)
        found = matched.velocity(w, w.new_full((4000,), t))
        squares.append((found - exact).square().mean(1).mean().item())
    assert np.mean(squares) <= 1e-2


def test_matched_flow_carries_noise_to_the_gaussian(matched: ContinuousFlow) -> None:
    torch.manual_seed(1)
    x = matched.decode(torch.randn(50_000, 2, dtype=torch.float64)).numpy()
    covariance, root = np.cov(x.T), sqrtm(COVARIANCE.numpy())
    bures = np.trace(covariance + COVARIANCE.numpy() - 2 * sqrtm(root @ covariance @ root).real)
    distance = np.square(x.mean(0) - TARGET.mean.numpy()).sum() + max(0.0, float(bures))
    assert math.sqrt(distance) <= 0.05


def gap(flow: ContinuousFlow) -> tuple[float, float]:
    """Mean and standard error of -log p(x) minus each row's true -log density."""
    torch.manual_seed(2)
    test = TARGET.sample((5000,))
    with torch.no_grad():
        found = TARGET.log_prob(test) - flow.encode(test, steps=10)[1]
    return found.mean().item(), found.std().item() / math.sqrt(len(found))


def test_matched_density_reaches_the_entropy_and_not_less(matched: ContinuousFlow) -> None:
    mean, error = gap(matched)
    assert -4.5 * error <= mean <= 0.02 + 4.5 * error


def test_likelihood_reaches_the_entropy_and_not_less() -> None:
    torch.manual_seed(0)
    x = TARGET.sample((4096,)).float()
    config = ContinuousFlowConfig(
        objective="likelihood", width=16, depth=1, solver="midpoint", likelihood_steps=5, steps=10
    )
    flow = ContinuousFlow(config, of(x))
    train(flow, x, steps=100, rows=256)
    mean, error = gap(ready(flow))
    assert -4.5 * error <= mean <= 0.02 + 4.5 * error


def test_error_of_the_solver_is_the_distance_to_a_fine_one() -> None:
    coarse, finer = (vector_flow(2, solver="midpoint", steps=steps) for steps in (16, 32))
    z = torch.randn(500, 2, dtype=torch.float64)
    squares = [flow.inexactness(z).squares for flow in (coarse, finer)]
    unit = torch.tensor([0.5, 1.5], dtype=torch.float64)
    exact = vector_flow(2, solver="rk4", steps=300).decode(z)
    assert torch.allclose(
        squares[0], ((coarse.decode(z) - exact) / unit).square().mean(1), rtol=1e-4, atol=1e-12
    )
    ratio = float((squares[0].mean() / squares[1].mean()).sqrt())
    assert ratio == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize("classes", [0, 3])
def test_pairing_costs_what_scipy_says_within_each_label(classes: int) -> None:
    torch.manual_seed(0)
    noise, events = torch.randn(2, 60, 4)
    label = torch.randint(classes, (60,)) if classes else None
    chosen = optimal_transport(noise, events, label)
    assert torch.equal(chosen.sort().values, torch.arange(60))
    for group in range(max(1, classes)):
        rows = torch.arange(60) if label is None else (label == group).nonzero().flatten()
        cost = torch.cdist(events[rows], noise[rows]).square().double().numpy()
        best = cost[linear_sum_assignment(cost)].sum()
        found = (events[rows] - noise[chosen[rows]]).square().double().sum().item()
        assert found == pytest.approx(best, rel=1e-6)
        assert set(chosen[rows].tolist()) == set(rows.tolist())


def test_more_rows_than_are_paired_at_once_are_all_paired() -> None:
    noise, events = torch.randn(2, 600, 2)
    assert torch.equal(optimal_transport(noise, events).sort().values, torch.arange(600))


@pytest.mark.parametrize(("times", "late"), [("uniform", 0.25), ("late", 0.5)])
def test_times_are_spread_as_said(times: Times, late: float) -> None:
    """Of the density 1 / (2 sqrt(1 - t)), half is above 3/4."""
    torch.manual_seed(0)
    noise, events = torch.randn(2, 4000, 2)
    seen: list[Tensor] = []

    def still(w: Tensor, t: Tensor) -> Tensor:
        seen.append(t)
        torch.testing.assert_close(w, noise + t[:, None] * (events - noise))
        return torch.zeros_like(w)

    found = miss(still, noise, events, times=times)
    torch.testing.assert_close(found, (events - noise).square().mean())
    assert (seen[0] > 0.75).float().mean().item() == pytest.approx(late, abs=0.001)


def test_waves_are_exact_where_training_is_in_bfloat16() -> None:
    torch.manual_seed(0)
    waves, w = PlaneWaves(2, 16, 3.0), torch.randn(50, 2)
    found = waves(w)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(waves(w), found)


def test_waves_learn_an_edge_that_their_network_without_them_rounds() -> None:
    """Of the uniform density on a square, whose negative log-density nothing can lower."""
    generator = torch.Generator().manual_seed(0)
    data = of(3**0.5 * (2 * torch.rand(4000, 2, generator=generator) - 1))
    found = {}
    for waves in (0, 32):
        torch.manual_seed(0)
        config = ContinuousFlowConfig(waves=waves, times="late", width=32, depth=1)
        flow = ContinuousFlow(config, data)
        train(flow, data.train.x, steps=400, rows=256)
        with torch.no_grad():
            nats = flow.eval().nats(data.test, draws=1)["negative log-density"].values
        found[waves] = nats.mean().item() - math.log(12)
    assert 0 < found[32] < 0.7 * found[0]


def test_optimal_transport_leaves_less_to_learn() -> None:
    data = labelled(rows=200)
    losses = {
        pairing: ContinuousFlow(ContinuousFlowConfig(pairing=pairing), data).score(data.test).value
        for pairing in ("independent", "optimal-transport")
    }
    # An untrained velocity is 0, and the loss the mean squared length of the lines: 2 between
    # independent normal numbers.
    assert losses["independent"] == pytest.approx(2, rel=0.25)
    assert losses["optimal-transport"] < 0.2 * losses["independent"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"objective": "likelihood", "pairing": "independent"}, 'pairing: is of objective = "flow'),
        ({"objective": "likelihood", "times": "late"}, 'times: is of objective = "flow-matching"'),
        ({"frequency": 2.0}, "frequency: is of waves, and there are none"),
        ({"likelihood_steps": 4}, 'likelihood_steps: is of objective = "likelihood"'),
        ({"solver": "dopri5"}, "solver"),
        ({"steps": 1001}, "steps"),
    ],
)
def test_option_that_does_nothing_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        ContinuousFlowConfig(**options)


def test_events_that_cannot_be_learned_are_refused() -> None:
    likelihood = ContinuousFlowConfig(objective="likelihood")
    with pytest.raises(ValueError, match=r"model\.objective: .* got images"):
        ContinuousFlow(likelihood, images(4))
    with pytest.raises(ValueError, match=r"model\.objective: .* got 65 features"):
        ContinuousFlow(likelihood, vectors(mean=np.zeros(65), std=np.ones(65)))
    smooth = of(torch.rand(4, 1, 8, 8), images(4).event.model_copy(update={"levels": None}))
    with pytest.raises(ValueError, match=r"model\.family: .* set data\.levels"):
        ContinuousFlow(ContinuousFlowConfig(), smooth)
    with pytest.raises(ValueError, match=r"model\.conditional: this data has no labels"):
        ContinuousFlow(ContinuousFlowConfig(conditional=True), images(4))
