"""Quality values: how much a client wants what an Accept header names (RFC 9110, 12.4.2)."""

from collections.abc import Iterable, Iterator


def items(header: str) -> Iterator[tuple[str, float]]:
    """Yield what a header such as Accept or Accept-Encoding names, each with its quality."""
    for item in header.split(","):
        name, *parameters = (part.strip().lower() for part in item.split(";"))
        if name:
            yield name, _quality(parameters)


def _quality(parameters: Iterable[str]) -> float:
    """Return the quality among an item's parameters, 0 to 1; one that is no number counts as 1."""
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            digits = value.strip().replace(".", "", 1)
            return min(float(value), 1.0) if digits.isdecimal() and digits.isascii() else 1.0
    return 1.0
