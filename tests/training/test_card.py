"""The card says what a person must know, and the pictures show it."""

import tomllib
from dataclasses import replace

import pytest

from service.interface import Density, Event, Interface, Latent, Role, TensorSpec
from service.manifest import Figure, Golden, Graph, Manifest, Provenance, Tolerance
from training import card as module
from training.card import card, sample_command, toml, with_quality
from training.checkpoint import Epoch, Fit
from training.quality import with_error

RECIPE = {
    "name": "toy",
    "title": 'A "quoted" name',
    "data": {"source": "sklearn:digits", "shape": [8, 8], "rows": None},
    "train": {"epochs": 2, "learning_rate": 1e-5, "betas": [0.0, 0.99]},
}
FIT = Fit(
    history=(Epoch(1, {"a/loss": 2.0}, 1.5, 30.0), Epoch(2, {"a/loss": 1.0}, 1.25, 75.0)),
    best_epoch=2,
    best_score=1.25,
    wall_time_s=75.0,
    device="cpu",
)
IMAGE = Event(kind="image", shape=(1, 8, 8), minimum=0.0, maximum=1.0)
VECTOR = Event(kind="vector", shape=(2,), features=("height", "weight"))
FLOW = Interface(
    family="flow",
    event=VECTOR,
    latent=Latent(shape=(2,)),
    density=Density(
        kind="exact", estimator="exact", measure="per unit of x", preprocessing="standardised"
    ),
)
GAN = Interface(
    family="gan",
    event=IMAGE,
    latent=Latent(shape=(4,)),
    labels=("cat", "dog"),
    density=Density(kind="none", estimator=None),
)


def manifest(interface: Interface) -> Manifest:
    def graph(role: Role) -> Graph:
        inputs, outputs = interface.signature(role)
        tolerance: dict[str, Tolerance] = {o.name: Tolerance(absolute=1e-4) for o in outputs}
        specs: tuple[TensorSpec, ...] = inputs
        return Graph(
            file=f"{role}.onnx", sha256="1" * 64, inputs=specs, outputs=outputs, tolerance=tolerance
        )

    roles: tuple[Role, ...] = ("decode",)
    if interface.density.kind != "none":
        roles = ("decode", "log_density")
    return Manifest(
        **dict(interface),
        name="toy",
        version=3,
        title="A toy",
        graphs={role: graph(role) for role in roles},
        golden=Golden(sha256="2" * 64, rows=1),
        evaluation=(
            Figure(name="nll", value=1.23456, standard_error=0.0123, n=1500, unit="nats", note="x"),
        ),
        provenance=Provenance(
            recipe=RECIPE,
            data="nine rows, made up",
            data_sha256="3" * 64,
            seed=5,
            versions={"torch": "2.13.0"},
            git_commit=None,
            wall_time_s=75.0,
            device="cpu",
            parameters=12345,
            created="2026-01-02",
        ),
        licence="CC0-1.0",
    )


def test_card_shows_figures_with_their_errors_and_the_pictures() -> None:
    text = card(manifest(FLOW), FIT)
    assert text.startswith("# A toy\n")
    assert "| nll | 1.235 ± 0.012 | nats | 1,500 | x |" in text
    assert "](samples.png)" in text
    assert "](curves.png)" in text
    assert "12,345 parameters, 2 epochs in 1 min 15 s on cpu" in text
    assert "height, weight" in text


def test_card_says_which_epoch_was_kept_by_what_and_how_sure_that_is() -> None:
    text = card(manifest(FLOW), FIT)
    assert "those of epoch 2, the best by validation score (1.25), and not by the loss.\n" in text
    epochs = [Epoch(k, {"a/loss": 1.0}, abs(k - 3) + 0.5, 1.0, 1.1) for k in range(1, 6)]
    fit = replace(FIT, history=tuple(epochs), best_epoch=3, best_score=0.5)
    text = card(manifest(GAN), fit)
    assert "the best by held-out MMD² (0.5 ± 1.1; 3 of 5 epochs are within that)" in text
    assert "Training stopped" not in text
    patient = manifest(GAN).model_copy(deep=True)
    patient.provenance.recipe["train"]["epochs"] = 50
    assert "Training stopped 2 epochs later, as none was better." in card(patient, fit)


def test_card_shows_the_diagnostics_where_there_are_any() -> None:
    assert "](diagnostics.png)" not in card(manifest(GAN), FIT)
    text = card(manifest(GAN), FIT, diagnosed=True)
    assert "](diagnostics.png)" in text.partition("## Quality")[2].partition("\n## ")[0]
    assert with_quality(text, manifest(GAN), diagnosed=True) == text
    assert with_quality(text, manifest(GAN)) == card(manifest(GAN), FIT)


def test_card_lists_what_each_latent_says_by_itself_with_the_most_first() -> None:
    figures = [
        Figure(name=f"KL of latent {k}", value=value, standard_error=0.01, n=90, unit="nats")
        for k, value in ((3, 0.5), (11, 2.25))
    ]
    known = manifest(FLOW)
    known = known.model_copy(update={"evaluation": (*known.evaluation, *figures)})
    text = card(known, FIT)
    assert "| 11 | 2.250 ± 0.010 |\n| 3 | 0.500 ± 0.010 |\n" in text
    assert "| KL of latent" not in text
    assert "mean of 90 events: the 2 largest of 2" in text
    assert "KL(q(z|x)" not in card(manifest(FLOW), FIT)


def test_new_figures_change_their_section_of_a_card_and_no_other() -> None:
    before = manifest(FLOW)
    figure = Figure(name=r"E[x|z] \1", value=7.0, standard_error=0.5, n=2)
    after = before.model_copy(update={"evaluation": (figure,)})
    text = card(before, FIT)
    assert with_quality(text, after) == card(after, FIT)
    assert with_quality(with_quality(text, after), before) == text
    last = "# Own card\n\n## Quality\n\nGood.\n"
    assert with_quality(last, after).startswith("# Own card\n\n## Quality\n\nMeasured")
    assert with_quality("# Own card\n", after).startswith("# Own card\n\n## Quality\n\nMeasured")


def test_card_says_how_a_density_without_an_encoder_is_estimated() -> None:
    density = Density(kind="estimate", estimator="prior")
    latent = FLOW.model_copy(update={"family": "vae", "density": density})
    text = card(manifest(FLOW).model_copy(update=dict(latent)), FIT)
    assert "mean of p(x|z) over draws from p(z)" in text
    assert "a latent-variable model" in text
    assert "an encoder" not in text
    for posterior, words in (("full", "a covariance of its own"), ("flow", "draws of a flow")):
        known = manifest(FLOW).model_copy(update={**dict(latent), "posterior": posterior})
        assert words in card(known, FIT)
        assert "is learned" not in card(known, FIT)
    learned = {"posterior": "full", "latent": Latent(shape=(2,), distribution="learned")}
    text = card(manifest(FLOW).model_copy(update={**dict(latent), **learned}), FIT)
    assert "the distribution of z is learned as well" in text


def test_card_gives_the_recipe_as_toml_that_reads_back() -> None:
    text = card(manifest(FLOW), FIT)
    block = text.split("```toml\n")[1].split("```")[0]
    found = tomllib.loads(block)
    assert found["train"] == RECIPE["train"]
    assert found["title"] == RECIPE["title"]
    assert "rows" not in found["data"]


def test_card_says_which_density_there_is_and_that_a_gan_has_none() -> None:
    assert "Exact: one pass" in card(manifest(FLOW), FIT)
    text = card(manifest(GAN), FIT)
    assert "None. The model is implicit" in text
    assert "may leave out part of its data" in text


def test_card_of_a_family_it_has_no_sentence_for_names_the_family(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(module._WHAT, "flow")
    assert "is a generative model of the family flow." in card(manifest(FLOW), FIT)


def test_card_and_command_ask_for_what_the_model_can_give() -> None:
    assert "image/png" in sample_command(manifest(GAN))
    assert "image/png" not in sample_command(manifest(FLOW))
    text = card(manifest(GAN), FIT)
    assert "asked for by label: cat, dog" in text
    assert '"label": 1' in text
    assert "label" not in card(manifest(FLOW), FIT).split("## Ask for samples")[1].split("##")[0]


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (1.23456, 0.0123, "1.235 ± 0.012"),
        (88.123, 2.5, "88.1 ± 2.5"),
        (1234.5, 123.0, "1234 ± 123"),
        (-0.00012, 0.00034, "-0.00012 ± 0.00034"),
        (0.5, None, "0.5"),
        (0.5, 0.0, "0.5"),
    ],
)
def test_value_is_given_to_the_place_of_its_error(
    value: float, error: float | None, text: str
) -> None:
    assert with_error(Figure(name="f", value=value, standard_error=error, n=1)) == text


def test_toml_of_small_numbers_and_nested_tables_reads_back() -> None:
    table = {"a": {"x": 1e-12, "b": {"y": True, "z": "ü"}}, "c": []}
    assert tomllib.loads(toml(table)) == table


def test_figures_stand_in_a_table_for_each_task() -> None:
    names = {
        "Density": ["negative log-density", "negative ELBO, bits per dim", "gap of AIS on events"],
        "Samples": [
            "MMD² of samples to test data",
            "samples recognised as their label",
            "real test data recognised",
            "modes covered",
            "good share",
            "class divergence",
            "error of the solver, RMS",
        ],
        "Codes": ["active units", "linear probe of E[z|x]"],
        "Integral": ["integral", "effective sample size", "largest weight over the mean"],
        "Other": ["something else"],
    }
    figures = tuple(
        Figure(name=name, value=1.0, standard_error=None, n=9)
        for task in reversed(names)
        for name in names[task]
    )
    text = card(manifest(FLOW).model_copy(update={"evaluation": figures}), FIT)
    _, *tables = text.partition("## Quality")[2].partition("\n## ")[0].split("\n### ")
    found = {}
    for table in tables:
        task, *lines = table.splitlines()
        rows = [line for line in lines if line.startswith("| ")][1:]
        found[task] = [row.split(" | ")[0].removeprefix("| ").replace("\\|", "|") for row in rows]
    assert found == names


def test_samples_stand_beside_training_rows_in_a_table_of_their_own() -> None:
    def figure(name: str, value: float, note: str) -> Figure:
        return Figure(name=name, value=value, standard_error=0.01, n=90, note=note)

    figures = (
        figure("MMD² of samples to test data", 0.5, "by a kernel"),
        figure("MMD² of training to test data", 0.25, "the row to compare with"),
        figure("FID of samples", 2.0, "of features"),
        figure("FID of training rows", 1.0, "the row to compare with"),
        figure("samples recognised as their label", 0.75, "labels in equal numbers"),
    )
    text = card(manifest(FLOW).model_copy(update={"evaluation": figures}), FIT)
    section = text.partition("### Samples\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    assert lines == [
        "| figure | value | unit | n | note |",
        "| samples recognised as their label | 0.750 ± 0.010 |  | 90 | labels in equal numbers |",
        "| figure | samples | training rows | unit | n | note |",
        "| MMD² | 0.500 ± 0.010 | 0.250 ± 0.010 |  | 90 | by a kernel |",
        "| FID | 2.000 ± 0.010 | 1.000 ± 0.010 |  | 90 | of features |",
    ]
