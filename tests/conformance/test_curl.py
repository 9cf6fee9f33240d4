"""No client at all: the bytes of the protocol, as curl sends them."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.process import Process
from tests.service.bundles import affine_log_density

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")

X = np.array([[1, -1], [0.5, 2]], "<f4")
LENGTH = "Inference-Header-Content-Length"


def curl(*arguments: str, body: bytes = b"") -> bytes:
    command = ["curl", "--silent", "--show-error", "--max-time", "20", *arguments]
    return subprocess.run(command, input=body, capture_output=True, check=True).stdout


def said(*arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(curl(*arguments))
    return found


@pytest.mark.parametrize("path", ["/v2", "/v2/"])
def test_no_redirect_is_needed(server: Process, path: str) -> None:
    assert said(f"{server.url}{path}")["name"] == "pushforward"


def test_json_in_json_out(server: Process) -> None:
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [2, 2], "data": X.tolist()}]}
    # As `curl -d` sends it: with a Content-Type that is not true.
    answer = said("--data", json.dumps(body), f"{server.url}/v2/models/affine.log_density/infer")
    (output,) = answer["outputs"]
    expected = affine_log_density(X.astype(np.float64))
    np.testing.assert_allclose(output["data"], expected, rtol=1e-5)


def test_bytes_in_bytes_out(server: Process, tmp_path: Path) -> None:
    header = json.dumps(
        {
            "inputs": [
                {
                    "name": "x",
                    "datatype": "FP32",
                    "shape": [2, 2],
                    "parameters": {"binary_data_size": X.nbytes},
                }
            ],
            "outputs": [{"name": "log_density", "parameters": {"binary_data": True}}],
        }
    ).encode()
    answer = curl(
        "--header", f"{LENGTH}: {len(header)}", "--header", "Content-Type:",
        "--data-binary", "@-", "--dump-header", str(tmp_path / "headers"),
        f"{server.url}/v2/models/affine.log_density/infer",
        body=header + X.tobytes(),
    )  # fmt: skip
    headers = (tmp_path / "headers").read_text().lower()
    assert "content-type: application/octet-stream" in headers
    found = np.frombuffer(answer[-8:], "<f4")
    assert f"{LENGTH.lower()}: {len(answer) - 8}\n" in headers
    np.testing.assert_allclose(found, affine_log_density(X.astype(np.float64)), rtol=1e-5)


def test_raw_bytes_without_any_json(server: Process) -> None:
    answer = curl(
        "--header", f"{LENGTH}: 0", "--data-binary", "@-",
        f"{server.url}/v2/models/affine.log_density/infer", body=X[:1].tobytes(),
    )  # fmt: skip
    found = np.frombuffer(answer[-4:], "<f4")
    np.testing.assert_allclose(found, affine_log_density(X[:1].astype(np.float64)), rtol=1e-5)


def test_compressed_answer_is_what_curl_expands(server: Process) -> None:
    body = json.dumps({"parameters": {"n": 500, "seed": 1}})
    address = f"{server.url}/v2/models/affine.sample/infer"
    assert said("--compressed", "--data", body, address) == said("--data", body, address)


def test_failure_is_an_error_in_json(server: Process) -> None:
    answer = curl("--write-out", "%{http_code} %{content_type}", f"{server.url}/v2/nowhere")
    assert answer.startswith(b'{"error":')
    assert answer.endswith(b"404 application/json")
