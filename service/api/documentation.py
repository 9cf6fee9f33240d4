"""OpenAPI of the calls whose bodies are read by hand, made from the schemas that read them."""

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from pydantic import BaseModel

from service.api.bodies import JSON, NPY, PICTURES
from service.api.problems import MEDIA_TYPE, STATUS
from service.api.schemas import Parameters, Problem

_BINARY = {"schema": {"type": "string", "format": "binary"}}


@cache  # it takes milliseconds, at every start, and each of 14 problems of a call has the same
def _schema(model: type[BaseModel]) -> dict[str, Any]:
    return model.model_json_schema()


@dataclass(frozen=True)
class Description:
    """What OpenAPI shall say of one call, by GET or by POST."""

    schema: type[Parameters]
    answer: type[BaseModel]
    pictures: bool
    summary: str
    text: str

    def of(self, method: Literal["GET", "POST"]) -> dict[str, Any]:
        """Return the operation object."""
        operation: dict[str, Any] = {
            "summary": self.summary,
            "description": self.text,
            "parameters": self._query(),
            "responses": self._responses(),
        }
        if method == "POST":
            operation["requestBody"] = self._body()
        return operation

    def _query(self) -> list[dict[str, Any]]:
        properties = _schema(self.schema)["properties"]
        return [
            {
                "name": name,
                "in": "query",
                "required": False,
                "description": about.get("description", ""),
                "style": "form",
                "explode": False,  # lists are separated by commas
                "schema": about,
            }
            for name, about in properties.items()
            if name != self.schema.tensor
        ]

    def _body(self) -> dict[str, Any]:
        content: dict[str, Any] = {JSON: {"schema": _schema(self.schema)}}
        if tensor := self.schema.tensor:
            content[NPY] = _BINARY
            if tensor == "x":
                content |= dict.fromkeys(PICTURES, _BINARY)
        return {
            "description": "Parameters may stand here or in the query. An npy or a picture is the "
            "tensor itself; a picture is one row.",
            "required": self.schema.tensor is not None,
            "content": content,
        }

    def _responses(self) -> dict[int | str, Any]:
        content: dict[str, Any] = {
            JSON: {"schema": _schema(self.answer)},
            NPY: _BINARY,
        }
        if self.pictures:
            content["image/png"] = _BINARY
        return {
            "200": {"description": "The answer, as Accept asks for it.", "content": content},
            **problems(),
        }


def describe(
    schema: type[Parameters],
    answer: type[BaseModel],
    *,
    summary: str,
    text: str,
    pictures: bool = False,
) -> Description:
    """Return the description of a call.

    Args:
        schema: What it may be told.
        answer: Its JSON.
        summary: In a few words.
        text: What else there is to know.
        pictures: Whether it answers PNG too.
    """
    return Description(schema, answer, pictures, summary, text)


def problems(*codes: str) -> dict[int | str, dict[str, Any]]:
    """Return the problem responses of a call: those with these codes, or all."""
    described: dict[int | str, dict[str, Any]] = {}
    for error, status in STATUS.items():
        if codes and error.code not in codes:
            continue
        text = f"{error.code}: {(error.__doc__ or '').splitlines()[0]}"
        before = described.get(str(status), {}).get("description")
        described[str(status)] = {
            "description": f"{before}\n\n{text}" if before else text,
            "content": {MEDIA_TYPE: {"schema": _schema(Problem)}},
        }
    return described
