"""The examples of README.md and docs/http.md run, and answer what is printed there."""

import contextlib
import io
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.contract.test_shipped_bundles import MODELS
from tests.process import Process

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "docs/http.md"]
PRINTED_URL = "localhost:8000"
NUMBER = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    server = Process(MODELS, tmp_path_factory.mktemp("server") / "log")
    server.wait_until_ready()
    yield server
    server.stop()


@pytest.fixture(params=PAGES, ids=lambda page: page.name)
def page(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def examples(page: Path, language: str) -> Iterator[tuple[str, str | None]]:
    """Yield a page's blocks that call the service, with what is said to come out."""
    fence = re.compile(r"```(sh|python)\n(.*?)```\n(?:\n```text\n(.*?)```)?", re.DOTALL)
    for found in fence.finditer(page.read_text()):
        name, code, output = found.groups()
        if name == language and ("curl " in code or name == "python"):
            yield code, output


def assert_alike(actual: str, printed: str) -> None:
    """Words must agree to the letter, numbers to one percent: CPUs round differently."""
    assert NUMBER.sub("#", actual).split() == NUMBER.sub("#", printed).split()
    numbers = [float(found) for found in NUMBER.findall(actual)]
    assert numbers == pytest.approx([float(n) for n in NUMBER.findall(printed)], rel=0.01, abs=1e-3)


def test_printed_curl_calls_answer_what_is_printed(
    server: Process, page: Path, tmp_path: Path
) -> None:
    if shutil.which("curl") is None or shutil.which("bash") is None:
        pytest.skip("there is no curl or no bash here")
    for code, printed in examples(page, "sh"):
        local = code.replace(PRINTED_URL, f"127.0.0.1:{server.port}")
        command = 'curl() { command curl --silent --show-error "$@"; }\n' + local
        run = subprocess.run(
            ["bash", "-e", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert_alike(run.stdout, printed or "")
    pictures = [*tmp_path.glob("*.png")]
    assert pictures
    for picture in pictures:  # and no file is an error that nobody looked at
        assert picture.read_bytes().startswith(b"\x89PNG"), picture.name


def test_printed_python_calls_answer_what_is_printed(server: Process, page: Path) -> None:
    names: dict[str, object] = {}
    for code, printed in examples(page, "python"):
        local = code.replace(PRINTED_URL, f"127.0.0.1:{server.port}")
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(compile(local, str(page), "exec"), names)
        assert_alike(output.getvalue(), printed or "")
    api = names["api"]
    assert isinstance(api, httpx.Client)
    api.close()
