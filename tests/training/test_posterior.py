import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from training.autoregressive import InverseAutoregressive
from training.networks import normal_log_prob
from training.posterior import DiagonalGaussian, FlowPosterior, FullGaussian


def full(rows: int = 9, latent: int = 4) -> FullGaussian:
    torch.manual_seed(0)
    below = torch.randn(rows, latent, latent).double().tril(-1)
    diagonal = torch.randn(rows, latent).double().exp()
    return FullGaussian(torch.randn(rows, latent).double(), below + torch.diag_embed(diagonal))


def test_gaussian_kl_agrees_with_torch_distributions() -> None:
    torch.manual_seed(0)
    mean, log_scale = torch.randn(2, 9, 4).double()
    posterior = DiagonalGaussian(mean, log_scale)
    standard = Independent(Normal(torch.zeros_like(mean), torch.ones_like(mean)), 1)
    expected = kl_divergence(Independent(Normal(mean, log_scale.exp()), 1), standard)
    torch.testing.assert_close(posterior.kl(), expected, rtol=0, atol=1e-12)


def test_posterior_log_prob_agrees_with_torch_distributions() -> None:
    torch.manual_seed(0)
    mean, log_scale = torch.randn(2, 9, 4).double()
    z = torch.randn(9, 6, 4).double()
    expected = Normal(mean.unsqueeze(1), log_scale.exp().unsqueeze(1)).log_prob(z).sum(-1)
    found = DiagonalGaussian(mean, log_scale).log_prob(z)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_full_gaussian_agrees_with_torch_distributions() -> None:
    posterior = full()
    theirs = MultivariateNormal(posterior.mean, scale_tril=posterior.scale_tril)
    standard = MultivariateNormal(torch.zeros(9, 4).double(), torch.eye(4).double())
    torch.testing.assert_close(posterior.kl(), kl_divergence(theirs, standard), rtol=0, atol=1e-12)
    z = torch.randn(9, 6, 4).double()
    expected = theirs.log_prob(z.transpose(0, 1)).T
    torch.testing.assert_close(posterior.log_prob(z), expected, rtol=0, atol=1e-10)


def test_gaussian_draws_say_their_own_density() -> None:
    noise = torch.randn(9, 6, 4).double()
    wide = full()
    for posterior in (wide, DiagonalGaussian(wide.mean, wide.log_diagonal)):
        z, log_q = posterior.draw(noise)
        torch.testing.assert_close(posterior.log_prob(z), log_q, rtol=0, atol=1e-9)


def test_draws_of_a_full_gaussian_have_its_covariance() -> None:
    posterior = full(rows=1, latent=3)
    torch.manual_seed(0)
    rows = 200_000
    z, _ = posterior.draw(torch.randn(1, rows, 3).double())
    away = z[0] - posterior.mean
    products = away.unsqueeze(2) * away.unsqueeze(1)
    covariance = posterior.scale_tril[0] @ posterior.scale_tril[0].T
    error = products.std(0) / rows**0.5
    assert ((products.mean(0) - covariance).abs() <= 4.5 * error).all()


@pytest.fixture
def flow() -> InverseAutoregressive:
    torch.manual_seed(0)
    made = InverseAutoregressive(layers=3, latent=4, context=2, width=16).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return made


def jacobian(flow: InverseAutoregressive, z: Tensor, context: Tensor) -> Tensor:
    def move(z: Tensor) -> Tensor:
        moved: Tensor = flow(z.view(1, 1, -1), context.view(1, 1, -1))[0]
        return moved.flatten()

    found: Tensor = torch.autograd.functional.jacobian(move, z)
    return found


def test_flow_knows_the_determinant_of_its_jacobian(flow: InverseAutoregressive) -> None:
    z, context = torch.randn(5, 3, 4).double(), torch.randn(5, 2).double()
    _, found = flow(z, context.unsqueeze(1))
    for row in range(5):
        for draw in range(3):
            _, expected = torch.linalg.slogdet(jacobian(flow, z[row, draw], context[row]))
            assert abs(expected - found[row, draw]) <= 1e-8


def test_one_step_of_the_flow_is_autoregressive() -> None:
    torch.manual_seed(0)
    step = InverseAutoregressive(layers=1, latent=5, context=2, width=9).double()
    turned = jacobian(step, torch.randn(5).double(), torch.randn(2).double()).flip(0)
    assert (turned.triu(1) == 0).all()
    assert (turned.tril(-1) != 0).any()


def test_few_hidden_units_leave_no_latent_without_a_say() -> None:
    torch.manual_seed(0)
    step = InverseAutoregressive(layers=1, latent=9, context=2, width=4).double()
    turned = jacobian(step, torch.randn(9).double(), torch.randn(2).double()).flip(0)
    assert (turned.triu(1) == 0).all()
    assert (turned.tril(-1)[-1, :-1] != 0).all()  # all before the last one move it


def test_draws_of_a_full_gaussian_are_exact_under_autocast() -> None:
    posterior = full()
    single = FullGaussian(posterior.mean.float(), posterior.scale_tril.float())
    noise = torch.randn(9, 6, 4)
    expected, _ = single.draw(noise)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(single.draw(noise)[0], expected)


def test_flow_posterior_says_the_density_of_its_draws(flow: InverseAutoregressive) -> None:
    torch.manual_seed(0)
    base = DiagonalGaussian(*torch.randn(2, 5, 4).double())
    context, noise = torch.randn(5, 2).double(), torch.randn(5, 3, 4).double()
    posterior = FlowPosterior(base, flow, context)
    z, log_q = posterior.draw(noise)
    before, log_base = base.draw(noise)
    expected, log_abs_det = flow(before, context.unsqueeze(1))
    torch.testing.assert_close(z, expected)
    torch.testing.assert_close(log_q, log_base - log_abs_det, rtol=0, atol=1e-12)
    assert posterior.kl() is None


def test_density_of_a_flow_posterior_integrates_to_one(flow: InverseAutoregressive) -> None:
    """The mean of p(z) / q(z) over draws z of q is 1, for any normalised p."""
    torch.manual_seed(0)
    rows = 200_000
    base = DiagonalGaussian(torch.zeros(1, 4).double(), torch.full((1, 4), 0.5).double())
    posterior = FlowPosterior(base, flow, torch.randn(1, 2).double())
    with torch.no_grad():
        z, log_q = posterior.draw(torch.randn(1, rows, 4).double())
        # A narrow one about a draw in the middle, which q covers.
        centre = z.median(dim=1, keepdim=True).values
        target = normal_log_prob(z, mean=centre, log_scale=-1.5).sum(-1)
        weight = (target - log_q).exp().flatten()
    assert abs(weight.mean() - 1) <= 4.5 * weight.std() / rows**0.5
    assert weight.std() / rows**0.5 < 0.05
