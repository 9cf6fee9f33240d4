r"""A critic's log ratio made honest on rows that it never saw, and what samples are rejected by.

At its best a critic tells r = log p/q, of the data's density p and the samples' q. A trained one
is not at its best, and the generator that is published is a moving average, not the one that the
critic played against. Two numbers make up for most of that: where as many events as samples are
shown, the logit of "x is data" is taken for scale r + shift, as it is likeliest.

Samples are then accepted with the probability min(1, exp(log ratio - log bound)): those that are
have a density in proportion to q min(p/q, bound), which is p wherever p/q is below the bound.

Source:
    Platt 1999, "Probabilistic outputs for support vector machines" (the regression); Turner et al.
    2019, arXiv:1811.11357 (calibrated critics); Azadi et al. 2019, arXiv:1810.06758
    (rejection by a critic).
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

BOUND_SHARE = 0.01
"""Of samples whose ratio may be above the bound, and which are then too rare. The largest ratio
of all, which would need none, is that of an odd sample, and hardly any other would be accepted."""
LEAST_ACCEPTANCE = 0.1
"""The bound is lowered to where so many are accepted, of the label with the fewest: of 64
candidates one is, but for 1 row in 850. Azadi et al. lower it too, by a percentile."""
BISECTIONS = 60
SOLVING_STEPS = 100
"""Of L-BFGS, in two unknowns."""


class Calibration(nn.Module):
    """scale r + shift, of what a critic says; nothing is changed before it is fitted."""

    scale: Tensor
    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("shift", torch.zeros(()))

    def forward(self, raw: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """Return the calibrated log ratio in nats."""
        return self.scale.to(raw) * raw + self.shift.to(raw)

    def fit(self, real: Float[Tensor, " rows"], fake: Float[Tensor, " rows"]) -> None:
        """Set both numbers to the likeliest, given what the critic says of equally many of both."""
        scale, shift = regressed(real, fake)
        self.scale.fill_(scale)
        self.shift.fill_(shift)


def regressed(real: Float[Tensor, " rows"], fake: Float[Tensor, " rows"]) -> tuple[float, float]:
    """Return the scale and the shift of a logistic regression of "x is data".

    The targets are Platt's, (n + 1) / (n + 2) and 1 / (n + 2) in place of 1 and 0, so that the
    scale is finite where the critic parts both for good. One that is mistaken more often than
    not is believed nothing: scale 0 and shift 0.

    Raises:
        ValueError: An answer is not finite.

    Example:
        >>> regressed(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0]))
        (0.0, 0.0)
    """
    raw, rows = torch.cat([real, fake]).double(), len(real)
    target = torch.full_like(raw, 1 / (rows + 2))
    target[:rows] = (rows + 1) / (rows + 2)
    # Around 0 and of unit spread the two unknowns are hardly in each other's way.
    centre, spread = raw.mean(), raw.std().clamp(min=1e-12)
    unknown = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([unknown], max_iter=SOLVING_STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        logit = unknown[0] * (raw - centre) / spread + unknown[1]
        total: Tensor = binary_cross_entropy_with_logits(logit, target)
        total.backward()
        return total

    with torch.enable_grad():
        optimiser.step(loss)
    slope, height = unknown.detach()
    if not (raw.isfinite().all() and unknown.isfinite().all()):
        raise ValueError("the critic's answers to held-out rows are not finite")
    if slope <= 1e-9:
        return 0.0, 0.0
    scale = slope / spread
    return scale.item(), (height - scale * centre).item()


def bounded(
    log_ratio: Float[Tensor, " rows"], label: Int[Tensor, " rows"] | None = None
) -> tuple[float, float]:
    """Return the logarithm of a bound on the ratio of samples, and the share that it accepts.

    Args:
        log_ratio: Of samples.
        label: Of each, where there are any: a client may ask for one of them alone.

    Example:
        >>> bounded(torch.zeros(100))
        (0.0, 1.0)
    """
    exact = log_ratio.double()
    parts = [exact] if label is None else [exact[label == each] for each in label.unique()]

    def accepts_enough(log_bound: float) -> bool:
        return min(acceptance(part, log_bound) for part in parts) >= LEAST_ACCEPTANCE

    high = exact.quantile(1 - BOUND_SHARE).item()
    if accepts_enough(high):
        return high, acceptance(exact, high)
    # It accepts all of these of each label, and some besides.
    low = min(part.quantile(1 - LEAST_ACCEPTANCE).item() for part in parts)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if accepts_enough(middle) else (low, middle)
    return low, acceptance(exact, low)


def acceptance(log_ratio: Float[Tensor, " rows"], log_bound: float) -> float:
    """Return the expected share of samples that a bound accepts."""
    return (log_ratio - log_bound).clamp(max=0).exp().mean().item()


def cross_entropy(
    real: Float[Tensor, " rows"], fake: Float[Tensor, " rows"]
) -> tuple[float, float]:
    """Return the mean -log probability of the right verdict in nats, and its standard error.

    log 2 is that of a critic that never knows.
    """
    return _mean_of_both(softplus(-real.double()), softplus(fake.double()))


def accuracy(real: Float[Tensor, " rows"], fake: Float[Tensor, " rows"]) -> tuple[float, float]:
    """Return the share of right verdicts, of a log ratio of 0 a half, and its standard error."""
    right = (0.5 * (1 + side.double().sign()) for side in (real, -fake))
    return _mean_of_both(*right)


def _mean_of_both(
    of_real: Float[Tensor, " rows"], of_fake: Float[Tensor, " rows"]
) -> tuple[float, float]:
    variance = (of_real.var() / len(of_real) + of_fake.var() / len(of_fake)) / 4
    return 0.5 * (of_real.mean() + of_fake.mean()).item(), math.sqrt(variance.item())
