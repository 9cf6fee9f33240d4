"""Parameters of a call, read from the places where they may stand: its query and its body."""

import reprlib
from collections.abc import Iterable, Mapping
from typing import TypeVar

from pydantic import ValidationError

from service.api.schemas import Labels, Parameters
from service.errors import InputInvalid

Call = TypeVar("Call", bound=Parameters)


def from_query(schema: type[Call], pairs: Iterable[tuple[str, str]]) -> Call:
    """Return the parameters of a query string. Lists are separated by commas.

    Raises:
        InputInvalid: A name is unknown or comes twice, or its value is out of range.
    """
    values: dict[str, str | list[str]] = {}
    for name, text in pairs:
        if name in values:
            raise InputInvalid(f"field '{name}': it is given twice in the query.", field=name)
        is_list = name in ("include", "context") or (name == "label" and "," in text)
        values[name] = text.split(",") if is_list else text
    return _validate(schema, values, strict=False)


def from_body(schema: type[Call], values: object) -> Call:
    """Return the parameters of a parsed JSON body. A string is no number here, nor is true.

    Raises:
        InputInvalid: Not an object, a name is unknown, or a value has the wrong type or range.
    """
    if not isinstance(values, dict):
        raise InputInvalid('The body must be a JSON object such as {"model": "..."}.')
    return _validate(schema, values, strict=True)


def merge(query: Call, body: Call) -> Call:
    """Return the parameters of both places.

    Raises:
        InputInvalid: One is in both and differs.
    """
    given = {name: getattr(body, name) for name in body.model_fields_set}
    for name in query.model_fields_set & body.model_fields_set:
        one, other = getattr(query, name), given[name]
        if one != other and not (name == "label" and _words(one) == _words(other)):
            raise InputInvalid(
                f"field '{name}': the query says {_short(one)}, the body {_short(other)}. "
                "Say it once.",
                field=name,
            )
    return query.model_copy(update=given)


def _words(label: Labels) -> list[str]:
    """Return labels as a query says them: it has no numbers, and digits alone are one there."""
    return [str(each) for each in (label if isinstance(label, list) else [label])]


def _validate(schema: type[Call], values: Mapping[str, object], *, strict: bool) -> Call:
    # Before pydantic, which would list a million unknown names one by one.
    for name in values:
        if name not in schema.model_fields:
            known = ", ".join(schema.model_fields)
            text = f"field {_short(name)}: unknown here. Known are: {known}."
            raise InputInvalid(text, field=name[:100])
    try:
        return schema.model_validate(values, strict=strict)
    except ValidationError as error:
        raise _named(error) from error


_short = reprlib.repr
"""Of a value that came: as Python writes it, cut off after a few dozen characters."""


def _expected(message: str) -> str:
    """Return what pydantic expected, as it goes on after that word."""
    # "a valid integer, unable to parse string as an integer" is a valid integer.
    what = message.removeprefix("Input should be ").partition(", unable")[0]
    return f"a number {what}" if what.startswith(("greater", "less")) else what


def _named(error: ValidationError) -> InputInvalid:
    """Return the first thing that is wrong, as a sentence that names its field."""
    errors = error.errors(include_url=False)
    field = str(errors[0]["loc"][0])
    # A union has one error for each of its members.
    about = [each for each in errors if each["loc"][0] == field]
    expected = dict.fromkeys(_expected(each["msg"]) for each in about)
    deepest = max(about, key=lambda each: len(each["loc"]))
    return InputInvalid(
        f"field '{field}': expected {' or '.join(expected)}; got {_short(deepest['input'])}.",
        field=field,
    )
