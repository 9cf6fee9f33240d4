"""Models that may keep a critic: it tells log p/q, of the data's density p and the samples' q.

Once training is over the critic goes on learning against the generator that will be published,
which is a moving average and so never was its opponent, and without what kept it from being steep:
it has nobody to teach any more. What it says is then calibrated on validation rows
(`calibration.py`), served as the graph `critic`, and used to reject samples.

Source:
    Azadi et al. 2019, arXiv:1810.06758 (rejection by a critic that was trained on).
"""

import copy
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from service.interface import ATTEMPTS
from service.manifest import Figure, Rejection
from training.calibration import Calibration, accuracy, bounded, cross_entropy
from training.data import Batch, Data
from training.discrepancy import squared_mmd
from training.family import Family
from training.loop import TrainingFailed
from training.sampling import CHUNK_ROWS, sample

BATCH, RATE = 128, 1e-3
"""Of the steps that a critic goes on learning, by Adam and along half a cosine. It plays with
nobody, so Adam's own moments will do: with a game's, (0, 0.9), accepted samples of eight Gaussians
were less even over them (measured: MMD² 0.0095 ± 0.0024 for 0.0017 ± 0.0010)."""
LOOKS = 10
"""How often in those steps the validation rows are asked: the best critic of them is kept, as one
that has few rows to learn of learns them by heart."""
CALIBRATION_ROWS = 10_000
"""Validation rows that a critic is calibrated on at most, beside as many samples."""
BOUND_ROWS = 10_000
"""Samples that the bound is measured on."""
TEST_ROWS = 2000
"""Test rows of the figures at most, as the cost of an MMD is their square."""
CALIBRATION_SEED, BOUND_SEED, TEST_SEED = 2**40, 2**40 + 1, 2**40 + 2
"""Of the samples of each, so that none is seen twice. Those of TEST_SEED go on from it."""


class RatioModel(Family):
    """A family of which a critic may be kept."""

    critic: nn.Module
    critic_finish: int
    """Steps that it goes on learning."""
    calibration: Calibration | None
    """What is made of its answers; None where it is not kept."""
    unit: float
    """Mean squared distance of two events as the critic sees them."""

    @abstractmethod
    def raw_log_ratio(
        self, x: Float[Tensor, "batch ..."], label: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, " batch"]:
        """Return log p/q of events in nats, if the critic were at its best."""

    @abstractmethod
    def critic_loss(self, batch: Batch) -> Float[Tensor, ""]:
        """Return what the critic minimises of events and as many new samples, unregularised."""

    @abstractmethod
    def enter(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        """Return events as the critic sees them."""

    def log_ratio(
        self, x: Float[Tensor, "batch ..."], label: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, " batch"]:
        """Return log p/q of events in nats, calibrated; given the label where there are any.

        Raises:
            TypeError: No critic is kept.
        """
        if self.calibration is None:
            raise TypeError("log_ratio: no critic is kept; this is a bug")
        calibrated: Tensor = self.calibration(self.raw_log_ratio(x, label))
        return calibrated

    @torch.no_grad()
    def finish(self, data: Data) -> None:
        """Let the critic learn on and calibrate it, if one is kept; the generator stays.

        Raises:
            TrainingFailed: What it says is not finite.
        """
        if self.calibration is None:
            return
        self.eval()
        self.release()
        rows = data.validation[:CALIBRATION_ROWS]
        drawn = self._drawn(len(rows), CALIBRATION_SEED, self.condition(rows))
        least = math.inf
        kept = [copy.deepcopy(part.state_dict()) for part in (self.critic, self.calibration)]
        devices = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(CALIBRATION_SEED)
            for _ in self._learning(data.train):
                self.eval()
                raw = [self._said(self.raw_log_ratio, each) for each in (rows, drawn)]
                try:
                    self.calibration.fit(*raw)
                except ValueError as error:
                    raise TrainingFailed(f"model.keep_critic: {error}. {_ADVICE}") from error
                loss, _ = cross_entropy(*map(self.calibration, raw))
                if loss < least:
                    least = loss
                    parts = self.critic, self.calibration
                    kept = [copy.deepcopy(part.state_dict()) for part in parts]
        self.critic.load_state_dict(kept[0])
        self.calibration.load_state_dict(kept[1])

    def _learning(self, train: Batch) -> Iterator[int]:
        """Train the critic, and yield how often it moved: before, and at every look."""
        yield 0
        parameters = [*self.critic.parameters()]
        optimiser = torch.optim.Adam(parameters)
        for step in range(self.critic_finish):
            falling = 0.5 * (1 + math.cos(math.pi * step / self.critic_finish))
            optimiser.param_groups[0]["lr"] = RATE * falling
            self.train()
            batch = train[torch.randint(len(train), (BATCH,))].to(self._device)
            with torch.enable_grad():
                gradients = torch.autograd.grad(self.critic_loss(batch), parameters)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            optimiser.step()
            if (step + 1) * LOOKS % self.critic_finish < LOOKS:
                yield step + 1
        optimiser.zero_grad()

    @torch.no_grad()
    def rejection(self) -> Rejection | None:
        """Return what samples are rejected by, if a critic is kept, measured on new ones."""
        if self.calibration is None:
            return None
        self.eval()
        drawn = self._drawn(BOUND_ROWS, BOUND_SEED, None)
        told = self._said(self.log_ratio, drawn)
        log_bound, acceptance = bounded(told, drawn.label)
        return Rejection(log_bound=log_bound, acceptance=acceptance, rows=BOUND_ROWS)

    def own_figures(self, test: Batch) -> tuple[Figure, ...]:
        """Return what a kept critic knows of test rows, and what rejection makes of samples."""
        rejection = self.rejection()
        if rejection is None:
            return ()
        rows = test[:TEST_ROWS]
        asked = self.condition(rows)
        drawn = self._drawn(len(rows), TEST_SEED, asked)
        raw, calibrated = (
            [self._said(how, each) for each in (rows, drawn)]
            for how in (self.raw_log_ratio, self.log_ratio)
        )
        accepted = self._accepted(len(rows), asked, rejection.log_bound)
        return (
            *_verdicts("as trained", *raw),
            *_verdicts("calibrated", *calibrated),
            self._discrepancy("of samples", rows, drawn, "as they come"),
            self._discrepancy(
                "of accepted samples",
                rows,
                accepted,
                f"by `rejection`, which accepts {rejection.acceptance:.3f} of all",
            ),
        )

    def _accepted(self, rows: int, asked: Tensor | None, log_bound: float) -> Batch:
        """Return the first accepted of some candidates for each row, or else the likeliest."""
        generator = torch.Generator().manual_seed(TEST_SEED)
        waiting = torch.arange(rows)
        kept, best = torch.empty(0), torch.full((rows,), -torch.inf, dtype=torch.float64)
        for attempt in range(1, ATTEMPTS + 1):
            condition = None if asked is None else asked[waiting]
            drawn = self._drawn(len(waiting), TEST_SEED + attempt, condition)
            told = self._said(self.log_ratio, drawn)
            passed: Bool[Tensor, " waiting"] = (
                torch.rand(len(told), generator=generator, dtype=told.dtype).log()
                < told - log_bound
            )
            better = passed | (told > best[waiting])
            kept = drawn.x.clone() if attempt == 1 else kept
            kept[waiting[better]], best[waiting[better]] = drawn.x[better], told[better]
            waiting = waiting[~passed]
            if not len(waiting):
                break
        return Batch(kept, asked)

    def _discrepancy(self, which: str, test: Batch, drawn: Batch, how: str) -> Figure:
        """Return the squared MMD between test rows and samples of the same labels."""
        real, fake = (
            self.enter(each.x.to(self._device)).flatten(1).cpu() for each in (test, drawn)
        )
        found = squared_mmd(real, fake, unit=self.unit)
        return Figure(
            name=f"critic: MMD² {which}",
            value=found.value,
            standard_error=found.standard_error,
            n=len(real),
            note=f"to test rows; {how}",
        )

    def _drawn(self, rows: int, seed: int, condition: Tensor | None) -> Batch:
        return sample(self, rows=rows, seed=seed, condition=condition)

    def _said(
        self, how: Callable[[Tensor, Tensor | None], Tensor], batch: Batch
    ) -> Float[Tensor, " rows"]:
        """Return the log ratios of rows by one of the two, in float64 on the CPU."""
        parts = (batch[rows] for rows in torch.arange(len(batch)).split(CHUNK_ROWS))
        on_device = (part.to(self._device) for part in parts)
        return torch.cat([how(each.x, self.condition(each)).double().cpu() for each in on_device])

    @property
    def _device(self) -> torch.device:
        return next(self.parameters()).device


_ADVICE = "Try another model.regulariser, or fewer model.critic_finish."


def _verdicts(
    how: str, real: Float[Tensor, " rows"], fake: Float[Tensor, " rows"]
) -> Iterator[Figure]:
    """Yield how well test rows are told from samples."""
    for name, (value, error), unit, note in (
        ("cross-entropy", cross_entropy(real, fake), "nats", "0.693 is of who never knows"),
        ("accuracy", accuracy(real, fake), "fraction", "0.5 is of who never knows"),
    ):
        yield Figure(
            name=f"critic: {name}, {how}",
            value=value,
            standard_error=error,
            n=2 * len(real),
            unit=unit,
            note=f"as many test rows as samples; {note}",
        )
