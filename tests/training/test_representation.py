"""Figures of codes against codes whose worth is known."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from service.interface import Density, Event, Interface, Latent, Role
from service.manifest import Figure
from tests.training.cases import case, of
from training.data import Batch, Data
from training.family import Family
from training.representation import DIVERGENCE, codes, representation, share_error

LATENT = 3
SCALES = torch.tensor([0.5, 1.0, 0.2])


class Encoder(nn.Module):
    """The code is x, x / 100 and 0; of full covariance it leans to the side."""

    def __init__(self, *, full: bool) -> None:
        super().__init__()
        self.full = full

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean = torch.cat([x[:, :1], x[:, 1:] / 100, torch.zeros_like(x[:, :1])], dim=1)
        scale = SCALES.to(x).expand(len(x), -1)
        if self.full:
            scale = torch.diag_embed(scale)
            scale[:, 1, 0], scale[:, 1, 1] = 0.6, 0.8
        return mean, scale


class Draws(nn.Module):
    """The flow that is no more than the noise, moved by so much of x in the first latent."""

    def __init__(self, told: float) -> None:
        super().__init__()
        self.told = told

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor]:
        moved = torch.tensor([self.told, 0.0, 0.0]) * x[:, :1]
        return (moved.unsqueeze(1) + noise,)


class Coded(Family):
    """A model of two features that is nothing but its encoder; a flow where x is told."""

    def __init__(self, *, full: bool = False, told: float | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.full = full
        self.told = told

    @property
    def interface(self) -> Interface:
        return Interface(
            family="vae",
            event=Event(kind="vector", shape=(2,)),
            latent=Latent(shape=(LATENT,)),
            posterior="flow" if self.told is not None else "full" if self.full else "diagonal",
            density=Density(kind="estimate", estimator="importance"),
        )

    def graphs(self) -> dict[Role, nn.Module]:
        if self.told is not None:
            return {"encode": Draws(self.told)}
        return {"encode": Encoder(full=self.full)}

    turns = score = decode = None  # type: ignore[assignment]


def data(rows: int = 1000, *, classes: int = 2) -> Data:
    """Rows of N(0, 1) features, of which the first says the class."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 2, generator=generator)
    label = None
    if classes:
        label = (x[:, 0] > 0).long()
    return of(x, label=label)


def by_name(model: Family, given: Data) -> dict[str, Figure]:
    return {figure.name: figure for figure in representation(model, given, given.test)}


def test_latents_are_active_where_their_mean_moves_with_x() -> None:
    figure = by_name(Coded(), data())["active units"]
    assert (figure.value, figure.unit, figure.n) == (1, "of 3 latents", 1000)


@pytest.mark.parametrize(("told", "active"), [(0.0, 0), (0.07, 0), (0.13, 1), (1.0, 1)])
def test_noise_of_a_flow_is_not_taken_for_what_its_latents_say(told: float, active: int) -> None:
    torch.manual_seed(0)
    # E[z|x] varies by told^2; the mean of 64 draws by 1 / 64 more, which alone is above 0.01.
    figure = by_name(Coded(told=told), data(4000, classes=0))["active units"]
    assert figure.value == active


def test_noise_of_the_codes_is_that_of_the_mean_of_the_draws_or_nothing() -> None:
    torch.manual_seed(0)
    given = data(4000)
    noise = codes(Coded(told=1.0), given.test).noise
    # The variance of 4000 x 63 degrees of freedom.
    assert (64 * noise - 1).abs().max() <= 4.5 * math.sqrt(2 / (4000 * 63))
    assert codes(Coded(), given.test).noise.tolist() == [0, 0, 0]


@pytest.mark.parametrize("full", [False, True])
def test_divergences_are_those_of_the_marginals_and_the_largest_comes_first(full: bool) -> None:
    given = data()
    found = {
        name.removeprefix(DIVERGENCE): figure
        for name, figure in by_name(Coded(full=full), given).items()
        if name.startswith(DIVERGENCE)
    }
    variance = SCALES.double().square()
    # With L's row (0.6, 0.8) the second latent has variance 1 all the same.
    squares = torch.stack([given.test.x[:, 0].double(), given.test.x[:, 1].double() / 100], dim=1)
    squares = torch.cat([squares, torch.zeros(len(squares), 1)], dim=1).square()
    kl = 0.5 * (variance + squares - 1 - variance.log())
    for latent, figure in found.items():
        assert figure.value == pytest.approx(kl[:, int(latent)].mean().item(), abs=1e-6)
        error = kl[:, int(latent)].std().item() / math.sqrt(len(kl))
        assert figure.standard_error == pytest.approx(error, abs=1e-6)
    assert list(found) == ["2", "0", "1"]


def test_probe_reads_what_is_linear_in_the_code_and_raw_data_stands_beside_it() -> None:
    figures = by_name(Coded(), data())
    for name in ("linear probe of E[z|x]", "linear probe of x itself"):
        assert figures[name].value > 0.98
        assert figures[name].standard_error
    assert "row to compare" in figures["linear probe of x itself"].note


def test_probe_of_codes_that_lack_the_class_is_chance() -> None:
    given = data()
    label = (given.test.x[:, 1] > 0).long()
    batch = Batch(torch.stack([given.test.x[:, 0], torch.zeros(len(label))], dim=1), label)
    blind = replace(given, train=batch, test=batch)
    figure = by_name(Coded(), blind)["linear probe of E[z|x]"]
    assert figure.standard_error is not None
    assert abs(figure.value - 0.5) <= 4.5 * figure.standard_error


def test_data_without_labels_has_no_probe() -> None:
    assert not any("probe" in name for name in by_name(Coded(), data(classes=0)))


def test_probe_of_raw_features_is_not_blinded_by_their_units() -> None:
    given = data()
    stretched = given.test.x * torch.tensor([1e-4, 1e4]) + torch.tensor([0.0, 1e6])
    assert given.std is not None
    batch = Batch(stretched, given.test.label)
    moved = replace(of(stretched, label=given.test.label), train=batch, test=batch)
    assert by_name(Coded(), moved)["linear probe of x itself"].value > 0.98


@pytest.mark.parametrize("label", ["flow of images", "gan with labels", "bbvi of images"])
def test_model_without_a_posterior_has_no_codes(label: str) -> None:
    model, given = case(label)
    assert representation(model, given, given.test) == ()


@pytest.mark.parametrize(
    "label",
    [
        "vae with labels",
        "vae of full covariance with labels",
        "vae with a flow posterior and labels",
    ],
)
def test_codes_are_what_the_encode_graph_says(label: str) -> None:
    model, given = case(label)
    torch.manual_seed(0)
    with torch.no_grad():
        known = codes(model, given.test)
        mean, spread = known.mean, known.spread
        assert mean.shape == (len(given.test), 3)
        assert given.test.label is not None
        if "flow" in label:
            assert spread is None
            noise = torch.randn(len(given.test), 4000, 3)
            z = model.graphs()["encode"](given.test.x, given.test.label, noise)[0]
            assert (mean - z.mean(1)).abs().max() < 4.5 * z.std(1).max() / math.sqrt(64)
            return
        expected, scale = model.graphs()["encode"](given.test.x, given.test.label)
        assert torch.allclose(mean, expected.double(), atol=1e-6)
        variance = (
            scale.square() if scale.ndim == 2 else (scale @ scale.mT).diagonal(dim1=1, dim2=2)
        )
        assert spread is not None
        assert torch.allclose(spread.square(), variance.double(), atol=1e-6)
    figures = by_name(model, given)
    assert "the encoder is told the label" in figures["linear probe of E[z|x]"].note


def test_share_that_is_whole_has_an_error_all_the_same() -> None:
    assert share_error(10, 10) > 0
    assert share_error(50, 100) == pytest.approx(0.05)
