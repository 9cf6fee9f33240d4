"""Rows of numbers and categories: read, made, weighed, and unusual ones found."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from service.interface import DEFAULT_DRAWS, Event
from service.manifest import Figure
from tests.training.bundled import recipe_of_a
from tests.training.cases import mixed, of, shaken
from tests.training.learning import learn
from tests.training.small_sets import data
from training.data import Batch, Data
from training.evaluate import EvaluateConfig, evaluate
from training.flow import Flow
from training.flow_config import FlowConfig
from training.recipe import RecipeInvalid, build

SMALL = FlowConfig(layers=2, width=16, depth=1, bins=4)


def flow_of(layer: str = "coupling", data: Data | None = None) -> Flow:
    """Return a flow of numbers and categories that is not the identity."""
    config = SMALL.model_copy(update={"layer": layer})
    torch.manual_seed(0)
    return shaken(Flow(config, data or mixed())).eval().requires_grad_(False).double()


@pytest.mark.parametrize("layer", ["coupling", "autoregressive", "inverse-autoregressive"])
def test_probabilities_of_all_rows_come_to_one(layer: str) -> None:
    """Summed over the categories, and integrated over the number and the noise in each."""
    x = mixed().train.x[:, :2]
    event = Event(kind="vector", shape=(2,), categories=((), ("low", "mid", "high")))
    flow = flow_of(layer, of(x, event, mean=x.mean(0).numpy(), std=x.std(0).numpy()))
    side = torch.linspace(-14, 16, 601, dtype=torch.float64)
    inside = (torch.arange(60, dtype=torch.float64) + 0.5) / 60
    number, place = torch.cartesian_prod(side, inside).unbind(1)
    noise = torch.stack((0 * number, place), dim=1)
    total = 0.0
    for kind in range(3):
        found = flow.log_density(torch.stack((number, 0 * number + kind), dim=1), noise)
        total += float(found.exp().sum()) * float(side[1] - side[0]) / len(inside)
    assert total == pytest.approx(1, abs=2e-3)


def test_decode_undoes_encode_to_the_category() -> None:
    flow, x = flow_of(), mixed().test.x.double()
    for place in (1e-6, 0.3, 1 - 1e-6):
        z, _ = flow.encode(x, torch.full_like(x, place))
        again = flow.decode(z)
        torch.testing.assert_close(again, x, rtol=0, atol=1e-9)
        assert torch.equal(again[:, [1, 3]], x[:, [1, 3]])


def test_log_det_is_that_of_the_jacobian_in_the_numbers_and_the_noise() -> None:
    flow, x = flow_of(), mixed().test.x[:6].double()
    noise = torch.full_like(x, 0.4)
    for row in range(6):

        def code(moved: torch.Tensor, row: int = row) -> torch.Tensor:
            numbers = torch.stack((moved[0], x[row, 1], moved[2], x[row, 3]))
            within = torch.stack((noise[row, 0], moved[1], noise[row, 2], moved[3]))
            return flow.encode(numbers[None], within[None])[0][0]

        at = torch.stack((x[row, 0], noise[row, 1], x[row, 2], noise[row, 3]))
        jacobian = torch.autograd.functional.jacobian(code, at)
        found = flow.encode(x, noise)[1][row]
        assert float(torch.linalg.slogdet(jacobian)[1] - found) == pytest.approx(0, abs=1e-8)


def test_samples_are_rows_of_the_table() -> None:
    x = flow_of().decode(torch.randn(500, 4, dtype=torch.float64))
    for column, count in ((1, 3), (3, 2)):
        assert set(x[:, column].tolist()) <= set(range(count))
        assert len(x[:, column].unique()) == count


def test_learned_density_ends_at_the_entropy_and_not_below() -> None:
    torch.manual_seed(0)
    rows = mixed(rows=12_000)
    flow = Flow(FlowConfig(layers=4, width=32, depth=1), rows)
    learn(flow, rows, steps=600, rate=5e-3)
    generator = torch.Generator().manual_seed(9)
    x = rows.train.x[torch.randint(12_000, (4000,), generator=generator)]
    kind, other = x[:, 1].long(), x[:, 3]
    chance = 0.25 + 0.25 * kind
    exact = (
        -torch.tensor([0.2, 0.3, 0.5])[kind].log()
        - torch.where(other > 0, chance, 1 - chance).log()
    )
    exact += 0.5 * (x[:, 0] - kind).square() + 2 * (x[:, 2] - 2 * other).square()
    exact += math.log(2 * math.pi) + math.log(0.5)
    excess = flow.nats(Batch(x), DEFAULT_DRAWS)["negative log-density"].values - exact
    error = excess.std().item() / math.sqrt(len(excess))
    assert -4.5 * error <= excess.mean().item() <= 0.06 + 4.5 * error


def test_held_out_rows_are_told_with_their_draws() -> None:
    first: Figure = evaluate(flow_of().float(), mixed(), EvaluateConfig(rows=20))[0]
    assert first.draws == DEFAULT_DRAWS
    assert len(first.values) == 20
    assert first.note.endswith(f"draws per event: {DEFAULT_DRAWS}")


@pytest.mark.parametrize("family", ["vae", "continuous-flow"])
def test_other_families_do_not_make_categories(family: str) -> None:
    with pytest.raises(RecipeInvalid, match=r'data\.categorical: only a "flow" makes them'):
        build(recipe_of_a({"family": family}), mixed())


def table(folder: Path, **columns: object) -> Path:
    """Return a file of forty rows: a number, and what is given."""
    pd.DataFrame({"size": np.arange(40) / 7, **columns}).to_csv(folder / "t.csv", index=False)
    return folder / "t.csv"


def test_columns_of_text_and_of_whole_numbers_become_categories(tmp_path: Path) -> None:
    path = table(tmp_path, colour=["red", "blue"] * 20, doors=[5, 3, 3, 4] * 10)
    rows = data(path, categorical=["colour", "doors"])
    assert rows.event == Event(
        kind="vector",
        shape=(3,),
        features=("size", "colour", "doors"),
        categories=((), ("blue", "red"), ("3", "4", "5")),
    )
    number = (rows.train.x[:, 0] * 7).round().long()
    assert torch.equal(rows.train.x[:, 1], 1.0 - number % 2)
    expected = torch.tensor([2.0, 0.0, 0.0, 1.0])[number % 4]
    assert torch.equal(rows.train.x[:, 2], expected)


@pytest.mark.parametrize(
    ("columns", "options", "says"),
    [
        ({"c": ["a"] * 40}, ["c"], "'c' has 1 categories; expected 2"),
        ({"c": [0.5, 1] * 20}, ["c"], "'c' holds 0.5 in row 0"),
        ({"c": ["a", None] * 20}, ["c"], "categorical column 'c' has 20 missing values"),
        ({"c": ["a", "b"] * 20}, ["d"], "'d' is no feature; those are size, c"),
        ({"c": ["a", "b"] * 20}, ["c", "c"], "'c' is named twice"),
        ({"c": ["a", "b"] * 20}, None, "make it the label or 'categorical'"),
    ],
)
def test_bad_categories_are_a_sentence(
    tmp_path: Path, columns: dict[str, object], options: list[str] | None, says: str
) -> None:
    path = table(tmp_path, **columns)
    with pytest.raises(Exception, match=says):
        data(path, **({"categorical": options} if options else {}))
