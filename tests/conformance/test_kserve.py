"""KServe's client, as it comes.

It asks for other versions of half a dozen packages than the service's tests do, so it gets an
environment of its own, which pytest's cache keeps.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.process import Process
from tests.service.bundles import SHIFT, affine_log_density

pytestmark = pytest.mark.slow

KSERVE = "kserve==0.21.0"
CALLS = Path(__file__).with_name("kserve_calls.py")


@pytest.fixture(scope="module")
def python(pytestconfig: pytest.Config) -> Path:
    """The interpreter of an environment that has the client."""
    cache = pytestconfig.cache
    assert cache is not None
    folder = cache.mkdir("conformance") / KSERVE.replace("==", "-")
    python, complete = folder / "bin/python", folder / "complete"
    if not complete.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        pip: list[str | Path] = [python, "-m", "pip", "install", "--quiet", KSERVE]
        subprocess.run(pip, check=True)
        complete.touch()
    return python


def test_every_call_of_the_client_is_answered(server: Process, python: Path) -> None:
    run = subprocess.run(
        [python, CALLS, server.url], capture_output=True, text=True, check=True, timeout=60
    )
    said = json.loads(run.stdout)
    health = {name: said[name] for name in ("live", "ready", "model_ready", "nothing_ready")}
    assert health == {"live": True, "ready": True, "model_ready": True, "nothing_ready": False}
    (expected,) = affine_log_density(SHIFT[None])
    for form in ("binary True", "binary False"):
        first, second = map(float, said[form])
        assert first == pytest.approx(expected, rel=1e-5)
        assert second == float("-inf")
    assert (said["seed"], len(said["sample"])) == (7, 3)
    assert said["refusal"].startswith("input 'x': unknown here. Known are: z.")
