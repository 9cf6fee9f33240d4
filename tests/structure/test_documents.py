"""What docs/http.md tells is what the code knows: no more, no less."""

import re

from service.api import schemas
from service.api.problems import STATUS
from tests.structure.sources import ROOT

CALLS: dict[str, type[schemas.Parameters]] = {
    "sample": schemas.Sample,
    "decode": schemas.Decode,
    "encode": schemas.Encode,
    "log-density": schemas.LogDensity,
    "elbo": schemas.Elbo,
    "two-sample-test": schemas.TwoSampleTest,
}
UNFORESEEN = (500, "internal")
"""What is answered where no error of the tree was raised."""


def table(heading: str) -> list[list[str]]:
    """Return the cells of the first table under a heading of docs/http.md, without its head."""
    text = (ROOT / "docs/http.md").read_text()
    section = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


def test_every_parameter_is_documented_with_its_calls() -> None:
    documented = {
        (name.strip("`"), call)
        for name, calls, *_ in table("Parameters")
        for call in (CALLS if calls == "all" else calls.split(", "))
    }
    known = {
        (name, call)
        for call, schema in CALLS.items()
        for name in schema.model_fields
        if name != schema.tensor
    }
    assert documented == known


def test_every_error_is_documented_with_its_status() -> None:
    documented = {
        (int(status), code)
        for status, codes, _ in table("Errors")
        for code in re.findall(r"`(\w+)`", codes)
    }
    assert documented == {(status, error.code) for error, status in STATUS.items()} | {UNFORESEEN}
