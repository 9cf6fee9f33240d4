"""Continuous flows against fields whose paths and densities are known in closed form."""

import asyncio
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service import bundle, calls, noise, ode, operations, sampling
from service.batching import Batcher
from service.calls import Answer
from service.condition import Condition
from service.engine import Engine
from service.errors import BundleInvalid, InputInvalid
from service.interface import MAX_STEPS, Density, Role, Solver
from service.lanes import Job
from service.noise import DRAWS, Stream
from service.ode import Method
from service.sampling import Drawing
from service.schemes import stages
from service.session import Device
from service.settings import Settings
from service.tensors import Array
from tests.service.linear_odes import (
    DRIFT,
    LOG_STRETCH,
    PULL,
    SPIRAL,
    drift_divergence,
    drift_enter,
    drift_path,
    spiral_decode,
    spiral_encode,
    spiral_log_density,
)
from tests.service.test_bundle import edit
from tests.service.tiny import Floats, Tiny

FINE = Method("rk4", 40)
Z = np.random.default_rng(0).normal(size=(50, 2))
X = spiral_decode(Z)
IMAGES = (np.random.default_rng(1).integers(0, 4, (5, 1, 2, 2)) / 3).astype(np.float32)
LABELS = [0, 1, 1, 0, 1]


def engine_of(tiny: Tiny, folder: Path, batcher: Batcher) -> Engine:
    read = bundle.read(tiny.publish(folder))
    return Engine(read, Device("cpu"), batcher=batcher, max_batch_rows=64, max_batch_s=1)


@pytest.fixture(scope="module")
def batcher() -> Iterator[Batcher]:
    with closing(Batcher(devices=2)) as made:
        yield made


@pytest.fixture(scope="module")
def spiral(tmp_path_factory: pytest.TempPathFactory, batcher: Batcher) -> Engine:
    return engine_of(SPIRAL, tmp_path_factory.mktemp("spiral"), batcher)


@pytest.fixture(scope="module")
def drift(tmp_path_factory: pytest.TempPathFactory, batcher: Batcher) -> Engine:
    return engine_of(DRIFT, tmp_path_factory.mktemp("drift"), batcher)


def decode(engine: Engine, z: Array, method: Method, *, label: list[int] | None = None) -> Floats:
    answer = asyncio.run(operations.decode(engine, z, method=method, condition=Condition(label)))
    return np.asarray(answer["x"], dtype=np.float64)


def test_paths_end_where_the_matrix_exponential_says(spiral: Engine) -> None:
    np.testing.assert_allclose(decode(spiral, Z, FINE), spiral_decode(Z), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("solver", "steps", "ratio"), [("euler", 64, 2), ("midpoint", 16, 4), ("rk4", 4, 16)]
)
def test_half_the_step_has_the_error_of_its_order(
    spiral: Engine, solver: Solver, steps: int, ratio: float
) -> None:
    exact = spiral_decode(Z)
    coarse, fine = (
        np.abs(decode(spiral, Z, Method(solver, times * steps)) - exact).max() for times in (1, 2)
    )
    assert coarse / fine == pytest.approx(ratio, rel=0.15)


def test_encode_goes_the_same_way_back(spiral: Engine) -> None:
    answer = asyncio.run(operations.encode(spiral, X, draws=None, seed=0, method=FINE))
    z, log_abs_det = spiral_encode(X)
    np.testing.assert_allclose(answer["z"], z, atol=1e-5)
    np.testing.assert_allclose(answer["log_abs_det"], log_abs_det, atol=1e-5)
    again = decode(spiral, answer["z"], FINE)
    np.testing.assert_allclose(again, X, atol=2e-5)


def test_log_density_is_that_of_the_closed_form(spiral: Engine) -> None:
    answer = asyncio.run(operations.log_density(spiral, X, draws=None, seed=0, method=FINE))
    np.testing.assert_allclose(answer["log_density"], spiral_log_density(X), atol=1e-5)
    with pytest.raises(InputInvalid, match="field 'draws': the density of spiral is exact"):
        asyncio.run(operations.log_density(spiral, X, draws=3, seed=0, method=FINE))


def test_samples_are_the_decoded_noise_and_any_slice_of_them_is_the_same(spiral: Engine) -> None:
    z = noise.normal(9, Stream.LATENT, start=0, rows=300, size=2)

    async def ask() -> tuple[Answer, list[Answer], Answer, Array]:
        drawing = Drawing(n=300, seed=9, steps=5, include=("z", "log_density"))
        whole = await sampling.sample(spiral, drawing)
        # Beside others of other solvers, whose evaluations share its batches.
        others = [Drawing(n=40, seed=s, solver="euler", steps=3 + s) for s in range(5)]
        parts = await asyncio.gather(
            *(sampling.sample(spiral, Drawing(n=n, seed=9, start=s, steps=5)) for s, n in SLICES),
            *(sampling.sample(spiral, other) for other in others),
        )
        alone = await sampling.sample(spiral, others[2])
        windows = [
            window["x"] async for window in sampling.stream(spiral, Drawing(n=300, seed=9, steps=5))
        ]
        return whole, parts, alone, np.concatenate(windows)

    whole, parts, alone, streamed = asyncio.run(ask())
    np.testing.assert_allclose(whole["z"], z, rtol=1e-6)
    np.testing.assert_allclose(whole["x"], decode(spiral, z, Method("rk4", 5)), atol=1e-5)
    np.testing.assert_allclose(whole["log_density"], spiral_log_density(whole["x"]), atol=5e-3)
    for (start, n), part in zip(SLICES, parts[: len(SLICES)], strict=True):
        np.testing.assert_array_equal(part["x"], whole["x"][start : start + n])
    np.testing.assert_array_equal(parts[len(SLICES) + 2]["x"], alone["x"])
    np.testing.assert_array_equal(streamed, whole["x"])


SLICES = [(0, 1), (7, 64), (200, 100)]


def estimated(draws: int, *, guidance: float = 0.0) -> Floats:
    """Return log p of each of IMAGES by each draw of seed 3, whose estimate is known as well."""
    found = np.empty((len(IMAGES), draws))
    for row, label in enumerate(LABELS):
        place = {"start": row * DRAWS, "rows": draws, "size": 4}
        below = noise.uniform(3, Stream.DEQUANTISATION, **place)
        probe = noise.normal(3, Stream.PROBE, **place)
        w = drift_enter(IMAGES[row].reshape(4), below)
        z = drift_path(w, np.full(draws, label), time=-1.0, guidance=guidance)
        normal = -0.5 * (z**2).sum(axis=1) - 2 * np.log(2 * np.pi)
        found[row] = normal + LOG_STRETCH - drift_divergence(probe)
    return found


def test_hutchinson_takes_the_noise_of_its_draws_and_keeps_a_direction(drift: Engine) -> None:
    """The field is linear, so that the estimate of each path is known as well."""
    method, draws = Method("rk4", 30), 8
    answer = asyncio.run(
        operations.log_density(
            drift, IMAGES, draws=draws, seed=3, condition=Condition(LABELS), method=method
        )
    )
    found = estimated(draws)
    np.testing.assert_allclose(answer["log_density"], found.mean(axis=1), atol=1e-4)
    spread = found.std(axis=1, ddof=1) / np.sqrt(draws)
    np.testing.assert_allclose(answer["standard_error"], spread, rtol=1e-4)
    assert set(answer) == {"log_density", "standard_error"}


def test_hutchinson_is_right_on_average(drift: Engine) -> None:
    answer = asyncio.run(
        operations.log_density(
            drift, IMAGES, draws=4000, seed=1, condition=Condition(LABELS), method=Method("rk4", 8)
        )
    )
    rng = np.random.default_rng(2)
    for row in range(5):
        w = drift_enter(IMAGES[row].reshape(4), rng.random((4000, 4)))
        z = drift_path(w, np.full(4000, LABELS[row]), time=-1.0)
        exact = -0.5 * (z**2).sum(axis=1) - 2 * np.log(2 * np.pi) + LOG_STRETCH - np.trace(PULL)
        error = np.hypot(exact.std() / np.sqrt(4000), answer["standard_error"][row])
        assert abs(answer["log_density"][row] - exact.mean()) <= 4.5 * error


def test_windows_of_draws_do_not_show(drift: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask() -> Answer:
        return asyncio.run(
            operations.log_density(
                drift,
                IMAGES,
                draws=100,
                seed=1,
                condition=Condition(LABELS),
                method=Method("euler", 2),
            )
        )

    whole = ask()
    monkeypatch.setattr("service.monte_carlo.WINDOW_DRAWS", 80)
    for name, array in ask().items():
        np.testing.assert_allclose(array, whole[name], rtol=1e-9)


def test_codes_of_an_image_go_by_the_noise_of_the_seed(drift: Engine) -> None:
    def ask(seed: int) -> Answer:
        return asyncio.run(
            operations.encode(
                drift, IMAGES, draws=None, seed=seed, condition=Condition(LABELS), method=FINE
            )
        )

    answer, other = ask(0), ask(1)
    assert set(answer) == {"z"}
    assert not np.allclose(answer["z"], other["z"])
    # They differ by what is below a grey level, which decoding keeps.
    both = [decode(drift, each["z"], FINE, label=LABELS) for each in (answer, other)]
    for x in both:
        assert np.abs(x - IMAGES).max() <= 0.5 / 3 + 1e-5


def test_what_runs_away_is_the_callers_row(spiral: Engine) -> None:
    z = np.array([[0, 0], [3e38, -3e38]], np.float32)
    with pytest.raises(InputInvalid, match="field 'z': row 1 is too large for spiral"):
        decode(spiral, z, FINE)


def test_each_evaluation_is_a_job_that_ends_with_its_caller(
    spiral: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ask() -> int:
        seen = 0
        run = calls.run

        async def counted(*arguments: object, **options: object) -> Answer:
            nonlocal seen
            seen += 1
            if seen == 5:
                task.cancel()
            return await run(*arguments, **options)  # type: ignore[arg-type]

        monkeypatch.setattr("service.ode.run", counted)
        task = asyncio.ensure_future(sampling.sample(spiral, Drawing(n=4, seed=0, steps=100)))
        with pytest.raises(asyncio.CancelledError):
            await task
        return seen

    assert asyncio.run(ask()) == 5


def test_operators_limit_of_steps_is_one_that_requests_can_name() -> None:
    (limit,) = [
        each.le for each in Settings.model_fields["max_steps"].metadata if hasattr(each, "le")
    ]
    assert limit == MAX_STEPS


def test_evaluations_are_those_of_the_scheme() -> None:
    assert [Method(s, 7).evaluations for s in ("euler", "midpoint", "rk4")] == [7, 14, 28]
    manifest = SPIRAL.manifest(SPIRAL.files())
    assert ode.usual(manifest) == Method("rk4", 20)
    drawing = Drawing(n=1, seed=0, solver="euler", steps=3)
    assert ode.chosen(manifest, drawing) == Method("euler", 3)


def test_the_first_evaluation_is_admitted_for_all_and_what_is_cheap_is_not_asked(
    spiral: Engine, jobs: list[Job[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Fifty rows in pieces of twenty: each has its own path.
    monkeypatch.setattr(ode, "PIECE_VALUES", 40)
    asyncio.run(operations.log_density(spiral, X, draws=None, seed=0, method=Method("midpoint", 3)))
    divergences = [job for job in jobs if job.lane.name[1] == "divergence"]
    assert [job.begun for job in divergences] == [False] + [True] * 17
    # Rows that follow: of the piece at the evaluations left, of later ones at all six.
    assert [job.follows for job in divergences[:6]] == [20 * n + 30 * 6 for n in (5, 4, 3, 2, 1, 0)]
    assert divergences[-1].follows == 0
    assert all(job.begun for job in jobs if job.lane.name[1] == "enter")
    jobs.clear()
    drawing = Drawing(n=1, seed=0, steps=1, include=("log_density",))
    asyncio.run(sampling.sample(spiral, drawing))
    assert [job.begun for job in jobs] == [False] + [True] * (len(jobs) - 1)
    jobs.clear()
    asyncio.run(sampling.sample(spiral, drawing, begun=True))
    assert all(job.begun for job in jobs)


def test_pieces_do_not_show_and_the_row_at_fault_is_that_of_the_call(
    spiral: Engine, drift: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ask() -> list[Array]:
        drawing = Drawing(n=50, seed=4, steps=3, include=("log_density",))
        sampled = await sampling.sample(spiral, drawing)
        code = await operations.encode(
            drift, IMAGES, draws=None, seed=1, condition=Condition(LABELS)
        )
        density = await operations.log_density(
            drift, IMAGES, draws=20, seed=1, condition=Condition(LABELS)
        )
        return [sampled["x"], sampled["log_density"], code["z"], density["log_density"]]

    whole = asyncio.run(ask())
    monkeypatch.setattr(ode, "PIECE_VALUES", 14)
    for found, expected in zip(asyncio.run(ask()), whole, strict=True):
        np.testing.assert_array_equal(found, expected)
    z = np.zeros((30, 2), np.float32)
    z[23] = 3e38, -3e38
    with pytest.raises(InputInvalid, match="field 'z': row 23 is too large for spiral"):
        decode(spiral, z, FINE)
    x = np.zeros((30, 2), np.float32)
    x[17] = 3.4e38, -3.4e38
    with pytest.raises(InputInvalid, match="field 'x': row 17 is too large for spiral"):
        asyncio.run(operations.log_density(spiral, x, draws=None, seed=0))


def test_a_stream_of_many_windows_is_the_whole(
    drift: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawing = Drawing(n=400, seed=4, start=7, include=("label", "z"))

    async def ask() -> list[Answer]:
        return [window async for window in sampling.stream(drift, drawing)]

    whole = asyncio.run(sampling.sample(drift, drawing))
    monkeypatch.setattr(sampling, "WINDOW_S", 1e-9)
    windows = asyncio.run(ask())
    assert len(windows) > 3
    for name, array in whole.items():
        np.testing.assert_array_equal(np.concatenate([each[name] for each in windows]), array)


@pytest.mark.parametrize("solver", ["euler", "midpoint", "rk4"])
def test_no_stage_leaves_the_time_between_noise_and_event(solver: Solver) -> None:
    for steps in range(1, 200):
        for start, stop in ((0.0, 1.0), (1.0, 0.0)):
            times = [time for time, _, _ in stages(solver, steps, start=start, stop=stop)]
            assert times[0] == start
            assert min(times) >= 0
            assert max(times) <= 1


def test_a_flow_without_a_density_has_codes_all_the_same(tmp_path: Path, batcher: Batcher) -> None:
    nodes: dict[Role, str] = {
        role: text for role, text in SPIRAL.nodes.items() if role != "divergence"
    }
    density = Density(kind="none", estimator=None)
    bare = replace(
        SPIRAL,
        interface=SPIRAL.interface.model_copy(update={"density": density}),
        nodes=nodes,
        references={role: SPIRAL.references[role] for role in nodes},
    )
    engine = engine_of(bare, tmp_path, batcher)
    answer = asyncio.run(operations.encode(engine, X, draws=None, seed=0, method=FINE))
    np.testing.assert_allclose(answer["z"], spiral_encode(X)[0], atol=1e-5)
    assert set(answer) == {"z"}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"ode": None}, "every bundle has a decode graph"),
        ({"family": "flow"}, "family: of a model with an ode it is continuous-flow"),
        ({"posterior": "diagonal"}, "posterior: of a model with an ode it is null"),
        ({"observation": "normal"}, "observation: "),
        ({"latent": {"distribution": "learned", "shape": [2]}}, "latent.distribution: "),
        (
            {"density": {"kind": "estimate", "estimator": "dequantisation"}},
            "the estimator is exact, hutchinson or null",
        ),
        ({"ode": {"solver": "heun", "steps": 3}}, "ode.solver"),
        ({"ode": {"solver": "rk4", "steps": 0}}, "ode.steps"),
    ],
)
def test_a_bundle_that_cannot_be_solved_is_refused(
    tmp_path: Path, change: dict[str, Any], why: str
) -> None:
    folder = SPIRAL.publish(tmp_path)
    edit(folder, lambda manifest: manifest.update(change))
    with pytest.raises(BundleInvalid, match=why):
        bundle.read(folder)
