"""What a recipe says of a continuous flow, and of which events it can."""

from typing import Literal

from pydantic import Field, model_validator

from service.interface import MAX_GUIDANCE, MAX_STEPS, Event, Frozen, Solver
from training.matching import Times
from training.told import Told
from training.velocity import PerSize

EXACT_SIZE = 64
"""Dimensions up to which a divergence is exact: it costs a pass for each."""


class ContinuousFlowConfig(Frozen):
    """What a recipe says of a continuous flow."""

    family: Literal["continuous-flow"] = Field(
        "continuous-flow", description="Selects this family."
    )
    objective: Literal["flow-matching", "likelihood"] = Field(
        "flow-matching",
        description="Regress the velocity on lines from noise to events, or raise the log-density "
        "of events through the solver, which is for vectors of at most 64 features.",
    )
    pairing: Literal["independent", "optimal-transport"] = Field(
        "independent",
        description="Of flow-matching: which noise an event is joined to, any or, within the "
        "batch and the label, that which makes the lines shortest.",
    )
    times: Times = Field(
        "uniform",
        description="Of flow-matching: when the velocity is asked, at any time alike, or late more "
        "often, where the edges of the density form.",
    )
    width: PerSize = Field(64, description="Hidden units; channels at full size, or at each.")
    depth: PerSize = Field(2, description="Residual blocks; of an image on either side of a size.")
    waves: int = Field(
        0,
        ge=0,
        description="Of features: random plane waves in which the network sees them besides, for "
        "densities with edges.",
    )
    frequency: float = Field(
        3.0,
        gt=0,
        description="Of waves: their standard deviation, in radians per that of a feature.",
    )
    solver: Solver = Field(
        "midpoint", description="How the equation is solved where a request does not say."
    )
    steps: int = Field(20, ge=1, le=MAX_STEPS, description="Likewise, in how many steps.")
    likelihood_steps: int = Field(
        8, ge=1, le=MAX_STEPS, description="Of likelihood: steps of the solver in training."
    )
    conditional: bool = Field(
        False,
        description="Tell the network the label, or the context if data.context names one: "
        "p(x|label) or p(x|context).",
    )

    label_dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Of flow-matching and labels: the share of events whose label is kept from the "
        "network, so that samples can be guided. 0.1 is usual.",
    )
    guidance: float = Field(
        0.0,
        ge=0,
        le=MAX_GUIDANCE,
        description="Of label_dropout: how far samples are led towards their label where a request "
        "does not say; 0 is the model as it was learnt.",
    )

    @model_validator(mode="after")
    def _options_are_used(self) -> "ContinuousFlowConfig":
        matching = dict.fromkeys(("pairing", "times", "label_dropout"), "flow-matching")
        for field, objective in {**matching, "likelihood_steps": "likelihood"}.items():
            if field in self.model_fields_set and self.objective != objective:
                raise ValueError(f'{field}: is of objective = "{objective}"; leave it out')
        if "frequency" in self.model_fields_set and not self.waves:
            raise ValueError("frequency: is of waves, and there are none; leave it out")
        if self.guidance and not self.label_dropout:
            raise ValueError("guidance: wants a network that was trained with label_dropout")
        return self


def check(config: ContinuousFlowConfig, event: Event, told: Told) -> None:
    """Refuse events, labels or contexts that no such flow can be of.

    Raises:
        ValueError: In a sentence that names the field.
    """
    if event.kind == "image" and config.waves:
        raise ValueError("model.waves: are of features; leave them out of images")
    if event.kind == "image" and event.levels is None:
        raise ValueError(
            "model.family: a continuous flow of images needs grey levels; set data.levels"
        )
    if config.pairing == "optimal-transport" and told.context:
        raise ValueError(
            "model.pairing: optimal-transport pairs within a label, and of a context there is but "
            'one event each; use "independent"'
        )
    if config.label_dropout and not told.labels:
        raise ValueError(
            "model.label_dropout: is of labels that the network is told; set model.conditional, of "
            "data that has labels and no context"
        )
    if config.objective == "likelihood" and (event.kind == "image" or event.size > EXACT_SIZE):
        what = "images" if event.kind == "image" else f"{event.size} features"
        raise ValueError(
            f"model.objective: likelihood is of vectors of at most {EXACT_SIZE} features; got "
            f"{what}. Use flow-matching."
        )
