"""What is true of every family, over the table of `cases.py`."""

import copy
import io
import math

import pytest
import torch
from torch import Tensor

from tests.training.cases import CASES, EXPORTED, case
from tests.training.exported import differences, double, feeds
from training.family import Family, outputs_of
from training.loop import validate

every_case = pytest.mark.parametrize("label", CASES)


def answers(family: Family, *, rows: int = 5) -> dict[str, tuple[Tensor, ...]]:
    """What every graph says to random inputs, which are the same each time."""
    torch.manual_seed(7)
    with torch.no_grad():
        return {
            role: graph(*feeds(family, role, rows=rows)) for role, graph in family.graphs().items()
        }


@torch.no_grad()
def samples(family: Family, *, rows: int) -> Tensor:
    """Events of random noise, the same each time, asked for by label where there are labels."""
    torch.manual_seed(7)
    labels, context = family.interface.labels, family.interface.context
    asked = torch.arange(rows) % len(labels) if labels else None
    if context:
        asked = torch.randn(rows, len(context.names))
    return family.decode(torch.randn(rows, *family.interface.latent.shape), asked)


@every_case
def test_each_turn_reaches_every_parameter_of_its_own_and_no_other(label: str) -> None:
    family, data = case(label)
    family.train()
    turns = family.turns()
    assert sum(len(turn.parameters) for turn in turns) == len(list(family.parameters()))
    for turn in turns:
        family.zero_grad()
        turn.loss(data.train)["loss"].backward()
        own = set(turn.parameters)
        for name, parameter in family.named_parameters():
            reached = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
            assert reached == (parameter in own), (turn.name, name)
            assert parameter.requires_grad


@every_case
@torch.no_grad()
def test_a_batch_is_its_rows_one_by_one(label: str) -> None:
    family = case(label)[0].double()
    for role, graph in family.graphs().items():
        inputs = [double(value) for value in feeds(family, role, rows=5)]
        whole = graph(*inputs)
        for row in range(5):
            alone = graph(*(value[row : row + 1] for value in inputs))
            for together, single in zip(whole, alone, strict=True):
                torch.testing.assert_close(single, together[row : row + 1], rtol=1e-10, atol=1e-10)


@every_case
def test_what_is_saved_loads_into_a_fresh_model_that_computes_the_same(label: str) -> None:
    family, fresh = case(label)[0], case(label)[0]
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in family.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    expected = answers(family)
    first = "decode" if "decode" in expected else "velocity"
    assert not torch.equal(answers(fresh)[first][0], expected[first][0])
    file = io.BytesIO()
    torch.save(family.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    for role, found in answers(fresh).items():
        for one, other in zip(found, expected[role], strict=True):
            assert torch.equal(one, other), role


@every_case
def test_graphs_answer_what_the_interface_says(label: str) -> None:
    family = case(label)[0]
    axes = {"batch": 5, "draws": 3}
    graphs = family.graphs()
    for role, found in answers(family).items():
        outputs = outputs_of(graphs, family.interface, role)  # type: ignore[arg-type]
        assert len(found) == len(outputs), role
        for spec, answer in zip(outputs, found, strict=True):
            shape = tuple(axes[axis] if isinstance(axis, str) else axis for axis in spec.shape)
            assert tuple(answer.shape) == shape, (role, spec.name)
            assert str(answer.dtype) == f"torch.{spec.dtype}", (role, spec.name)
            assert answer.isfinite().all(), (role, spec.name)


@every_case
@torch.no_grad()
def test_graphs_draw_nothing_and_repeat(label: str) -> None:
    family = case(label)[0]
    for role, graph in family.graphs().items():
        inputs = feeds(family, role, rows=4)
        before = torch.get_rng_state()
        first, again = graph(*inputs), graph(*inputs)
        assert torch.equal(torch.get_rng_state(), before), role
        assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True)), role


@every_case
@torch.no_grad()
def test_decode_gives_events_within_their_bounds(label: str) -> None:
    family, data = case(label)
    x = samples(family, rows=8)
    assert x.shape == (8, *data.event.shape)
    if data.event.kind == "image":
        assert ((x >= 0) & (x <= 1)).all()


@every_case
def test_score_is_finite_and_leaves_no_gradient(label: str) -> None:
    family, data = case(label)
    score = validate(family, data.validation, seed=0)
    assert math.isfinite(score.value)
    assert score.standard_error is None or math.isfinite(score.standard_error)
    assert all(parameter.grad is None for parameter in family.parameters())
    assert all(parameter.requires_grad for parameter in family.parameters())


@every_case
@torch.no_grad()
def test_nats_are_finite_one_for_each_event(label: str) -> None:
    family, data = case(label)
    found = family.nats(data.test[:4], 8)
    assert bool(found) == (family.interface.density.kind != "none")
    for name, nats in found.items():
        assert nats.values.shape == (4,), name
        assert nats.values.isfinite().all(), name
        # An estimate says that it is one.
        assert bool(nats.note) == (family.interface.density.kind == "estimate"), name


@pytest.mark.parametrize("label", EXPORTED)
def test_exported_graphs_agree_with_float64(label: str) -> None:
    family = copy.deepcopy(case(label)[0])
    size = family.interface.event.size
    x = samples(family, rows=64)
    # Pixels are whole numbers: rounding may fall on the other side. A flow's code may be steep.
    allowed = {"x": 1e-4 * max(1.0, float(x.abs().max())), "pixels": 1.0, "z": 1e-3}
    for role in family.graphs():
        for output, gap in differences(family, role).items():
            assert gap <= allowed.get(output, 1e-4 * size), (role, output)
