import copy
import itertools
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from service.runtime import onnxruntime
from tests.training.linear_gaussian import LATENT, LinearGaussian, cubature
from training.export import to_onnx
from training.posterior import DiagonalGaussian, FullGaussian
from training.refine import Refine

Kind = Literal["diagonal", "full"]
both = pytest.mark.parametrize("kind", ["diagonal", "full"])
PAIRS = 4


def start(rows: int, kind: Kind) -> tuple[Tensor, Tensor]:
    """A poor q: the prior."""
    scale = torch.eye(LATENT) if kind == "full" else torch.ones(LATENT)
    return torch.zeros(rows, LATENT).double(), scale.double().expand(rows, *scale.shape).clone()


def rate(step: int) -> float:
    return 0.5 / (1 + step / 10)


def elbo(case: LinearGaussian, mean: Tensor, scale: Tensor, x: Tensor) -> Tensor:
    """The exact bound of a Gaussian q at each event."""
    q = FullGaussian(mean, scale) if scale.ndim == 3 else DiagonalGaussian(mean, scale.log())
    z, _ = q.draw(cubature(len(x)))
    return case.model.log_likelihood(x, z).mean(1) - q.kl()


@both
def test_steps_lead_from_the_prior_to_the_best_posterior(kind: Kind) -> None:
    case = LinearGaussian(posterior=kind)
    x = case.x[:50]
    mean, scale = start(50, kind)
    step = Refine(case.model, full=kind == "full")
    torch.manual_seed(0)
    bounds = [elbo(case, mean, scale, x).mean().item()]
    for t in range(400):
        noise = torch.randn(50, PAIRS, LATENT).double()
        mean, scale = step(x, mean, scale, torch.full((50,), rate(t)).double(), noise)
        if t % 20 == 19:
            bounds.append(elbo(case, mean, scale, x).mean().item())
    best = case.marginal.log_prob(x) - (case.gap if kind == "diagonal" else 0)
    left = best - elbo(case, mean, scale, x)
    assert (left >= -1e-9).all()
    assert left.mean() < 1e-3
    assert all(later >= before - 1e-3 for before, later in itertools.pairwise(bounds))
    assert bounds[0] < bounds[-1] - 1


@both
def test_exported_step_does_the_same_in_onnx_runtime(kind: Kind) -> None:
    case = LinearGaussian(posterior=kind)
    model = copy.deepcopy(case.model).float().eval().requires_grad_(False)
    inputs, outputs = model.interface.signature("refine")
    file = to_onnx(model.graphs()["refine"], inputs, outputs)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    x = case.x[:50]
    mean, scale = (each.numpy().astype(np.float32) for each in start(50, kind))
    names = [spec.name for spec in inputs]
    rng = np.random.Generator(np.random.Philox(key=0))
    for t in range(400):
        feeds = {
            "x": x.numpy().astype(np.float32),
            names[1]: mean,
            names[2]: scale,
            "rate": np.full(50, rate(t), dtype=np.float32),
            "noise": rng.standard_normal((50, PAIRS, LATENT), dtype=np.float32),
        }
        mean, scale = session.run(None, feeds)
    best = case.marginal.log_prob(x) - (case.gap if kind == "diagonal" else 0)
    found = elbo(case, torch.from_numpy(mean).double(), torch.from_numpy(scale).double(), x)
    assert (best - found).mean() < 1e-3


def test_step_follows_the_natural_gradient_of_the_bound() -> None:
    """scale^2 times the gradient in the mean, and half of that in the log of the scale."""
    case = LinearGaussian()
    x, small = case.x[:7], 1e-3
    torch.manual_seed(0)
    mean = torch.randn(7, LATENT).double().requires_grad_()
    log_scale = (0.1 * torch.randn(7, LATENT).double() - 1.5).requires_grad_()
    pairs = cubature(7)  # of covariance I, with which both ways to write the gradient are one
    noise = pairs[:, :LATENT]
    z = mean.unsqueeze(1) + log_scale.exp().unsqueeze(1) * pairs
    joint = case.model.log_likelihood(x, z) - 0.5 * z.square().sum(-1)
    bound = joint.mean(1) + log_scale.sum(1)
    by_mean, by_scale = torch.autograd.grad(bound.sum(), [mean, log_scale])
    rates = torch.full((7,), small).double()
    moved, scale = Refine(case.model, full=False)(
        x, mean.detach(), log_scale.detach().exp(), rates, noise
    )
    torch.testing.assert_close(moved - mean, small * (2 * log_scale).exp() * by_mean)
    torch.testing.assert_close(scale.log() - log_scale, small / 2 * by_scale)


def test_full_step_of_a_diagonal_scale_is_the_diagonal_one_and_more() -> None:
    case = LinearGaussian()
    x, noise = case.x[:7], torch.randn(7, PAIRS, LATENT).double()
    mean, scale = torch.randn(7, LATENT).double(), torch.rand(7, LATENT).double() + 0.1
    rates = torch.full((7,), 1e-4).double()  # so short that neither step is cut
    thin = Refine(case.model, full=False)(x, mean, scale, rates, noise)
    wide = Refine(case.model, full=True)(x, mean, torch.diag_embed(scale), rates, noise)
    torch.testing.assert_close(wide[0], thin[0])
    torch.testing.assert_close(wide[1].diagonal(dim1=1, dim2=2), thin[1])
    assert (wide[1].triu(1) == 0).all()
    assert (wide[1].tril(-1) != 0).any()


@both
def test_rate_of_zero_leaves_a_row_where_it_is(kind: Kind) -> None:
    case = LinearGaussian(posterior=kind)
    mean, scale = start(4, kind)
    rates = torch.tensor([0.0, 0.5, 0.0, 0.5]).double()
    moved, wider = Refine(case.model, full=kind == "full")(
        case.x[:4], mean, scale, rates, torch.randn(4, PAIRS, LATENT).double()
    )
    assert torch.equal(moved[::2], mean[::2])
    assert torch.equal(wider[::2], scale[::2])
    assert not torch.equal(moved[1::2], mean[1::2])


@both
def test_far_away_start_moves_without_running_off(kind: Kind) -> None:
    case = LinearGaussian(posterior=kind)
    mean, scale = start(50, kind)
    mean += 100
    for _ in range(3):
        mean, scale = Refine(case.model, full=kind == "full")(
            case.x[:50], mean, scale, torch.full((50,), 1.0).double(),
            torch.randn(50, PAIRS, LATENT).double(),
        )  # fmt: skip
    assert mean.isfinite().all()
    assert scale.isfinite().all()
    assert (mean.abs() <= 110).all()
