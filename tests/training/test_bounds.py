import pytest
import torch
from torch import Tensor, nn

from tests.training.linear_gaussian import LATENT, LinearGaussian
from training.bounds import Terms, doubly_reparametrised, log_mean, negative_elbo, negative_iwae
from training.networks import normal_log_prob


def encoder_gradients(draws: int, *, doubly: bool, beta: float = 1.0, repeats: int = 400) -> Tensor:
    """Gradients of the importance-weighted bound in the encoder's weights, one for each repeat."""
    case = LinearGaussian()
    model, x = case.model, case.x[:20]
    (layer,) = model.encoder.network
    assert isinstance(layer, nn.Linear)
    with torch.no_grad():
        layer.bias.add_(0.2)  # away from the optimum
    found = []
    torch.manual_seed(0)
    for _ in range(repeats):
        noise = torch.randn(len(x), draws, LATENT).double()
        posterior = model.gaussian(x)
        z, log_q = posterior.draw(noise)
        if doubly:
            log_q = posterior.detach().log_prob(z)
        terms = Terms(
            model.log_likelihood(x, z), log_q - normal_log_prob(z).sum(-1), posterior.kl()
        )
        objective = doubly_reparametrised(terms, z, beta=beta) if doubly else None
        loss = negative_iwae(terms, beta=beta) if objective is None else objective
        found.append(
            torch.cat([g.flatten() for g in torch.autograd.grad(loss, [*layer.parameters()])])
        )
    return torch.stack(found)


def test_doubly_reparametrised_gradient_is_that_of_the_bound_with_less_noise() -> None:
    for draws in (1, 8):
        plain = encoder_gradients(draws, doubly=False)
        doubly = encoder_gradients(draws, doubly=True)
        error = ((plain.var(0) + doubly.var(0)) / len(plain)).sqrt()
        z = (plain.mean(0) - doubly.mean(0)) / error
        assert (z.abs() <= 4.5).all(), draws
        assert doubly.var(0).sum() < 0.5 * plain.var(0).sum(), draws


@pytest.mark.parametrize("beta", [0.1, 3.0])
def test_doubly_reparametrised_gradient_is_that_of_the_bound_at_any_beta(beta: float) -> None:
    plain = encoder_gradients(8, doubly=False, beta=beta)
    doubly = encoder_gradients(8, doubly=True, beta=beta)
    error = ((plain.var(0) + doubly.var(0)) / len(plain)).sqrt()
    assert (((plain.mean(0) - doubly.mean(0)) / error).abs() <= 4.5).all()


def test_decoder_gradient_is_the_plain_one_of_the_same_draws() -> None:
    case = LinearGaussian()
    x, noise = case.x[:20], torch.randn(20, 6, LATENT).double()
    weights = [*case.model.decoder.parameters()]
    gradients = []
    for doubly in (False, True):
        posterior = case.model.gaussian(x)
        z, log_q = posterior.draw(noise)
        terms = Terms(
            case.model.log_likelihood(x, z), log_q - normal_log_prob(z).sum(-1), posterior.kl()
        )
        loss = doubly_reparametrised(terms, z) if doubly else negative_iwae(terms)
        gradients.append(torch.autograd.grad(loss, weights))
    for plain, double in zip(*gradients, strict=True):
        torch.testing.assert_close(double, plain, rtol=1e-9, atol=1e-12)


def some_terms(draws: int = 5) -> Terms:
    torch.manual_seed(0)
    return Terms(torch.randn(3, draws), torch.rand(3, draws), torch.rand(3))


def test_bound_of_one_draw_is_the_drawn_elbo() -> None:
    terms = some_terms(draws=1)
    drawn = Terms(terms.reconstruction, terms.divergence, kl=None)
    torch.testing.assert_close(negative_iwae(terms), negative_elbo(drawn))


def test_known_divergence_takes_the_place_of_the_drawn_one() -> None:
    terms = some_terms()
    assert terms.kl is not None
    expected = terms.kl.mean() - terms.reconstruction.mean()
    torch.testing.assert_close(negative_elbo(terms), expected)
    torch.testing.assert_close(terms.elbo.mean(), -expected)


def test_importance_weighted_bound_is_the_tighter_one() -> None:
    terms = some_terms()
    drawn = Terms(terms.reconstruction, terms.divergence, kl=None)
    assert negative_iwae(terms) < negative_elbo(drawn)


def test_log_mean_of_large_numbers_does_not_overflow() -> None:
    assert log_mean(torch.full((1, 3), 1e4)).item() == 1e4
