"""A bundle becomes the model it was exported from, or is refused in a sentence."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from service import bundle
from service.bundle import Bundle
from tests.training.bundled import bundled, recipe_of_a, shaken
from tests.training.cases import features, images, labelled, vectors
from training import data as data_module
from training.data import Data
from training.family import Family
from training.recipe import build
from training.restore import RestoreRefused, recipe_of, restore

MODELS = Path(__file__).parents[2] / "models"
SHIPPED = [
    folder
    for folder in sorted(MODELS.glob("*/*"))
    if folder.parent.name.startswith(("digits", "moons")) and folder.name.isdecimal()
]
"""Those whose data scikit-learn has."""

DIAGONAL: dict[str, Any] = {
    "family": "vae", "observation": "normal", "latent": 3, "width": 8, "depth": 2,
}  # fmt: skip
FLOW_POSTERIOR: dict[str, Any] = {
    **DIAGONAL, "posterior": "flow", "flow_layers": 2, "flow_width": 8,
}  # fmt: skip
FLOW_PRIOR: dict[str, Any] = {**DIAGONAL, "prior": "flow", "prior_layers": 2, "prior_width": 8}
LOGISTIC: dict[str, Any] = {
    "family": "vae", "observation": "logistic", "scale": "per-feature", "conditional": True,
    "latent": 3, "width": 4,
}  # fmt: skip
TRIANGULAR: dict[str, Any] = {
    "family": "flow", "layer": "autoregressive", "layers": 2, "width": 8, "depth": 1, "bins": 4,
}  # fmt: skip
COUPLINGS: dict[str, Any] = {
    "family": "flow", "layers": 2, "width": 8, "depth": 1, "bins": 4, "fine_width": 8,
    "fine_depth": 1, "conditional": True,
}  # fmt: skip
LISTED: dict[str, Any] = {
    "family": "flow", "layer": ["actnorm", "mix", {"kind": "coupling", "transform": "affine"}],
    "layers": 2, "width": 8, "depth": 1,
}  # fmt: skip
CONTINUOUS: dict[str, Any] = {"family": "continuous-flow", "width": 8, "depth": 1}
KEPT: dict[str, Any] = {
    "family": "gan", "latent": 3, "width": 8, "critic_width": 8, "keep_critic": True,
}  # fmt: skip
CASES: dict[str, tuple[dict[str, Any], Callable[[], Data]]] = {
    # Linear layers over three axes lose their weights' names, masked ones also what is masked.
    "vae of features with a flow posterior": (FLOW_POSTERIOR, features),
    "vae of features with a learned prior": (FLOW_PRIOR, features),
    "flow of masked splines": (TRIANGULAR, features),
    "flow of whitened features": ({**TRIANGULAR, "whiten": True, "noise": 0.1}, features),
    "flow of masked splines that is told labels": ({**TRIANGULAR, "conditional": True}, labelled),
    "flow of images by masked splines that is told labels": (
        {**TRIANGULAR, "conditional": True},
        lambda: images(classes=3),
    ),
    "flow of images that is told labels": (COUPLINGS, lambda: images(classes=3)),
    # Scales and mixes are folded into constants.
    "flow of features by a list of layers": (LISTED, features),
    "glow of images that is told labels": (
        {**LISTED, "conditional": True},
        lambda: images(classes=3),
    ),
    "continuous flow of features": (CONTINUOUS, features),
    # Its waves are drawn by nobody twice.
    "continuous flow that sees waves": ({**CONTINUOUS, "waves": 3}, features),
    "continuous flow of images with labels": (
        {**CONTINUOUS, "width": 4, "conditional": True},
        lambda: images(classes=3),
    ),
    # The scale of p(x|z) is folded into a constant.
    # Its normalised layers are published as plain ones.
    "gan of features that keeps its critic": (KEPT, labelled),
    "gan of images that keeps its critic": (KEPT, lambda: images(classes=3)),
    "vae of grey levels that is told labels": (LOGISTIC, lambda: images(classes=3)),
}


@pytest.fixture(scope="module", params=CASES)
def original(request: pytest.FixtureRequest) -> tuple[Family, Bundle, Data]:
    config, make = CASES[request.param]
    data, recipe = make(), recipe_of_a(config)
    model = shaken(build(recipe, data).eval())
    model.release()
    return model, bundled(model, recipe, data), data


def test_restored_model_has_the_weights(original: tuple[Family, Bundle, Data]) -> None:
    model, read, data = original
    found = dict(restore(read, data).named_parameters())
    masks = {name: buffer for name, buffer in model.named_buffers() if name.endswith(".mask")}
    for name, parameter in model.named_parameters():
        mask = masks.get(name.removesuffix("weight") + "mask", torch.ones(()))
        assert torch.allclose(found[name] * mask, parameter * mask, rtol=2e-6, atol=1e-6), name
        assert not found[name].requires_grad


def test_other_weights_in_the_graphs_are_refused(original: tuple[Family, Bundle, Data]) -> None:
    _, read, data = original
    golden = {name: array.copy() for name, array in read.golden.items()}
    density = next(
        name
        for name in (
            "elbo.log_weight",
            "log_density.log_density",
            "divergence.divergence",
            "critic.log_ratio",
        )
        if name in golden
    )
    golden[density][3] += 1e-3
    changed = Bundle(read.folder, read.manifest, read.files)
    changed.__dict__["golden"] = golden
    with pytest.raises(RestoreRefused, match="misses the golden vectors by") as caught:
        restore(changed, data)
    assert "\n" not in str(caught.value)


def test_moments_of_the_training_data_come_from_the_bundle() -> None:
    data = features()
    recipe = recipe_of_a(DIAGONAL)
    model = shaken(build(recipe, data).eval())
    elsewhere = vectors(mean=np.array([5.0, 1.0, 0.0]), std=np.array([3.0, 1.0, 9.0]))
    found = restore(bundled(model, recipe, data), elsewhere)
    buffers = dict(found.named_buffers())
    for name in ("standardise.location", "standardise.unit"):
        assert torch.equal(buffers[name], dict(model.named_buffers())[name])


@pytest.mark.parametrize("folder", SHIPPED, ids=[folder.parent.name for folder in SHIPPED])
def test_shipped_model_is_restored(folder: Path) -> None:
    read = bundle.read(folder)
    rows = data_module.load(recipe_of(read).data)
    model = restore(read, rows)
    torch.manual_seed(0)
    z = torch.randn(4, *read.manifest.latent.shape)
    label = torch.arange(4) if read.manifest.labels else None
    assert model.decode(z, label).isfinite().all()


def with_recipe(read: Bundle, **changes: Any) -> Bundle:  # noqa: ANN401
    """Return the bundle with another model in its recipe."""
    provenance = read.manifest.provenance
    recipe = dict(provenance.recipe)
    recipe["model"] = recipe["model"] | changes
    origin = provenance.model_copy(update={"recipe": recipe})
    manifest = read.manifest.model_copy(update={"provenance": origin})
    return dataclasses.replace(read, manifest=manifest)


def test_other_data_and_other_recipes_are_refused_in_a_sentence(
    original: tuple[Family, Bundle, Data],
) -> None:
    _, read, data = original
    if data.labels is None:
        wrong = vectors(mean=np.zeros(2), std=np.ones(2))
        sentences = {
            "events of shape (3,), and this data has events of shape (2,)": (read, wrong),
            "knows columns ('a', 'b', 'c'), and this data has": with_columns(read, data),
            "knows vectors, and this data has images": (read, images()),
            f"none of this package's version (model.{read.manifest.family}.colour": (
                with_recipe(read, colour=1),
                data,
            ),
        }
        if read.manifest.family == "vae":
            other = with_recipe(read, latent=4)
            sentences["makes a model with another decode graph"] = (other, data)
    else:
        two, none = images(classes=2), images()
        if data.event.kind == "vector":
            two, none = labelled(classes=2), vectors(mean=np.zeros(2), std=np.ones(2))
        # A GAN is conditional where there are labels, and others where they are told to be.
        missing = "model.conditional: this data has no labels to be told"
        if read.manifest.family == "gan":
            missing = "knows the labels 0, 1, 2; this data has none."
        sentences = {
            "knows the labels 0, 1, 2; this data has 0, 1.": (read, two),
            missing: (read, none),
            "misses the golden vectors": (with_recipe(read, width=5), data),
        }
    for sentence, (asked, given) in sentences.items():
        with pytest.raises(RestoreRefused) as caught:
            restore(asked, given)
        assert sentence in str(caught.value)
        assert "\n" not in str(caught.value)


def with_columns(read: Bundle, data: Data) -> tuple[Bundle, Data]:
    """Return a bundle whose event has names, and data that has them in another order."""
    event = read.manifest.event.model_copy(update={"features": ("a", "b", "c")})
    named = read.manifest.model_copy(update={"event": event})
    others = data.event.model_copy(update={"features": ("a", "c", "b")})
    return dataclasses.replace(read, manifest=named), dataclasses.replace(data, event=others)
