"""Bounds on log p(x) from draws of q(z|x), and what training minimises of them.

Source:
    Kingma & Welling 2014, arXiv:1312.6114 (the ELBO); Burda et al. 2016, arXiv:1509.00519 (the
    importance-weighted bound, IWAE).
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Terms:
    """The terms of a bound on log p(x), of each event and draw z ~ q(z|x), in nats.

    Args:
        reconstruction: log p(x|z).
        divergence: log q(z|x) - log p(z), whose mean is KL(q(z|x) || p(z)).
        kl: That mean where it is known, of each event; else None.
    """

    reconstruction: Float[Tensor, "batch draws"]
    divergence: Float[Tensor, "batch draws"]
    kl: Float[Tensor, " batch"] | None

    @property
    def log_weight(self) -> Float[Tensor, "batch draws"]:
        """Log p(x|z) p(z) / q(z|x): the mean of its exponential is p(x)."""
        return self.reconstruction - self.divergence

    @property
    def elbo(self) -> Float[Tensor, "batch draws"]:
        """Of each draw; with the known divergence in place of the drawn one where there is one."""
        if self.kl is None:
            return self.log_weight
        return self.reconstruction - self.kl.unsqueeze(1)


def log_mean(log_weight: Float[Tensor, "batch draws"]) -> Float[Tensor, " batch"]:
    """Return log (1/K) sum_k exp(log_weight_k) of each event.

    Example:
        >>> log_mean(torch.zeros(2, 5)).tolist()
        [0.0, 0.0]
    """
    return torch.logsumexp(log_weight, dim=1) - math.log(log_weight.shape[1])


def negative_elbo(
    terms: Terms,
    *,
    beta: float = 1.0,
    kl_by_latent: Float[Tensor, "batch latent"] | None = None,
    free: float = 0.0,
) -> Float[Tensor, ""]:
    """Return the mean of -ELBO over events and draws, its divergence times beta.

    Args:
        terms: Of each event and draw.
        beta: Higgins et al. 2017 (beta-VAE); below 1 while training warms up.
        kl_by_latent: The divergence by latent, needed for:
        free: Nats that each latent has for nothing, on average over the batch (Kingma et al. 2016,
            arXiv:1606.04934, eq. 15).
    """
    if free and kl_by_latent is not None:
        divergence = kl_by_latent.mean(0).clamp(min=free).sum()
    else:
        divergence = (terms.divergence if terms.kl is None else terms.kl).mean()
    return beta * divergence - terms.reconstruction.mean()


def negative_iwae(terms: Terms, *, beta: float = 1.0) -> Float[Tensor, ""]:
    """Return the mean over events of -log of the mean weight, its divergence times beta."""
    return -log_mean(terms.reconstruction - beta * terms.divergence).mean()


def doubly_reparametrised(
    terms: Terms, z: Float[Tensor, "batch draws latent"], *, beta: float = 1.0
) -> Float[Tensor, ""]:
    """Return a loss whose gradient is that of `negative_iwae`, with less noise for the encoder.

    With normalised weights v_k, the decoder follows sum_k v_k d log w_k, and the encoder
    sum_k v_k u_k (d log w_k / dz_k) (dz_k / d lambda), where u_k = v_k at beta = 1, and in general
    1 - beta + beta v_k, because log q counts beta times in log w. The value itself means nothing.

    Args:
        terms: Whose divergence holds the parameters of log q still: z alone carries its gradient.
        z: The draws, on the way from the encoder to the terms. Their gradient is changed.
        beta: Factor on the divergence.

    Source:
        Tucker et al. 2019, arXiv:1810.04152, eq. 8.
    """
    log_weight = terms.reconstruction - beta * terms.divergence
    share = torch.softmax(log_weight.detach(), dim=1)
    # What comes back to z has been multiplied by the share once, through the loss.
    again = (1 - beta + beta * share).unsqueeze(-1)
    z.register_hook(lambda gradient: again * gradient)
    return -(share * log_weight).sum(1).mean()
