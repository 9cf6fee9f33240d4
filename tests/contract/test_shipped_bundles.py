"""Every bundle in models/ keeps the contract, on this machine, through the engine that serves."""

import asyncio
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import onnx
import pytest

from service import bundle, ode, operations, sampling
from service.batching import Batcher
from service.bundle import Bundle
from service.condition import Condition
from service.engine import Engine
from service.interface import Event, Role
from service.session import Device
from service.tensors import Array

MODELS = Path(__file__).parents[2] / "models"
SHIPPED = {
    "digits-flow",
    "digits-gan",
    "digits-glow",
    "digits-vae",
    "mnist-flow",
    "mnist-flow-matching",
    "mnist-gan",
    "mnist-iwae",
    "mnist-vae",
    "moons-flow",
    "moons-flow-matching",
    "ring-critic-gan",
    "roll-flow",
    "wine-flow",
}
FOLDERS = [
    MODELS / name / str(version)
    for name in bundle.names(MODELS)
    for version in bundle.versions(MODELS, name)
]
BATCHES = (1, 7, 64, 257)


@pytest.fixture(scope="module", params=FOLDERS, ids=lambda path: f"{path.parent.name}/{path.name}")
def shipped(request: pytest.FixtureRequest) -> Iterator[tuple[Bundle, Engine]]:
    with closing(Batcher(devices=1)) as batcher:
        read = bundle.read(request.param)
        yield read, Engine(read, Device("cpu"), batcher=batcher, max_batch_rows=64)


def _run(engine: Engine, role: Role, feeds: dict[str, Array]) -> dict[str, Array]:
    return asyncio.run(engine.run(role, feeds))


def _golden(read: Bundle, role: Role, side: str, *, rows: int) -> dict[str, Array]:
    """Return the golden inputs or outputs of a role, repeated to a number of rows."""
    names = [spec.name for spec in getattr(read.manifest.graphs[role], side)]
    golden = {name: read.golden[f"{role}.{name}"] for name in names}
    return {name: np.resize(array, (rows, *array.shape[1:])) for name, array in golden.items()}


def condition(read: Bundle, rows: int) -> Condition:
    """Return what the model is told of some rows, if it is told anything."""
    manifest = read.manifest
    label = [row % 10 for row in range(rows)] if manifest.labels else None
    return Condition(label, manifest.context.minimum if manifest.context else None)


def test_all_models_are_shipped_and_small() -> None:
    assert set(bundle.names(MODELS)) == SHIPPED
    size = sum(file.stat().st_size for file in MODELS.rglob("*") if file.is_file())
    assert size < 40e6


def test_a_person_finds_a_card_and_pictures(shipped: tuple[Bundle, Engine]) -> None:
    folder = shipped[0].folder
    card = (folder / "card.md").read_text()
    assert shipped[0].manifest.title in card
    for name in ("samples.png", "curves.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


def test_every_figure_says_its_n(shipped: tuple[Bundle, Engine]) -> None:
    figures = shipped[0].manifest.evaluation
    assert figures
    assert all(figure.n > 0 and np.isfinite(figure.value) for figure in figures)


@pytest.mark.parametrize("rows", BATCHES)
def test_answers_are_those_of_float64(shipped: tuple[Bundle, Engine], rows: int) -> None:
    read, engine = shipped
    for role, graph in read.manifest.graphs.items():
        answers = _run(engine, role, _golden(read, role, "inputs", rows=rows))
        for name, reference in _golden(read, role, "outputs", rows=rows).items():
            tolerance = graph.tolerance[name]
            error = np.abs(answers[name].astype(np.float64) - reference)
            allowed = tolerance.absolute + tolerance.relative * np.abs(reference)
            assert (error <= allowed).all(), f"{role}.{name} is off by {error.max()}"


def test_images_are_within_1e_4_and_log_densities_within_1e_4_per_dimension(
    shipped: tuple[Bundle, Engine],
) -> None:
    """Whatever tolerance the manifest claims, and measured here."""
    manifest, engine = shipped[0].manifest, shipped[1]
    last: Role = "leave" if manifest.ode else "decode"
    largest = max(1.0, float(np.abs(shipped[0].golden[f"{last}.x"]).max()))
    assert engine.proofs[last].errors["x"] <= 1e-4 * largest
    if manifest.ode:
        assert engine.proofs["divergence"].errors["divergence"] <= 1e-4 * manifest.event.size
    if "log_density" in manifest.graphs:
        error = engine.proofs["log_density"].errors["log_density"]
        assert error <= 1e-4 * manifest.event.size


def test_no_graph_has_a_scattered_sum_of_float64_which_cuda_lacks(
    shipped: tuple[Bundle, Engine],
) -> None:
    read, _ = shipped
    for role in read.manifest.graphs:
        model = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(read.graph(role)))
        graph = model.graph
        doubles = {
            each.name
            for each in (*graph.value_info, *graph.output)
            if each.type.tensor_type.elem_type == onnx.TensorProto.DOUBLE
        }
        for node in graph.node:
            sums = node.op_type.startswith("Scatter") and any(
                each.name == "reduction" and each.s != b"none" for each in node.attribute
            )
            assert not (sums and doubles.intersection(node.output)), (role, node.name)


def test_a_row_does_not_depend_on_its_company(shipped: tuple[Bundle, Engine]) -> None:
    read, engine = shipped
    for role in read.manifest.graphs:
        feeds = _golden(read, role, "inputs", rows=16)
        whole = _run(engine, role, feeds)
        turned = _run(engine, role, {name: array[::-1] for name, array in feeds.items()})
        single = _run(engine, role, {name: array[5:6] for name, array in feeds.items()})
        for name, array in whole.items():
            np.testing.assert_allclose(turned[name][::-1], array, rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(single[name][0], array[5], rtol=1e-5, atol=1e-5)


def test_a_slice_of_samples_is_the_slice_of_the_whole_to_the_byte(
    shipped: tuple[Bundle, Engine],
) -> None:
    read, engine = shipped
    if any(proof.rows_exact_at is None for proof in engine.proofs.values()):
        pytest.fail("no graph of a shipped bundle may depend on its batch")
    drawing = sampling.Drawing(n=40, seed=7, condition=condition(read, 40))
    whole = asyncio.run(sampling.sample(engine, drawing))["x"]
    part = asyncio.run(sampling.sample(engine, drawing.part(13, 9)))["x"]
    assert np.array_equal(part, whole[13:22])


def test_a_flow_returns_to_where_it_began(shipped: tuple[Bundle, Engine]) -> None:
    read, engine = shipped
    if not read.manifest.family.endswith("flow"):
        pytest.skip("only a flow goes both ways exactly")
    event = read.manifest.event
    told = condition(read, 64)
    drawing = sampling.Drawing(n=64, seed=3, condition=told)
    x = _on_levels(asyncio.run(sampling.sample(engine, drawing))["x"], event)
    # What is solved in steps returns as exactly as those are fine.
    fine = ode.Method("rk4", 100) if read.manifest.ode else None
    code = operations.encode(engine, x, draws=None, seed=0, condition=told, method=fine)
    z = asyncio.run(code)["z"]
    again = asyncio.run(operations.decode(engine, z, condition=told, method=fine))["x"]
    if event.levels is None:
        np.testing.assert_allclose(again, x, atol=1e-4)
        return
    # Noise right at the edge of a grey level may fall over it: to the next, and rarely.
    steps = np.round(np.abs(_on_levels(again, event) - x) * (event.levels - 1))
    assert steps.max() <= 1
    # Of an ode a little more often: 400 single-precision velocities go into each way.
    assert steps.mean() < (5e-3 if read.manifest.ode else 1e-3)


def _on_levels(x: Array, event: Event) -> Array:
    """Return x as the graphs read it: rounded to its grey levels, if it has any."""
    if event.levels is None:
        return x
    return np.asarray(np.round(x * (event.levels - 1)) / np.float32(event.levels - 1))


def test_the_bound_is_below_the_importance_weighted_estimate(
    shipped: tuple[Bundle, Engine],
) -> None:
    read, engine = shipped
    if "elbo" not in read.manifest.graphs:
        pytest.skip("only a model with a bound has one")
    x = read.golden["elbo.x"]
    answer = asyncio.run(operations.elbo(engine, x, draws=500, seed=1))
    np.testing.assert_allclose(answer["reconstruction"] - answer["kl"], answer["elbo"], rtol=1e-12)
    slack = 4.5 * answer["standard_error"]
    assert (answer["elbo"] <= answer["importance_weighted"] + slack).all()
    density = asyncio.run(operations.log_density(engine, x, draws=500, seed=1))
    np.testing.assert_allclose(density["log_density"], answer["importance_weighted"], rtol=1e-12)
