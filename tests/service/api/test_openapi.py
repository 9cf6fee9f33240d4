"""Whatever OpenAPI allows, and much that it does not, is answered as it says."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from service import tensors
from service.app import create_app
from service.settings import Settings
from tests.process import Process

CHECKS = [
    content_type_conformance,
    not_a_server_error,
    response_schema_conformance,
    status_code_conformance,
]


@pytest.fixture(scope="module")
def server(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    log = tmp_path_factory.mktemp("openapi") / "log"
    server = Process(models, log, DEFAULT_MODEL="ppca", MAX_VALUES="20000", MAX_DRAWS="5000")
    server.wait_until_ready()
    yield server
    assert server.stop() == 0
    assert "Traceback" not in server.log.read_text()


arrays = npst.arrays(
    npst.floating_dtypes() | npst.integer_dtypes() | npst.boolean_dtypes(),
    npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
)
schemathesis.openapi.media_type("application/x-npy", arrays.map(tensors.to_npy) | st.binary())


@schemathesis.serializer("application/x-npy")
def write_npy(context: schemathesis.SerializationContext, value: bytes) -> bytes:
    return value


def described() -> dict[str, Any]:
    """What is described does not depend on the models: it can be asked for before any is there."""
    app = create_app(Settings(models=Path(__file__).parent, device="cpu", threads=1))
    app.state.context.repository.batcher.close()
    return app.openapi()


schema = schemathesis.openapi.from_dict(described())


@schema.parametrize()
@settings(max_examples=25, suppress_health_check=list(HealthCheck))
def test_calls_are_answered_as_described(case: schemathesis.Case[Any], server: Process) -> None:
    case.call_and_validate(base_url=server.url, checks=CHECKS, timeout=30)
