"""The manifest: what a bundle says of itself.

This schema is the whole of what training and serving share (docs/bundle.md explains it to
people). Both sides validate it: training when it writes a bundle, serving when it reads one.
"""

from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from service.interface import ATTEMPTS, MAX_VALUES, Frozen, Interface, Role, TensorSpec

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")]
"""A model's name: lower-case letters, digits and hyphens. It is a folder and part of a URL."""
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
"""A SHA-256 in hexadecimal."""
FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*(\.[a-z0-9]+)+$")]
"""A file of the bundle's own folder: no separator and no leading dot, so it cannot leave it."""

ROLES_OF_AN_ODE: frozenset[Role] = frozenset({"velocity", "divergence", "enter", "leave"})
MAX_HELD_OUT = 1001
"""Held-out events whose density a bundle tells: a thousandth is told from the next."""


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
    parity: dict[str, float] = {}  # noqa: RUF012 - pydantic copies it
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


class Figure(Frozen):
    """One measured quality, with what is needed to believe it."""

    name: str
    value: float
    standard_error: float | None
    """None where the figure is not a mean over events."""
    n: int
    unit: str = ""
    note: str = ""
    values: tuple[float, ...] = Field((), max_length=MAX_HELD_OUT)
    """Of a density's figure: -log p(x) in nats of the events that it is the mean of, ascending,
    or where they are too many, as many quantiles. It tells what is usual."""
    draws: int | None = Field(None, ge=1)
    """Of each event, where they are estimates. Only estimates of as many are like them."""

    @model_validator(mode="after")
    def _values_ascend(self) -> Self:
        if any(before > after for before, after in pairwise(self.values)):
            raise ValueError("values: they do not ascend")
        return self


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


class Weights(Frozen):
    """The file of the weights that the graphs name by place: ONNX's external data."""

    file: Literal["weights.bin"] = "weights.bin"
    sha256: Digest


class Rejection(Frozen):
    """How a critic rejects samples: one is accepted with probability min(1, p/q / bound).

    Source:
        Azadi et al. 2019, arXiv:1810.06758.
    """

    log_bound: float
    """In nats."""
    acceptance: float = Field(ge=1 / ATTEMPTS, le=1)
    """Share of samples that are accepted, measured at export. It says what a row will cost."""
    rows: int = Field(ge=1)
    """Samples that both were measured on."""


class Manifest(Interface):
    """All that a bundle says of itself."""

    schema_version: Literal[1] = 1
    name: Name
    version: int = Field(ge=1, lt=10**15)
    title: str
    graphs: dict[Role, Graph]
    weights: Weights | None = None
    """Null where every graph's file holds its own."""
    rejection: Rejection | None = None
    """Of a model that keeps its critic."""
    golden: Golden
    evaluation: tuple[Figure, ...] = ()
    provenance: Provenance
    licence: str

    @property
    def held_out(self) -> Figure | None:
        """The figure that tells -log p(x) of events that training never saw, if one does."""
        return next((figure for figure in self.evaluation if figure.values), None)

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
        what = "bundle" if self.ode is None else "continuous flow"
        for needed in ("decode",) if self.ode is None else ("velocity", "enter", "leave"):
            if needed not in self.graphs:
                raise ValueError(f"graphs: every {what} has a {needed} graph")
        if self.ode is None and "velocity" in self.graphs:
            raise ValueError("ode: goes with a velocity graph; it says how that is solved")
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
            "exact": "log_density" if self.ode is None else "divergence",
            "dequantisation": "log_density" if self.ode is None else "divergence",
            "importance": "elbo",
            "prior": "likelihood",
            "hutchinson": "divergence",
        }
        role = needs.get(self.density.estimator)
        if role and role not in self.graphs:
            raise ValueError(f"density: estimator {self.density.estimator} needs a {role} graph")
        if ("observe" in self.graphs) != (self.observation is not None):
            raise ValueError("observation: goes with an observe graph, and only with one")
        if ("prior" in self.graphs) != (self.latent.distribution == "learned"):
            raise ValueError("latent.distribution: learned goes with a prior graph, only with one")
        if self.density.estimator == "hutchinson" and self.ode is None:
            raise ValueError("density: estimator hutchinson is of a flow that has an ode")
        if self.held_out and self.density.kind == "none":
            raise ValueError("evaluation.values: only a density tells those of events")
        if self.held_out and (self.density.kind == "exact") != (self.held_out.draws is None):
            raise ValueError("evaluation.draws: goes with values that are estimates")
        return self

    @model_validator(mode="after")
    def _critic_has_its_bound(self) -> Self:
        if ("critic" in self.graphs) != (self.rejection is not None):
            raise ValueError("rejection: goes with a critic graph, and only with one")
        if self.rejection and self.family != "gan":
            raise ValueError(f"rejection: is by the critic of a gan; this is a {self.family}")
        if self.rejection and (self.observation or self.latent.distribution == "learned"):
            raise ValueError("rejection: goes with a decoder that makes x itself of normal noise")
        return self

    @model_validator(mode="after")
    def _ode_stands_alone(self) -> Self:
        if self.ode is None:
            return self
        for field, is_right, wanted in (
            ("family", self.family == "continuous-flow", "is continuous-flow"),
            ("posterior", self.posterior is None, "is null"),
            ("observation", self.observation is None, "is null"),
            ("latent.distribution", self.latent.distribution == "normal", "is normal"),
            ("latent.shape", self.latent.shape == self.event.shape, "is that of the event"),
            (
                "graphs",
                self.graphs.keys() <= ROLES_OF_AN_ODE,
                "are those of one",
            ),
            ("labels", self.labels or self.ode.guidance is None, "has some, if it can be guided"),
        ):
            if not is_right:
                raise ValueError(f"{field}: of a model with an ode it {wanted}")
        density = "dequantisation" if self.event.levels else "exact"
        if self.density.estimator not in (None, density, "hutchinson"):
            raise ValueError(
                f"density: of an ode whose events have {'' if self.event.levels else 'no '}levels "
                f"the estimator is {density}, hutchinson or null"
            )
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
