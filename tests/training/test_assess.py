"""`python -m training evaluate`: a published bundle gets figures, and keeps all else."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from service import bundle
from service.manifest import Figure
from tests.training.bundled import exported, recipe_of_a, shaken
from training import __main__ as command
from training import assess, data
from training.card import CARD, DIAGNOSTICS
from training.figures import merged
from training.recipe import Recipe, build

VAE: dict[str, Any] = {
    "family": "vae", "observation": "normal", "latent": 2, "width": 8, "depth": 1,
}  # fmt: skip
GAN: dict[str, Any] = {"family": "gan", "latent": 4, "width": 8, "critic_width": 8}
CARD_TEXT = "# A toy\n\nWhat it is.\n\n## Quality\n\nOld figures.\n\n## Data\n\nOf irises.\n"


def published(folder: Path, recipe: Recipe) -> Path:
    rows = data.load(recipe.data)
    manifest, files = exported(shaken(build(recipe, rows).eval()), recipe, rows)
    before = (
        Figure(name="beauty", value=1.5, standard_error=None, n=3),
        Figure(name="negative ELBO", value=-1.0, standard_error=None, n=3),
    )
    manifest = manifest.model_copy(update={"evaluation": before})
    return bundle.publish(folder, manifest, {**files, CARD: CARD_TEXT.encode()})


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models with one, which nobody changes."""
    recipe = recipe_of_a(VAE, source="sklearn:iris", evaluate={"rows": 20})
    return published(tmp_path_factory.mktemp("models"), recipe).parents[1]


@pytest.fixture
def models(original: Path, tmp_path: Path) -> Path:
    shutil.copytree(original, tmp_path / "models")
    return tmp_path / "models"


def run(place: Path, *options: str) -> int:
    return command.main(["evaluate", str(place), "--draws", "50", *options])


def figures(models: Path) -> dict[str, Figure]:
    read = bundle.read(models / "toy" / "1")
    return {figure.name: figure for figure in read.manifest.evaluation}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_figures_are_stored_beside_the_others_and_graphs_stay(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = models / "toy" / "1"
    before = contents(folder)
    assert run(models / "toy") == 0
    after = contents(folder)
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == {"manifest.json", CARD, DIAGNOSTICS}
    assert os.listdir(models / "toy") == ["1"]
    found = figures(models)
    assert list(found)[:2] == ["beauty", "negative ELBO"]
    assert found["beauty"].value == 1.5
    assert found["negative ELBO"].n == 20
    assert "50 importance-weighted draws" in found["negative log-likelihood"].note
    assert {"active units", "KL of latent 0", "linear probe of E[z|x]"} <= found.keys()
    out = capsys.readouterr().out
    assert "its weights repeat its golden vectors" in out
    assert "linear probe of E[z|x]" in out
    assert f"stored in {folder / 'manifest.json'}" in out


def test_card_shows_them_and_keeps_its_other_sections(models: Path) -> None:
    assert run(models / "toy" / "1") == 0
    text = (models / "toy" / "1" / CARD).read_text()
    assert text.startswith("# A toy\n\nWhat it is.\n\n## Quality\n\nMeasured on the test split")
    assert text.endswith("\n\n## Data\n\nOf irises.\n")
    assert "Old figures" not in text
    assert "| negative ELBO |" in text
    assert "| latent | KL |" in text


def test_second_run_says_the_same(models: Path) -> None:
    assert run(models / "toy") == 0
    first = contents(models / "toy" / "1")
    assert run(models / "toy") == 0
    assert contents(models / "toy" / "1") == first


def test_other_estimators_agree_and_are_drawn(models: Path, tmp_path: Path) -> None:
    picture = tmp_path / "estimators.png"
    options = ("--prior", "--ais-rows=12", "--ais-temperatures=100", "--bdmc-rows=10")
    assert run(models / "toy", *options, "--plot", str(picture), "--plot-rows=5") == 0
    found = figures(models)
    annealed = found["negative log-likelihood, AIS"]
    assert annealed.n == 12
    assert "16 chains of 100 temperatures" in annealed.note
    others = float(annealed.note.split("draws say ")[1].split(" of the same")[0])
    assert annealed.value == pytest.approx(others, abs=0.5)
    gap = found["gap of AIS on simulated events"]
    assert gap.standard_error is not None
    assert -4.5 * gap.standard_error < gap.value < 1
    naive = found["negative log-likelihood, draws of the prior"]
    assert naive.n == found["negative log-likelihood"].n == 20
    assert naive.value > found["negative log-likelihood"].value - 0.5
    with Image.open(picture) as image:
        assert image.width > 1000


def test_one_draw_has_no_error_to_tell(models: Path) -> None:
    assert run(models / "toy", "--prior", "--draws", "1") == 0
    note = figures(models)["negative log-likelihood, draws of the prior"].note
    assert note == "an upper bound on average: 1 draws of the prior"
    assert run(models / "toy", "--prior", "--draws", "2") == 0
    note = figures(models)["negative log-likelihood, draws of the prior"].note
    assert "of its error the draws make 0." in note


def test_place_that_cannot_be_written_is_told_before_the_work(
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = contents(models / "toy" / "1")
    # Root, which a container runs the tests as, may write anywhere.
    asked: list[Path] = []
    monkeypatch.setattr(os, "access", lambda path, _: asked.append(path))
    assert run(models / "toy", "--plot", str(tmp_path / "new.png")) == 2
    assert capsys.readouterr().err.count("cannot be written (permission denied)\n") == 1
    (tmp_path / "old.png").touch()
    assert run(models / "toy", "--plot", str(tmp_path / "old.png")) == 2
    assert asked == [tmp_path, tmp_path / "old.png"]
    assert contents(models / "toy" / "1") == before


def test_picture_that_cannot_be_written_after_all_gets_one_sentence(
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(assess, "_picture", lambda *_: b"")
    monkeypatch.setattr(Path, "write_bytes", fail)
    assert run(models / "toy", "--plot", str(tmp_path / "new.png")) == 2
    err = capsys.readouterr().err
    assert "cannot be written (No space left on device); the figures are stored" in err
    assert err.count("\n") == 1
    assert figures(models)["negative ELBO"].n == 20


@pytest.fixture
def others(tmp_path: Path) -> Path:
    """Other irises."""
    rows = data.load(data.DataConfig(source="sklearn:iris"))
    table = tmp_path / "others.csv"
    names = rows.event.features
    lines = [",".join(names)]
    lines += [",".join(f"{value + k / 1e3:.4f}" for value in row)
              for k, row in enumerate(rows.train.x[:80].tolist())]  # fmt: skip
    table.write_text("\n".join(lines))
    return table


def test_figures_of_other_data_say_so(models: Path, others: Path) -> None:
    assert run(models / "toy", "--data", str(others)) == 0
    figure = figures(models)["negative ELBO"]
    assert "of others.csv" in figure.note
    assert figure.n == 12


def test_picture_of_figures_that_are_gone_goes_with_its_link(models: Path, others: Path) -> None:
    folder = models / "toy" / "1"
    for replacing in (("--data", str(others)), ("--rows", "7")):
        assert run(models / "toy") == 0
        assert (folder / DIAGNOSTICS).exists()
        assert DIAGNOSTICS in (folder / CARD).read_text()
        assert run(models / "toy", *replacing) == 0
        assert not (folder / DIAGNOSTICS).exists()
        assert DIAGNOSTICS not in (folder / CARD).read_text()


def test_rows_and_draws_are_those_asked_for(models: Path) -> None:
    assert run(models / "toy", "--rows", "7", "--draws", "9") == 0
    figure = figures(models)["negative log-likelihood"]
    assert figure.n == 7
    assert "9 importance-weighted" in figure.note


def test_no_draws_leave_the_figures_of_the_likelihood_as_they_are(models: Path) -> None:
    assert run(models / "toy", "--rows", "7") == 0
    before = figures(models)
    assert run(models / "toy", "--rows", "9", "--draws", "0") == 0
    after = figures(models)
    for name in ("negative ELBO", "negative log-likelihood"):
        assert after[name] == before[name]
    assert after["MMD² of samples to test data"].n == 9


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--draws", "-1"), "--draws: expected 0 or more; got -1"),
        (("--draws", "0", "--prior"), "--draws 0: no likelihood is estimated; leave out --prior"),
        (("--rows", "2"), "--rows: expected 3 or more; got 2"),
        (("--ais-rows", "1"), "--ais-rows: expected 3 or more"),
        (("--data", "sklearn:digits"), "toy knows vectors, and this data has images"),
        (("--data", "sklearn:wine"), "toy knows events of shape (4,), and this data has"),
        (("--data", "absent.csv"), "absent.csv"),
        (("--plot", "absent/figure.png"), "there is no folder absent"),
        (("--plot", "figure.png", "--ais-chains", "3"), "--ais-chains 4 or more"),
        (("--plot", "."), "--plot .: this is a folder; name a file"),
        (("--ais-temperatures", "9"), "nothing is annealed; give --ais-rows, --bdmc-rows or"),
        (("--ais-chains", "9", "--prior"), "nothing is annealed"),
        (("--plot-rows", "9", "--ais-rows", "9"), "--plot-rows: nothing is drawn; give --plot"),
    ],
)
def test_bad_options_get_one_sentence_and_change_nothing(
    models: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], sentence: str
) -> None:
    before = contents(models / "toy" / "1")
    assert run(models / "toy", *options) == 2
    err = capsys.readouterr().err
    assert sentence in err
    assert err.count("\n") == 1
    assert contents(models / "toy" / "1") == before


def test_what_is_no_bundle_or_a_broken_one_gets_one_sentence(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(models / "nobody") == 2
    assert "no bundle here; give models/NAME" in capsys.readouterr().err
    manifest = models / "toy" / "1" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"toy"', '"other"'))
    assert run(models / "toy") == 2
    assert "the folder must be" in capsys.readouterr().err


def test_model_without_a_density_is_judged_by_its_samples(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_of_a(GAN, source="sklearn:digits", evaluate={"rows": 40, "classifier_steps": 5})
    folder = published(tmp_path, recipe)
    assert run(folder) == 2
    assert "toy has no likelihood to estimate: it is a gan. Leave out" in capsys.readouterr().err
    assert command.main(["evaluate", str(folder)]) == 0
    found = figures(tmp_path)
    assert found["beauty"].value == 1.5
    assert {"FID of samples", "FID of training rows", "C_T of samples"} <= found.keys()
    assert {"classes read of samples", "class divergence of training rows"} <= found.keys()
    place = tmp_path / "toy" / "1"
    assert (place / DIAGNOSTICS).read_bytes().startswith(b"\x89PNG")
    assert f"]({DIAGNOSTICS})" in (place / CARD).read_text(encoding="utf-8")
    # As it was made of random weights, it is told from digits by any test.
    assert found["MMD² p-value of samples"].value < 0.01
    assert command.main(["evaluate", str(folder), "--prior"]) == 2
    assert "toy has no p(x|z)" in capsys.readouterr().err


def test_failure_while_storing_leaves_what_was_there(
    models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    before = contents(models / "toy" / "1")
    monkeypatch.setattr(os, "replace", fail)
    assert run(models / "toy") == 2
    assert "the figures cannot be stored (No space left on device)" in capsys.readouterr().err
    assert contents(models / "toy" / "1") == before
    assert os.listdir(models / "toy") == ["1"]


def test_interrupt_stores_nothing_and_says_so(
    models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    before = contents(models / "toy" / "1")
    monkeypatch.setattr(assess, "evaluate", interrupt)
    assert run(models / "toy") == 130
    assert "Nothing was stored." in capsys.readouterr().err
    assert contents(models / "toy" / "1") == before


def test_newest_version_is_meant_by_the_name_alone(models: Path) -> None:
    assert assess.locate(models / "toy").name == "1"
    shutil.copytree(models / "toy" / "1", models / "toy" / "10")
    shutil.copytree(models / "toy" / "1", models / "toy" / "9")
    assert assess.locate(models / "toy").name == "10"
    assert assess.locate(models / "toy" / "9").name == "9"


def test_largest_divergences_replace_each_other_together() -> None:
    def figure(name: str, value: float) -> Figure:
        return Figure(name=name, value=value, standard_error=None, n=1)

    before = [figure("a", 1), figure("KL of latent 3", 1), figure("b", 1)]
    after = [figure("KL of latent 5", 2), figure("b", 2)]
    assert [(each.name, each.value) for each in merged(before, after)] == [
        ("a", 1), ("b", 2), ("KL of latent 5", 2),
    ]  # fmt: skip
    assert [each.name for each in merged(before, after[1:])] == ["a", "KL of latent 3", "b"]


def test_what_is_usual_by_the_services_draws_outlives_a_figure_by_others() -> None:
    held = {"values": (1.0, 2.0), "draws": 64}
    before = [Figure(name="a", value=1.5, standard_error=None, n=2, **held)]
    (found,) = merged(before, [Figure(name="a", value=1.4, standard_error=None, n=9)])
    assert (found.value, found.values, found.draws) == (1.4, (1.0, 2.0), 64)
