"""What docs/inference-protocol.md prints is what comes out, and what it lists is what there is."""

import contextlib
import io
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from service.api.oip import parameters
from service.api.oip.models import SAMPLE, Task
from service.api.oip.routes import router
from tests.contract.test_documented_calls import PRINTED_URL, assert_alike
from tests.contract.test_shipped_bundles import MODELS
from tests.process import Process

DOCUMENT = Path(__file__).parents[2] / "docs/inference-protocol.md"


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    server = Process(MODELS, tmp_path_factory.mktemp("server") / "log")
    server.wait_until_ready()
    yield server
    server.stop()


def examples(language: str) -> Iterator[tuple[str, str]]:
    """Yield the document's blocks in a language, with what is said to come out."""
    fence = re.compile(rf"```{language}\n(.*?)```\n\n```text\n(.*?)```", re.DOTALL)
    for found in fence.finditer(DOCUMENT.read_text()):
        yield found[1], found[2]


def cells(heading: str, column: int) -> list[str]:
    """Return one column of the first table under a heading."""
    section = DOCUMENT.read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [re.split(r"(?<!\\)\|", line)[1 + column].strip() for line in lines[2:]]


def test_printed_curl_calls_answer_what_is_printed(shipped: Process) -> None:
    if shutil.which("curl") is None or shutil.which("bash") is None:
        pytest.skip("there is no curl or no bash here")
    for code, printed in examples("sh"):
        local = code.replace(PRINTED_URL, f"127.0.0.1:{shipped.port}")
        command = 'curl() { command curl --silent --show-error "$@"; echo; }\n' + local
        run = subprocess.run(
            ["bash", "-e", "-c", command], capture_output=True, text=True, check=True
        )
        assert_alike(run.stdout, printed)


def test_printed_python_calls_answer_what_is_printed(shipped: Process) -> None:
    names: dict[str, object] = {}
    for code, printed in examples("python"):
        local = code.replace(PRINTED_URL, f"127.0.0.1:{shipped.port}")
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(compile(local, str(DOCUMENT), "exec"), names)
        assert_alike(output.getvalue(), printed)


def test_every_parameter_is_documented() -> None:
    kinds = (
        parameters.Parameters,
        parameters.NoiseParameters,
        parameters.DrawParameters,
        parameters.SampleParameters,
    )
    known = {name for kind in kinds for name in kind.model_fields} | {"binary_data_output"}
    assert {name.strip("`") for name in cells("Parameters", 0)} == known


def test_every_kind_of_model_is_documented() -> None:
    roles = get_args(get_args(Task)[0]) or get_args(Task)
    assert {name.strip("`") for name in cells("Models", 0)} == {
        f"<model>.{task}" for task in {*roles, SAMPLE}
    }


def test_every_address_is_documented() -> None:
    text = DOCUMENT.read_text()
    paths = {getattr(route, "path", "") for route in router.routes}
    for path in paths:
        short = path.replace("/versions/{version}", "").removesuffix("/")
        if "/repository/models/" not in short:
            assert f"{short}`" in text
