"""What the files promise one another."""

import re
from pathlib import Path

import pytest

from service.settings import Settings
from tests.structure.sources import ROOT, committed, pyproject

TEXT = {".py", ".md", ".toml", ".txt", ".yml", ".js", ".css", ".html", ".json", ""}
OF_ONE_MACHINE = re.compile(r"(?:^|[^A-Za-z0-9_.])/(?:work|farm|root|home)/")
REGISTRY = re.compile(r"pypi\.org|pythonhosted\.org|download\.pytorch\.org|index[-]url|docker\.io")
FOLDERS = "benchmarks|deploy|docs|models|service|tests|training"
MENTION = re.compile(rf"(?:`|\]\()((?:{FOLDERS})/[\w./-]+)")
DOCUMENTS = committed("README.md", "CONTRIBUTING.md", "docs/*.md")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def pinned() -> dict[str, str]:
    """Return the version of each distribution in constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def test_version_is_the_newest_of_the_changelog() -> None:
    found = re.search(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert found
    assert found.group(1) == pyproject()["project"]["version"]


def test_every_dependency_is_pinned() -> None:
    project = pyproject()["project"]
    extras = project["optional-dependencies"].values()
    named = {
        re.split(r"[\[<>=;]", dependency)[0]
        for group in (project["dependencies"], *extras)
        for dependency in group
    }
    assert named - {project["name"]} - set(pinned()) == set()


def test_torch_is_pinned_without_its_build() -> None:
    assert re.fullmatch(r"[\d.]+", pinned()["torch"])


@pytest.mark.parametrize("extra", ["cpu", "gpu", "test"])
def test_the_service_and_its_tests_ask_for_no_torch(extra: str) -> None:
    project = pyproject()["project"]
    wanted = project["dependencies"] + project["optional-dependencies"][extra]
    assert not [name for name in wanted if "torch" in name or "train" in name]


@pytest.mark.parametrize("path", committed(), ids=name_of)
def test_no_file_names_a_machine_or_a_registry(path: Path) -> None:
    if path.suffix not in TEXT:
        return
    text = path.read_text()
    assert OF_ONE_MACHINE.findall(text) == []
    assert REGISTRY.findall(text) == []


def test_readme_names_every_target_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^([a-z]+):.*## ", makefile, re.MULTILINE)
    readme = (ROOT / "README.md").read_text()
    assert "serve" in targets
    assert [name for name in targets if f"make {name}" not in readme] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_file_a_document_names_is_there(path: Path) -> None:
    assert [name for name in MENTION.findall(path.read_text()) if not (ROOT / name).exists()] == []


def test_every_setting_is_documented() -> None:
    text = (ROOT / "docs/operations.md").read_text()
    names = [f"PUSHFORWARD_{name.upper()}" for name in Settings.model_fields]
    assert [name for name in names if f"`{name}`" not in text] == []
