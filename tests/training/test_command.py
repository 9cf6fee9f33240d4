"""`python -m training`: from a recipe to a bundle, and out again in a sentence."""

from pathlib import Path

import pytest

from service import bundle
from training import __main__ as command
from training.checkpoint import CHECKPOINT

RECIPE = """
name = "tiny-gan"
title = "Digits, hardly trained"
licence = "CC0-1.0"
[data]
source = "sklearn:digits"
[model]
family = "gan"
latent = 4
width = 8
critic_width = 8
[train]
epochs = 50
batch_size = 64
[evaluate]
rows = 64
classifier_steps = 40
[quick]
"train.epochs" = 1
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny-gan.toml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


def run(recipe: Path, *options: str) -> int:
    folder = recipe.parent
    return command.main(
        [str(recipe), "--out", str(folder / "models"), "--runs", str(folder / "runs"), *options]
    )


# PyTorch's exporter warns of its own deprecations and of axis names that it keeps all the same.
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_quick_run_publishes_a_bundle_that_reads_back(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(recipe, "--quick") == 0
    folder = recipe.parent / "models" / "tiny-gan-quick" / "1"
    manifest = bundle.read(folder).manifest
    pictures = {"samples.png", "curves.png", "diagnostics.png"}
    assert {"card.md", *pictures} <= {file.name for file in folder.iterdir()}
    card = (folder / "card.md").read_text(encoding="utf-8")
    assert all(f"]({picture})" in card for picture in pictures)
    assert "the best by held-out MMD²" in card
    assert manifest.provenance.recipe["train"]["epochs"] == 1
    assert all(figure.standard_error is not None for figure in manifest.evaluation)
    assert {"classes read of samples", "class divergence of training rows"} <= {
        figure.name for figure in manifest.evaluation
    }
    runs = recipe.parent / "runs" / "tiny-gan-quick"
    assert not (runs / CHECKPOINT).exists()
    assert (runs / "samples.png").exists()
    out = capsys.readouterr().out
    assert "samples recognised as their label" in out
    assert f"published {folder}" in out
    assert "curl 'localhost:8000/sample?model=tiny-gan-quick&n=16&seed=7'" in out


def test_failure_after_training_costs_no_training(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(command, "evaluate", fail)
    with pytest.raises(MemoryError):
        run(recipe, "--quick")
    assert (recipe.parent / "runs" / "tiny-gan-quick" / CHECKPOINT).exists()


def test_interrupt_says_how_to_go_on(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "fit", interrupt)
    assert run(recipe) == 130
    assert "The same command again goes on" in capsys.readouterr().err


# The same two of PyTorch's exporter.
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_gan_of_vectors_goes_all_the_way(recipe: Path) -> None:
    options = ["data.source=gaussians:ring", "data.rows=500", "model.objective=kl"]
    assert run(recipe, "--quick", *(word for each in options for word in ("--set", each))) == 0
    folder = recipe.parent / "models" / "tiny-gan-quick" / "1"
    manifest = bundle.read(folder).manifest
    assert manifest.event.shape == (2,)
    assert set(manifest.graphs) == {"decode"}
    assert manifest.graphs["decode"].rows_exact_at is not None
    card = (folder / "card.md").read_text(encoding="utf-8")
    assert "standardised features" in card
    assert "| modes covered | " in card
    pictures = {"samples.png", "curves.png", "diagnostics.png"}
    assert pictures <= {file.name for file in folder.iterdir()}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--set", "train.epoch=1"), "did you mean train.epochs?"),
        (("--set", "data.source=absent.npz"), "absent.npz"),
        (("--set", "model.depth=2"), "model.depth: is of features"),
    ],
)
def test_bad_recipe_and_bad_data_get_one_sentence_and_status_2(
    recipe: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    sentence: str,
) -> None:
    assert run(recipe, *options) == 2
    err = capsys.readouterr().err
    assert sentence in err
    assert err.count("\n") == 1


def test_evaluate_is_a_command_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        command.main(["evaluate", "--help"])
    assert caught.value.code == 0
    assert "--ais-temperatures" in capsys.readouterr().out
    assert command.main(["evaluate", "models/nobody"]) == 2
    assert capsys.readouterr().err == (
        "models/nobody: no bundle here; give models/NAME or models/NAME/VERSION\n"
    )


def test_help_documents_the_keys_of_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        command.main(["--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert "learning_rate  (number, default 0.001)" in out
    assert '[model] with family = "gan"' in out
