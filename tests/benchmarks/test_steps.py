"""The benchmark of a continuous flow's steps judges what it drew, and draws what it found."""

from pathlib import Path

import pytest
from PIL import Image

from benchmarks import steps, steps_plot
from service.bundle import Bundle
from service.session import Device
from tests.training.bundled import bundled, recipe_of_a
from tests.training.cases import shaken
from training.continuous import ContinuousFlow
from training.continuous_config import ContinuousFlowConfig
from training.data import DataConfig, load

SAMPLES = 20


@pytest.fixture(scope="module")
def flow() -> Bundle:
    """A flow of digits that has learned nothing."""
    config = ContinuousFlowConfig(width=4, depth=1, steps=2, conditional=True)
    rows = load(DataConfig(source="sklearn:digits"))
    recipe = recipe_of_a(config.model_dump(exclude_unset=True) | {"family": "continuous-flow"},
                         source="sklearn:digits")  # fmt: skip
    return bundled(shaken(ContinuousFlow(config, rows)), recipe, rows)


def test_more_steps_are_nearer_to_the_fine_solution(
    flow: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "newest", lambda model: flow)
    monkeypatch.setattr(steps, "STEPS", {"euler": (1, 8), "midpoint": (2,)})
    monkeypatch.setattr(steps, "FINE", ("rk4", 8))
    monkeypatch.setattr(steps, "CLASSIFIER_STEPS", 2)
    results, images = steps.measure(
        Path("flow"), Path("flow"), None, samples=SAMPLES, device=Device("cpu")
    )
    coarse, fine, usual = results["by_steps"]
    assert [each["evaluations"] for each in (coarse, fine, usual)] == [1, 8, 4]
    assert 0 < fine["error"][0] < coarse["error"][0]
    # Beside itself: as it is solved usually, in two steps of midpoint.
    assert results["beside"]["recognised"] == usual["recognised"]
    assert results["beside"]["mmd"] == usual["mmd"]
    said = steps.markdown(results)
    assert said.count("\n| ") == 1 + 1 + 3 + 2
    assert "| midpoint | 2, its own | 4 |" in said
    steps_plot.draw(results, images, tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as picture:
        assert picture.size[0] > 1000
