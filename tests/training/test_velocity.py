"""The networks of continuous flows: how they are built, and that no row sees its neighbours."""

import re

import pytest
import torch
from pydantic import ValidationError

from tests.training.cases import shaken
from training.continuous_config import ContinuousFlowConfig
from training.velocity import Level, PerSize, Steered, UNet, Velocity


def levels(network: UNet) -> list[Level]:
    found = [network.levels]
    while found[-1].inner is not None:
        found.append(found[-1].inner)
    return found


@pytest.mark.parametrize(
    ("width", "depth", "widths", "depths"),
    [
        (4, 2, [4, 8, 16], [2, 2, 2]),
        ((4, 6, 10), 1, [4, 6, 10], [1, 1, 1]),
        (4, (1, 2, 3), [4, 8, 16], [1, 2, 3]),
    ],
)
def test_each_size_has_the_width_and_the_depth_that_was_asked_for(
    width: PerSize, depth: PerSize, widths: list[int], depths: list[int]
) -> None:
    network = UNet((1, 16, 16), width=width, depth=depth, context=3)
    for level, channels, blocks in zip(levels(network), widths, depths, strict=True):
        for side in (level.before, level.after):
            assert len(side) == blocks
            for each in side:
                assert isinstance(each, Steered)
                assert each.first.in_channels == each.second.out_channels == channels


def test_image_starts_still_and_does_not_depend_on_its_neighbours() -> None:
    network = Velocity((3, 8, 8), width=(4, 6), depth=(1, 2), told=2)
    w, t, told = torch.randn(5, 3, 8, 8), torch.rand(5), torch.randn(5, 2)
    assert not network(w, t, told).any()
    network = shaken(network).double()
    together = network(w.double(), t.double(), told.double())
    alone = network(w[2:3].double(), t[2:3].double(), told[2:3].double())
    torch.testing.assert_close(together[2:3], alone, rtol=0, atol=1e-12)
    for other in (
        network(w.double(), t.double() / 2, told.double()),
        network(w.double(), t.double(), told.double() + 1),
    ):
        assert (other - together).abs().amax((1, 2, 3)).min() > 1e-3, "time and label are seen"


@pytest.mark.parametrize(
    ("shape", "width", "depth", "words"),
    [
        ((1, 16, 16), (4, 8), 1, "model.width: .*seen at 3 sizes"),
        ((1, 16, 16), 4, (1,) * 4, "model.depth: .*got 4 numbers"),
        ((2,), (4, 8), 1, "model.width: one number for each size is of images"),
        ((2,), 4, (1, 1), "model.depth: one number for each size is of images"),
    ],
)
def test_numbers_that_fit_no_size_are_refused(
    shape: tuple[int, ...], width: PerSize, depth: PerSize, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        Velocity(shape, width=width, depth=depth, told=0)


@pytest.mark.parametrize(
    ("width", "words"),
    [(0, "greater than or equal to 1"), ([4, 0], "greater than or equal to 1"), ("x", "integer")],
)
def test_width_that_is_none_is_refused_in_its_own_words(width: object, words: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(words)) as caught:
        ContinuousFlowConfig.model_validate({"family": "continuous-flow", "width": width})
    assert caught.value.error_count() == 1
