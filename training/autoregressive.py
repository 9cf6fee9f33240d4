"""Inverse autoregressive flows: fast one way, which is all that a posterior needs.

Source:
    Kingma et al. 2016, arXiv:1606.04934 (algorithm 1).
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from training.masked import MaskedLinear, degrees

START = 0.1
"""Factor on the initial weights of a last layer, so that a flow starts close to the identity."""
FORGET = 2.0
"""Bias of every gate at the start: it keeps sigmoid(2) = 0.88 of z. The paper: "1 to 2"."""


class Autoregressive(nn.Module):
    """Two numbers for each latent that depend on the latents before it, and on a context.

    Args:
        latent: How many latents.
        context: Length of the context.
        width: Hidden units.
    """

    def __init__(self, *, latent: int, context: int, width: int) -> None:
        super().__init__()
        place = torch.arange(latent)
        # A hidden unit of degree k sees latents 0 to k, and is seen by those after k.
        degree = degrees(latent, width)
        self.first = MaskedLinear((degree[:, None] >= place).float())
        self.context = nn.Linear(context, width, bias=False)
        self.second = MaskedLinear((degree[:, None] >= degree).float())
        self.last = MaskedLinear((place[:, None] > degree).float().repeat(2, 1))
        with torch.no_grad():
            self.last.weight.mul_(START)
            self.last.bias.zero_()
            self.last.bias[latent:] = FORGET
        self.activation = nn.SiLU()

    def forward(
        self, z: Float[Tensor, "... latent"], context: Float[Tensor, "... context"]
    ) -> tuple[Float[Tensor, "... latent"], Float[Tensor, "... latent"]]:
        """Return a shift and a gate's logit for each latent."""
        hidden = self.activation(self.first(z) + self.context(context))
        shift, gate = self.last(self.activation(self.second(hidden))).chunk(2, dim=-1)
        return shift, gate


class InverseAutoregressive(nn.Module):
    """z becomes g z + (1 - g) m, with gate g and shift m read off the latents before it.

    Several such steps, between which the order of the latents is turned round.
    """

    def __init__(self, *, layers: int, latent: int, context: int, width: int) -> None:
        super().__init__()
        self.steps = nn.ModuleList(
            Autoregressive(latent=latent, context=context, width=width) for _ in range(layers)
        )

    def forward(
        self, z: Float[Tensor, "batch draws latent"], context: Float[Tensor, "batch 1 context"]
    ) -> tuple[Float[Tensor, "batch draws latent"], Float[Tensor, "batch draws"]]:
        """Return z moved, and log |det dz'/dz|."""
        total = z.new_zeros(z.shape[:2])
        for step in self.steps:
            # The networks may run in bfloat16 (autocast); what they move stays in z's precision.
            shift, logit = (each.to(z.dtype) for each in step(z, context))
            gate = torch.sigmoid(logit)
            z = (gate * z + (1 - gate) * shift).flip(-1)
            total = total + logsigmoid(logit).sum(-1)
        return z, total
