"""Files and functions that one can read at a sitting."""

import ast
from pathlib import Path

import pytest

from tests.structure.sources import ROOT, committed

FILE_LINES = 400
FUNCTION_LINES = 60


@pytest.mark.parametrize(
    "path", committed("*.py", "*.js", "*.css", "*.html"), ids=lambda p: str(p.relative_to(ROOT))
)
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text()
    lines = len(text.splitlines())
    assert lines <= FILE_LINES
    if path.suffix == ".py":
        assert long_functions(text) == []


def long_functions(text: str) -> list[tuple[str, int]]:
    """Return the functions that are too long, with their lines."""
    functions = (
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    lines = [(each.name, (each.end_lineno or each.lineno) - each.lineno + 1) for each in functions]
    return [(name, count) for name, count in lines if count > FUNCTION_LINES]
