"""Rows through an engine: padded, sliced, and none of them aware of its company."""

import asyncio
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service import bundle
from service import engine as module
from service.batching import Batcher
from service.engine import Engine
from service.errors import BundleInvalid, EngineFailed
from service.interface import DRAW_WIDTHS
from service.session import Device, Session
from tests.service.bundles import AFFINE, MIX, SHIFT, TILES
from tests.service.ppca import PPCA
from tests.service.tiny import Tiny


@pytest.fixture(scope="module")
def batcher() -> Iterator[Batcher]:
    with closing(Batcher(devices=2)) as batcher:
        yield batcher


def engine_of(models: Path, tiny: Tiny, batcher: Batcher, rows: int = 16) -> Engine:
    read = bundle.read(models / tiny.name / "1")
    return Engine(read, Device("cpu"), batcher=batcher, max_batch_rows=rows, max_batch_s=1)


@pytest.fixture(scope="module")
def affine(models: Path, batcher: Batcher) -> Engine:
    return engine_of(models, AFFINE, batcher)


@pytest.fixture(scope="module")
def ppca(models: Path, batcher: Batcher) -> Engine:
    return engine_of(models, PPCA, batcher)


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 16, 17, 100])
def test_any_number_of_rows_comes_back_in_order(affine: Engine, rows: int) -> None:
    z = np.random.default_rng(rows).normal(size=(rows, 2)).astype(np.float32)
    answer = asyncio.run(affine.run("decode", {"z": z}))
    np.testing.assert_allclose(answer["x"], z @ MIX + SHIFT, atol=1e-5)


@settings(max_examples=30)
@given(rows=st.integers(2, 50), data=st.data())
def test_row_does_not_depend_on_its_company(affine: Engine, rows: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, rows - 1))
    last = data.draw(st.integers(first + 1, rows))
    z = np.random.default_rng(rows).normal(size=(rows, 2)).astype(np.float32)

    async def both() -> tuple[np.ndarray, np.ndarray]:
        whole, part = await asyncio.gather(
            affine.run("log_density", {"x": z}), affine.run("log_density", {"x": z[first:last]})
        )
        return whole["log_density"], part["log_density"]

    whole, part = asyncio.run(both())
    np.testing.assert_array_equal(part, whole[first:last])


@pytest.mark.parametrize("draws", [1, 3, 4, 5, 16, 60, 64])
@pytest.mark.parametrize("rows", [1, 9])
def test_draws_are_padded_and_cut_like_rows(ppca: Engine, rows: int, draws: int) -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(rows, 3)).astype(np.float32)
    eps = generator.normal(size=(rows, 64, 2)).astype(np.float32)

    async def both() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        return (
            await ppca.run("elbo", {"x": x, "noise": eps}),
            await ppca.run("elbo", {"x": x, "noise": eps[:, :draws]}),
        )

    whole, part = asyncio.run(both())
    assert part["log_weight"].shape == (rows, draws)
    assert part["kl"].shape == (rows,)
    np.testing.assert_allclose(part["log_weight"], whole["log_weight"][:, :draws], rtol=1e-6)


def test_runtime_only_ever_sees_the_buckets(
    models: Path, batcher: Batcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: set[tuple[int, ...]] = set()
    run = Session.run

    def record(self: Session, feeds: dict[str, np.ndarray], *args: object) -> object:
        shapes.add(feeds["noise"].shape[:2] if "noise" in feeds else feeds["x"].shape[:1])
        return run(self, feeds, *args)  # type: ignore[arg-type]

    engine = engine_of(models, PPCA, batcher)
    monkeypatch.setattr(Session, "run", record)
    for rows in range(1, 40, 3):
        x = np.zeros((rows, 3), np.float32)
        asyncio.run(engine.run("encode", {"x": x}))
        for draws in (1, 5, 17, 64):
            asyncio.run(engine.run("elbo", {"x": x, "noise": np.zeros((rows, draws, 2), "f4")}))
    assert {shape[0] for shape in shapes} == {8, 16}
    assert {shape[1] for shape in shapes if len(shape) == 2} == set(DRAW_WIDTHS)


def test_buckets_are_powers_of_two_up_to_a_whole_batch(affine: Engine) -> None:
    assert affine.lanes["decode", None].buckets == (8, 16)


@pytest.mark.parametrize(
    ("seconds", "buckets"),
    [
        ({8: 2e-3, 16: 60e-3}, (8,)),
        ({8: 12e-3, 16: 23e-3, 32: 44e-3}, (8, 16)),
        ({8: 60e-3}, (8,)),
    ],
)
def test_no_bucket_but_the_smallest_takes_longer_than_a_run_may(
    models: Path,
    batcher: Batcher,
    monkeypatch: pytest.MonkeyPatch,
    seconds: dict[int, float],
    buckets: tuple[int, ...],
) -> None:
    def took(session: Session, outputs: object, bucket: int, *_: object) -> float:
        return seconds[bucket]

    monkeypatch.setattr(module, "_time", took)
    read = bundle.read(models / AFFINE.name / "1")
    engine = Engine(read, Device("cpu"), batcher=batcher, max_batch_rows=512, max_batch_s=25e-3)
    assert engine.lanes["decode", None].buckets == buckets


def test_only_the_outputs_that_are_asked_for_come_back(models: Path, batcher: Batcher) -> None:
    engine = engine_of(models, TILES, batcher)
    feeds = {"z": np.zeros((3, 2), np.float32), "label": np.array([0, 1, 2])}
    answer = asyncio.run(engine.run("decode", feeds, ["pixels"]))
    assert answer.keys() == {"pixels"}
    assert answer["pixels"].shape == (3, 4, 4, 1)
    assert answer["pixels"].dtype == np.uint8


def test_failing_graph_fails_its_caller_alone(affine: Engine) -> None:
    good, bad = np.zeros((20, 2), np.float32), np.zeros((20, 3), np.float32)

    async def both() -> list[object]:
        runs = [affine.run("decode", {"z": z}) for z in (good, bad, good)]
        return list(await asyncio.gather(*runs, return_exceptions=True))

    first, failed, last = asyncio.run(both())
    assert isinstance(failed, EngineFailed)
    assert isinstance(first, dict)
    assert isinstance(last, dict)


def test_bundle_whose_golden_vectors_do_not_come_out_makes_no_engine(
    tmp_path: Path, batcher: Batcher
) -> None:
    wrong = Tiny(
        name="wrong",
        interface=AFFINE.interface,
        nodes=AFFINE.nodes,
        constants=AFFINE.constants,
        references={**AFFINE.references, "decode": lambda z: {"x": z}},
    )
    wrong.publish(tmp_path)
    with pytest.raises(BundleInvalid, match="golden vectors"):
        engine_of(tmp_path, wrong, batcher)


def test_engine_says_what_the_replay_measured(affine: Engine) -> None:
    assert affine.proofs.keys() == {"decode", "encode", "log_density"}
    assert affine.proofs["decode"].errors.keys() == {"x"}


def test_bucket_that_gains_nothing_is_the_last(
    models: Path, batcher: Batcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    def took(session: Session, outputs: object, bucket: int, *_: object) -> float:
        return {8: 2e-3, 16: 4e-3, 32: 7.5e-3, 64: 14.9e-3}[bucket]

    monkeypatch.setattr(module, "_time", took)
    engine = engine_of(models, AFFINE, batcher, rows=512)
    # 16 gains nothing either, and is short; 32 gains; 64 does not, and nothing larger is tried.
    assert engine.lanes["decode", None].buckets == (8, 16, 32, 64)


def test_graph_that_fails_in_its_warm_up_makes_no_engine(
    models: Path, batcher: Batcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> float:
        raise EngineFailed("decode.onnx failed: no memory.")

    monkeypatch.setattr(module, "_time", fail)
    with pytest.raises(BundleInvalid, match=r"decode\.onnx failed: no memory\."):
        engine_of(models, AFFINE, batcher)
