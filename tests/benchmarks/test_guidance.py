"""The benchmark of guidance judges what it drew, and draws what it found."""

from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import guidance
from service.bundle import Bundle
from tests.training.bundled import bundled, recipe_of_a, shaken
from training.continuous import ContinuousFlow
from training.continuous_config import ContinuousFlowConfig
from training.data import Data, DataConfig, load


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """Noise of the size of digits, in ten classes."""
    file = tmp_path_factory.mktemp("rows") / "noise.npz"
    x = np.random.default_rng(0).integers(0, 256, (400, 28, 28), dtype=np.uint8)
    np.savez(file, x=x, y=np.arange(400) % 10)
    return load(DataConfig(source=str(file), test_fraction=0.25))


@pytest.fixture(scope="module")
def flow(rows: Data) -> Bundle:
    """A flow of such noise that has learned nothing."""
    config = ContinuousFlowConfig(
        width=4, depth=1, steps=1, conditional=True, label_dropout=0.1, guidance=0.2
    )
    recipe = recipe_of_a(
        {"family": "continuous-flow", **config.model_dump(exclude_unset=True)},
        source=rows.description,
    )
    return bundled(shaken(ContinuousFlow(config, rows)), recipe, rows)


def test_more_guidance_leads_further(
    rows: Data, flow: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guidance, "newest", lambda model: flow)
    monkeypatch.setattr(guidance, "GUIDANCE", (0.0, 0.2, 5.0))
    monkeypatch.setattr("training.data.load", lambda config: rows)
    chosen = Namespace(model=Path("flow"), beside=Path("flow"), data=None, samples=60)
    results, images = guidance.measure(chosen)
    none, own, much = (images[name] for name in ("0", "0.2", "5"))
    assert 0 < np.abs(own - none).mean() < np.abs(much - none).mean()
    # Beside itself: as it is led usually.
    np.testing.assert_array_equal(images["beside"], own)
    assert results["beside"]["fid"] == results["by_guidance"][1]["fid"]
    said = guidance.markdown(results)
    assert said.count("\n| ") == 1 + 1 + 3 + 2
    assert "\n| 0.2, its own | " in said
    guidance.picture(results, images, tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as drawn:
        assert drawn.size[0] > 1000


def test_flow_that_cannot_be_guided_is_refused(
    flow: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    ode = flow.manifest.ode.model_copy(update={"guidance": None}) if flow.manifest.ode else None
    manifest = flow.manifest.model_copy(update={"ode": ode})
    unled = Bundle(flow.folder, manifest, flow.files)
    monkeypatch.setattr(guidance, "newest", lambda model: unled)
    with pytest.raises(SystemExit, match="toy cannot be guided"):
        guidance.measure(Namespace(model=Path("flow")))
