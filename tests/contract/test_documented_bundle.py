"""The example of docs/bundle.md runs as it is printed, and what it makes can be served."""

import re
from pathlib import Path

import pytest

from service import bundle

pytest.importorskip("torch", reason="the example exports a PyTorch model")
PAGE = Path(__file__).parents[2] / "docs" / "bundle.md"


def test_the_printed_example_makes_a_sound_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, str(PAGE), "exec"), {"__name__": "example"})
    read = bundle.read(tmp_path / "models" / "my-generator" / "1")
    assert list(read.manifest.graphs) == ["decode"]
