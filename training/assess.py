"""Judging a published bundle once more: `python -m training evaluate models/NAME`.

The model is restored from its graphs. What the test split says of it and of its samples, with more
draws or by other estimators, replaces the figures of the same names in its manifest and its card.
Graphs and golden vectors stay as they are.
"""

import argparse
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from service import bundle
from service.bundle import MANIFEST, Bundle
from service.manifest import Figure
from training import convergence, data, marginal
from training.annealing import Effort
from training.card import CARD, DIAGNOSTICS, with_quality
from training.data import Batch, Data
from training.diagnostics import draw_diagnostics
from training.evaluate import EvaluateConfig, evaluate
from training.evidence import Evidence
from training.family import Family
from training.figures import merged
from training.latent import LatentModel
from training.loop import choose_device
from training.marginal import Events
from training.pictures import png
from training.quality import with_error
from training.restore import recipe_of, restore
from training.samples import Compared

DRAWS = 5000
"""Of z for each event, if no other number is asked for: that of Burda et al. 2016, section 5."""
LEAST = {
    "draws": 0, "rows": 3, "ais_rows": 3, "ais_temperatures": 1, "ais_chains": 2, "bdmc_rows": 3,
    "plot_rows": 1,
}  # fmt: skip
"""What an option must be at least, where it is given."""
PLOT_ROWS = 16
"""Test rows of the picture, if no other number is asked for."""


class AssessmentRefused(Exception):
    """The bundle cannot be judged as asked; the message says why."""


def run(options: argparse.Namespace) -> None:
    """Judge a bundle as the options say, and store and print what was found.

    Raises:
        AssessmentRefused: Something asked for cannot be had.
        service.errors.BundleInvalid: There is no sound bundle.
        training.raw.DataInvalid: The data cannot be used.
        training.restore.RestoreRefused: The model cannot be made from the bundle.
    """
    console = Console(highlight=False, soft_wrap=True)
    _require_sense(options)
    read = bundle.read(locate(options.bundle))
    if read.manifest.density.kind == "none" and options.draws:
        raise AssessmentRefused(
            f"{read.manifest.name} has no likelihood to estimate: it is a {read.manifest.family}. "
            "Leave out --draws; the other figures are of its samples."
        )

    # Its data, or others like it, and the model that was trained on it.
    described = recipe_of(read)
    source = {"source": options.data} if options.data else {}
    rows = data.load(described.data.model_copy(update=source))
    model = restore(read, rows).to(choose_device(options.device))
    # With channels last the decoder of mnist-vae takes 0.77 of the time (measured on a CPU).
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if not isinstance(model, LatentModel) and _asks_for_latents(options):
        raise AssessmentRefused(
            f"{read.manifest.name} has no p(x|z): --prior, --ais-rows, --bdmc-rows and --plot are "
            "for latent-variable models."
        )
    console.print(f"{read.manifest.name} version {read.manifest.version}: its weights repeat "
                  f"its golden vectors in float64", markup=False)  # fmt: skip
    console.print(rows.description, markup=False)

    # What the test split says, in figures and in a picture.
    judged = described.evaluate
    usual = DRAWS if isinstance(model, LatentModel) else judged.draws or model.usual_draws
    draws = usual if options.draws is None else options.draws
    config = judged.model_copy(update={"draws": draws or None, "rows": options.rows or judged.rows})
    compared: list[Compared] = []
    figures = [*_figures(model, rows, config, options, console, compared.append)]
    if rows.sha256 != read.manifest.provenance.data_sha256:
        figures = [_said_of(figure, rows.description) for figure in figures]
        compared = []  # Its picture is beside the rows that the model learnt from.
    console.print(table(figures, on=f"{read.manifest.name} on the test split"))
    try:
        store(read, figures, [png(draw_diagnostics(each)) for each in compared])
    except OSError as error:
        raise AssessmentRefused(
            f"{read.folder}: the figures cannot be stored ({error.strerror or error})"
        ) from error
    console.print(f"stored in {read.folder / MANIFEST} and {CARD}", markup=False)
    if options.plot and isinstance(model, LatentModel):
        _write(_picture(model, rows.test, draws, options, console), options.plot)
        console.print(f"drawn {options.plot}", markup=False)


def _require_sense(options: argparse.Namespace) -> None:
    """Raise where an option cannot be meant.

    Raises:
        AssessmentRefused: Naming it.
    """
    for name, least in LEAST.items():
        value = getattr(options, name)
        if value is not None and value < least:
            option = name.replace("_", "-")
            raise AssessmentRefused(f"--{option}: expected {least} or more; got {value}")
    _require_use(options)
    if options.plot:
        _require_place(options.plot)
    if options.plot and _effort(options).chains < convergence.GROUPS:
        raise AssessmentRefused(
            f"--plot: expected --ais-chains {convergence.GROUPS} or more, to see how estimates "
            f"vary; got {options.ais_chains}"
        )
    if options.device == "cuda" and not torch.cuda.is_available():
        raise AssessmentRefused("--device cuda: PyTorch finds no CUDA device; say cpu")


def _require_use(options: argparse.Namespace) -> None:
    """Raise where an option would do nothing."""
    anneals = options.ais_rows or options.bdmc_rows or options.plot
    if (options.ais_temperatures or options.ais_chains) and not anneals:
        raise AssessmentRefused(
            "--ais-temperatures and --ais-chains: nothing is annealed; give --ais-rows, "
            "--bdmc-rows or --plot too"
        )
    if options.draws == 0 and _asks_for_latents(options):
        raise AssessmentRefused(
            "--draws 0: no likelihood is estimated; leave out --prior, --ais-*, --bdmc-*, --plot"
        )
    if options.plot_rows and not options.plot:
        raise AssessmentRefused("--plot-rows: nothing is drawn; give --plot too")


def _require_place(picture: Path) -> None:
    """Raise where a picture cannot be written, which its minutes of work would only then show."""
    if not picture.absolute().parent.is_dir():
        raise AssessmentRefused(f"--plot {picture}: there is no folder {picture.parent}")
    if picture.is_dir():
        raise AssessmentRefused(f"--plot {picture}: this is a folder; name a file")
    if not os.access(picture if picture.exists() else picture.absolute().parent, os.W_OK):
        raise AssessmentRefused(f"--plot {picture}: cannot be written (permission denied)")


def _effort(options: argparse.Namespace) -> Effort:
    usual = Effort()
    return Effort(
        options.ais_temperatures or usual.temperatures, options.ais_chains or usual.chains
    )


def _asks_for_latents(options: argparse.Namespace) -> bool:
    return bool(options.prior or options.ais_rows or options.bdmc_rows or options.plot)


def locate(path: Path) -> Path:
    """Return the folder of a version, of `models/NAME` the newest.

    Raises:
        AssessmentRefused: There is none.
    """
    folder = path.absolute()
    if (folder / MANIFEST).exists():
        return folder
    newest = next(iter(bundle.versions(folder.parent, folder.name)), None)
    if newest is None:
        raise AssessmentRefused(f"{path}: no bundle here; give models/NAME or models/NAME/VERSION")
    return folder / str(newest)


def _figures(
    model: Family,
    rows: Data,
    config: EvaluateConfig,
    options: argparse.Namespace,
    console: Console,
    show: Callable[[Compared], None],
) -> Iterator[Figure]:
    """Yield the figures of every evaluation, and then those that were asked for besides."""
    events, draws = min(config.rows, len(rows.test)), config.draws or model.usual_draws
    if model.interface.density.kind == "none" or options.draws == 0:
        console.print("samples beside test rows ...")
        yield from evaluate(model, rows, config, likelihood=False, show=show)
    else:
        with progress(console, f"likelihood, {draws:,} draws", events) as advance:
            yield from evaluate(model, rows, config, advance=advance, show=show)
    if not isinstance(model, LatentModel):
        return
    torch.manual_seed(config.seed)
    if options.prior:
        asked = Events.of(model, rows.test[:events])
        with progress(console, f"{draws:,} draws of the prior", events) as advance:
            found = marginal.by_prior(asked, draws, advance)
        yield _nats("draws of the prior", found, f"{found.draws:,} draws of the prior")
    effort = _effort(options)
    if options.ais_rows:
        yield _annealed(model, rows.test[: options.ais_rows], draws, effort, console)
    if options.bdmc_rows:
        with progress(console, "annealing simulated events", options.bdmc_rows) as advance:
            low, high = marginal.sandwich(model, options.bdmc_rows, effort, advance)
        yield _mean(
            "gap of AIS on simulated events",
            high - low,
            f"between bounds of log p(x) from both sides (BDMC); {_words(effort)}",
        )


def _annealed(
    model: LatentModel, test: Batch, draws: int, effort: Effort, console: Console
) -> Figure:
    """Return the figure of annealing, with what the encoder says of the same events beside it."""
    events = Events.of(model, test)
    with progress(console, f"annealing, {_words(effort)}", len(test)) as advance:
        found = marginal.by_annealing(events, effort, advance)
    note = _words(effort)
    if model.interface.posterior:
        other = -marginal.by_posterior(events, draws, lambda _: None).mean[0]
        note += f"; {draws:,} importance-weighted draws say {other:.2f} of the same events"
    return _nats("AIS", found, note)


def _words(effort: Effort) -> str:
    return f"{effort.chains} chains of {effort.temperatures:,} temperatures"


def _nats(how: str, found: Evidence, note: str) -> Figure:
    note = f"an upper bound on average: {note}"
    if math.isfinite(found.chance):  # else there was one draw, which has no error to tell
        note += f"; of its error the draws make {found.chance:.2g}"
    return _mean(f"negative log-likelihood, {how}", -found.log_p, note)


def _mean(name: str, values: torch.Tensor, note: str) -> Figure:
    return Figure(
        name=name,
        value=values.mean().item(),
        standard_error=values.std().item() / len(values) ** 0.5,
        n=len(values),
        unit="nats per event",
        note=note,
    )


def _said_of(figure: Figure, description: str) -> Figure:
    """Return a figure that says which other data it is of."""
    note = f"{figure.note}; of {description}" if figure.note else f"of {description}"
    return figure.model_copy(update={"note": note})


def store(read: Bundle, figures: Sequence[Figure], pictures: Sequence[bytes]) -> None:
    """Put figures into a bundle's manifest and its card, and their picture, if any, beside those.

    Each file is replaced at once, and the manifest last. Figures of the same names are replaced,
    and the others stay. A picture of figures that are gone does not, nor does the card's link.
    """
    found = merged(read.manifest.evaluation, figures)
    manifest = read.manifest.model_copy(update={"evaluation": found})
    card, picture = read.folder / CARD, read.folder / DIAGNOSTICS
    for content in pictures:
        _replace(picture, content)
    if card.exists():
        text = card.read_text(encoding="utf-8")
        _replace(card, with_quality(text, manifest, diagnosed=bool(pictures)).encode())
    if not pictures:
        picture.unlink(missing_ok=True)
    _replace(read.folder / MANIFEST, (manifest.model_dump_json(indent=2) + "\n").encode())


def _replace(path: Path, content: bytes) -> None:
    """Give a file a new content at once, on its disk."""
    # Beside the version and hidden, as `bundle.publish` does: a service looks at each file in it.
    place, name = tempfile.mkstemp(prefix=".figures-", dir=path.parent.parent)
    try:
        with open(place, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, (path.parent / MANIFEST).stat().st_mode)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def _picture(
    model: LatentModel, test: Batch, draws: int, options: argparse.Namespace, console: Console
) -> bytes:
    """Return the picture of the estimators over the effort that each is given, as a PNG file."""
    events = Events.of(model, test[: options.plot_rows or PLOT_ROWS])
    effort = _effort(options)
    steps = sum(convergence.ladder(effort.temperatures)) * len(events.batch)
    series = {"prior": convergence.sampled(events, Events.prior, draws)}
    if model.interface.posterior:
        series["posterior"] = convergence.sampled(events, Events.posterior, draws)
    with progress(console, "drawing: annealing, temperatures", steps) as advance:
        series["annealing"] = convergence.annealed(events, effort, advance)
    name = locate(options.bundle).parent.name
    return png(convergence.draw(series, title=name, events=len(events.batch)))


def _write(picture: bytes, path: Path) -> None:
    try:
        path.write_bytes(picture)
    except OSError as error:
        raise AssessmentRefused(
            f"--plot {path}: cannot be written ({error.strerror or error}); the figures are stored"
        ) from error


@contextmanager
def progress(console: Console, what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar while something is done, or a line where there is no terminal."""
    if not console.is_terminal:
        console.print(f"{what}: {total:,} ...", markup=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    bar = Bar(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal)
    with bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.advance(task, done)


def table(figures: Sequence[Figure], *, on: str) -> Table:
    """Return figures as a table for a terminal."""
    shown = Table(on, "value", "unit", "n")
    for figure in figures:
        # A name may have brackets, as E[z|x].
        shown.add_row(escape(figure.name), with_error(figure), figure.unit, f"{figure.n:,}")
    return shown


def parser() -> argparse.ArgumentParser:
    """Return the parser of `python -m training evaluate`."""
    made = argparse.ArgumentParser(
        prog="python -m training evaluate",
        description="Compare samples of a published model with test rows, estimate its likelihood "
        "with more draws or by other estimators, and store the figures in its manifest and card.",
    )
    made.add_argument(
        "bundle", type=Path, metavar="models/NAME[/VERSION]", help="which; else the newest version"
    )
    made.add_argument(
        "--data", metavar="SOURCE", help="in place of the recipe's data.source; its test split"
    )
    made.add_argument(
        "--draws",
        type=int,
        metavar="K",
        help="draws of z for each event (default: 5000; of a flow's noise: the recipe's); 0: "
        "leave its likelihood as it is",
    )
    made.add_argument(
        "--rows", type=int, metavar="N", help="test rows, the first (default: the recipe's)"
    )
    made.add_argument(
        "--prior", action="store_true", help="also the naive estimate, whose z the prior draws"
    )
    made.add_argument(
        "--ais-rows",
        type=int,
        metavar="N",
        help="also annealed importance sampling, of so many test rows",
    )
    made.add_argument(
        "--bdmc-rows",
        type=int,
        metavar="N",
        help="also how far apart its bounds from below and above are, on so many simulated events",
    )
    made.add_argument("--ais-temperatures", type=int, metavar="T", help="of a path (default: 500)")
    made.add_argument("--ais-chains", type=int, metavar="C", help="of each event (default: 16)")
    made.add_argument(
        "--plot",
        type=Path,
        metavar="FILE.png",
        help="draw the estimators over the effort that they are given",
    )
    made.add_argument("--plot-rows", type=int, metavar="N", help="test rows of that (default: 16)")
    made.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default: auto)"
    )
    return made
