"""From a recipe to a published bundle: `python -m training RECIPE.toml`.

And a bundle once more to its figures: `python -m training evaluate models/NAME`. And the network
whose features some figures are of: `python -m training features`.

Load the data, build the model, fit it, judge the best weights on the test split, export,
publish. Killed half-way and started again with the same command, it goes on where it was.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from service import bundle
from service.errors import BundleInvalid
from service.manifest import Manifest
from training import assess, data, export, extractor, recipe
from training.card import CARD, DIAGNOSTICS, card, sample_command, score_name
from training.checkpoint import CHECKPOINT, CheckpointRefused
from training.curves import draw_curves
from training.data import Data
from training.diagnostics import draw_diagnostics
from training.evaluate import evaluate
from training.family import Family
from training.loop import TrainingFailed, choose_device, fit
from training.pictures import draw_samples, png
from training.raw import DataInvalid
from training.restore import RestoreRefused
from training.samples import Compared

REFUSED = (
    recipe.RecipeInvalid,
    DataInvalid,
    CheckpointRefused,
    TrainingFailed,
    BundleInvalid,
    RestoreRefused,
    assess.AssessmentRefused,
    extractor.ExtractorInvalid,
)
"""What a person can do something about: a sentence, and no trace."""
COMMANDS = {
    "evaluate": (assess.parser, assess.run),
    "features": (extractor.parser, extractor.run),
}
"""What else can be done than to train by a recipe."""
INTERRUPTED = 130
"""What shells answer after Ctrl-C: 128 + SIGINT."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit status: 0 done, 2 refused in one sentence, 130 interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    asked = COMMANDS.get(words[0]) if words else None
    try:
        if asked:
            parser, command = asked
            command(parser().parse_args(words[1:]))
        else:
            run(_parser().parse_args(words))
    except REFUSED as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        after = (
            "Nothing was stored."
            if asked
            else "The same command again goes on from the checkpoint."
        )
        print(f"\nStopped. {after}", file=sys.stderr)
        return INTERRUPTED
    return 0


def run(options: argparse.Namespace) -> None:
    """Train, judge and publish what the options say."""
    console = Console(highlight=False, soft_wrap=True)
    chosen = recipe.read(options.recipe, overrides=options.set, quick=options.quick)

    # Data, and a model that fits it.
    rows = data.load(chosen.data)
    model = recipe.build(chosen, rows)
    size = sum(parameter.numel() for parameter in model.parameters())
    console.print(f"{chosen.name}: {rows.description}", markup=False)
    console.print(f"{chosen.model.family} of {size:,} parameters", markup=False)

    # Training; the model comes back with its best weights.
    folder = options.runs / chosen.name
    trained = fit(model, rows, chosen.train, folder=folder, key=chosen.key(rows))
    console.print(
        f"best validation score {trained.best_score:.5g} in epoch {trained.best_epoch} of "
        f"{len(trained.history)}, after {trained.wall_time_s:.0f} s. Now the test split ...",
        markup=False,
    )

    # What is fitted to the finished model, and judgement on the test split.
    finishing_s = _finish(model.to(choose_device(chosen.train.device)), rows, console)
    compared: list[Compared] = []
    figures = evaluate(model, rows, chosen.evaluate, show=compared.append)
    model.to("cpu")

    # The bundle: graphs held to float64, a card, pictures.
    console.print("exporting, and comparing with float64 ...")
    manifest, files = export.build(
        model.graphs(),
        model.interface,
        name=chosen.name,
        title=chosen.title,
        licence=chosen.licence,
        version=max(bundle.versions(options.out, chosen.name), default=0) + 1,
        events=rows.test.x.numpy(),
        figures=figures,
        rejection=model.rejection(),
        provenance=export.describe_origin(
            recipe=chosen.model_dump(mode="json", exclude_unset=True, exclude={"quick"}),
            data=rows.description,
            data_sha256=rows.sha256,
            seed=chosen.train.seed,
            wall_time_s=trained.wall_time_s + finishing_s,
            device=trained.device,
            parameters=size,
        ),
    )
    pictures = {
        "samples.png": png(draw_samples(model, rows.test)),
        "curves.png": png(draw_curves(trained, score=score_name(manifest))),
    }
    for each in compared:
        pictures[DIAGNOSTICS] = png(draw_diagnostics(each))
    text = card(manifest, trained, diagnosed=bool(compared))
    place = bundle.publish(options.out, manifest, {**files, **pictures, CARD: text.encode()})
    # Only now: had anything above failed, the same command would begin after the training.
    (folder / CHECKPOINT).unlink()
    _report(console, manifest, place)


def _finish(model: Family, rows: Data, console: Console) -> float:
    """Fit what is fitted to a finished model, and return the seconds that it took."""
    began = time.monotonic()
    model.finish(rows)
    took_s = time.monotonic() - began
    if took_s > 1:
        console.print(f"the critic that is kept learnt on for {took_s:.0f} s", markup=False)
    return took_s


def _report(console: Console, manifest: Manifest, place: Path) -> None:
    """Print the figures, where the bundle is and how to ask it for a sample."""
    console.print(assess.table(manifest.evaluation, on="on the test split"))
    console.print(f"published {place}", markup=False)
    models = shlex.quote(str(place.parent.parent))
    console.print("serve it and ask for samples:")
    console.print(f"  PUSHFORWARD_MODELS={models} python -m service", markup=False)
    console.print(f"  {sample_command(manifest)}", markup=False)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training",
        description="Train a generative model by a recipe and publish it as a bundle. A published "
        "one is judged once more by: python -m training evaluate models/NAME; see its --help.",
        epilog="The keys of a recipe:\n\n" + recipe.describe().replace("%", "%%"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", type=Path, metavar="RECIPE.toml", help="what to train, and how")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="a.b=VALUE",
        help="put a value into the recipe, as in train.epochs=3; may be repeated",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a trial of the whole path in under a minute, with the recipe's own quick values; "
        "published as NAME-quick",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("models"), help="folder of bundles (default: models)"
    )
    parser.add_argument(
        "--runs",
        type=Path,
        default=Path("runs"),
        help="folder of checkpoints, TensorBoard logs and the latest samples (default: runs)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
