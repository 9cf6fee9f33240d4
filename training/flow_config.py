"""What a recipe says of a flow, and of which events it can."""

from typing import Annotated, Literal, get_args

from pydantic import Discriminator, Field, Tag, model_validator

from service.interface import Frozen
from training.conditioner import Sizes
from training.data import Data
from training.elementwise import Additive, Affine, Elementwise, Spline
from training.glow import Kind, Moving, Step

Transform = Literal["spline", "affine", "additive"]
MOVING: tuple[str, ...] = get_args(Moving)


class Layer(Frozen):
    """A layer in a list of them, with options of its own."""

    kind: Kind = Field(description="What moves.")
    transform: Transform | None = Field(None, description="How, where it is not the model's way.")

    @model_validator(mode="after")
    def _options_are_used(self) -> "Layer":
        if self.transform and self.kind not in MOVING:
            raise ValueError(f"transform: {self.kind} has none; leave it out")
        return self


def _form(value: object) -> str:
    """Return how a layer is written, or how all of them are. No word that could be a key."""
    return "a name" if isinstance(value, str) else "a table or list"


OneLayer = Annotated[
    Annotated[Kind, Tag("a name")] | Annotated[Layer, Tag("a table or list")], Discriminator(_form)
]
Layers = Annotated[
    Annotated[Moving, Tag("a name")] | Annotated[tuple[OneLayer, ...], Tag("a table or list")],
    Discriminator(_form),
]


class FlowConfig(Frozen):
    """Couplings, triangular and linear maps, by splines, affine or additive."""

    family: Literal["flow"] = Field("flow", description="Selects this family.")
    layer: Layers = Field(
        "coupling",
        description="What moves: half of the features, given the others; or each feature or pixel, "
        "given those before it, in one pass for densities (samples take one for each feature) or "
        "in one pass for samples. A list is a pattern of such layers and of "
        "actnorm, mix and reverse, in that order from events to noise, each a name or a table "
        "{kind, transform}; of an image at several scales (Glow).",
    )
    transform: Transform = Field(
        "spline",
        description="How: by rational-quadratic splines, or scaled and shifted, or shifted.",
    )
    layers: int = Field(
        8,
        ge=1,
        description="Layers that see the whole event, or of an image and couplings the coarse "
        "half; of a list how often it is gone through, of an image at each scale.",
    )
    scales: int = Field(
        2, ge=1, description="Of an image and a list of layers: how often half is left to go on."
    )
    width: int = Field(64, ge=1, description="Hidden units, or channels, of each network.")
    depth: int = Field(2, ge=1, description="Residual blocks of each network.")
    bins: int = Field(8, ge=2, le=64, description="Bins of each spline.")
    bound: float = Field(
        5.0, gt=0, description="Splines act in the box from -bound to bound, outside is identity."
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of hidden units dropped.")
    fine_width: int = Field(
        64, ge=1, description="Of an image and couplings: channels of the fine networks."
    )
    fine_depth: int = Field(
        2, ge=1, description="Of an image and couplings: blocks of the fine networks."
    )
    alpha: float = Field(
        0.05,
        gt=0,
        lt=0.5,
        description="Of an image or categories: a level y enters as the logit of alpha + "
        "(1 - 2 alpha) y.",
    )
    whiten: bool = Field(
        False,
        description="Of numbers: begin with the mean and the covariance of the training rows, not "
        "their deviations alone. For few rows, or columns that nearly tell each other.",
    )
    noise: float = Field(
        0.0,
        ge=0,
        le=1,
        strict=True,  # true is not 1
        description="Of numbers: deviation of the normal noise in training rows, other each time "
        "they are seen, in deviations of their column; a context is told as it is. It smooths the "
        "density, for few rows, and forgets where columns nearly tell each other.",
    )
    conditional: bool = Field(
        False,
        description="Tell every network the label, or the context if data.context names one: "
        "p(x|label) or p(x|context).",
    )

    @model_validator(mode="after")
    def _options_are_used(self) -> "FlowConfig":
        moving = [step for step in self.steps if step.kind in MOVING]
        if not moving:
            raise ValueError(f"layer: none has a network; a list needs one of {', '.join(MOVING)}")
        if len(moving) < 2:
            raise ValueError("layers: expected 2 or more that have a network; got 1")
        if "bins" in self.model_fields_set and not self.has_splines:
            raise ValueError('bins: is of transform = "spline"; leave it out')
        unused = {"scales"} if isinstance(self.layer, str) else set()
        if self.layer != "coupling":
            unused |= {"fine_width", "fine_depth"}
        for name in sorted(unused & self.model_fields_set):
            other = "a list of layers" if name == "scales" else 'layer = "coupling"'
            raise ValueError(f"{name}: is of {other}; leave it out")
        return self

    @property
    def has_splines(self) -> bool:
        """Whether any layer has."""
        return any(isinstance(each.transform, Spline) for each in self.steps if each.kind in MOVING)

    @property
    def steps(self) -> list[Step]:
        """All layers of a vector, or of one scale of an image."""
        if self.layer == "coupling":
            return [Step("coupling", self.map(self.transform))] * self.layers
        if isinstance(self.layer, str):
            # Between triangular maps the order is turned round.
            step = Step(self.layer, self.map(self.transform))
            return [step, *[Step("reverse", step.transform), step] * (self.layers - 1)]
        listed = (Layer(kind=each) if isinstance(each, str) else each for each in self.layer)
        steps = [Step(each.kind, self.map(each.transform or self.transform)) for each in listed]
        return steps * self.layers

    def map(self, transform: Transform) -> Elementwise:
        """Return the kind of map that a layer applies to each value."""
        match transform:
            case "spline":
                return Spline(self.bins, self.bound)
            case "affine":
                return Affine()
            case "additive":
                return Additive()

    def sizes(self, context: int) -> Sizes:
        """Return those of each network, which is told so many numbers."""
        return {
            "width": self.width, "depth": self.depth, "dropout": self.dropout, "context": context,
        }  # fmt: skip


def check(config: FlowConfig, data: Data) -> None:
    """Refuse options that such events have no use for.

    Raises:
        ValueError: In a sentence that names the field.
    """
    is_image = data.event.kind == "image"
    has_levels = is_image or bool(data.event.categories)
    is_numbers = not has_levels and data.integrand is None
    for name in ("whiten", "noise"):
        if getattr(config, name) and not is_numbers:
            other = "images" if is_image else "rows with categories" if has_levels else "a box"
            raise ValueError(f"model.{name}: is of rows of numbers, not of {other}; leave it out")
    unused = {
        "images": set() if is_image else {"scales", "fine_width", "fine_depth"},
        "images and categories": set() if has_levels else {"alpha"},
        'transform = "spline"': set() if has_levels or config.has_splines else {"bound"},
    }
    for kind, names in unused.items():
        for name in sorted(names & config.model_fields_set):
            raise ValueError(f"model.{name}: is of {kind}; leave it out")
