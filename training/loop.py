"""The training loop: epochs of turns, a moving average, a validation score, checkpoints.

It reads from top to bottom: `TrainConfig` says what can be chosen, `fit` trains, and the few
functions below it are the steps of `fit` in the order of their use. It knows no family.
"""

import copy
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import torch
from jaxtyping import Int
from pydantic import Field
from torch import Tensor

from service.interface import Frozen
from training.checkpoint import CHECKPOINT, GRADIENT_NORM, Fit, Run
from training.data import Batch, Data
from training.family import Family, Score, Turn
from training.progress import Progress
from training.trace import Trace

CHECKPOINT_EVERY_S = 30.0
"""Beside the one at each epoch's end: so much work a kill can cost. A guess at what annoys."""
VALIDATION_ROWS = 1024
"""Rows a chunk of the validation split has at most. A GAN's score is a two-sample statistic
and not a mean over rows, so chunks are as large as memory allows."""
WARM_UP_OF_THE_AVERAGE = 10
"""The average's decay is at most (1 + t) / (10 + t) after t steps, so that it forgets the
untrained weights. The constant is the usual one."""


class TrainingFailed(Exception):
    """Training cannot go on; the message says where it stopped and what to try."""


class TrainConfig(Frozen):
    """How to train, whatever the family."""

    epochs: int = Field(ge=1, description="Passes over the training split.")
    batch_size: int = Field(
        default=128,
        ge=1,
        description="Rows a move: a step has one, or as many as a GAN's critic_steps. A pass drops "
        "the rows that fill no step, others each time.",
    )
    learning_rate: float = Field(
        default=1e-3, gt=0, description="Step size of AdamW after warm-up; a turn may scale it."
    )
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        default=(0.9, 0.999), description="Decay of AdamW's two moments. A GAN wants [0.0, 0.99]."
    )
    weight_decay: float = Field(
        default=0.0, ge=0, description="Decoupled weight decay of AdamW. 0 makes it Adam."
    )
    schedule: Literal["cosine", "constant"] = Field(
        default="cosine", description="After warm-up: fall to 0 along a cosine, or stay."
    )
    warmup_steps: int = Field(
        default=0, ge=0, description="Steps in which the learning rate rises from 0 in a line."
    )
    gradient_clip: float = Field(
        default=0.0, ge=0, description="Largest norm of a turn's gradient. 0 clips nothing."
    )
    ema: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Decay per step of the moving average of the weights, which is what is "
        "validated and exported. 0 keeps no average.",
    )
    precision: Literal["float32", "bf16"] = Field(
        default="float32", description="bf16 trains under autocast; scores and exports do not."
    )
    seed: int = Field(
        default=0, ge=0, lt=2**31, description="Of initial weights, order of rows and noise."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="auto takes CUDA where it works."
    )
    patience: int = Field(
        default=0, ge=0, description="Stop after so many epochs without a better score. 0: never."
    )


def fit(model: Family, data: Data, config: TrainConfig, *, folder: Path, key: str) -> Fit:
    """Return the history of a training run; leave its best weights in `model`, on the CPU.

    A run that was killed goes on from its checkpoint in `folder` and ends with the same weights,
    bit for bit, as one that never was: the checkpoint holds all state there is, and the order of
    rows is a function of (seed, epoch). The checkpoint stays until the caller deletes it.

    Args:
        model: Changed in place.
        data: Its test split is not touched.
        config: The recipe's section `train`.
        folder: Of this run: checkpoint, TensorBoard logs, the latest samples.
        key: Digest of all that shapes the weights. A checkpoint with another key is refused.

    Raises:
        TrainingFailed: A loss, a gradient or a score is not finite, or there is no such device.
        CheckpointRefused: `folder` belongs to another recipe or to other data.
    """
    device = choose_device(config.device)
    torch.manual_seed(config.seed)
    model.to(device).train()
    train, validation = data.train.to(device), data.validation.to(device)
    turns = model.turns()
    # Before the average is made, which then has it too. A run that is resumed writes over both.
    first = permutation(len(train), seed=config.seed, epoch=0)[: config.batch_size]
    model.prepare(train[first.to(device)])
    steps = max(1, len(train) // (config.batch_size * _moves(turns)))
    run = Run(
        model=model,
        average=copy.deepcopy(model),
        optimisers={turn.name: _adam(turn, config) for turn in turns},
        path=folder / CHECKPOINT,
        key=key,
        trace=Trace(),
    )
    run.resume()
    with Progress(run, data, folder=folder, epochs=config.epochs, steps=steps) as progress:
        while not _finished(run, config):
            _train_epoch(run, turns, train, config=config, steps=steps, progress=progress)
            score = validate(run.average, validation, seed=config.seed)
            if not math.isfinite(score.value):
                raise TrainingFailed(
                    f"epoch {run.epoch + 1}: the validation score is {score.value}. {_ADVICE}"
                )
            run.close_epoch(score)
            run.save()
            progress.show_epoch(last=_finished(run, config))
    model.load_state_dict(run.best)
    model.to("cpu").eval()
    return run.summary(_name(device))


def choose_device(wanted: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """Return the device to train on; never another than the one that was asked for.

    Raises:
        TrainingFailed: CUDA was asked for by name and PyTorch finds none.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise TrainingFailed(
            'train.device: "cuda" was asked for, and PyTorch finds no CUDA device. '
            'Install its CUDA build, or say device = "cpu".'
        )
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(wanted)


def _train_epoch(
    run: Run,
    turns: tuple[Turn, ...],
    train: Batch,
    *,
    config: TrainConfig,
    steps: int,
    progress: Progress,
) -> None:
    """Train for what is left of the epoch that `run` is in."""
    run.model.train()
    order = permutation(len(train), seed=config.seed, epoch=run.epoch).to(train.x.device)
    saved = time.monotonic()
    while run.step < steps:
        parts = rows_of(order, run.step, size=config.batch_size, moves=_moves(turns))
        batches = [train[part] for part in parts]
        factor = rate(config, run.epoch * steps + run.step, steps)
        for turn in turns:
            for batch in batches[: turn.times]:
                found = _take(run, turn, batch, config=config, factor=factor)
                run.add({f"{turn.name}/{name}": each / turn.times for name, each in found.items()})
        run.average_weights(_decay(config.ema, run.epoch * steps + run.step))
        run.close_step(steps)
        progress.show_step()
        if time.monotonic() - saved > CHECKPOINT_EVERY_S:
            run.save()
            saved = time.monotonic()


def _moves(turns: tuple[Turn, ...]) -> int:
    """Return how many batches a step takes: each move of a turn has its own."""
    return max(turn.times for turn in turns)


def rows_of(
    order: Int[Tensor, " rows"], step: int, *, size: int, moves: int
) -> tuple[Int[Tensor, " batch"], ...]:
    """Return the rows of each move of a step: other ones, as far as there are enough.

    Of fewer than size x moves rows, moves share some. A turn of fewer moves takes the first parts,
    so a generator sees the rows of its critic's first move.

    Example:
        >>> rows_of(torch.arange(10), 1, size=2, moves=2)
        (tensor([4, 5]), tensor([6, 7]))
    """
    size = min(size, len(order))
    start = step * size * moves
    places = torch.arange(start, start + size * moves, device=order.device) % len(order)
    moved: tuple[Tensor, ...] = order[places].split(size)
    return moved


def permutation(rows: int, *, seed: int, epoch: int) -> Int[Tensor, " rows"]:
    """Return the order of rows in an epoch, whatever was drawn before it."""
    # A step of 2^31 keeps the epochs of different seeds apart.
    generator = torch.Generator().manual_seed(seed + (epoch + 1) * 2**31)
    return torch.randperm(rows, generator=generator)


def rate(config: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """Return the factor on the learning rate at a step, counted over all epochs.

    It rises in a line over the warm-up and then stays at 1 or falls to 0 along a half cosine.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    falling = max(1, config.epochs * steps_per_epoch - config.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - config.warmup_steps) / falling)))


def _take(
    run: Run, turn: Turn, batch: Batch, *, config: TrainConfig, factor: float
) -> Mapping[str, float]:
    """Make one move of a turn and return its losses and its gradient's norm, unclipped."""
    optimiser = run.optimisers[turn.name]
    for group in optimiser.param_groups:
        group["lr"] = config.learning_rate * turn.rate * factor
    optimiser.zero_grad(set_to_none=True)
    device = batch.x.device.type
    with torch.autocast(device, torch.bfloat16, enabled=config.precision == "bf16"):
        losses = turn.loss(batch)
    # A loss may reach the other player's parameters: their gradients are not even computed.
    losses["loss"].backward(inputs=turn.parameters)
    norm = torch.nn.utils.clip_grad_norm_(turn.parameters, config.gradient_clip or math.inf)
    values = {name: value.item() for name, value in losses.items()} | {GRADIENT_NORM: norm.item()}
    for what, value in (("loss", values["loss"]), ("gradient's norm", values[GRADIENT_NORM])):
        if not math.isfinite(value):
            raise TrainingFailed(
                f"turn {turn.name!r}, epoch {run.epoch + 1}, step {run.step + 1}: "
                f"the {what} is {value}. {_ADVICE}"
            )
    optimiser.step()
    if turn.bound is not None:
        with torch.no_grad():
            for parameter in turn.parameters:
                parameter.clamp_(-turn.bound, turn.bound)
    return values


_ADVICE = (
    "Try a lower train.learning_rate, a train.gradient_clip, more train.warmup_steps, or "
    'train.precision = "float32".'
)


def _decay(decay: float, step: int) -> float:
    return min(decay, (1 + step) / (WARM_UP_OF_THE_AVERAGE + step))


@torch.no_grad()
def validate(model: Family, split: Batch, *, seed: int) -> Score:
    """Return the validation score of a model, and leave no trace.

    The same random numbers are drawn each time and the generators are put back after, so
    scores differ by the weights alone and training does not see that it was watched.
    """
    model.eval()
    devices = [split.x.device] if split.x.device.type == "cuda" else []
    chunks = torch.arange(len(split), device=split.x.device).tensor_split(
        math.ceil(len(split) / VALIDATION_ROWS)
    )
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        scores = [(model.score(split[rows]), len(rows)) for rows in chunks]
    total = sum(score.value * rows for score, rows in scores)
    # Chunks are of other rows, so their errors are independent.
    errors = [
        score.standard_error * rows for score, rows in scores if score.standard_error is not None
    ]
    error = math.hypot(*errors) / len(split) if len(errors) == len(scores) else None
    return Score(total / len(split), error)


def _finished(run: Run, config: TrainConfig) -> bool:
    """Return whether all epochs are complete, or patience with them is at its end."""
    out_of_patience = 0 < config.patience <= run.epoch - run.best_epoch
    return run.epoch >= config.epochs or out_of_patience


def _adam(turn: Turn, config: TrainConfig) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        turn.parameters, betas=config.betas, weight_decay=config.weight_decay, fused=True
    )


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
