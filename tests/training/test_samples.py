"""Figures of samples stand beside those of training rows, and say of which features they are."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from service import bundle
from service.interface import Event
from service.manifest import Figure
from tests.training.cases import case
from tests.training.gaussian import Gaussian, gaussian_data
from training import extractor, samples
from training.classifier import recognised, train_classifier
from training.data import Batch, Data
from training.evaluate import EvaluateConfig, evaluate
from training.samples import BESIDE, LEAST_ROWS, comparisons, features_of, numbers, partners
from training.two_sample import DRAWS

MODELS = Path(__file__).parents[2] / "models"
TESTS = ("MMD² p-value", "energy p-value", "C2ST p-value")
SHARES = ("precision", "recall", "coverage")


def refuse() -> nn.Sequential:
    raise AssertionError("nobody should want a classifier here")


def compared(model: Gaussian, data: Data, seed: int = 0) -> dict[str, Figure]:
    torch.manual_seed(0)
    found = comparisons(model, data, data.test, lambda: features_of(data, data.test, refuse), seed)
    return {figure.name: figure for figure in found}


def fitted(labels: tuple[str, ...] | None = None) -> Gaussian:
    model = Gaussian(labels=labels)
    model.mean.data = torch.tensor([1.0, -2.0])
    return model


@pytest.mark.parametrize("classes", [0, 3])
def test_samples_of_the_true_model_fare_like_training_rows(classes: int) -> None:
    # Not of the samples' own seed: the rows would be the samples, which C_T notices.
    data = gaussian_data(1000, classes=classes, seed=5)
    found = compared(fitted(data.labels), data)
    for kind in ("samples", "training rows"):
        for name in TESTS:
            assert found[f"{name} of {kind}"].value > 0.01
        for name in ("energy distance", "KID", "C_T"):
            figure = found[f"{name} of {kind}"]
            assert abs(figure.value) <= 4.5 * (figure.standard_error or 0.0)
        assert min(found[f"{name} of {kind}"].value for name in SHARES) > 0.85
        assert found[f"FID of {kind}"].value < 0.1
        assert found[f"density of {kind}"].value == pytest.approx(1.0, abs=0.15)


def test_samples_of_a_wrong_model_do_not() -> None:
    found = compared(Gaussian(), gaussian_data(1000))
    for name in TESTS:
        assert found[f"{name} of samples"].value == pytest.approx(1 / (1 + DRAWS))
        assert found[f"{name} of training rows"].value > 0.01
    # Means are (1, 2) apart, and covariances are alike.
    assert found["FID of samples"].value == pytest.approx(5.0, rel=0.15)
    assert found["C2ST accuracy of samples"].value > 0.8
    assert found["C_T of samples"].value > 5
    assert found["coverage of samples"].value < 0.7
    # W_1 along v is that of a shift: the mean of |v.(1, 2)|, but for noise.
    sliced = found["sliced Wasserstein of samples"]
    assert sliced.value == pytest.approx(2 * np.sqrt(5) / np.pi, rel=0.15)


def test_a_model_that_gives_back_training_rows_is_caught_by_nothing_but_copying() -> None:
    data = gaussian_data(1000)

    class Copyist(Gaussian):
        def decode(self, z: Tensor, label: Tensor | None = None) -> Tensor:
            which = (z[:, 0].abs() * 1e6).long() % len(data.train)
            return data.train.x[which] + 0.001 * z

    found = compared(Copyist(), data)
    assert found["C_T of samples"].value < -10
    assert abs(found["C_T of training rows"].value) < 4.5
    assert found["MMD² p-value of samples"].value > 0.01


def test_figures_come_in_pairs_with_errors_and_say_of_what_they_are() -> None:
    data = gaussian_data(200)
    found = [*compared(fitted(), data).values()]
    ours, theirs = found[::2], found[1::2]
    assert [each.name for each in ours[:4]] == [
        "MMD² of samples to test data",
        "MMD² p-value of samples",
        "energy distance of samples",
        "energy p-value of samples",
    ]
    for one, other in zip(ours, theirs, strict=True):
        assert (
            one.name.replace("samples", "training rows").replace(
                "training rows to test", "training to test"
            )
            == other.name
        )
        assert other.note == BESIDE
        assert one.n == other.n == 100
        assert one.standard_error
        assert other.standard_error
        # By the kernel, the numbers, or for how many draws.
        assert "standardised features" in one.note or "500 draws" in one.note


def test_few_rows_get_the_oldest_figure_alone() -> None:
    data = gaussian_data(2 * LEAST_ROWS - 2)
    assert list(compared(fitted(), data)) == [
        "MMD² of samples to test data",
        "MMD² of training to test data",
    ]
    assert len(compared(fitted(), gaussian_data(2 * LEAST_ROWS))) > 20


def test_rows_that_nobody_can_tell_apart_are_compared_all_the_same() -> None:
    """As many numbers as rows that never vary are no reason to fail."""
    rows = Batch(torch.ones(30, 2))
    data = replace(
        gaussian_data(), train=rows, validation=rows, test=rows, mean=np.ones(2), std=np.ones(2)
    )
    found = compared(fitted(), data)
    assert found["MMD² p-value of training rows"].value == 1.0
    assert all(np.isfinite(figure.value) for figure in found.values())


def images(shape: tuple[int, int, int], classes: int) -> Data:
    generator = torch.Generator().manual_seed(0)
    label = torch.arange(200) % max(classes, 1)
    x = torch.rand(200, *shape, generator=generator) * 0.5 + label[:, None, None, None] / 20
    batch = Batch(x, label if classes else None)
    event = Event(kind="image", shape=shape, minimum=0.0, maximum=1.0)
    names = tuple(map(str, range(classes))) or None
    return Data(batch, batch, batch, event, names, None, None, "", "0" * 64)


def by_training(data: Data) -> Callable[[], nn.Sequential]:
    return lambda: train_classifier(data, len(data.labels or ()), steps=2)


@pytest.mark.parametrize(
    ("shape", "classes", "name", "size"),
    [
        ((1, 8, 8), 0, "pixels", 64),
        ((1, 28, 28), 0, "pixels", 784),
        ((1, 8, 8), 10, "the features of a classifier trained on the training split", 128),
        # The named extractor has the shape and the number of classes, and reads nothing here.
        ((1, 28, 28), 10, "the features of a classifier trained on the training split", 128),
    ],
)
def test_images_are_compared_by_what_can_be_had(
    shape: tuple[int, int, int], classes: int, name: str, size: int
) -> None:
    data = images(shape, classes)
    torch.manual_seed(0)
    found = features_of(data, data.test, by_training(data) if classes else refuse)
    read_off = found.read(data.test.x)
    assert (found.name, read_off.shape) == (name, (200, size))
    if classes:
        assert read_off.square().mean().item() == pytest.approx(1.0, rel=1e-4)


def test_vectors_are_compared_by_their_numbers_though_they_have_labels() -> None:
    data = gaussian_data(100, classes=2)
    found = features_of(data, data.test, refuse)
    assert found.name == "standardised features"
    assert torch.allclose(found.read(data.test.x), numbers(data, data.test.x))


def digits() -> Batch:
    """Return the golden samples of the newest mnist-gan, which are nearly all like their label."""
    newest = bundle.versions(MODELS, "mnist-gan")[0]
    golden = bundle.read(MODELS / "mnist-gan" / str(newest)).golden
    x, label = (torch.from_numpy(golden[f"decode.{name}"]) for name in ("x", "label"))
    return Batch(x.float(), label)


def test_digits_are_compared_by_the_named_extractor_which_reads_them() -> None:
    data = replace(images((1, 28, 28), 10), test=digits())
    found = features_of(data, data.test, refuse)
    assert found.name.startswith("the 84 features of mnist-lenet (")
    assert found.read(data.test.x).shape == (len(data.test), 84)
    network, _ = extractor.load()
    assert recognised(network, data.test) >= len(data.test) - 1


def test_samples_that_are_means_say_so() -> None:
    model, data = case("vae of grey images")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples, "LEAST_ROWS", 1000)
        first, second = comparisons(
            model, data, data.test, lambda: samples.Features(torch.clone, "nothing"), 0
        )
    assert first.note.startswith("samples are the means E[x|z]; unbiased")
    assert second.note == BESIDE


@pytest.mark.parametrize(
    "label",
    [
        "vae of grey images",
        "flow of features with labels",
        "continuous flow of features",
        "gan with labels",
    ],
)
def test_every_family_is_judged_by_the_same_figures(
    label: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "LEAST_ROWS", 4)
    model, data = case(label)
    found = evaluate(model, data, EvaluateConfig(rows=12, draws=2, classifier_steps=2))
    names = {each.name.partition(" of samples")[0] for each in found if " of samples" in each.name}
    of_classes = {"classes read", "class divergence"}
    reads = data.event.kind == "image" and data.labels is not None
    assert names - (of_classes if reads else set()) == {
        "MMD²", "MMD² p-value", "energy distance", "energy p-value", "sliced Wasserstein",
        "C2ST accuracy", "C2ST p-value", "KID", "FID", "precision", "recall", "density",
        "coverage", "C_T",
    }  # fmt: skip
    assert not reads or of_classes <= names
    assert sum(each.note == BESIDE for each in found) >= len(names)


def test_partners_are_training_rows_with_the_labels_of_test_rows() -> None:
    train = Batch(torch.zeros(7, 1), torch.tensor([2, 0, 1, 0, 1, 2, 0]))
    test = Batch(torch.zeros(4, 1), torch.tensor([0, 1, 0, 2]))
    assert partners(train, test, told=test.label).tolist() == [1, 2, 3, 0]
    # There are no four of label 1: two, and then others.
    ones = Batch(torch.zeros(4, 1), torch.ones(4, dtype=torch.long))
    assert partners(train, ones, told=ones.label).tolist() == [2, 4, 0, 1]


def test_partners_have_contexts_near_by_and_are_taken_once() -> None:
    contexts = torch.tensor([[0.0], [5.0], [1.0], [9.0], [1.1]])
    train = Batch(torch.zeros(5, 1), context=contexts)
    told = torch.tensor([[1.0], [1.0], [8.0]])
    assert partners(train, Batch(torch.zeros(3, 1)), told=told).tolist() == [2, 4, 3]
