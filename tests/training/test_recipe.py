"""A recipe is read, overridden and refused in sentences."""

from pathlib import Path

import pytest
import torch

from tests.training.gaussian import gaussian_data
from training import recipe
from training.flow_config import FlowConfig
from training.recipe import Recipe, RecipeInvalid, read

TEXT = """
name = "moons-flow"
title = "Two moons"
licence = "CC0-1.0"
[data]
source = "sklearn:moons"
[model]
family = "flow"
layers = 2
[train]
epochs = 7
[quick]
"train.epochs" = 1
"data.rows" = 300
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "moons-flow.toml"
    file.write_text(TEXT, encoding="utf-8")
    return file


def test_recipe_gives_what_its_file_says_and_defaults_for_the_rest(path: Path) -> None:
    found = read(path)
    assert isinstance(found.model, FlowConfig)
    assert (found.model.layers, found.train.epochs, found.train.schedule) == (2, 7, "cosine")


def test_overrides_are_toml_values_and_bare_words_are_strings(path: Path) -> None:
    found = read(
        path,
        overrides=[
            "train.learning_rate=2e-3",
            "train.betas=[0.5, 0.9]",
            "train.precision=bf16",
            'title="A = B"',
        ],
    )
    assert found.train.learning_rate == 2e-3
    assert found.train.betas == (0.5, 0.9)
    assert found.train.precision == "bf16"
    assert found.title == "A = B"


def test_quick_puts_in_its_values_marks_the_name_and_yields_to_overrides(path: Path) -> None:
    found = read(path, quick=True, overrides=["data.rows=200"])
    assert (found.train.epochs, found.data.rows) == (1, 200)
    assert found.name == "moons-flow-quick"
    assert read(path).name == "moons-flow"


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("trian.epochs=3", "trian is no key of a recipe; did you mean train?"),
        ("train.epoch=3", "train.epoch is no key of a recipe; did you mean train.epochs?"),
        ("model.layrs=3", "model.layrs is no key of a recipe; did you mean model.layers?"),
        (
            "model.zzz=3",
            "model.zzz is no key of a recipe; known here: family, layer, transform, layers",
        ),
        (
            "model.family=vea",
            "model.family: expected one of vae, bbvi, flow, continuous-flow, proposal, gan",
        ),
        (
            'model.layer=["mix", "rotate"]',
            "model.layer.1: should be 'coupling', 'autoregressive', 'inverse-autoregressive', ",
        ),
        (
            'model.layer=[{kind="coupling", transform="afine"}]',
            "model.layer.0.transform: should be 'spline', 'affine' or 'additive'; got 'afine'",
        ),
        ("model.layer=[{}]", "model.layer.0.kind is missing"),
        ('model.layer=["actnorm"]', "model.layer: none has a network; a list needs one of"),
        ("train.epochs=many", "train.epochs: should be a valid integer"),
        ("train.epochs=0", "train.epochs: should be greater than or equal to 1; got 0"),
        ("train.schedule=linear", "train.schedule: should be 'cosine' or 'constant'"),
        ("data.dimensions=2", "data.dimensions: does not apply to sklearn:moons; leave it out"),
        ("data.dimensions=1", "data.dimensions: should be greater than or equal to 2; got 1"),
        ("name.x=1", "name.x: name is a value and has no keys"),
        ("train.epochs", "--set train.epochs: expected a.b=value"),
    ],
)
def test_mistake_gets_a_sentence_that_names_the_key(
    path: Path, override: str, sentence: str
) -> None:
    with pytest.raises(RecipeInvalid) as caught:
        read(path, overrides=[override])
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("data.low=1",), "data.low: must be less than high in float32; got 1 and 1"),
        (("data.low=2", "data.high=-2"), "data.low: must be less than high in float32"),
        (("data.high=1e-50",), "data.low: must be less than high in float32; got 0 and 1e-50"),
        (("data.levels=2",), "data.levels: does not apply to integrand:camel; leave it out"),
        (("model.uniform=0",), "model.uniform: should be greater than 0; got 0"),
        (("model.objective=kl",), "model.objective: should be 'forward-kl', 'reverse-kl' or"),
    ],
)
def test_mistake_with_an_integrand_gets_a_sentence(
    path: Path, options: tuple[str, ...], sentence: str
) -> None:
    integral = ["data.source=integrand:camel", "model.family=proposal"]
    with pytest.raises(RecipeInvalid) as caught:
        read(path, overrides=[*integral, *options])
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_key_is_named_with_its_meaning(path: Path) -> None:
    path.write_text(TEXT.replace("epochs = 7", ""), encoding="utf-8")
    with pytest.raises(RecipeInvalid, match=r"train\.epochs is missing; Passes over"):
        read(path)


def test_file_that_is_absent_or_no_toml_is_named(tmp_path: Path, path: Path) -> None:
    with pytest.raises(RecipeInvalid, match=r"absent\.toml: the recipe cannot be read"):
        read(tmp_path / "absent.toml")
    path.write_text("name = ", encoding="utf-8")
    with pytest.raises(RecipeInvalid, match="this is not TOML"):
        read(path)


def test_key_depends_on_what_shapes_the_weights_and_on_nothing_else(path: Path) -> None:
    data = gaussian_data()
    key = read(path).key(data)
    assert read(path, overrides=["title=Other", "evaluate.rows=9"]).key(data) == key
    assert read(path, overrides=["train.seed=1"]).key(data) != key


def test_same_seed_builds_the_same_model_and_another_another(path: Path) -> None:
    data = gaussian_data()
    first, again, other = (
        torch.nn.utils.parameters_to_vector(
            recipe.build(read(path, overrides=set_), data).parameters()
        )
        for set_ in ([], [], ["train.seed=1"])
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_family_that_cannot_model_the_data_is_refused_in_a_sentence(path: Path) -> None:
    path.write_text(TEXT.replace('"flow"', '"vae"').replace("layers = 2", ""), encoding="utf-8")
    with pytest.raises(RecipeInvalid, match="images"):
        recipe.build(read(path), gaussian_data())


def test_batch_of_one_row_has_no_mmd(path: Path) -> None:
    path.write_text(TEXT.replace('"flow"', '"gan"').replace("layers = 2", ""), encoding="utf-8")
    options = ["train.batch_size=1", "model.objective=mmd-gaussian"]
    with pytest.raises(RecipeInvalid, match=r"train\.batch_size: an unbiased MMD² needs two rows"):
        recipe.build(read(path, overrides=options), gaussian_data())


def test_description_covers_every_key() -> None:
    text = recipe.describe()
    for name in Recipe.model_fields:
        assert name in text
    for schema in (FlowConfig, *(Recipe.model_fields[t].annotation for t in ("data", "train"))):
        for name, field in schema.model_fields.items():  # type: ignore[union-attr]
            assert f"  {name}  (" in text
            assert field.description, f"{name} has no description"
    assert max(map(len, text.splitlines())) <= 100
