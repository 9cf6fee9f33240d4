"""The state of a training run, and how it survives the process."""

import os
import pickle
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.family import Family, Score
from training.trace import Point, Trace

CHECKPOINT = "checkpoint.pt"
"""The name of a run's checkpoint in its folder."""
GRADIENT_NORM = "gradient_norm"
"""What the norm of a turn's gradient is called beside its losses."""


class CheckpointRefused(Exception):
    """The run's folder holds a checkpoint that is not of this run."""


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to.

    Args:
        number: From 1.
        losses: Mean over the epoch's steps, by "turn/name"; with them go the norms of the turns'
            gradients, before any is clipped, by "turn/gradient_norm".
        score: Of the averaged weights on the validation split, to be minimised.
        wall_time_s: Since the run began, over all its sessions.
        score_error: Standard error of the score, by the choice of the validation rows. None where
            the family does not know it.
    """

    number: int
    losses: dict[str, float]
    score: float
    wall_time_s: float
    score_error: float | None = None


@dataclass(frozen=True)
class Fit:
    """What a finished run came to; the best weights are in the model."""

    history: tuple[Epoch, ...]
    best_epoch: int
    best_score: float
    wall_time_s: float
    device: str
    trace: tuple[Point, ...] = ()


@dataclass
class Run:
    """All that changes while a model trains.

    Args:
        model: Being trained.
        average: The moving average of its weights, in evaluation mode.
        optimisers: By the turn's name.
        path: Of the checkpoint.
        key: Digest of all that shapes the weights.
        trace: Of the losses and gradients, finer than the epochs.
        epoch: Epochs that are complete.
        step: Steps that are complete in the epoch after those.
        sums: Of the losses over those steps, by "turn/name".
        history: Of the complete epochs.
        best: The average's weights at `best_epoch`, on the CPU.
        wall_time_before_s: What earlier sessions took.
    """

    model: Family
    average: Family
    optimisers: dict[str, torch.optim.Optimizer]
    path: Path
    key: str
    trace: Trace
    epoch: int = 0
    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    history: list[Epoch] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    best_epoch: int = 0
    wall_time_before_s: float = 0.0
    _began: float = field(default_factory=time.monotonic)

    @property
    def wall_time_s(self) -> float:
        """Seconds since the run began, without the time between its sessions."""
        return self.wall_time_before_s + time.monotonic() - self._began

    def add(self, losses: Mapping[str, float]) -> None:
        """Add what belongs to the step that is being made to the sums of epoch and trace."""
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.trace.add(losses)

    def close_step(self, steps: int) -> None:
        """End a step of an epoch of so many."""
        self.step += 1
        self.trace.close_step(self.epoch + self.step / steps)

    def means(self) -> dict[str, float]:
        """Return the mean losses of the epoch so far."""
        return {name: total / max(1, self.step) for name, total in self.sums.items()}

    @torch.no_grad()
    def average_weights(self, decay: float) -> None:
        """Move the average towards the model: a = decay a + (1 - decay) w. Copy the buffers."""
        weights = zip(self.average.parameters(), self.model.parameters(), strict=True)
        for averaged, weight in weights:
            averaged.lerp_(weight, 1 - decay)
        buffers = zip(self.average.buffers(), self.model.buffers(), strict=True)
        for copied, buffer in buffers:
            copied.copy_(buffer)

    def close_epoch(self, score: Score) -> None:
        """Write the epoch into the history; keep the average if it is the best yet.

        The best, though its score's error would let others pass: all epochs are scored on the same
        rows with the same noise, so what they differ by is more certain than that. Keeping the
        latest within one standard error was tried on twelve GANs of `gaussians:...` (2026-11-28):
        it chose another epoch of six, with at most 0.02 more good samples, and never fewer.
        """
        losses, self.sums = self.means(), {}
        self.epoch, self.step = self.epoch + 1, 0
        if not self.best or score.value < self.history[self.best_epoch - 1].score:
            self.best_epoch = self.epoch
            # A copy: on the CPU `detach().cpu()` alone would share the average's memory.
            self.best = {
                name: value.detach().to("cpu", copy=True)
                for name, value in self.average.state_dict().items()
            }
        self.history.append(
            Epoch(self.epoch, losses, score.value, self.wall_time_s, score.standard_error)
        )

    def summary(self, device: str) -> Fit:
        """Return what the run came to, once it has an epoch."""
        return Fit(
            history=tuple(self.history),
            best_epoch=self.best_epoch,
            best_score=self.history[self.best_epoch - 1].score,
            wall_time_s=self.wall_time_s,
            device=device,
            trace=self.trace.until(float(self.epoch)),
        )

    def save(self) -> None:
        """Replace the checkpoint in one move, so that a kill leaves the old one or the new."""
        state = {
            "key": self.key,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimisers": {name: one.state_dict() for name, one in self.optimisers.items()},
            "random": torch.get_rng_state(),
            "random_cuda": _cuda_random_state(self._device),
            "epoch": self.epoch,
            "step": self.step,
            "sums": self.sums,
            "trace": asdict(self.trace),
            "history": [asdict(epoch) for epoch in self.history],
            "best": self.best,
            "best_epoch": self.best_epoch,
            "wall_time_s": self.wall_time_s,
        }
        temporary = self.path.with_suffix(".tmp")
        torch.save(state, temporary)
        os.replace(temporary, self.path)

    def resume(self) -> bool:
        """Take up the checkpoint where there is one; return whether there was.

        Raises:
            CheckpointRefused: It is another run's, or it cannot be read.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self.path.exists():
            return False
        state = self._read()
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        for name, optimiser in self.optimisers.items():
            optimiser.load_state_dict(state["optimisers"][name])
        torch.set_rng_state(state["random"])
        if self._device.type == "cuda" and isinstance(state["random_cuda"], Tensor):
            torch.cuda.set_rng_state(state["random_cuda"], self._device)
        self.epoch, self.step, self.sums = state["epoch"], state["step"], state["sums"]
        points = [Point(**point) for point in state["trace"]["points"]]
        self.trace = Trace(**{**state["trace"], "points": points})
        self.history = [Epoch(**epoch) for epoch in state["history"]]
        self.best, self.best_epoch = state["best"], state["best_epoch"]
        self.wall_time_before_s = state["wall_time_s"]
        return True

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _read(self) -> dict[str, Any]:
        try:
            # Weights only: a checkpoint is data, and may not run code when it is read.
            state = torch.load(self.path, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise CheckpointRefused(
                f"{self.path}: expected a checkpoint; it cannot be read ({error}). "
                "Delete it to train from the start."
            ) from error
        if state.get("key") != self.key:
            raise CheckpointRefused(
                f"{self.path}: this checkpoint is of another recipe, of other data, or of a "
                "version of the package that knows other options. Undo the change to go on with "
                "that run, delete the file to train from the start, or give this run a folder of "
                "its own with --runs."
            )
        if "trace" not in state:
            raise CheckpointRefused(
                f"{self.path}: this checkpoint is of an earlier version of the package, whose "
                "steps may have taken other rows. Finish the run with that one, or delete the file "
                "to train from the start."
            )
        return dict(state)


def _cuda_random_state(device: torch.device) -> Tensor | None:
    """Return the state of that GPU's generator alone; the others' are none of the run's."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else None
