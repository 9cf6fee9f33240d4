r"""Refinement: each event's own Gaussian q moves from the encoder's answer to a better bound.

An encoder has one answer for all events, and pays for it with the *amortisation gap*. A few
steps of ascent of the ELBO in the parameters of one event's q close it.

The steps are natural: they follow the gradient in q's own units, so that one rate serves latents of
all scales. They keep no state but q, so that a caller may stop, go on, or refine many events at
once.

Source:
    Kim et al. 2018, arXiv:1802.02550 (from the encoder's answer); Hoffman et al. 2013,
    arXiv:1206.7051 (natural gradients); Lin et al. 2021, arXiv:2102.07405 (of a triangular
    factor, in the coordinates z = m + L e); Roeder et al. 2017, arXiv:1703.09194 (h).
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from training.latent import LatentModel

FARTHEST = 1.0
"""How far a step moves a mean, in units of q's scale, at most: a guess that keeps a step from a
poor q within the region where its gradient means something. Of a full covariance it is the length
of the whole move."""
WIDEST = 0.5
"""How much a step changes the logarithm of a scale, at most. Likewise."""


class Refine(nn.Module):
    r"""One step for each row, with antithetic draws z = m ± L e.

    With g = d/dz [log p(x|z) p(z) / q(z)], the parameters of q held still, and h = L' g the same
    in q's own coordinates, means over draws:

        m <- m + L rate E[h]
        L <- L (I + rate tril(E[h e']) with its diagonal halved)

    where the diagonal of the last is applied as an exponential, and stays positive. A diagonal
    q is the same with all but the diagonals left out. There is no noise in h where q is p(z|x).

    Args:
        model: Whose p(x|z).
        full: Whether q has a full covariance.
    """

    differentiates = True
    """Its forward asks autograd for a gradient: see `training.export.to_onnx`."""

    def __init__(self, model: LatentModel, *, full: bool) -> None:
        super().__init__()
        self.model = model
        self.full = full

    def forward(self, x: Float[Tensor, "batch ..."], *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and scale (or scale_tril), given [label,] both, rate (batch,) and noise."""
        label, others = (inputs[0], inputs[1:]) if self.model.labels else (None, inputs)
        mean, scale, rate, noise = others
        x = self.model.observation.settle(x)
        noise = torch.cat([noise, -noise], dim=1)
        move = noise @ scale.mT if self.full else scale.unsqueeze(1) * noise
        gradient = self._gradient(x, mean.unsqueeze(1) + move, label)
        # Of log q it is -L'^-1 e, which in q's own coordinates is -e.
        if self.full:
            return _full_step(mean, scale, gradient @ scale + noise, noise, rate)
        return _diagonal_step(mean, scale, gradient * scale.unsqueeze(1) + noise, noise, rate)

    def _gradient(
        self, x: Tensor, z: Float[Tensor, "batch draws latent"], label: Tensor | None
    ) -> Float[Tensor, "batch draws latent"]:
        """Return d/dz of log p(x|z) + log p(z)."""
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            total = (self.model.log_likelihood(x, z, label) + self.model.prior.log_prob(z)).sum()
            (gradient,) = torch.autograd.grad(total, z)
        return gradient


def _diagonal_step(
    mean: Float[Tensor, "batch latent"],
    scale: Float[Tensor, "batch latent"],
    whitened: Float[Tensor, "batch draws latent"],
    noise: Float[Tensor, "batch draws latent"],
    rate: Float[Tensor, " batch"],
) -> tuple[Tensor, Tensor]:
    rate = rate.unsqueeze(1)
    move = (rate * whitened.mean(1)).clamp(-FARTHEST, FARTHEST)
    growth = rate / 2 * (whitened * noise).mean(1)
    return mean + scale * move, scale * growth.clamp(-WIDEST, WIDEST).exp()


def _full_step(
    mean: Float[Tensor, "batch latent"],
    scale_tril: Float[Tensor, "batch latent latent"],
    whitened: Float[Tensor, "batch draws latent"],
    noise: Float[Tensor, "batch draws latent"],
    rate: Float[Tensor, " batch"],
) -> tuple[Tensor, Tensor]:
    identity = torch.eye(mean.shape[1], dtype=mean.dtype, device=mean.device)
    below = torch.tril(torch.ones_like(identity), -1)
    move = _within(rate.unsqueeze(1) * whitened.mean(1), FARTHEST)
    tangent = whitened.mT @ noise / noise.shape[1] * (below + identity)
    tangent = _within((rate.view(-1, 1, 1) * tangent).flatten(1), 2 * WIDEST).view_as(scale_tril)
    growth = (tangent * identity).sum(2).div(2).exp()
    factor = tangent * below + growth.unsqueeze(2) * identity
    return mean + (scale_tril @ move.unsqueeze(2)).squeeze(2), scale_tril @ factor


def _within(step: Float[Tensor, "batch size"], most: float) -> Float[Tensor, "batch size"]:
    """Return the steps, shortened to this length where they are longer.

    As a whole, not entry by entry: the noise of many entries, each within bounds, adds up.
    """
    length = step.square().sum(1, keepdim=True).sqrt()
    return step * (most / length.clamp(min=most))
