"""Recipes: one TOML file says which data, which model and how it is trained.

    name = "moons-flow"
    title = "Two moons, a spline flow"
    licence = "CC0-1.0"
    [data]
    source = "sklearn:moons"
    [model]
    family = "flow"
    [train]
    epochs = 100
    [quick]
    "train.epochs" = 2

Every field and what it means: `python -m training --help`.
"""

import difflib
import hashlib
import json
import textwrap
import tomllib
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import torch
from pydantic import BaseModel, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from service.interface import Frozen
from service.manifest import Name
from training.adversarial import is_mmd
from training.bbvi import BBVI, BBVIConfig
from training.continuous import ContinuousFlow
from training.continuous_config import ContinuousFlowConfig
from training.data import Data, DataConfig
from training.evaluate import EvaluateConfig
from training.family import Family
from training.flow import Flow
from training.flow_config import FlowConfig
from training.gan import GAN, GANConfig
from training.loop import TrainConfig
from training.proposal import Proposal, ProposalConfig
from training.vae import VAE, VAEConfig

ModelConfig = (
    VAEConfig | BBVIConfig | FlowConfig | ContinuousFlowConfig | ProposalConfig | GANConfig
)


class RecipeInvalid(Exception):
    """The recipe breaks its schema; the message names the key and what it should be."""


class Recipe(Frozen):
    """All that makes a model: the same recipe and data give the same weights."""

    name: Name = Field(description="The model's name in the service: a-z, 0-9 and hyphens.")
    title: str = Field(description="What the model is, in a few words for a person.")
    licence: str = Field(description="Of the weights, as an SPDX identifier.")
    quick: dict[str, Any] = Field(
        default={},
        description='Values that --quick puts in, by dotted key: "train.epochs" = 2.',
    )
    data: DataConfig = Field(description="Which rows, and how they are split.")
    model: Annotated[
        ModelConfig,
        Field(discriminator="family", description="Which family, and how large."),
    ]
    train: TrainConfig = Field(description="How to train, whatever the family.")
    evaluate: EvaluateConfig = Field(
        default=EvaluateConfig(), description="How the finished model is judged."
    )

    def key(self, data: Data) -> str:
        """Return the digest of all that shapes the weights: data, model and training."""
        shaping = self.model_dump(mode="json", include={"data", "model", "train"})
        text = json.dumps([shaping, data.sha256], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def read(path: Path, *, overrides: Sequence[str] = (), quick: bool = False) -> Recipe:
    """Return the recipe in a TOML file, with `a.b=value` overrides put in.

    Args:
        path: Of the file.
        overrides: Values are TOML; a bare word is a string. They win over the file and quick.
        quick: Put in the recipe's own quick values, and mark name and title, so that a trial
            never takes the place of the model.

    Raises:
        RecipeInvalid: In one sentence.
    """
    try:
        with path.open("rb") as file:
            table = tomllib.load(file)
    except OSError as error:
        raise RecipeInvalid(f"{path}: the recipe cannot be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeInvalid(f"{path}: this is not TOML ({error})") from error
    if quick:
        for key, value in dict(table.get("quick", {})).items():
            _put(table, key, value)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise RecipeInvalid(f"--set {override}: expected a.b=value, as in train.epochs=3")
        _put(table, key.strip(), _value(text.strip()))
    try:
        recipe = Recipe.model_validate(table)
    except ValidationError as error:
        # One mistake at a time: the first is often the cause of the others.
        raise RecipeInvalid(f"{path}: {_sentence(error.errors()[0])}") from error
    if quick:
        name, title = f"{recipe.name}-quick", f"{recipe.title} (a quick trial)"
        recipe = recipe.model_copy(update={"name": name, "title": title})
    return recipe


def build(recipe: Recipe, data: Data) -> Family:
    """Return the recipe's model with its initial weights, which follow from `train.seed`.

    Raises:
        RecipeInvalid: The family cannot model this data, or not with these sizes.
    """
    torch.manual_seed(recipe.train.seed)
    _check_data(recipe.model, data)
    _check_batches(recipe)
    try:
        match recipe.model:
            case VAEConfig():
                return VAE(recipe.model, data)
            case BBVIConfig():
                return BBVI(recipe.model, data)
            case FlowConfig():
                return Flow(recipe.model, data)
            case ProposalConfig():
                return Proposal(recipe.model, data)
            case ContinuousFlowConfig():
                return ContinuousFlow(recipe.model, data)
            case GANConfig():
                return GAN(recipe.model, data)
    except ValueError as error:
        raise RecipeInvalid(str(error)) from error


def _check_batches(recipe: Recipe) -> None:
    """Pass if batches are large enough for the objective.

    Raises:
        RecipeInvalid: They are not.
    """
    model = recipe.model
    if isinstance(model, GANConfig) and is_mmd(model.objective) and recipe.train.batch_size < 2:
        raise RecipeInvalid("train.batch_size: an unbiased MMD² needs two rows or more; got 1")


def _check_data(model: ModelConfig, data: Data) -> None:
    """Pass if a family takes this kind of data.

    Raises:
        RecipeInvalid: It does not.
    """
    if data.integrand is not None and not isinstance(model, ProposalConfig):
        raise RecipeInvalid(f'model.family: an integrand takes "proposal"; got "{model.family}"')
    if data.event.categories and not isinstance(model, FlowConfig):
        raise RecipeInvalid(f'data.categorical: only a "flow" makes them; got "{model.family}"')
    if data.context is None:
        return
    if not isinstance(model, FlowConfig | ContinuousFlowConfig):
        raise RecipeInvalid(
            f'data.context: "flow" and "continuous-flow" are told one; got "{model.family}"'
        )
    if not model.conditional:
        raise RecipeInvalid(
            "data.context: this model is told nothing; set model.conditional = true, or leave "
            "the context out"
        )


def describe() -> str:
    """Return every key of a recipe with its kind, its default and its meaning."""
    return "\n".join(_describe(Recipe, prefix=""))


def _put(table: dict[str, Any], key: str, value: object) -> None:
    """Set table[a][b] for the key "a.b", making the tables on the way."""
    *way, last = key.split(".")
    for depth, name in enumerate(way, start=1):
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            raise RecipeInvalid(f"{key}: {'.'.join(way[:depth])} is a value and has no keys")
    table[last] = value


def _value(text: str) -> object:
    """Return what TOML makes of a value, or the text itself where that is a bare word."""
    try:
        table = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return table["value"] if len(table) == 1 else text


def _sentence(error: ErrorDetails) -> str:
    """Return one of pydantic's complaints as a sentence that begins with the key."""
    # A discriminated union puts the family between "model" and the key, other ones the names of
    # their members between keys or behind them: no keys of TOML.
    families = _families()
    way = [part for part in map(str, error["loc"]) if part in families or _is_key(part)]
    schema = _schema(way)
    key = ".".join(part for part in way if part not in families)
    if error["type"] == "missing":
        return f"{key} is missing; {_meaning(schema, way[-1])}".removesuffix("; ")
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(way[-1], schema, n=1, cutoff=0.5)
        table = key.removesuffix(way[-1])
        known = f"did you mean {table}{near[0]}?" if near else f"known here: {', '.join(schema)}"
        return f"{key} is no key of a recipe; {known}"
    if error["type"] in ("union_tag_invalid", "union_tag_not_found"):
        return f"model.family: expected one of {', '.join(_families())}"
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if error["type"] == "string_pattern_mismatch":
        message = _meaning(schema, way[-1])
    got = "" if isinstance(error["input"], dict) else f"; got {error['input']!r}"
    # Of options that do not go together it is the table that is wrong, and the text names the key.
    inner = "." if message.partition(": ")[0] in _schema([*way, ""]) else ": "
    return f"{key}{inner}{message}{got}"


def _is_key(part: str) -> bool:
    return part.replace(".", "_").isidentifier() or part.isdigit()


def _schema(way: Sequence[str]) -> dict[str, FieldInfo]:
    """Return the fields of the table that holds the last key of a path."""
    fields = Recipe.model_fields
    models = _families()
    for part in way[:-1]:
        if part in models:
            fields = models[part].model_fields
        elif part in fields and isinstance(kind := fields[part].annotation, type):
            fields = kind.model_fields if issubclass(kind, BaseModel) else {}
    return fields


def _meaning(fields: Mapping[str, FieldInfo], name: str) -> str:
    return (fields[name].description or "it has no default").rstrip(".") if name in fields else ""


def _families() -> dict[str, type[BaseModel]]:
    """Return the models' schemas by the name of their family."""
    return {kind.model_fields["family"].default: kind for kind in get_args(ModelConfig)}


def _describe(schema: type[BaseModel], *, prefix: str) -> Iterator[str]:
    """Yield the lines of `describe` for one table: its values, then the tables in it."""
    for name, field in schema.model_fields.items():
        if name == "model":
            for family, model in _families().items():
                yield f'\n[model] with family = "{family}"'
                yield from _describe(model, prefix="  ")
        elif isinstance(table := field.annotation, type) and issubclass(table, BaseModel):
            yield f"\n[{name}]  {field.description}"
            yield from _describe(table, prefix="  ")
        else:
            yield from _entry(name, field, prefix=prefix)


def _entry(name: str, field: FieldInfo, *, prefix: str) -> Iterator[str]:
    """Yield a key's own line and its description, both folded."""
    if field.is_required():
        default = "required"
    else:
        default = "optional" if field.default is None else f"default {json.dumps(field.default)}"
    meaning = (field.description or "").rstrip(".") + "."
    indent = f"{prefix}    "
    head = f"{prefix}{name}  ({_kind(field.annotation)}, {default})"
    yield textwrap.fill(head, 100, subsequent_indent=indent, break_on_hyphens=False)
    yield textwrap.fill(
        meaning[0].upper() + meaning[1:], 96, initial_indent=indent, subsequent_indent=indent
    )


def _kind(annotation: object) -> str:
    """Return a type as a person writes it: "integer", "one of cosine, constant"."""
    names = {int: "integer", float: "number", str: "text", bool: "true or false"}
    if annotation in names:
        return names[annotation]
    parts = get_args(annotation)
    match get_origin(annotation):
        case origin if origin is Literal:
            return "one of " + ", ".join(map(str, parts)) if len(parts) > 1 else "text"
        case origin if origin is Annotated:
            return _kind(parts[0])
        case origin if origin in (types.UnionType, Union):
            return " or ".join(_kind(part) for part in parts if part is not type(None))
        case origin if origin in (tuple, list):
            return "list of " + _kind(parts[0])
    return "table of values"
