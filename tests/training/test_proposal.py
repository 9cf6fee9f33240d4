"""Neural importance sampling against what is known: integrals, gradients by quadrature, bounds."""

import math
import re
from functools import cache, partial
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from scipy import special
from torch import Tensor

from service import bundle
from service.manifest import Figure
from tests.process import Process
from tests.training.bundled import exported, recipe_of_a
from tests.training.cases import integrand, shaken
from training import recipe, weights
from training.box import FARTHEST, Box, normal_cdf, normal_score
from training.card import card, client
from training.checkpoint import Epoch, Fit
from training.data import Batch, Data, DataConfig, load
from training.evaluate import EvaluateConfig, evaluate
from training.proposal import (
    Objective,
    Proposal,
    ProposalConfig,
    chi_square,
    forward_kl,
    reverse_kl,
)
from training.restore import restore

OBJECTIVES: tuple[Objective, ...] = ("forward-kl", "reverse-kl", "chi-square")
TINY = ProposalConfig(layers=2, width=4, depth=1, bins=3)
SMALL = ProposalConfig(layers=2, width=16, depth=1, uniform=0.05)
OWN = "python:tests.training.bad_integrands:slope"


def proposal(data: Data, *, scale: float = 0.3) -> Proposal:
    """A flow that is not uniform, in float64."""
    torch.manual_seed(0)
    return shaken(Proposal(TINY, data), scale=scale).double().eval()


def scores(*, points: int = 400) -> tuple[Tensor, Tensor]:
    """A grid over the unit square, even in normal scores, and the area that each point is for."""
    one = torch.linspace(-FARTHEST, FARTHEST, points, dtype=torch.float64)
    area = (-0.5 * one**2).exp() / math.sqrt(2 * math.pi) * (one[1] - one[0])
    grid = torch.cartesian_prod(one, one)
    return normal_cdf(grid), torch.outer(area, area).reshape(-1)


def figures_of(model: Proposal, test: Batch) -> dict[str, Figure]:
    torch.manual_seed(0)
    with torch.no_grad():
        return {figure.name: figure for figure in model.own_figures(test)}


# The layer between the box and its normal scores.


def test_scores_are_those_of_scipy_and_their_inverse() -> None:
    u = torch.cat([torch.logspace(-8, -0.302, 500, dtype=torch.float64)] * 2)
    u[500:] = 1 - u[500:]
    z = normal_score(u)
    assert np.abs(z.numpy() - special.ndtri(u.numpy())).max() < 1e-12
    assert np.abs(normal_cdf(z).numpy() - u.numpy()).max() < 1e-15


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_box_has_finite_scores_up_to_its_edges_and_never_leaves_them(dtype: torch.dtype) -> None:
    box = Box(0.1, 0.7).to(dtype)
    edges = torch.stack([box.low, box.high]).repeat(2, 1).T.contiguous()
    inside = torch.cat([edges, torch.rand(200, 2, dtype=dtype) * 0.59 + 0.1])
    z, log_abs_det = box(inside)
    assert z.isfinite().all()
    assert log_abs_det.isfinite().all()
    assert (box.inverse(z) - inside).abs().max() < (1e-7 if dtype == torch.float32 else 1e-15)
    far = box.inverse(torch.tensor([[-40.0, 40.0], [-5.5, 5.5]], dtype=dtype))
    assert far.min() >= box.low
    assert far.max() <= box.high


# The flow on the box.


@torch.no_grad()
def test_untrained_flow_is_uniform() -> None:
    data = load(DataConfig(source=OWN, dimensions=3, low=1.0, high=4.0, rows=60))
    torch.manual_seed(0)
    model = Proposal(TINY, data).double().eval()
    log_q = model.log_density(data.train.x.double())
    assert log_q == pytest.approx(np.full(len(log_q), -3 * math.log(3)), abs=1e-10)


@torch.no_grad()
def test_density_integrates_to_one() -> None:
    x, area = scores()
    assert (proposal(integrand()).log_density(x).exp() * area).sum().item() == pytest.approx(
        1, abs=1e-3
    )


@torch.no_grad()
def test_decode_undoes_encode() -> None:
    model = proposal(integrand(dimensions=3))
    x = torch.rand(500, 3, dtype=torch.float64)
    z, _ = model.encode(x)
    assert (model.decode(z) - x).abs().max() < 1e-9
    drawn = model.decode(4 * torch.randn(500, 3, dtype=torch.float64))
    assert ((drawn >= 0) & (drawn <= 1)).all()


def test_log_determinant_is_that_of_autograd() -> None:
    model = proposal(integrand(dimensions=3)).requires_grad_(False)
    x = torch.rand(20, 3, dtype=torch.float64)
    jacobian = torch.vmap(torch.func.jacrev(lambda row: model.encode(row[None])[0][0]))(x)
    assert torch.allclose(model.encode(x)[1], jacobian.det().abs().log(), atol=1e-8)


# The objectives: their gradients are those of the integrals that they stand for.


def exact(objective: Objective, model: Proposal) -> Tensor:
    """The objective by quadrature, up to what does not depend on the flow."""
    x, area = scores()
    value = model.values(x)
    log_q = model.log_density(x)
    if objective == "forward-kl":
        share = value * area / (value * area).sum()
        return -(share * log_q).sum()
    if objective == "reverse-kl":
        log_f = value.clamp_min(1e-300).log().clamp_min(model.log_floor)
        return (area * log_q.exp() * (log_q - log_f)).sum()
    return (area * value**2 * (-model.log_mixture(log_q)).exp()).sum().log()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_gradient_is_that_of_quadrature(objective: Objective) -> None:
    model = proposal(integrand(rows=2000))
    parameters = tuple(model.parameters())
    wanted = torch.nn.utils.parameters_to_vector(
        torch.autograd.grad(exact(objective, model), parameters)
    )
    # Along the gradient itself and three directions at random.
    directions = torch.stack([wanted, *torch.randn(3, len(wanted), dtype=torch.float64)])
    directions = directions / directions.norm(dim=1, keepdim=True)
    model.objective = objective
    found = []
    for seed in range(30):
        torch.manual_seed(seed)
        loss = model._loss(Batch(torch.rand(4000, 2, dtype=torch.float64)))["loss"]
        gradient = torch.autograd.grad(loss, parameters)
        found.append(directions @ torch.nn.utils.parameters_to_vector(gradient))
    mean, error = torch.stack(found).mean(0), torch.stack(found).std(0) / len(found) ** 0.5
    # Self-normalised weights have a bias of one part in a few thousand points.
    assert ((mean - directions @ wanted).abs() <= 4.5 * error + 2e-3 * wanted.norm()).all()
    assert mean[0] > 20 * error[0]


def test_objectives_are_0_where_the_flow_is_the_integrand() -> None:
    torch.manual_seed(0)
    log_p = torch.randn(50, dtype=torch.float64)
    value = 3 * log_p.exp()
    for loss in (forward_kl, partial(reverse_kl, log_floor=-50.0)):
        assert loss(value, log_p, log_p).item() == pytest.approx(0, abs=1e-12)
    assert chi_square(value, log_p).item() == pytest.approx(0, abs=1e-12)


def test_batch_that_misses_the_integrand_teaches_nothing() -> None:
    log_q = torch.zeros(8, dtype=torch.float64, requires_grad=True)
    nothing = torch.zeros(8, dtype=torch.float64)
    for loss in (forward_kl(nothing, log_q, log_q), chi_square(nothing, log_q)):
        assert loss.isfinite()
        (gradient,) = torch.autograd.grad(loss, log_q)
        assert not gradient.any()


@pytest.mark.parametrize("unit", [1e-200, 1e200])
def test_unit_of_the_integrand_does_not_matter(unit: float) -> None:
    torch.manual_seed(0)
    log_q = torch.randn(50, dtype=torch.float64)
    value = torch.rand(50, dtype=torch.float64)
    objectives = (
        forward_kl,
        lambda value, log_m, log_q: reverse_kl(
            value, log_m, log_q, log_floor=math.log(1e-10 * value.max().item())
        ),
        lambda value, log_m, log_q: chi_square(value, log_q),
    )
    for loss in objectives:
        found = []
        for scale in (1.0, unit):
            at = log_q.clone().requires_grad_()
            one = loss(scale * value, log_q, at)
            found.append((one.item(), *torch.autograd.grad(one, at)[0].tolist()))
        assert found[0] == pytest.approx(found[1], rel=1e-9, abs=1e-12)
    told, other = (
        weights.figures(scale * value, scale * value**2, exact=None, bound=scale, how="")
        for scale in (1.0, unit)
    )
    for here, there in zip(told, other, strict=True):
        factor = unit if here.name in (weights.INTEGRAL, weights.UNIFORM) else 1.0
        assert there.value == pytest.approx(factor * here.value, rel=1e-9)
        if here.standard_error:
            assert there.standard_error == pytest.approx(factor * here.standard_error, rel=1e-9)


def test_points_that_say_nothing_have_no_ratio() -> None:
    nothing, one = torch.zeros(9, dtype=torch.float64), torch.ones(9, dtype=torch.float64)
    some = torch.rand(9, dtype=torch.float64)
    for weight, uniform, names in (
        (nothing, nothing, 2),
        (some, nothing, 4),
        (one, one, 4),
        (one, some, 4),
        (some, some, 5),
    ):
        found = weights.figures(weight, uniform, exact=1.0, bound=1.0, how="")
        assert len(found) == names


# The integral.


@pytest.mark.parametrize("name", ["camel", "gaussian", "ring"])
@pytest.mark.parametrize("dimensions", [2, 4])
def test_integral_is_unbiased_and_the_weights_are_bounded(name: str, dimensions: int) -> None:
    data = integrand(name, dimensions=dimensions, rows=40_000)
    model = proposal(data, scale=1.0)
    torch.manual_seed(0)
    points = Batch(torch.rand(40_000, dimensions, dtype=torch.float64))
    found = figures_of(model, points)
    for figure in (found[weights.INTEGRAL], found[weights.UNIFORM]):
        assert figure.standard_error
        assert abs(figure.value - model.integrand.exact) <= 4.5 * figure.standard_error  # type: ignore[operator]
    assert 0 < found[weights.EFFECTIVE].value <= 1
    with torch.no_grad():
        x = model.draw(points)
        weight = model.values(x) * (-model.log_mixture(model.log_density(x))).exp()
    largest = {"camel": 0.5 / (math.sqrt(math.pi) * 0.1) ** dimensions * 1.01}.get(name, 1.0)
    assert weight.max() <= largest / model.uniform


def test_integral_over_a_box_is_that_of_the_box() -> None:
    data = load(DataConfig(source=OWN, dimensions=2, low=0.0, high=2.0, rows=20_000))
    model = proposal(data)
    found = figures_of(model, Batch(data.test.x.double()))[weights.INTEGRAL]
    assert found.standard_error
    assert abs(found.value - 8) <= 4.5 * found.standard_error


def test_errors_of_figures_are_those_of_repeated_runs() -> None:
    generator = torch.Generator().manual_seed(0)
    runs = []
    for _ in range(400):
        weight, uniform = torch.rand(2, 500, generator=generator, dtype=torch.float64)
        runs.append(weights.figures(weight, uniform**3, exact=0.5, bound=1.0, how=""))
    for index in range(4):
        values = np.array([run[index].value for run in runs])
        told = np.mean([run[index].standard_error for run in runs])
        assert told == pytest.approx(values.std(), rel=0.15), runs[0][index].name


def trained(objective: Objective) -> tuple[Proposal, Data]:
    """A small proposal for the camel in two dimensions after 250 steps of 256 points."""
    torch.manual_seed(0)
    data = integrand(rows=30_000)
    config = SMALL.model_copy(update={"objective": objective})
    model = Proposal(config, data)
    (turn,) = model.turns()
    adam = torch.optim.Adam(turn.parameters, lr=5e-3)
    for step in range(250):
        adam.param_groups[0]["lr"] = 5e-3 * (1 - step / 250)
        loss = turn.loss(data.train[torch.randint(len(data.train), (256,))])["loss"]
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(turn.parameters, 5.0)
        adam.step()
    return model.eval().requires_grad_(False), data


learnt = cache(trained)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_reduces_the_variance(objective: Objective) -> None:
    model, data = learnt(objective)
    found = {figure.name: figure for figure in evaluate(model, data, EvaluateConfig())}
    error = found[weights.INTEGRAL].standard_error
    assert error
    assert abs(found[weights.INTEGRAL].value - model.integrand.exact) <= 4.5 * error  # type: ignore[operator]
    assert found[weights.RATIO].value > 30


def test_proposal_needs_an_integrand_and_an_integrand_a_proposal() -> None:
    flow = recipe_of_a({"family": "flow"}, source="integrand:camel")
    with pytest.raises(recipe.RecipeInvalid, match='an integrand takes "proposal"; got "flow"'):
        recipe.build(flow, integrand())
    mine = recipe_of_a({"family": "proposal"}, source="sklearn:moons")
    with pytest.raises(recipe.RecipeInvalid, match="a proposal is for an integrand"):
        recipe.build(mine, load(mine.data))


# What is served, and the client of docs/training.md.


def test_documented_client_finds_the_integral(tmp_path: Path) -> None:
    model, data = learnt("forward-kl")
    described = recipe_of_a(SMALL.model_dump(), source="integrand:camel")
    named = described.model_copy(update={"name": "camel-proposal"})
    manifest, files = exported(model, named, data)
    folder = bundle.publish(tmp_path, manifest, files)
    assert isinstance(restored := restore(bundle.read(folder), data), Proposal)
    assert restored.integrand == data.integrand
    fit = Fit((Epoch(1, {"forward-kl/loss": 1.0}, 1.0, 1.0),), 1, 1.0, 1.0, "cpu")
    assert client("camel-proposal", 0.05) in card(manifest, fit)
    page = Path(__file__).parents[2] / "docs" / "training.md"
    section = page.read_text().partition("## Neural importance sampling")[2].partition("\n## ")[0]
    blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert blocks[1] == client("camel-proposal", 0.05), "what the card says too"
    server = Process(tmp_path, tmp_path / "log")
    try:
        server.wait_until_ready()
        names: dict[str, object] = {}
        for code in blocks:
            exec(code.replace("localhost:8000", f"127.0.0.1:{server.port}"), names)
    finally:
        server.stop()
    api, integral, error = names["api"], names["integral"], names["error"]
    assert isinstance(api, httpx.Client)
    api.close()
    assert isinstance(integral, float)
    assert isinstance(error, float)
    assert abs(integral - model.integrand.exact) <= 4.5 * error  # type: ignore[operator]
    assert error < 0.02
