r"""Objectives of a game: what a critic raises, and what a generator then lowers.

    name                      critic raises                             generator lowers
    minimax                   E_p log s(D) + E_q log(1 - s(D))          E_q log(1 - s(D))
    non-saturating            the same                                  -E_q log s(D)
    kl, ..., total-variation  E_p g(D) - E_q f*(g(D))                   -E_q f*(g(D))
    wasserstein               E_p D - E_q D                             -E_q D
    least-squares             -1/2 E_p (D - 1)^2 - 1/2 E_q D^2          1/2 E_q (D - 1)^2
    hinge                     E_p min(0, D - 1) + E_q min(0, -1 - D)    -E_q D
    mmd-...                   MMD^2 of its features of p and q          the same

p is the data, q the samples, s the logistic function, D what the critic says of an event: one
number, or of the last row several. What a family of networks is, and what keeps a critic from
being too steep, is no matter of an objective's.

Source:
    Goodfellow et al. 2014, arXiv:1406.2661; Nowozin et al. 2016, arXiv:1606.00709; Arjovsky et al.
    2017, arXiv:1701.07875; Mao et al. 2017, arXiv:1611.04076; Lim & Ye 2017, arXiv:1705.02894;
    Bińkowski et al. 2018, arXiv:1801.01401.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from training.f_divergences import DIVERGENCES, FDivergence, bound
from training.mmd import KERNELS, Radial, unbiased_mmd, witness

Name = Literal[
    "non-saturating",
    "minimax",
    "kl",
    "reverse-kl",
    "pearson",
    "squared-hellinger",
    "jensen-shannon",
    "total-variation",
    "wasserstein",
    "least-squares",
    "hinge",
    "mmd-gaussian",
    "mmd-rational-quadratic",
    "mmd-distance",
]
"""What a recipe calls them."""

Outputs = Float[Tensor, "batch output"]
"""What a critic says of events."""
CERTAIN = 0.999
"""The largest share p/(p + q) that a regression of it is believed: 6.9 nats (a guess)."""


class Objective(ABC):
    """One game.

    Args:
        outputs: How many numbers the critic gives of an event.
    """

    is_shifted: bool = True
    """Whether a constant added to all that the critic says makes a difference."""
    tells_ratio: bool = False
    """Whether the best critic's answer tells p/q."""

    def __init__(self, *, outputs: int = 1) -> None:
        self.outputs = outputs

    @abstractmethod
    def critic_loss(self, real: Outputs, fake: Outputs) -> Float[Tensor, ""]:
        """Return what the critic minimises, of equally many events and samples."""

    @abstractmethod
    def generator_loss(self, fake: Outputs, real: Callable[[], Outputs]) -> Float[Tensor, ""]:
        """Return what the generator minimises.

        Args:
            fake: Of samples.
            real: Answers what the critic says of the data, which most objectives never ask.
        """

    def witness(self, at: Outputs, real: Outputs, fake: Outputs) -> Float[Tensor, " batch"]:
        """Return the one function of an event whose slope a gradient penalty is of."""
        return at.squeeze(1)

    def log_ratio(self, said: Outputs) -> Float[Tensor, " batch"]:
        """Return log p/q in nats of events, if the critic is at its best.

        Raises:
            TypeError: Its best answer does not tell it.
        """
        raise TypeError(f"the best critic of a {type(self).__name__} tells no ratio; this is a bug")

    @abstractmethod
    def figures(self, real: Outputs, fake: Outputs) -> dict[str, Float[Tensor, ""]]:
        """Return what the logs say of the critic besides its loss."""


def value(real: Float[Tensor, "..."], fake: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    """Return V, the critic's mean log-likelihood of its verdicts, from its logits.

    At its best, for densities p of the data and q of the samples, the critic's logit is
    log p - log q and V = 2 JSD(p, q) - log 4, hence -log 4 when the samples follow the data.

    Source:
        Goodfellow et al. 2014, arXiv:1406.2661, theorem 1.
    """
    return -softplus(-real).mean() - softplus(fake).mean()


def accuracy(
    real: Float[Tensor, "..."], fake: Float[Tensor, "..."], *, undecided: float
) -> Float[Tensor, ""]:
    """Return the share of events and samples that are on their side of `undecided`.

    Example:
        >>> import torch
        >>> accuracy(torch.tensor([1.0, 2.0]), torch.tensor([-1.0, 3.0]), undecided=0.0).item()
        0.75
    """
    right = (real > undecided).to(fake) + (fake < undecided).to(fake)
    return 0.5 * right.mean()


class Logistic(Objective):
    """The critic's D is the logit of "this is data".

    Args:
        saturating: The generator lowers E log(1 - s(D)), whose slope vanishes while the critic
            wins; otherwise it raises E log s(D), whose slope does not.
    """

    tells_ratio = True

    def __init__(self, *, saturating: bool) -> None:
        super().__init__()
        self.saturating = saturating

    def critic_loss(self, real: Outputs, fake: Outputs) -> Float[Tensor, ""]:
        """Return -V."""
        return -value(real, fake)

    def generator_loss(self, fake: Outputs, real: Callable[[], Outputs]) -> Float[Tensor, ""]:
        """Return E log(1 - s(D)) or -E log s(D)."""
        return -softplus(fake).mean() if self.saturating else softplus(-fake).mean()

    def log_ratio(self, said: Outputs) -> Float[Tensor, " batch"]:
        """Return D: Goodfellow et al. 2014, proposition 1."""
        return said.squeeze(1)

    def figures(self, real: Outputs, fake: Outputs) -> dict[str, Float[Tensor, ""]]:
        """Return the share of right verdicts."""
        return {"accuracy": accuracy(real, fake, undecided=0.0)}


class Variational(Objective):
    """The critic raises a lower bound on an f-divergence."""

    def __init__(self, divergence: FDivergence) -> None:
        super().__init__()
        self.divergence = divergence
        self.tells_ratio = divergence.log_ratio is not None

    def critic_loss(self, real: Outputs, fake: Outputs) -> Float[Tensor, ""]:
        """Return the bound's negative."""
        return -bound(self.divergence, real.squeeze(1), fake.squeeze(1))

    def generator_loss(self, fake: Outputs, real: Callable[[], Outputs]) -> Float[Tensor, ""]:
        """Return the part of the bound that depends on the generator."""
        return -self.divergence.composed(fake).mean()

    def log_ratio(self, said: Outputs) -> Float[Tensor, " batch"]:
        """Return log u where g(D) = f'(u), by Nowozin et al. 2016.

        Raises:
            TypeError: f' is a step.
        """
        if self.divergence.log_ratio is None:
            return super().log_ratio(said)
        return self.divergence.log_ratio(said.squeeze(1))

    def figures(self, real: Outputs, fake: Outputs) -> dict[str, Float[Tensor, ""]]:
        """Return the bound, and the share of right verdicts."""
        said = map(self.divergence.activation, (real, fake))
        return {
            "divergence": -self.critic_loss(real, fake),
            "accuracy": accuracy(*said, undecided=self.divergence.undecided),
        }


class Wasserstein(Objective):
    """The critic's D is a potential, whose slope must be bounded; then the loss is a distance."""

    is_shifted = False

    def critic_loss(self, real: Outputs, fake: Outputs) -> Float[Tensor, ""]:
        """Return E_q D - E_p D."""
        return fake.mean() - real.mean()

    def generator_loss(self, fake: Outputs, real: Callable[[], Outputs]) -> Float[Tensor, ""]:
        """Return -E_q D."""
        return -fake.mean()

    def figures(self, real: Outputs, fake: Outputs) -> dict[str, Float[Tensor, ""]]:
        """Return the distance in the units of the critic's slope."""
        return {"distance": -self.critic_loss(real, fake)}


class LeastSquares(Objective):
    """The critic regresses 1 on data and 0 on samples."""

    tells_ratio = True

    def critic_loss(self, real: Outputs, fake: Outputs) -> Float[Tensor, ""]:
        """Return half of both mean squares."""
        return 0.5 * ((real - 1).square().mean() + fake.square().mean())

    def generator_loss(self, fake: Outputs, real: Callable[[], Outputs]) -> Float[Tensor, ""]:
        """Return half the mean square by which samples miss 1."""
        return 0.5 * (fake - 1).square().mean()

    def log_ratio(self, said: Outputs) -> Float[Tensor, " batch"]:
        """Return log D/(1 - D): the best D is p/(p + q), by Mao et al. 2017.

        A D that is no share, or nearly 0 or 1, is taken for CERTAIN.
        """
        return said.squeeze(1).clamp(1 - CERTAIN, CERTAIN).logit()

    def figures(self, real: Outputs, fake: Outputs) -> dict[str, Float[Tensor, ""]]:
        """Return the share of right verdicts."""
        return {"accuracy": accuracy(real, fake, undecided=0.5)}


class Hinge(Objective):
    """The critic parts data from samples by a margin of 1 on either side, and asks no more."""

    def critic_loss(self, real: Outputs, fake: Outputs) -> Float[Tensor, ""]:
        """Return by how much the margins are missed."""
        return (1 - real).relu().mean() + (1 + fake).relu().mean()

    def generator_loss(self, fake: Outputs, real: Callable[[], Outputs]) -> Float[Tensor, ""]:
        """Return -E_q D."""
        return -fake.mean()

    def figures(self, real: Outputs, fake: Outputs) -> dict[str, Float[Tensor, ""]]:
        """Return the share of right verdicts."""
        return {"accuracy": accuracy(real, fake, undecided=0.0)}


class MeanDiscrepancy(Objective):
    """The critic finds features in which data and samples have different kernel means."""

    is_shifted = False

    def __init__(self, kernel: Radial, *, outputs: int) -> None:
        super().__init__(outputs=outputs)
        self.kernel = kernel

    def critic_loss(self, real: Outputs, fake: Outputs) -> Float[Tensor, ""]:
        """Return the unbiased MMD^2's negative."""
        return -unbiased_mmd(self.kernel, real, fake)

    def generator_loss(self, fake: Outputs, real: Callable[[], Outputs]) -> Float[Tensor, ""]:
        """Return the unbiased MMD^2."""
        return unbiased_mmd(self.kernel, real(), fake)

    def witness(self, at: Outputs, real: Outputs, fake: Outputs) -> Float[Tensor, " batch"]:
        """Return the witness of these events and samples."""
        return witness(self.kernel, at, real, fake)

    def figures(self, real: Outputs, fake: Outputs) -> dict[str, Float[Tensor, ""]]:
        """Return the discrepancy."""
        return {"squared_mmd": unbiased_mmd(self.kernel, real, fake)}


def objective(name: Name, *, features: int) -> Objective:
    """Return an objective by its name.

    Args:
        name: What a recipe calls it.
        features: Of an MMD, how many the critic finds.
    """
    if name in DIVERGENCES:
        return Variational(DIVERGENCES[name])
    if name in KERNELS:
        return MeanDiscrepancy(KERNELS[name], outputs=features)
    if name == "wasserstein":
        return Wasserstein()
    if name == "least-squares":
        return LeastSquares()
    if name == "hinge":
        return Hinge()
    return Logistic(saturating=name == "minimax")


def of_a_kernel(game: Objective) -> Radial:
    """Return the kernel of an objective that has one.

    Raises:
        TypeError: It has none; a configuration that lets this happen has a bug.
    """
    if not isinstance(game, MeanDiscrepancy):
        raise TypeError(f"expected an MMD; got {type(game).__name__}. This is a bug.")
    return game.kernel


def is_mmd(name: Name) -> bool:
    """Return whether a critic of this objective finds features."""
    return name in KERNELS


def tells_ratio(name: Name) -> bool:
    """Return whether the best critic of this objective tells p/q."""
    return objective(name, features=1).tells_ratio


def has_kink(name: Name) -> bool:
    """Return whether the kernel of this objective has no curvature at 0."""
    return name in KERNELS and KERNELS[name].curvature is None
