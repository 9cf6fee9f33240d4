"""Small models as bundles, without what takes long in an export and no test here is about."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from service.bundle import Bundle, whole
from service.manifest import Manifest
from training import export
from training.data import Data
from training.family import Family
from training.recipe import Recipe

ROLES = (
    "prior", "decode", "observe", "elbo", "encode", "log_density",
    "velocity", "divergence", "enter", "leave", "critic",
)  # fmt: skip


def recipe_of_a(model: dict[str, Any], *, source: str = "made up", **more: Any) -> Recipe:  # noqa: ANN401
    """Return the recipe of a model that is called toy."""
    return Recipe.model_validate(
        {
            "name": "toy",
            "title": "A toy",
            "licence": "CC0-1.0",
            "data": {"source": source},
            "model": model,
            "train": {"epochs": 1},
            **more,
        }
    )


def shaken(model: Family) -> Family:
    """Return the model with weights that no recipe gives it."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def exported(model: Family, recipe: Recipe, data: Data) -> tuple[Manifest, dict[str, bytes]]:
    """Return what would be published of a model, of a few of its graphs."""
    graphs = {role: graph for role, graph in model.graphs().items() if role in ROLES}
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        # PyTorch's exporter warns of its own deprecations and of axis names that it keeps.
        warnings.simplefilter("ignore")
        patch.setattr(export, "measured", lambda manifest, files: manifest)
        return export.build(
            graphs,
            model.interface,
            name=recipe.name,
            title=recipe.title,
            licence=recipe.licence,
            version=1,
            rejection=model.rejection(),
            events=data.test.x.numpy(),
            provenance=export.describe_origin(
                recipe=recipe.model_dump(mode="json", exclude_unset=True, exclude={"quick"}),
                data=data.description,
                data_sha256=data.sha256,
                seed=0,
                wall_time_s=0.0,
                device="cpu",
                parameters=sum(parameter.numel() for parameter in model.parameters()),
            ),
        )


def bundled(model: Family, recipe: Recipe, data: Data) -> Bundle:
    """Return the bundle of a model as it would be read, of a few of its graphs."""
    manifest, files = exported(model, recipe, data)
    return Bundle(Path("models/toy/1"), manifest, whole(manifest, files))
