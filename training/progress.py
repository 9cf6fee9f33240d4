"""What a person sees while a model trains: a bar or lines, TensorBoard, the latest samples."""

import math
import time
from pathlib import Path
from types import TracebackType

from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from torch.utils.tensorboard import SummaryWriter

from training.checkpoint import GRADIENT_NORM, Run
from training.data import Data
from training.pictures import draw_samples, render

PICTURE_EVERY_S = 20.0
"""Between two pictures of samples, at least: one takes about half a second."""
PICTURE_SHARE = 0.05
"""Of a run's time, what pictures may take. The density of an ode can take a minute."""
LINES = 100
"""Lines a run prints at most where there is no terminal."""


class Progress:
    """Shows a run while it is open: `with Progress(...) as progress`.

    Args:
        run: What is watched; read at each call, never changed.
        data: To draw samples beside.
        folder: Where TensorBoard's files and `samples.png` go.
        epochs, steps: How many there will be, and how many steps each has.
        console: Where to write; None is standard output.
    """

    def __init__(
        self,
        run: Run,
        data: Data,
        *,
        folder: Path,
        epochs: int,
        steps: int,
        console: Console | None = None,
    ) -> None:
        self.run = run
        self.data = data
        self.folder = folder
        self.epochs = epochs
        self.steps = steps
        self.line_every = math.ceil(epochs / LINES)
        self.next_picture_s = run.wall_time_s + PICTURE_EVERY_S
        self.console = console or Console(highlight=False, soft_wrap=True)
        self.writer = SummaryWriter(str(folder), purge_step=run.epoch + 1)
        self.bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        done = run.epoch * steps + run.step
        self.task = self.bar.add_task("", total=epochs * steps, completed=done)

    def __enter__(self) -> "Progress":
        if self.run.epoch or self.run.step:
            self.console.print(
                f"resuming after {self.run.epoch} of {self.epochs} epochs"
                + (f" and {self.run.step} of {self.steps} steps" if self.run.step else ""),
                markup=False,
            )
        self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.stop()
        self.writer.close()

    def show_step(self) -> None:
        """Move the bar on and show the mean losses of the epoch so far."""
        run = self.run
        if not self.bar.disable:
            words = [f"epoch {run.epoch + 1}/{self.epochs}", _listing(run.means())]
            if run.history:
                words.append(f"validation {run.history[-1].score:.4g}")
            self.bar.update(self.task, advance=1, description=" · ".join(words))

    def show_epoch(self, *, last: bool) -> None:
        """Log the epoch that was just closed, print its line, now and then draw samples.

        Args:
            last: Whether the run ends with it: then it has its line and its samples for certain.
        """
        epoch = self.run.history[-1]
        for name, value in epoch.losses.items():
            self.writer.add_scalar(f"train/{name}", value, epoch.number)
        self.writer.add_scalar("validation/score", epoch.score, epoch.number)
        if last or epoch.wall_time_s > self.next_picture_s:
            began = time.perf_counter()
            picture = render(draw_samples(self.run.average, self.data.validation))
            Image.fromarray(picture).save(self.folder / "samples.png")
            self.writer.add_image("samples", picture, epoch.number, dataformats="HWC")
            pause_s = (time.perf_counter() - began) / PICTURE_SHARE
            self.next_picture_s = epoch.wall_time_s + max(PICTURE_EVERY_S, pause_s)
        if not self.console.is_terminal and (last or epoch.number % self.line_every == 0):
            best = " (best)" if self.run.best_epoch == epoch.number else ""
            self.console.print(
                f"epoch {epoch.number}/{self.epochs}: {_listing(epoch.losses)}, "
                f"validation {epoch.score:.5g}{best}, {epoch.wall_time_s:.0f} s",
                markup=False,
            )


def _listing(losses: dict[str, float]) -> str:
    """Return "critic 0.69, generator 1.2": each turn's "loss" goes by the turn's name.

    Gradients are for TensorBoard and for the picture of the curves: a line is short.
    """
    shown = (
        (name.removesuffix("/loss"), value)
        for name, value in losses.items()
        if not name.endswith(GRADIENT_NORM)
    )
    return ", ".join(f"{name} {value:.4g}" for name, value in shown)
