"""The parameters of a request: what each kind of model may be told beside its tensors."""

import reprlib
from collections.abc import Mapping
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service import noise
from service.api.schemas import Choices
from service.errors import InputInvalid
from service.operations import Observation


class Parameters(BaseModel):
    """What every model may be told: the protocol's own. An unknown name is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    timeout: int | None = Field(
        None, ge=0, description="Microseconds after which the answer is of no use. 0 is none."
    )
    priority: int | None = Field(None, ge=0, description="Read and not used: all are equal here.")


class NoiseParameters(Parameters):
    """Of a graph that takes noise."""

    seed: int | None = Field(
        None,
        ge=0,
        lt=noise.SEEDS,
        description="Of the noise inputs that are left out. Default: drawn, and answered.",
    )


class DrawParameters(NoiseParameters):
    """Of a graph that takes noise in draws."""

    draws: int | None = Field(
        None,
        ge=1,
        le=noise.DRAWS,
        description="How many draws of noise for each row, where it is left out.",
    )


class SampleParameters(Choices, NoiseParameters):
    """Of sampling: rows start .. start + n - 1 of a seed."""

    n: int | None = Field(None, ge=1, description="How many rows. Default: those of `rows`, or 1.")
    start: int = Field(0, ge=0, lt=noise.ROWS, description="First row.")
    label: int | str | None = Field(
        None,
        description="Class of every row, by its number or its name. Default: drawn from the seed.",
    )
    context: str | None = Field(
        None,
        description="Numbers of every row, separated by commas. Needed where a model has a "
        "`context`, which names them.",
    )
    temperature: float = Field(1.0, ge=0, le=2, description="Factor on z.")
    observation: Observation | None = Field(
        None, description="Of a model with p(x|z): E[x|z] (`mean`, the default), or a `draw` of x."
    )
    rejection: bool = Field(
        False,
        description="Of a GAN that keeps its critic: candidates that it accepts, or where it "
        "accepts none of 64 the likeliest.",
    )


Kind = TypeVar("Kind", bound=Parameters)


def read(kind: type[Kind], values: Mapping[str, object]) -> Kind:
    """Return checked parameters. A string is no number here, nor is true.

    Raises:
        InputInvalid: A name is unknown, or its value of the wrong type or out of range.
    """
    for name in values:
        if name not in kind.model_fields:
            raise InputInvalid(
                f"parameter {reprlib.repr(name)}: unknown here. Known are: "
                f"{', '.join(kind.model_fields)}.",
                field=name[:100],
            )
    try:
        return kind.model_validate(values, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = str(first["loc"][0])
        expected = first["msg"].removeprefix("Input should be ")
        raise InputInvalid(
            f"parameter '{field}': expected {expected}; got {reprlib.repr(first['input'])}.",
            field=field,
        ) from error
