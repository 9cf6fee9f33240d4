"""The manifest: what a bundle says of itself.

This schema is the whole of what training and serving share (docs/bundle.md explains it to
people). Both sides validate it: training when it writes a bundle, serving when it reads one.
"""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

Family = Literal["vae", "flow", "continuous-flow", "gan"]
Role = Literal[
    "decode", "observe", "encode", "log_density", "elbo", "likelihood", "refine", "prior"
]
DType = Literal["float32", "int64", "uint8"]
Noise = Literal["normal", "uniform"]
Estimator = Literal["exact", "importance", "prior", "dequantisation"]

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")]
"""A model's name: lower-case letters, digits and hyphens. It is a folder and part of a URL."""
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
"""A SHA-256 in hexadecimal."""
FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*(\.[a-z0-9]+)+$")]
"""A file of the bundle's own folder: no separator and no leading dot, so it cannot leave it."""
Dimension = Annotated[int, Field(ge=1)] | Literal["batch", "draws"]
"""An axis: a fixed length, or the name of one that each call chooses."""


def _is_small(shape: tuple[int, ...]) -> tuple[int, ...]:
    if math.prod(shape) > MAX_VALUES:
        raise ValueError(f"at most {MAX_VALUES} numbers make an event or a latent; got {shape}")
    return shape


MAX_VALUES = 2**24
"""Numbers in one event or one latent. An image of 2,000 x 2,000 in colour has 12 million."""
Shape = Annotated[
    tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1), AfterValidator(_is_small)
]


DRAW_WIDTHS = (4, 16)
"""Draws that a graph is run with, where it has an axis for them: more are cut into rows of these.
Sums over a multiple of 4 come out the same at any position; a row of 16 spends little on what its
draws have in common, such as the encoder's pass."""
REFINE_DRAWS = 4
"""Pairs of draws, z = mean ± scale noise, that one step of `refine` follows."""


class Frozen(BaseModel):
    """Immutable, and strict about names: an unknown field is an error, not a silent extra."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TensorSpec(Frozen):
    """One input or output of a graph.

    `noise` marks an input that the caller fills with random numbers: `normal` for N(0, 1),
    `uniform` for U(0, 1). No graph draws its own, so that a seed means the same everywhere.
    """

    name: str
    dtype: DType = "float32"
    shape: tuple[Dimension, ...]
    noise: Noise | None = None

    def describe(self) -> str:
        """Return "float32 (batch, 1, 28, 28)", the form every error message uses."""
        return f"{self.dtype} ({', '.join(map(str, self.shape))})"

    def sized(self, *, batch: int, draws: int = 1) -> list[int]:
        """Return the shape of a tensor of so many rows, of so many draws each."""
        lengths = {"batch": batch, "draws": draws}
        return [axis if isinstance(axis, int) else lengths[axis] for axis in self.shape]


Signature = tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]
"""Inputs and outputs."""


class Tolerance(Frozen):
    """How far an output may be from the float64 reference: |a - b| <= absolute + relative |b|."""

    absolute: float = Field(ge=0)
    relative: float = Field(ge=0, le=0.1, default=0.0)


class Graph(Frozen):
    """What one role computes: an ONNX file, which roles of the same inputs may share."""

    file: FileName
    sha256: Digest
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    tolerance: dict[str, Tolerance]
    """By output: what the golden vectors are held to, on whatever device serves."""
    parity: dict[str, float] = {}
    """By output: the largest |ONNX Runtime - float64| that was measured at export."""
    rows_exact_at: Literal[1, 8] | None = None
    """A row's bytes do not depend on its batch when row counts are multiples of this, on the
    CPU type that exported. None: equal to float tolerance only."""

    @property
    def has_draws(self) -> bool:
        """Whether it has an axis for Monte-Carlo draws."""
        return any("draws" in spec.shape for spec in self.inputs)

    @model_validator(mode="after")
    def _every_output_has_a_tolerance(self) -> Self:
        names = {spec.name for spec in self.outputs}
        if names != set(self.tolerance):
            raise ValueError(f"tolerance must name every output: {sorted(names)}")
        return self


class Event(Frozen):
    """One observation x, without its batch axis.

    An image is float32, channels first, from 0 (black) to 1. With `levels` L it is discrete: a
    graph first rounds x to the nearest k / (L - 1), so that its answer is that of the image.
    """

    kind: Literal["vector", "image"]
    shape: Shape
    minimum: float | None = None
    maximum: float | None = None
    levels: Annotated[int, Field(ge=2, le=256)] | None = None
    features: tuple[str, ...] = ()
    """Of a vector: the name of each feature, in order."""

    @model_validator(mode="after")
    def _image_or_vector(self) -> Self:
        if self.kind == "image" and (len(self.shape) != 3 or self.shape[0] not in (1, 3)):
            raise ValueError(f"an image is (1 or 3, height, width); got {self.shape}")
        if self.kind == "image" and (self.minimum, self.maximum) != (0.0, 1.0):
            raise ValueError("an image runs from 0 to 1: minimum = 0, maximum = 1")
        if self.kind == "vector" and len(self.shape) != 1:
            raise ValueError(f"a vector has one axis; got {self.shape}")
        if self.minimum is not None and self.maximum is not None and self.minimum >= self.maximum:
            raise ValueError(f"minimum {self.minimum:g} is not below maximum {self.maximum:g}")
        if self.features and len(self.features) != self.shape[0]:
            raise ValueError(f"{len(self.features)} feature names for {self.shape[0]} features")
        return self

    @property
    def size(self) -> int:
        """Number of dimensions of x, the D of bits per dim."""
        return math.prod(self.shape)


class Latent(Frozen):
    """The latent z of one event: independent standard normals, or what `prior` makes of them."""

    distribution: Literal["normal", "learned"] = "normal"
    shape: Shape

    @property
    def size(self) -> int:
        """Number of dimensions of z."""
        return math.prod(self.shape)


class Density(Frozen):
    """Which density the model has, and of what.

    exact: one pass of `log_density` is the number.
    estimate: a Monte-Carlo mean over draws, by `importance` (of q(z|x), from `elbo`), by `prior`
        (of p(z), from `likelihood`) or by `dequantisation` (of uniform noise below one grey
        level, from `log_density`).
    none: an implicit model; there is no number to give.
    """

    kind: Literal["exact", "estimate", "none"]
    estimator: Estimator | None
    measure: str = ""
    """What it is a density of and per what, in words: "the 8-bit image", "per unit of x"."""
    preprocessing: str = ""
    """What was done to x before the model saw it. Its Jacobian is part of the density."""

    @model_validator(mode="after")
    def _kind_and_estimator_agree(self) -> Self:
        kinds = {None: "none", "exact": "exact"}
        kind = kinds.get(self.estimator, "estimate")
        if self.kind != kind:
            raise ValueError(f"estimator {self.estimator} is of kind {kind}, not {self.kind}")
        return self


class Figure(Frozen):
    """One measured quality, with what is needed to believe it."""

    name: str
    value: float
    standard_error: float | None
    """None where the figure is not a mean over events."""
    n: int
    unit: str = ""
    note: str = ""


class Interface(Frozen):
    """What a model is to the outside: enough to know the tensors of each of its graphs."""

    family: Family
    event: Event
    latent: Latent
    labels: tuple[str, ...] | None = None
    """Names of the classes a sample can be asked for; label k is the k-th."""
    observation: Literal["bernoulli", "normal", "logistic"] | None = None
    """p(x|z), where the decoder's x is a mean and not yet a sample."""
    posterior: Literal["diagonal", "full", "flow"] | None = None
    """q(z|x) of a VAE that has one: a Gaussian with its `scale` or, of full covariance, with the
    lower triangular `scale_tril` L of its covariance L L'; or a diagonal one behind a flow."""
    density: Density

    def signature(self, role: Role) -> Signature:
        """Return the inputs and outputs that a graph of this role must have in this bundle."""
        event, latent = self.event, self.latent
        x = TensorSpec(name="x", shape=("batch", *event.shape))
        z = TensorSpec(name="z", shape=("batch", *latent.shape))
        label = TensorSpec(name="label", dtype="int64", shape=("batch",))
        condition = (label,) if self.labels else ()
        below_a_level = self.density.estimator == "dequantisation"
        uniform = TensorSpec(name="noise", shape=x.shape, noise="uniform")
        event_in = (x, *condition, uniform) if below_a_level else (x, *condition)
        per_row, per_draw = ("batch",), ("batch", "draws")
        latents = (*per_draw, *latent.shape)
        noise = TensorSpec(name="noise", shape=latents, noise="normal")
        is_learned = latent.distribution == "learned"
        match role:
            case "prior":
                return (TensorSpec(name="noise", shape=z.shape, noise="normal"),), (z,)
            case "decode":
                return (z, *condition), (x, *self._pixels())
            case "observe":
                kind: Noise = "normal" if self.observation == "normal" else "uniform"
                chance = TensorSpec(name="noise", shape=x.shape, noise=kind)
                return (z, *condition, chance), (x, *self._pixels())
            case "encode" if self.posterior:
                is_flow = self.posterior == "flow"
                drawn = z.model_copy(update={"shape": latents})
                inputs = (x, *condition, noise) if is_flow else (x, *condition)
                return inputs, (drawn,) if is_flow else self._gaussian()
            case "encode":
                return event_in, (z, TensorSpec(name="log_abs_det", shape=per_row))
            case "log_density":
                return event_in, (TensorSpec(name="log_density", shape=per_row),)
            case "elbo":
                # Of two Gaussians it is known; with a flow in either each draw has its own.
                kl = per_draw if self.posterior == "flow" or is_learned else per_row
                return (x, *condition, noise), (
                    TensorSpec(name="reconstruction", shape=per_draw),
                    TensorSpec(name="kl", shape=kl),
                    TensorSpec(name="log_weight", shape=per_draw),
                )
            case "likelihood":
                names = ("log_likelihood", "log_prior") if is_learned else ("log_likelihood",)
                weights = tuple(TensorSpec(name=name, shape=per_draw) for name in names)
                return (x, *condition, z.model_copy(update={"shape": latents})), weights
            case "refine":
                rate = TensorSpec(name="rate", shape=per_row)
                pairs = TensorSpec(
                    name="noise", shape=("batch", REFINE_DRAWS, *latent.shape), noise="normal"
                )
                before = self._gaussian()
                # A graph's input and output cannot have one name.
                after = (s.model_copy(update={"name": f"refined_{s.name}"}) for s in before)
                return (x, *condition, *before, rate, pairs), tuple(after)

    def _pixels(self) -> tuple[TensorSpec, ...]:
        """Return what images are answered as beside x, rows of pixels last."""
        if self.event.kind != "image":
            return ()
        channels, height, width = self.event.shape
        shape = ("batch", height, width, channels)
        return (TensorSpec(name="pixels", dtype="uint8", shape=shape),)

    def _gaussian(self) -> tuple[TensorSpec, TensorSpec]:
        """Return the parameters of q(z|x)."""
        mean = TensorSpec(name="mean", shape=("batch", *self.latent.shape))
        if self.posterior == "full":
            size = self.latent.size
            return mean, TensorSpec(name="scale_tril", shape=("batch", size, size))
        return mean, TensorSpec(name="scale", shape=mean.shape)


class Provenance(Frozen):
    """Where the weights come from, in enough detail to make them again."""

    recipe: dict[str, Any]
    data: str
    data_sha256: Digest
    seed: int
    versions: dict[str, str]
    git_commit: str | None
    wall_time_s: float
    device: str
    parameters: int
    created: str


class Golden(Frozen):
    """The file of inputs and outputs that PyTorch computed in float64 at export."""

    file: FileName = "golden.npz"
    sha256: Digest
    rows: int = Field(ge=1, le=4096)


class Manifest(Interface):
    """All that a bundle says of itself."""

    schema_version: Literal[1] = 1
    name: Name
    version: int = Field(ge=1, lt=10**15)
    title: str
    graphs: dict[Role, Graph]
    golden: Golden
    evaluation: tuple[Figure, ...] = ()
    provenance: Provenance
    licence: str

    @model_validator(mode="before")
    @classmethod
    def _bounds_were_of_diagonals(cls, said: object) -> object:
        """Read what was written before `posterior` was a field: there was one kind of it."""
        graphs = said.get("graphs") if isinstance(said, dict) else None
        if isinstance(said, dict) and isinstance(graphs, dict) and "elbo" in graphs:
            return {"posterior": "diagonal", **said}
        return said

    @model_validator(mode="after")
    def _graphs_have_their_signatures(self) -> Self:
        if "decode" not in self.graphs:
            raise ValueError("graphs: every bundle has a decode graph")
        for role, graph in self.graphs.items():
            inputs, outputs = self.signature(role)
            for side, specs, expected in (
                ("inputs", graph.inputs, inputs),
                ("outputs", graph.outputs, outputs),
            ):
                if specs != expected:
                    raise ValueError(
                        f"graphs.{role}.{side}: expected {_listing(expected)}; "
                        f"got {_listing(specs)}"
                    )
        return self

    @model_validator(mode="after")
    def _densities_have_their_graphs(self) -> Self:
        needs: dict[str | None, Role] = {
            "exact": "log_density",
            "dequantisation": "log_density",
            "importance": "elbo",
            "prior": "likelihood",
        }
        role = needs.get(self.density.estimator)
        if role and role not in self.graphs:
            raise ValueError(f"density: estimator {self.density.estimator} needs a {role} graph")
        if ("observe" in self.graphs) != (self.observation is not None):
            raise ValueError("observation: goes with an observe graph, and only with one")
        if ("prior" in self.graphs) != (self.latent.distribution == "learned"):
            raise ValueError("latent.distribution: learned goes with a prior graph, only with one")
        return self

    @model_validator(mode="after")
    def _posterior_has_its_graphs(self) -> Self:
        needs_one = [role for role in ("elbo", "refine") if role in self.graphs]
        if needs_one and not self.posterior:
            raise ValueError(f"posterior: {needs_one[0]} is about one; it says which")
        if self.posterior and "elbo" not in self.graphs and "refine" not in self.graphs:
            raise ValueError("posterior: goes with an elbo or a refine graph")
        if self.posterior == "full" and self.latent.size**2 > MAX_VALUES:
            raise ValueError(
                f"posterior: at most {MAX_VALUES} numbers make a covariance; "
                f"{self.latent.size} latents have {self.latent.size**2}"
            )
        if "refine" in self.graphs:
            if self.posterior == "flow":
                raise ValueError("refine: it moves a Gaussian; this posterior is a flow")
            for needed in ("encode", "likelihood"):
                if needed not in self.graphs:
                    raise ValueError(f"refine: needs the {needed} graph beside it")
        return self


def _listing(specs: tuple[TensorSpec, ...]) -> str:
    return ", ".join(
        f"{spec.name} {spec.describe()}" + (f" of {spec.noise} noise" if spec.noise else "")
        for spec in specs
    )
