"""/docs and /openapi.json: complete, true, and readable without the internet."""

import re
from typing import Any

import pytest

from service.api import schemas
from tests.service.conftest import Client

CALLS: dict[tuple[str, str], tuple[type[schemas.Parameters], type[schemas.Answer]]] = {
    ("get", "/sample"): (schemas.Sample, schemas.Sampled),
    ("post", "/sample"): (schemas.Sample, schemas.Sampled),
    ("post", "/decode"): (schemas.Decode, schemas.Decoded),
    ("post", "/encode"): (schemas.Encode, schemas.Encoded),
    ("post", "/log-density"): (schemas.LogDensity, schemas.LogDensities),
    ("post", "/elbo"): (schemas.Elbo, schemas.Bounds),
    ("post", "/two-sample-test"): (schemas.TwoSampleTest, schemas.Verdict),
}


@pytest.fixture(scope="module")
def openapi(client: Client) -> dict[str, Any]:
    described: dict[str, Any] = client.get("/openapi.json").json()
    return described


def test_every_call_is_described(openapi: dict[str, Any]) -> None:
    described = {
        (method, path)
        for path, item in openapi["paths"].items()
        for method in item
        if not path.startswith("/v2")  # docs/inference-protocol.md is held to those
    }
    gets = {"/models", "/models/{name}", "/models/{name}/card", "/models/{name}/samples.png",
            "/models/{name}/curves.png", "/models/{name}/diagnostics.png",
            "/livez", "/readyz", "/metrics"}  # fmt: skip
    assert described == set(CALLS) | {("get", path) for path in gets}


@pytest.mark.parametrize(("method", "path"), CALLS)
def test_parameters_bodies_and_formats_are_those_of_the_schema(
    openapi: dict[str, Any], method: str, path: str
) -> None:
    schema, _ = CALLS[method, path]
    operation = openapi["paths"][path][method]
    names = {each["name"] for each in operation["parameters"]}
    assert names == set(schema.model_fields) - {schema.tensor}
    formats = set(operation["responses"]["200"]["content"])
    pictures = {"image/png"} if path in ("/sample", "/decode") else set()
    assert formats == {"application/json", "application/x-npy"} | pictures
    if method == "post":
        body = operation["requestBody"]["content"]
        assert set(body["application/json"]["schema"]["properties"]) == set(schema.model_fields)
        assert ("application/x-npy" in body) == (schema.tensor is not None)
        assert ("image/jpeg" in body) == (schema.tensor == "x")
    problem = operation["responses"]["422"]["content"]["application/problem+json"]["schema"]
    assert {"detail", "code", "field"} <= set(problem["properties"])


def test_answers_are_what_their_schemas_say(client: Client) -> None:
    x, z = [[0.0, 0.0, 0.0]], [[0.0, 0.0]]
    calls: dict[str, dict[str, Any]] = {
        "/sample": {"n": 2, "include": ["z"]},
        "/decode": {"z": z},
        "/encode": {"x": x},
        "/log-density": {"x": x},
        "/elbo": {"x": x},
        "/two-sample-test": {"x": x * 8},
    }
    for path, body in calls.items():
        said = client.post(path, json={"model": "ppca", **body}).json()
        _, answer = CALLS["post", path]
        read = answer.model_validate(said)
        assert set(said) <= set(answer.model_fields)
        assert {name for name, field in answer.model_fields.items() if field.is_required()} <= set(
            said
        )
        assert read.version == 1


def test_page_needs_nothing_from_elsewhere(client: Client) -> None:
    page = client.get("/docs")
    assert page.status_code == 200
    sources = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert sources
    for source in sources:
        assert source.startswith("/")
        assert client.get(source).status_code == 200
