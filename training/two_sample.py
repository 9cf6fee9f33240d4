r"""Two-sample tests: how probable what is seen would be, were two samples drawn from one p.

Row i of one sample is the partner of row i of the other; it may share its label with it. If both
are of one p, nothing changes when partners change places. So a statistic is compared with what it
is after every pair has changed places or not by the toss of a coin, B times:

    p-value = (1 + #{of B draws: as large or larger}) / (1 + B)

It is uniform if both are of one p, whatever the statistic, up to ties, which make it larger; and it
is never 0.

For MMD^2 and the energy distance the kernel is computed once. When pair i changes places, every
term h_ij of `discrepancy.py` changes its sign and no other term changes, so that the statistic
after a draw is s'hs / (n (n - 1)) for a vector s of signs.

Source:
    Gretton et al. 2012, JMLR 13, section 4. p-value: Phipson & Smyth 2010,
    doi:10.2202/1544-6115.1585. Energy distance: Szekely & Rizzo 2013,
    doi:10.1016/j.jspi.2013.03.018. C2ST: Lopez-Paz & Oquab 2017, arXiv:1610.06545.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from training.classifier import fit, perceptron, read
from training.data import Batch
from training.discrepancy import estimate, terms
from training.kernels import Kernel
from training.representation import share_error

DRAWS = 500
"""Draws B: the least p-value is 1 / 501."""
CLASSIFIER_STEPS = 300
"""Of the classifier that tells two samples apart."""
LEAST_PAIRS = 4
"""Of C2ST: two to learn from, and two to ask about."""
ROUNDING = 1e-12
"""Relative: a draw this close to what is seen counts as as large, whichever way it rounded."""


@dataclass(frozen=True)
class Verdict:
    """A statistic of two samples, with its standard error, and its p-value with that of chance.

    Args:
        value: Large where the samples differ.
        standard_error: Of the value.
        p_value: Of so large a value if both samples are of one distribution.
        rows: That the statistic is of: pairs, or of C2ST those it was asked about.
    """

    value: float
    standard_error: float
    p_value: float
    rows: int

    @property
    def p_error(self) -> float:
        """By how much the p-value would vary from one `DRAWS` draws to the next."""
        return share_error(round(self.p_value * (1 + DRAWS)) - 1, DRAWS)


def mmd_test(
    x: Float[Tensor, "rows feature"],
    y: Float[Tensor, "rows feature"],
    kernel: Kernel,
    *,
    seed: int,
) -> Verdict:
    """Return the unbiased MMD^2 by a kernel, and its p-value.

    By `kernels.energy` it is the energy distance. Takes the memory of a few matrices (rows, rows).
    A kernel whose unit depends on which row is of which sample makes the p-value inexact.

    Args:
        x: One sample, of three rows or more.
        y: The other, of as many rows.
        kernel: Of `kernels.py`.
        seed: Of the draws.

    Raises:
        ValueError: The samples are too short.
    """
    found = terms(x, y, kernel)
    seen = estimate(found)
    signs = _signs(len(x), seed)
    drawn = ((signs @ found) * signs).sum(1) / (len(x) * (len(x) - 1))
    return Verdict(seen.value, seen.standard_error, _p_value(seen.value, drawn), len(x))


def classifier_test(
    x: Float[Tensor, "rows feature"], y: Float[Tensor, "rows feature"], *, seed: int
) -> Verdict:
    """Return how often a classifier tells which sample a row is of, and the p-value of that.

    A small perceptron learns from the first half of the pairs, and is asked about the second. Of
    equal distributions it is right in half of the cases.

    Args:
        x: One sample, of four rows or more, in a random order.
        y: The other, of as many rows.
        seed: Of the classifier and the draws.

    Raises:
        ValueError: The samples are too short.
    """
    if len(x) < LEAST_PAIRS:
        raise ValueError(f"C2ST needs {LEAST_PAIRS} rows or more of each sample; got {len(x)}")
    pairs = len(x) // 2
    learnt = torch.cat([x[:pairs], y[:pairs]]).float()
    mean, std = learnt.mean(0), learnt.std(0)
    # What never varies tells nothing, and must not become large where it does.
    std = torch.where(std > 0, std, torch.inf)
    batch = Batch((learnt - mean) / std, torch.arange(2 * pairs) // pairs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = fit(perceptron(x.shape[1], 2), batch, steps=CLASSIFIER_STEPS)
    of_x, of_y = (read(network, (each[pairs:].float() - mean) / std).argmax(1) for each in (x, y))
    # Of each pair, how many of the two are told rightly, less one. When the two change places, this
    # changes its sign.
    excess = (of_y - of_x).double()
    seen = excess.sum().item()
    drawn = _signs(len(excess), seed) @ excess
    asked = 2 * len(excess)
    right = len(excess) + round(seen)
    return Verdict(right / asked, share_error(right, asked), _p_value(seen, drawn), asked)


def _signs(rows: int, seed: int) -> Float[Tensor, "draws rows"]:
    generator = torch.Generator().manual_seed(seed)
    return 2.0 * torch.randint(2, (DRAWS, rows), generator=generator).double() - 1.0


def _p_value(seen: float, drawn: Float[Tensor, " draws"]) -> float:
    """Return (1 + #{drawn >= seen}) / (1 + B)."""
    reached = drawn >= seen - ROUNDING * max(abs(seen), drawn.abs().max().item())
    return (1 + int(reached.sum())) / (1 + len(drawn))
