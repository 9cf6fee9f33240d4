"""Each f-divergence against its definition, by brute force and by quadrature."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from training.adversarial import value
from training.f_divergences import DIVERGENCES, FDivergence, bound

each_divergence = pytest.mark.parametrize("name", DIVERGENCES)

KNOWN = {
    "kl": 0.183243,
    "jensen-shannon": 0.105810,
    "squared-hellinger": 0.115062,
    "pearson": 0.291723,
}
"""Of N(0, 1) from N(0.5, 1.5^2), by quadrature elsewhere."""
INSIDE = {
    "kl": (-3.0, 3.0),
    "reverse-kl": (-4.0, -0.1),
    "pearson": (-1.9, 4.0),
    "squared-hellinger": (-3.0, 0.8),
    "jensen-shannon": (-2.0, 0.6),
    "total-variation": (-0.49, 0.49),
}
"""Values of T whose best u lies well within a grid."""

P = Normal(torch.tensor(0.0, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64))
Q = Normal(torch.tensor(0.5, dtype=torch.float64), torch.tensor(1.5, dtype=torch.float64))
X = torch.linspace(-12, 12, 40_001, dtype=torch.float64)
OF_P, OF_Q = P.log_prob(X).exp(), Q.log_prob(X).exp()
RATIO = (P.log_prob(X) - Q.log_prob(X)).exp()


def integral(values: Tensor) -> float:
    return torch.trapezoid(values, X).item()


def exact(divergence: FDivergence) -> float:
    return integral(OF_Q * divergence.f(RATIO))


def attained(divergence: FDivergence, t: Tensor) -> float:
    """Return the bound at a critic whose answers, after the activation, are t."""
    return integral(OF_P * t - OF_Q * divergence.conjugate(t))


@pytest.mark.parametrize("name", [name for name in DIVERGENCES if name != "total-variation"])
def test_the_best_critic_tells_the_ratio_of_two_gaussians(name: str) -> None:
    divergence = DIVERGENCES[name]
    assert divergence.log_ratio is not None
    x = torch.linspace(-3, 3, 101, dtype=torch.float64)
    wanted = P.log_prob(x) - Q.log_prob(x)
    # v is found by bisection from the best T alone: the activation rises.
    best = divergence.best(wanted.exp())
    low, high = (torch.full_like(x, end) for end in (-60.0, 60.0))
    for _ in range(200):
        middle = (low + high) / 2
        is_less = divergence.activation(middle) < best
        low, high = torch.where(is_less, middle, low), torch.where(is_less, high, middle)
    v = (low + high) / 2
    torch.testing.assert_close(divergence.log_ratio(v), wanted, rtol=0, atol=1e-9)


def test_ratio_of_a_sign_is_not_told() -> None:
    assert DIVERGENCES["total-variation"].log_ratio is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ratio_is_finite_whatever_the_critic_says(dtype: torch.dtype) -> None:
    v = torch.tensor([-1e4, -200.0, -31.0, -30.0, -29.0, 0.0, 40.0, 1e4], dtype=dtype)
    for name, divergence in DIVERGENCES.items():
        if divergence.log_ratio is not None:
            found = divergence.log_ratio(v)
            assert found.isfinite().all(), name
            assert (found.diff() > 0).all(), name


@each_divergence
def test_conjugate_is_the_supremum_over_a_grid(name: str) -> None:
    divergence = DIVERGENCES[name]
    u = torch.linspace(-9, 9, 180_001, dtype=torch.float64).exp()
    t = torch.linspace(*INSIDE[name], 41, dtype=torch.float64)
    brute = torch.stack([(u * each - divergence.f(u)).max() for each in t])
    torch.testing.assert_close(divergence.conjugate(t), brute, rtol=0, atol=1e-6)


@each_divergence
def test_f_is_0_at_1_and_convex(name: str) -> None:
    divergence = DIVERGENCES[name]
    assert divergence.f(torch.ones((), dtype=torch.float64)).item() == pytest.approx(0, abs=1e-15)
    u = torch.linspace(0.01, 8, 1000, dtype=torch.float64)
    assert divergence.f(u).diff(n=2).min() >= -1e-12


@pytest.mark.parametrize("name", KNOWN)
def test_divergence_of_two_gaussians_is_the_known_one(name: str) -> None:
    assert exact(DIVERGENCES[name]) == pytest.approx(KNOWN[name], abs=6e-7)


def test_reverse_divergence_is_the_other_way_round() -> None:
    log = P.log_prob(X) - Q.log_prob(X)
    assert exact(DIVERGENCES["reverse-kl"]) == pytest.approx(integral(-OF_Q * log), abs=1e-12)
    half = integral((OF_P - OF_Q).abs()) / 2
    assert exact(DIVERGENCES["total-variation"]) == pytest.approx(half, abs=1e-12)


@each_divergence
def test_bound_is_attained_at_the_best_critic(name: str) -> None:
    divergence = DIVERGENCES[name]
    found = attained(divergence, divergence.best(RATIO))
    assert found == pytest.approx(exact(divergence), abs=1e-8)


@each_divergence
def test_bound_is_exceeded_by_no_critic(name: str) -> None:
    divergence, truth = DIVERGENCES[name], exact(DIVERGENCES[name])
    generator = torch.Generator().manual_seed(0)
    powers = torch.stack([(X / 4) ** k for k in range(5)])
    for _ in range(300):
        weight = torch.randn(5, generator=generator, dtype=torch.float64)
        # A polynomial in the tails would be a critic of infinite loss.
        t = divergence.activation((weight @ powers).clamp(-5, 5))
        assert attained(divergence, t) <= truth + 1e-9


@each_divergence
def test_samples_that_look_more_like_data_cost_the_generator_less(name: str) -> None:
    v = torch.linspace(-8, 8, 2001, dtype=torch.float64)
    assert (DIVERGENCES[name].composed(v).diff() >= 0).all()


@each_divergence
def test_activation_rises_and_fills_the_domain(name: str) -> None:
    divergence = DIVERGENCES[name]
    low, high = divergence.domain
    # Those of a ratio that grows like v come near to the ends of their domains far out.
    reach = torch.linspace(-3, 13, 2001, dtype=torch.float64).mul(math.log(10)).exp()
    if name in ("pearson", "jensen-shannon", "total-variation"):
        reach = torch.linspace(0.001, 16, 2001, dtype=torch.float64)
    g = divergence.activation(torch.cat([-reach.flip(0), reach]))
    assert (g.diff() > 0).all()
    assert low < g[0]
    assert g[-1] < high
    assert g[0] < -10 if low == -math.inf else g[0] - low < 1e-6
    assert g[-1] > 10 if high == math.inf else high - g[-1] < 1e-6


@each_divergence
def test_no_loss_overflows_where_the_critic_is_sure_of_itself(name: str) -> None:
    v = torch.tensor([-1e4, 1e4])
    assert DIVERGENCES[name].activation(v).isfinite().all()
    assert DIVERGENCES[name].composed(v).isfinite().all()


@each_divergence
def test_composed_form_is_the_conjugate_of_the_activation(name: str) -> None:
    divergence = DIVERGENCES[name]
    v = torch.linspace(-8, 8, 201, dtype=torch.float64)
    twice = divergence.conjugate(divergence.activation(v))
    torch.testing.assert_close(divergence.composed(v), twice, rtol=1e-9, atol=1e-9)


def test_bound_on_twice_the_jensen_shannon_divergence_is_the_value_and_log_4() -> None:
    generator = torch.Generator().manual_seed(1)
    real, fake = torch.randn(2, 50, generator=generator, dtype=torch.float64)
    found = bound(DIVERGENCES["jensen-shannon"], real, fake)
    assert found.item() == pytest.approx(value(real, fake).item() + math.log(4), abs=1e-12)


def number(log_ratio: Tensor) -> Tensor:
    """Return the v whose u(v) has this logarithm, by bisection, with its derivative by Newton's."""
    low, high = torch.full_like(log_ratio, -1e12), torch.full_like(log_ratio, 1e12)
    of = DIVERGENCES["kl"].log_ratio
    assert of is not None
    with torch.no_grad():
        for _ in range(120):
            v = (low + high) / 2
            low, high = (
                torch.where(of(v) < log_ratio, v, low),
                torch.where(of(v) < log_ratio, high, v),
            )
    with torch.enable_grad():
        v = ((low + high) / 2).detach().requires_grad_()
        (slope,) = torch.autograd.grad(of(v).sum(), v)
    return v.detach() + (log_ratio - of(v).detach()) / slope


@pytest.mark.parametrize("name", ["kl", "reverse-kl", "squared-hellinger", "jensen-shannon"])
def test_a_trained_critic_nears_the_divergence_and_stays_below(name: str) -> None:
    """The best log-ratio is a parabola here, so a critic that is one can be perfect."""
    torch.manual_seed(0)
    divergence, truth = DIVERGENCES[name], exact(DIVERGENCES[name])
    real, fake = P.sample((20_000,)), Q.sample((20_000,))
    weight = torch.zeros(3, dtype=torch.float64, requires_grad=True)

    def said(x: Tensor) -> Tensor:
        ratio = (weight[0] + weight[1] * x + weight[2] * x.square()).clamp(max=20)
        return ratio if name == "jensen-shannon" else number(ratio)

    optimiser = torch.optim.LBFGS([weight], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = -bound(divergence, said(real), said(fake))
        loss.backward()
        return loss

    optimiser.step(closure)
    with torch.no_grad():
        of_real = divergence.activation(said(P.sample((200_000,))))
        of_fake = divergence.composed(said(Q.sample((200_000,))))
    error = ((of_real.var() + of_fake.var()) / 200_000).sqrt().item()
    estimate = (of_real.mean() - of_fake.mean()).item()
    assert 0.95 * truth - 4.5 * error <= estimate <= truth + 4.5 * error
