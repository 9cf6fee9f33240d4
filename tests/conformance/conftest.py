"""The real service on a real socket, with the tiny models, for clients that others wrote."""

from collections.abc import Iterator

import pytest

from tests.process import Process
from tests.service import bundles

collect_ignore = ["kserve_calls.py"]
"""A program that runs in another environment; there are no doctests in it to look for."""


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A service with every tiny model. Nothing that a test sends makes it fail."""
    models = tmp_path_factory.mktemp("models")
    for tiny in bundles.ALL:
        tiny.publish(models)
    server = Process(models, tmp_path_factory.mktemp("server") / "log")
    server.wait_until_ready()
    yield server
    assert server.stop() == 0
    assert "Traceback" not in server.log.read_text()


@pytest.fixture(scope="session")
def address(server: Process) -> str:
    """Host and port."""
    return f"127.0.0.1:{server.port}"
