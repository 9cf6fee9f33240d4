"""Figures on the test split are right, carry their errors, and repeat."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from service.interface import DEFAULT_DRAWS, Density, Event, Family, Interface, Latent
from service.manifest import Figure
from tests.training.cases import case, vectors
from tests.training.gaussian import Gaussian, gaussian_data
from training.classifier import train_classifier
from training.data import Batch, Data
from training.evaluate import NATS_DRAWS, EvaluateConfig, evaluate
from training.family import Inexactness, Nats
from training.sampling import sample

CONFIG = EvaluateConfig(classifier_steps=200)


def by_name(figures: tuple[Figure, ...]) -> dict[str, Figure]:
    return {figure.name: figure for figure in figures}


def fitted(labels: tuple[str, ...] | None = None) -> Gaussian:
    model = Gaussian(labels=labels)
    model.mean.data = torch.tensor([1.0, -2.0])
    return model


def test_nats_of_the_true_model_are_its_entropy_within_the_error() -> None:
    data = gaussian_data(4000)
    figure = by_name(evaluate(fitted(), data, CONFIG))["nll"]
    entropy = math.log(2 * math.pi * math.e)
    assert figure.standard_error is not None
    assert abs(figure.value - entropy) <= 4.5 * figure.standard_error
    # The variance of half a chi-squared of two degrees is 1.
    assert figure.standard_error == pytest.approx(1 / math.sqrt(2000), rel=0.1)
    assert (figure.n, figure.unit) == (2000, "nats per event")


def test_samples_of_the_true_model_are_no_further_than_training_rows() -> None:
    data = gaussian_data(2000)
    figures = by_name(evaluate(fitted(), data, CONFIG))
    for name in ("MMD² of samples to test data", "MMD² of training to test data"):
        figure = figures[name]
        assert figure.standard_error is not None
        assert abs(figure.value) <= 4.5 * figure.standard_error


def test_samples_of_a_wrong_model_are_seen_to_be_further() -> None:
    data = gaussian_data(2000)
    figure = by_name(evaluate(Gaussian(), data, CONFIG))["MMD² of samples to test data"]
    assert figure.standard_error is not None
    assert figure.value > 10 * figure.standard_error


class Coarse(Gaussian):
    """Samples that miss by a unit in one row of two, and not in the other."""

    def inexactness(self, z: Tensor, label: Tensor | None = None) -> Inexactness:
        return Inexactness((torch.arange(len(z)) % 2).float(), "miss", "units", "on purpose")


def test_inexact_samples_are_told_with_the_root_of_their_mean_square() -> None:
    figure = by_name(evaluate(Coarse(), gaussian_data(20), CONFIG))["miss"]
    assert figure.value == pytest.approx(math.sqrt(0.5))
    # Squares have a deviation of 1 / 2, and the root a slope of 1 / (2 root) there.
    assert figure.standard_error == pytest.approx(0.5 / math.sqrt(2000) / math.sqrt(2), rel=1e-3)
    assert (figure.n, figure.unit, figure.note) == (2000, "units", "on purpose")


def test_evaluation_repeats_and_leaves_the_generator_alone() -> None:
    data = gaussian_data(400, classes=2)
    model = fitted(data.labels)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = evaluate(model, data, CONFIG)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(2)
    assert evaluate(model, data, CONFIG) == first


def test_what_is_drawn_for_a_likelihood_changes_no_other_figure() -> None:
    data = gaussian_data(400, classes=2)
    model = fitted(data.labels)
    model.nats = lambda batch, draws: (torch.rand(draws), Gaussian.nats(model, batch, draws))[1]  # type: ignore[method-assign]
    few, many = (
        by_name(evaluate(model, data, EvaluateConfig(classifier_steps=20, draws=draws)))
        for draws in (1, 2)
    )
    none = evaluate(model, data, EvaluateConfig(classifier_steps=20), likelihood=False)
    assert few == many
    assert {figure.name: figure for figure in none}.items() <= few.items()
    assert "samples recognised as their label" in by_name(none)


def test_rows_limit_the_test_split() -> None:
    data = gaussian_data(400)
    figures = evaluate(fitted(), data, EvaluateConfig(rows=50))
    assert {figure.n for figure in figures} == {50}


def test_classifier_recognises_samples_of_a_model_that_keeps_to_its_labels() -> None:
    data = gaussian_data(2000, classes=3)
    figures = by_name(evaluate(fitted(data.labels), data, CONFIG))
    assert figures["samples recognised as their label"].value > 0.99
    assert figures["real test data recognised"].value > 0.99
    assert all(figure.standard_error for figure in figures.values())


def test_classifier_sees_a_model_that_ignores_its_label() -> None:
    class Deaf(Gaussian):
        def decode(self, z: Tensor, label: Tensor | None = None) -> Tensor:
            return self.mean + z

    data = gaussian_data(2000, classes=4)
    model = Deaf(labels=data.labels)
    figure = by_name(evaluate(model, data, CONFIG))["samples recognised as their label"]
    assert figure.standard_error is not None
    assert abs(figure.value - 0.25) <= 4.5 * figure.standard_error


def test_classifier_of_images_learns_what_can_be_learnt() -> None:
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(2, (400,), generator=generator)
    x = torch.rand(400, 1, 9, 10, generator=generator) * 0.5 + label[:, None, None, None] * 0.3
    batch = Batch(x, label)
    event = Event(kind="image", shape=(1, 9, 10), minimum=0.0, maximum=1.0)
    data = Data(batch, batch, batch, event, ("dark", "light"), None, None, "", "0" * 64)
    torch.manual_seed(0)
    classifier = train_classifier(data, 2, steps=60)
    assert torch.sum(classifier(x).argmax(1) == label) > 390


@pytest.mark.parametrize("family", ["flow", "continuous-flow"])
def test_bits_per_dim_are_nats_over_the_dimensions_and_log_two(family: Family) -> None:
    class Discrete(Gaussian):
        @property
        def interface(self) -> Interface:
            return Interface(
                family=family,
                event=Event(kind="vector", shape=(2,), levels=256),
                latent=Latent(shape=(2,)),
                density=Density(kind="estimate", estimator="dequantisation"),
            )

    figures = by_name(evaluate(Discrete(), gaussian_data(), CONFIG))
    bits = figures["nll, bits per dim"]
    assert bits.value == pytest.approx(figures["nll"].value / (2 * math.log(2)))
    assert bits.note == figures["nll"].note == "of a Gaussian"


def test_estimates_say_that_they_are_upper_bounds_and_of_what() -> None:
    notes: dict[tuple[str, str], str] = {}
    for label in ("flow of images", "vae of binary images", "vae of grey images"):
        model, data = case(label)
        figures = by_name(evaluate(model, data, EvaluateConfig(rows=4, draws=8)))
        assert ("flow" in label) == ("negative log-density, bits per dim" in figures)
        notes |= {(label, figure.name): figure.note for figure in figures.values()}
    flow = notes["flow of images", "negative log-density"]
    assert flow == "an upper bound on average: dequantisation noise, draws per event: 8"
    binary = notes["vae of binary images", "negative log-likelihood"]
    assert binary == (
        "an upper bound on average: 8 importance-weighted draws of z; of images binarised at "
        "random, whereas the service rounds"
    )
    assert "binarised" not in notes["vae of grey images", "negative log-likelihood"]


def test_draws_reach_the_family_and_many_of_them_mean_fewer_rows_at_once() -> None:
    calls: list[tuple[int, int]] = []

    class Counted(Gaussian):
        def nats(self, batch: Batch, draws: int) -> dict[str, Nats]:
            calls.append((len(batch), draws))
            return super().nats(batch, draws)

    told: list[int] = []
    data = gaussian_data(40)
    evaluate(Counted(), data, EvaluateConfig(), advance=told.append)
    assert calls == [(20, Counted.usual_draws)]
    assert told == [20]
    calls.clear()
    evaluate(Counted(), data, EvaluateConfig(draws=NATS_DRAWS // 7))
    assert calls == [(7, NATS_DRAWS // 7)] * 2 + [(6, NATS_DRAWS // 7)]
    calls.clear()
    evaluate(Counted(), data, EvaluateConfig(rows=3, draws=2 * NATS_DRAWS))
    assert [rows for rows, _ in calls] == [1, 1, 1]


def test_codes_are_judged_where_there_are_any() -> None:
    model, data = case("vae with labels")
    found = by_name(evaluate(model, data, EvaluateConfig(rows=20, draws=2, classifier_steps=2)))
    assert {"active units", "KL of latent 0", "linear probe of E[z|x]"} <= found.keys()
    model, data = case("gan with labels")
    found = by_name(evaluate(model, data, EvaluateConfig(rows=20, draws=2, classifier_steps=2)))
    assert not found.keys() & {"active units", "linear probe of x itself"}


def test_samples_are_a_function_of_their_seed_and_take_the_labels_in_turn() -> None:
    model = Gaussian(labels=("a", "b", "c"))
    first = sample(model, rows=300, seed=1)
    assert torch.equal(first.x, sample(model, rows=300, seed=1).x)
    assert not torch.equal(first.x, sample(model, rows=300, seed=2).x)
    assert first.label is not None
    assert np.bincount(first.label.numpy()).tolist() == [100, 100, 100]


def test_samples_of_a_vector_vae_are_draws_and_not_means() -> None:
    class Observed(Gaussian):
        @property
        def interface(self) -> Interface:
            return super().interface.model_copy(update={"observation": "normal"})

        def graphs(self) -> dict:  # type: ignore[type-arg]
            class Observe(torch.nn.Module):
                def forward(self, z: Tensor, noise: Tensor) -> tuple[Tensor]:
                    return (z + 10 * noise,)

            return {"observe": Observe()}

    x = sample(Observed(), rows=2000, seed=0).x
    assert float(x.std()) == pytest.approx(math.sqrt(101), rel=0.05)


TOLD = ("flow of features", "flow of features with labels", "continuous flow of features")
NOT_TOLD = ("flow of images", "vae of grey images", "gan with labels")
ESTIMATED = ("flow of numbers and categories",)


@pytest.mark.parametrize("label", TOLD + ESTIMATED + NOT_TOLD)
def test_held_out_rows_of_a_density_are_told(label: str) -> None:
    """An estimate depends on its draws: by as many others it would be another number."""
    model, data = case(label)
    draws = None if label in ESTIMATED else 2
    found = evaluate(model, data, EvaluateConfig(rows=20, draws=draws, classifier_steps=2))
    told = [figure for figure in found if figure.values]
    assert len(told) == (label not in NOT_TOLD)
    for figure in told:
        assert figure.draws == (DEFAULT_DRAWS if label in ESTIMATED else None)
        assert len(figure.values) == figure.n == 20
        assert np.mean(figure.values) == pytest.approx(figure.value, abs=1e-3)


def test_many_held_out_rows_are_told_by_their_quantiles() -> None:
    model, _ = case("flow of two features")
    data = vectors(mean=np.zeros(2), std=np.ones(2), rows=3000)
    figure = by_name(evaluate(model, data, EvaluateConfig(rows=3000)))["negative log-density"]
    assert len(figure.values) == 1001
    assert np.mean(figure.values) == pytest.approx(figure.value, rel=0.01)
    assert list(figure.values) == sorted(figure.values)
