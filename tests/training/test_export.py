"""Where a bundle's weights come from: the commit."""

import subprocess
from pathlib import Path

import pytest

from training.export import commit_of


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=nobody", "-c", "user.email=nobody@example.org")
    run = subprocess.run(
        ["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True
    )
    return run.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    git(tmp_path, "init")
    (tmp_path / "code.py").write_text("x = 1\n")
    git(tmp_path, "add", "code.py")
    git(tmp_path, "commit", "--message", "first")
    git(tmp_path, "tag", "--annotate", "v1", "--message", "a tag")
    return tmp_path


def test_commit_is_the_hash_and_says_where_files_have_changed(checkout: Path) -> None:
    head = git(checkout, "rev-parse", "HEAD")
    assert commit_of(checkout / "code.py") == head
    (checkout / "code.py").write_text("x = 2\n")
    assert commit_of(checkout / "code.py") == f"{head}-dirty"


def test_package_installed_below_a_checkout_is_not_of_its_commit(checkout: Path) -> None:
    installed = checkout / ".venv" / "export.py"
    installed.parent.mkdir()
    installed.write_text("")
    assert commit_of(installed) is None


def test_code_outside_any_checkout_has_no_commit(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text("")
    assert commit_of(tmp_path / "code.py") is None
