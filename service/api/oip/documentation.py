"""OpenAPI of the calls under /v2, whose bodies and addresses are read by hand."""

from typing import Any

from service.api.bodies import JSON
from service.api.problems import PROTOCOL_STATUS, STATUS

TAG = "Open Inference Protocol V2"

_ERROR = {
    "type": "object",
    "properties": {"error": {"type": "string"}},
    "required": ["error"],
    "additionalProperties": False,
}
_OBJECT = {"type": "object"}
_TENSORS = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "parameters": _OBJECT,
        "inputs": {"type": "array", "items": _OBJECT},
        "outputs": {"type": "array", "items": _OBJECT},
    },
}

errors: dict[int | str, dict[str, Any]] = {
    PROTOCOL_STATUS.get(status, status): {
        "description": "What is wrong, in a sentence.",
        "content": {JSON: {"schema": _ERROR}},
    }
    for status in STATUS.values()
}
"""The answers to what cannot be done, by status."""


def described(
    *path: str, listing: bool = False, tensors: bool = False, body: bool = False
) -> dict[str, Any]:
    """Return what `openapi_extra` takes.

    Args:
        path: Parameters in the address: `name`, `version`.
        listing: Whether the answer is a list and not an object.
        tensors: Whether tensors are sent and come back, as JSON or in the binary extension.
        body: Whether it reads a JSON object.
    """
    answer: dict[str, Any] = {JSON: {"schema": {"type": "array"} if listing else _OBJECT}}
    binary = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    said: dict[str, Any] = {
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in path
        ],
        "responses": {
            "200": {"description": "The answer.", "content": answer | (binary if tensors else {})}
        },
    }
    if tensors:
        said["requestBody"] = {
            "description": "A JSON header, and after it the tensors that it calls binary. "
            "docs/inference-protocol.md tells the rest.",
            "content": {JSON: {"schema": _TENSORS}} | binary,
        }
    elif body:
        said["requestBody"] = {"content": {JSON: {"schema": _OBJECT}}}
    return said
