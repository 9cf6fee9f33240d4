"""What a model is to the outside: events, latents, density, and the tensors of its graphs."""

import math
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

Family = Literal["vae", "flow", "continuous-flow", "gan"]
Role = Literal[
    "decode",
    "observe",
    "encode",
    "log_density",
    "elbo",
    "likelihood",
    "refine",
    "prior",
    "velocity",
    "divergence",
    "enter",
    "leave",
    "critic",
]
DType = Literal["float32", "int64", "uint8"]
Noise = Literal["normal", "uniform"]
Estimator = Literal["exact", "importance", "prior", "dequantisation", "hutchinson"]
Solver = Literal["euler", "midpoint", "rk4"]


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
DEFAULT_DRAWS = 64
"""Of an estimate where nobody names a number: a standard error within some ten percent."""
MAX_STEPS = 1000
"""Of a solver, at most."""
ATTEMPTS = 64
"""Candidates for a row that a critic may reject. Of them the likeliest is taken if it rejects all:
where a tenth is accepted, for 1 row in 850."""
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
    categories: tuple[tuple[str, ...], ...] = ()
    """Of a vector with categorical features: of each feature the names of its categories, whose
    number from 0 on is x; of a feature that is a number itself none."""

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

    @model_validator(mode="after")
    def _categories_are_those_of_features(self) -> Self:
        if not self.categories:
            return self
        if self.kind != "vector" or len(self.categories) != self.shape[0]:
            raise ValueError("categories: they are those of each feature of a vector")
        if not any(self.categories):
            raise ValueError("categories: no feature has any; leave them out")
        for names in self.categories:
            if len(names) == 1 or len(set(names)) < len(names):
                raise ValueError("categories: two or more, each once; or none of a number")
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


class Context(Frozen):
    """The numbers that a conditional model is told beside each event, in their own units.

    Outside of their range in the training rows an answer is an extrapolation.
    """

    names: Annotated[tuple[str, ...], Field(min_length=1)]
    minimum: tuple[float, ...]
    maximum: tuple[float, ...]

    @model_validator(mode="after")
    def _is_a_box(self) -> Self:
        if not len(self.names) == len(self.minimum) == len(self.maximum):
            raise ValueError("names, minimum and maximum must be equally many")
        if any(not low < high for low, high in zip(self.minimum, self.maximum, strict=True)):
            raise ValueError("each minimum is below its maximum")
        return self


class Density(Frozen):
    """Which density the model has, and of what.

    exact: one pass of `log_density` is the number.
    estimate: a Monte-Carlo mean over draws, by `importance` (of q(z|x), from `elbo`), by `prior`
        (of p(z), from `likelihood`), by `dequantisation` (of uniform noise below one grey
        level, from `log_density`) or by `hutchinson` (of random probes of the divergence of an
        ode, and of an image such noise besides).
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


MAX_GUIDANCE = 10.0
"""Of what makes sense: 2 already leaves little of a class but its most usual events."""
UNTOLD_LABEL = -1
"""What a velocity that can be guided is told where it is told no label."""


class Ode(Frozen):
    """How a continuous flow is solved: dw/dt = v(w, t), from noise z at t = 0 to w at t = 1.

    The log-density changes by the divergence of v on the way.

    Source:
        Chen et al. 2018, arXiv:1806.07366.
    """

    solver: Solver = "midpoint"
    """Of a request that names none."""
    steps: int = Field(ge=1, le=MAX_STEPS)
    """Likewise. All are of one length."""
    guidance: float | None = Field(None, ge=0, le=MAX_GUIDANCE)
    """Likewise: v(w|y) + guidance (v(w|y) - v(w)) is what is solved, where v(w) is told
    `UNTOLD_LABEL`. None of a model that was not trained for it."""


class Interface(Frozen):
    """What a model is to the outside: enough to know the tensors of each of its graphs."""

    family: Family
    event: Event
    latent: Latent
    labels: tuple[str, ...] | None = None
    """Names of the classes a sample can be asked for; label k is the k-th."""
    context: Context | None = None
    """Numbers that each event is given, where the model is told those and no label."""
    observation: Literal["bernoulli", "normal", "logistic"] | None = None
    """p(x|z), where the decoder's x is a mean and not yet a sample."""
    posterior: Literal["diagonal", "full", "flow"] | None = None
    """q(z|x) of a VAE that has one: a Gaussian with its `scale` or, of full covariance, with the
    lower triangular `scale_tril` L of its covariance L L'; or a diagonal one behind a flow."""
    density: Density
    ode: Ode | None = None
    """Of a continuous flow."""

    @model_validator(mode="after")
    def _is_told_one_thing(self) -> Self:
        if self.labels and self.context:
            raise ValueError("context: a model is told this or labels, not both")
        return self

    def signature(self, role: Role) -> Signature:
        """Return the inputs and outputs that a graph of this role must have in this bundle."""
        x, z, condition = self._x, self._z, self._condition
        below_a_level = self.density.estimator == "dequantisation"
        event_in = (x, *condition, _uniform(x)) if below_a_level else (x, *condition)
        match role:
            case "prior":
                return (TensorSpec(name="noise", shape=z.shape, noise="normal"),), (z,)
            case "decode":
                return (z, *condition), (x, *self._pixels())
            case "observe":
                kind: Noise = "normal" if self.observation == "normal" else "uniform"
                chance = TensorSpec(name="noise", shape=x.shape, noise=kind)
                return (z, *condition, chance), (x, *self._pixels())
            case "encode" if not self.posterior:
                return event_in, (z, TensorSpec(name="log_abs_det", shape=("batch",)))
            case "log_density":
                return event_in, (TensorSpec(name="log_density", shape=("batch",)),)
            case "critic":
                return (x, *condition), (TensorSpec(name="log_ratio", shape=("batch",)),)
            case "velocity" | "divergence" | "enter" | "leave":
                return self._of_ode(role)
            case "encode" | "elbo" | "likelihood" | "refine":
                return self._of_posterior(role)

    def _of_posterior(self, role: Literal["encode", "elbo", "likelihood", "refine"]) -> Signature:
        """Return what goes in and out where q(z|x) is, or could be."""
        x, condition = self._x, self._condition
        per_row, per_draw = ("batch",), ("batch", "draws")
        drawn = TensorSpec(name="z", shape=(*per_draw, *self.latent.shape))
        noise = TensorSpec(name="noise", shape=drawn.shape, noise="normal")
        is_flow, is_learned = self.posterior == "flow", self.latent.distribution == "learned"
        match role:
            case "encode":
                inputs = (x, *condition, noise) if is_flow else (x, *condition)
                return inputs, (drawn,) if is_flow else self._gaussian()
            case "elbo":
                # Of two Gaussians it is known; with a flow in either each draw has its own.
                kl = per_draw if is_flow or is_learned else per_row
                return (x, *condition, noise), (
                    TensorSpec(name="reconstruction", shape=per_draw),
                    TensorSpec(name="kl", shape=kl),
                    TensorSpec(name="log_weight", shape=per_draw),
                )
            case "likelihood":
                names = ("log_likelihood", "log_prior") if is_learned else ("log_likelihood",)
                weights = tuple(TensorSpec(name=name, shape=per_draw) for name in names)
                return (x, *condition, drawn), weights
            case "refine":
                rate = TensorSpec(name="rate", shape=per_row)
                pairs = TensorSpec(
                    name="noise", shape=("batch", REFINE_DRAWS, *self.latent.shape), noise="normal"
                )
                before = self._gaussian()
                # A graph's input and output cannot have one name.
                after = (s.model_copy(update={"name": f"refined_{s.name}"}) for s in before)
                return (x, *condition, *before, rate, pairs), tuple(after)

    def _of_ode(self, role: Literal["velocity", "divergence", "enter", "leave"]) -> Signature:
        """Return what goes in and out of an ode's parts; w is where it is at a time t."""
        x, condition, per_row = self._x, self._condition, ("batch",)
        w = TensorSpec(name="w", shape=self._z.shape)
        time = TensorSpec(name="t", shape=per_row)
        velocity = TensorSpec(name="velocity", shape=w.shape)
        match role:
            case "velocity":
                return (w, time, *condition), (velocity,)
            case "divergence":
                # A random direction, of which the graph takes the signs.
                probe = TensorSpec(name="probe", shape=w.shape, noise="normal")
                probed = (probe,) if self.density.estimator == "hutchinson" else ()
                divergence = TensorSpec(name="divergence", shape=per_row)
                return (w, time, *condition, *probed), (velocity, divergence)
            case "enter":
                levels = (_uniform(x),) if self.event.levels else ()
                return (x, *levels), (w, TensorSpec(name="log_abs_det", shape=per_row))
            case "leave":
                return (w,), (x, *self._pixels())

    @property
    def _x(self) -> TensorSpec:
        return TensorSpec(name="x", shape=("batch", *self.event.shape))

    @property
    def _z(self) -> TensorSpec:
        return TensorSpec(name="z", shape=("batch", *self.latent.shape))

    @property
    def _condition(self) -> tuple[TensorSpec, ...]:
        if self.context:
            return (TensorSpec(name="context", shape=("batch", len(self.context.names))),)
        label = TensorSpec(name="label", dtype="int64", shape=("batch",))
        return (label,) if self.labels else ()

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


def _uniform(x: TensorSpec) -> TensorSpec:
    """Return noise below a grey level, one number for each of x."""
    return TensorSpec(name="noise", shape=x.shape, noise="uniform")
