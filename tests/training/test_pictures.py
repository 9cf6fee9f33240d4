"""Pictures show every kind of event; their pixels are where they should be."""

import io

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from service.interface import Event, Interface
from tests.training.gaussian import Gaussian, gaussian_data
from training.data import Batch
from training.family import Nats
from training.pictures import GRID, draw_samples, held_out, png, render

HELD_OUT = gaussian_data().test


class Painter(Gaussian):
    """Images of 4 x 4, all as bright as their label says."""

    @property
    def interface(self) -> Interface:
        event = Event(kind="image", shape=(1, 4, 4), minimum=0.0, maximum=1.0)
        return super().interface.model_copy(update={"event": event})

    def decode(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        grey = torch.zeros(len(z)) if label is None else label / 2
        return grey[:, None, None, None].expand(-1, 1, 4, 4)


class Wide(Gaussian):
    """Five features."""

    @property
    def interface(self) -> Interface:
        event = Event(kind="vector", shape=(5,), features=tuple("abcde"))
        return super().interface.model_copy(update={"event": event})

    def decode(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        return z[:, :1].expand(-1, 5)


class Labelled(Gaussian):
    """A density of 1 and 3 times the Gaussian's, by label: their mean is twice it."""

    def nats(self, batch: Batch, draws: int) -> dict[str, Nats]:
        assert batch.label is not None
        return {"nll": Nats(self._nll(batch.x) - (1 + 2 * batch.label).log())}


def test_grid_of_a_conditional_model_has_a_row_for_each_label() -> None:
    pixels = render(draw_samples(Painter(labels=("a", "b", "c")), HELD_OUT))
    tile = 68  # 64 pixels and a gap of 4
    assert pixels.shape[0] == 3 * tile
    column = pixels[:, -tile // 2, 0]
    assert [int(column[row * tile + tile // 2]) for row in range(3)] == [0, 128, 255]


def test_grid_of_an_unconditional_model_has_64_images_on_white() -> None:
    pixels = render(draw_samples(Painter(), HELD_OUT))
    assert pixels.shape == (8 * 68, 8 * 68, 3)
    black = (pixels == 0).mean()
    np.testing.assert_allclose(black, (64 / 68) ** 2, atol=0.01)


def test_density_of_a_conditional_model_is_drawn_over_all_its_labels() -> None:
    figure = draw_samples(Labelled(labels=("a", "b")), HELD_OUT)
    drawn = np.asarray(figure.axes[2].get_images()[0].get_array())
    assert drawn.shape == (GRID, GRID)
    single = np.asarray(draw_samples(Gaussian(), HELD_OUT).axes[2].get_images()[0].get_array())
    np.testing.assert_allclose(drawn, 2 * single, rtol=1e-5)


def test_every_vector_has_a_picture_and_the_same_seed_the_same_one() -> None:
    first, again, other = (png(draw_samples(Gaussian(), HELD_OUT, seed=s)) for s in (0, 0, 1))
    assert first == again != other
    assert len(draw_samples(Wide(), Batch(torch.randn(50, 5))).axes) == 8  # two rows of four


def test_a_picture_has_few_colours_unless_that_would_show() -> None:
    figure = Figure(figsize=(3, 3), dpi=100)
    figure.subplots().plot([1.0, 3.0, 2.0])
    noise = Figure(figsize=(3, 3), dpi=100)
    noise.figimage(np.random.default_rng(0).random((300, 300, 3)))
    for each, mode in ((figure, "P"), (noise, "RGB")):
        with Image.open(io.BytesIO(png(each))) as picture:
            assert picture.mode == mode
            shown = np.asarray(picture.convert("RGB"), dtype=np.float64)
        assert np.abs(shown - render(each)).mean() < 0.5


def test_beside_samples_of_a_proposal_is_what_the_integrand_would_draw() -> None:
    x = torch.rand(5000, 2, generator=torch.Generator().manual_seed(0))
    value = (x[:, 0] < 0.25).double()
    chosen = held_out(Batch(x, value=value))
    assert chosen.shape == (2000, 2)
    assert chosen[:, 0].max() < 0.25
    assert np.array_equal(held_out(Batch(x, value=0 * value)), x[:2000].numpy())
