"""What each call may be told, by the same names in the query and the body, and its JSON answer.

The tensors (x, z) are `Any` here and never walked by pydantic: `service.tensors` reads them.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from service import noise
from service.condition import Condition, Label
from service.interface import MAX_GUIDANCE, Estimator, Solver
from service.operations import Extra, Observation
from service.refinement import MOST_STEPS
from service.two_sample import Kernel

MAX_COLUMNS = 64

Labels = Label | Annotated[list[Label], Field(fail_fast=True)]
"""One class for every row, or one for each; by number or name. Of a list with a million errors, the
first will do."""
Numbers = Annotated[list[float], Field(fail_fast=True)]
Contexts = Numbers | Annotated[list[Numbers], Field(fail_fast=True)]
"""The numbers of every row, or of each."""


class Choices(BaseModel):
    """How a continuous flow is to be solved, here and in /v2: a `service.ode.Choice`."""

    solver: Solver | None = Field(
        None, description="Of a continuous flow's ode. Default: what its `ode` says."
    )
    steps: int | None = Field(
        None, ge=1, description="How many that solver takes. Default: likewise."
    )
    guidance: float | None = Field(
        None,
        ge=0,
        le=MAX_GUIDANCE,
        description="Of a continuous flow that can be guided: how far past its label; 0 as it was "
        "learnt. Default: likewise.",
    )


class Parameters(BaseModel):
    """What every call may be told. An unknown name is an error, not a silent extra."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    tensor: ClassVar[str | None] = None
    """Name of the field that holds the rows, if the call reads any."""

    model: str | None = Field(
        None, description="Which model. May be left out if one is served or a default is set."
    )
    version: int | None = Field(
        None, ge=1, description="Which version; the newest where none is named."
    )


class Seeded(Parameters):
    """A call that may need random numbers."""

    seed: int | None = Field(
        None,
        ge=0,
        lt=noise.SEEDS,
        description="Of the noise. The service draws one, and returns it, if none is given.",
    )


class Solved(Choices, Parameters):
    """A call that a continuous flow solves its ode for. No other model takes these."""


class Told(Parameters):
    """A call on rows that a conditional model is told of."""

    label: Labels | None = Field(
        None,
        description="Class of every row, or one for each, by its number or its name. Needed where "
        "a model has labels.",
    )
    context: Contexts | None = Field(
        None,
        description="Numbers of every row, or one list of them for each. Needed where a model has "
        "a `context`, which names them.",
    )

    @property
    def condition(self) -> Condition:
        """What is said of the rows."""
        return Condition(self.label, self.context)


class Estimated(Told, Seeded):
    """A call on rows x that may be a Monte-Carlo estimate."""

    tensor: ClassVar[str | None] = "x"

    x: Any = Field(None, description="Events, shape (n, *event.shape).")
    draws: int | None = Field(
        None, ge=1, le=noise.DRAWS, description="Monte-Carlo draws for each row. Default 64."
    )


class Sample(Solved, Told, Seeded):
    """Rows start .. start + n - 1 of a seed."""

    n: int = Field(1, ge=1, description="How many rows.")
    start: int = Field(0, ge=0, lt=noise.ROWS, description="First row.")
    label: Labels | None = Field(
        None,
        description="Class of every row, or one for each, by its number or its name. "
        "Default: drawn from the seed.",
    )
    temperature: float = Field(
        1.0,
        ge=0,
        le=2,
        description="Factor on z, or on the noise that a learned p(z) makes z of. 1 is the model.",
    )
    observation: Observation | None = Field(
        None,
        description="Of a model with p(x|z): E[x|z] (`mean`, the default), or a `draw` of x.",
    )
    rejection: bool = Field(
        False,
        description="Of a GAN that keeps its critic: each row is the first of up to 64 candidates "
        "that the critic accepts.",
    )
    include: list[Extra] = Field([], fail_fast=True, description="What JSON shall hold beside x.")
    columns: int | None = Field(
        None, ge=1, le=MAX_COLUMNS, description="Of a PNG grid. Default: 8, or n if that is less."
    )


class Decode(Solved, Told):
    """x of given z."""

    tensor: ClassVar[str | None] = "z"

    z: Any = Field(None, description="Latents, shape (n, *latent.shape).")
    columns: int | None = Field(
        None, ge=1, le=MAX_COLUMNS, description="Of a PNG grid. Default: 8, or n if that is less."
    )


class Encode(Solved, Estimated):
    """z of given x."""

    draws: int | None = Field(
        None,
        ge=1,
        le=noise.DRAWS,
        description="Of a posterior: so many draws of z for each row. Default: its mean.",
    )


class LogDensity(Solved, Estimated):
    """log p(x) of given x."""

    estimator: Estimator | None = Field(
        None,
        description="One of the model's `estimators`: draws of q(z|x) (`importance`) or of p(z) "
        "(`prior`), for example. Default: the first of them.",
    )


class Elbo(Estimated):
    """The evidence lower bound of given x."""

    refine: int = Field(
        0,
        ge=0,
        le=MOST_STEPS,
        description="Steps by which each row's own q(z|x) moves from the encoder's answer to a "
        "better bound. 0 is none.",
    )


class TwoSampleTest(Solved, Told, Seeded):
    """Whether given x look like the model's own."""

    tensor: ClassVar[str | None] = "x"

    x: Any = Field(
        None, description="Events, shape (n, *event.shape), drawn at random; 8 to 1,000 of them."
    )
    label: Labels | None = Field(
        None,
        description="Class of every event, or one for each: samples of the same are drawn. "
        "Default: each equally probable.",
    )
    observation: Observation | None = Field(
        None, description="Of a model with p(x|z): a `draw` of x (the default), or E[x|z] (`mean`)."
    )
    kernel: Kernel = Field(
        "rational-quadratic",
        description="Of the statistic: `rational-quadratic`, of three lengths, or `energy`, whose "
        "MMD² is the energy distance.",
    )


class Answer(BaseModel):
    """What every JSON answer says first."""

    model: str
    version: int


Tensor = Annotated[list[Any], Field(description="Nested lists of numbers, one item for each row.")]
Value = float | Literal["Infinity", "-Infinity", "NaN"]
"""JSON has no infinities: they are strings, as in protobuf's JSON mapping."""


class Sampled(Answer):
    """JSON of /sample."""

    seed: int
    start: int
    x: Tensor
    z: Tensor | None = None
    label: list[int] | None = None
    log_density: list[Value] | None = None
    log_ratio: list[Value] | None = None
    attempts: list[int] | None = None


class Decoded(Answer):
    """JSON of /decode."""

    x: Tensor


class Posterior(BaseModel):
    """q(z|x) of a VAE: normals with a `scale` each, or of a covariance L L' with `scale_tril` L."""

    mean: Tensor
    scale: Tensor | None = None
    scale_tril: Tensor | None = None


class Encoded(Answer):
    """JSON of /encode. `seed` is null where no random number was needed."""

    z: Tensor
    posterior: Posterior | None
    log_abs_det: list[Value] | None
    seed: int | None


class LogDensities(Answer):
    """JSON of /log-density. What only an estimate has is null, or missing, of an exact one.

    anomaly_score is the share of held-out events that are more probable; missing where the bundle
    tells of none, as of an estimate, or where an ode is not solved as usual.
    """

    log_density: list[Value]
    standard_error: list[float | None] | None
    effective_sample_size: list[float | None] | None = None
    anomaly_score: list[float] | None = None
    estimator: Estimator
    unit: Literal["nats"]
    bits_per_dim: list[Value]
    draws: int | None
    seed: int | None


class Parts(BaseModel):
    """A bound and what it is made of."""

    elbo: list[Value]
    standard_error: list[float | None]
    reconstruction: list[Value]
    kl: list[Value]
    importance_weighted: list[Value]
    effective_sample_size: list[float | None]


class Bounds(Answer, Parts):
    """JSON of /elbo. `amortised` is the bound before any step; null where there was none."""

    unit: Literal["nats"]
    draws: int
    refine: int
    amortised: Parts | None
    seed: int


class Verdict(Answer):
    """JSON of /two-sample-test."""

    n: int
    kernel: Kernel
    statistic: float
    standard_error: float
    p_value: float
    permutations: int
    seed: int


class Problem(BaseModel):
    """An error, after RFC 9457. `code` is stable and for programs, `detail` is for people."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    field: str | None = None
    instance: str | None = None
