"""The recipes that come with the project: read, run, and what they were published as."""

import json
from pathlib import Path
from typing import Any

import pytest

from service import bundle
from training import __main__ as command
from training import recipe

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "training" / "recipes").glob("*.toml"))
LOCAL = ("sklearn:", "gaussians:", "integrand:")
OFFLINE = [path for path in RECIPES if recipe.read(path).data.source.startswith(LOCAL)]
MODELS = ROOT / "models"
PUBLISHED = [
    MODELS / name / str(version)
    for name in bundle.names(MODELS)
    for version in bundle.versions(MODELS, name)
]


def name_of(path: Path) -> str:
    return path.stem


def flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested tables by dotted key."""
    values: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            values |= flat(value, f"{prefix}{key}.")
        else:
            values[f"{prefix}{key}"] = value
    return values


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
@pytest.mark.parametrize("quick", [False, True], ids=["full", "quick"])
def test_every_recipe_is_read_and_bears_the_name_of_its_file(path: Path, quick: bool) -> None:
    assert recipe.read(path, quick=quick).name == path.stem + ("-quick" if quick else "")


@pytest.mark.slow
# PyTorch's exporter warns of its own deprecations and of axis names that it keeps all the same.
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("path", OFFLINE, ids=name_of)
def test_offline_recipe_runs_from_end_to_end(path: Path, tmp_path: Path) -> None:
    options = ["--quick", "--out", str(tmp_path / "models"), "--runs", str(tmp_path / "runs")]
    assert command.main([str(path), *options]) == 0
    manifest = bundle.read(tmp_path / "models" / f"{path.stem}-quick" / "1").manifest
    assert manifest.evaluation
    assert set(manifest.graphs) >= ({"velocity", "leave"} if manifest.ode else {"decode"})


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_published_bundle_has_the_recipe_of_its_file(folder: Path) -> None:
    """But for where its rows were read from, and for what only a quick trial would take."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    written = recipe.read(ROOT / "training" / "recipes" / f"{folder.parent.name}.toml")
    wanted = flat(written.model_dump(mode="json", exclude_unset=True, exclude={"quick"}))
    found = flat(manifest["provenance"]["recipe"])
    for key in (wanted.keys() | found.keys()) - {"data.source"}:
        assert found.get(key) == wanted.get(key), key
