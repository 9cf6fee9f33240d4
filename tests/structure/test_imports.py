"""The one-way rule, seen from a fresh interpreter. The linter sees only what is written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.structure.sources import ROOT, committed

TELEMETRY = "ORT_DISABLE_TELEMETRY"
REPORT = "import sys; print(*{name.partition('.')[0] for name in sys.modules})"


def modules(folder: str) -> list[str]:
    """Return the dotted names of the modules in a folder, without its command."""
    files = (path.relative_to(ROOT).with_suffix("") for path in committed(f"{folder}/*.py"))
    return [".".join(path.parts) for path in files if path.stem not in ("__init__", "__main__")]


def loaded_by(*names: str) -> set[str]:
    """Return the top-level packages that a new interpreter holds after importing these."""
    code = "".join(f"import {name}\n" for name in names) + REPORT
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(answer.stdout.split())


def test_the_service_loads_nothing_that_trains() -> None:
    loaded = loaded_by("service.app", *modules("service"))
    assert "fastapi" in loaded
    assert not loaded & {"torch", "training", "sklearn", "onnxscript", "jaxtyping", "matplotlib"}


def test_the_command_begins_without_the_web() -> None:
    loaded = loaded_by("service.__main__")
    assert "onnxruntime" in loaded
    assert not loaded & {"fastapi", "starlette", "uvicorn"}


def test_training_loads_nothing_that_serves() -> None:
    pytest.importorskip("torch")
    loaded = loaded_by(*modules("training"))
    assert "torch" in loaded
    assert not loaded & {"fastapi", "starlette", "uvicorn"}


@pytest.mark.parametrize("name", ["service.manifest", "service.errors"])
def test_the_contract_needs_neither_web_nor_runtime(name: str) -> None:
    assert not loaded_by(name) & {"fastapi", "onnxruntime", "torch"}


def test_the_runtime_is_loaded_with_its_telemetry_off(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != TELEMETRY}
    command = [sys.executable, "-B", "-c", "import service.app"]
    subprocess.run(command, cwd=ROOT, env=environment | {"HOME": str(tmp_path)}, check=True)
    assert list(tmp_path.rglob("*")) == []  # it would keep a device id there


def test_init_files_are_empty() -> None:
    assert [path for path in committed("*__init__.py") if path.read_text()] == []
