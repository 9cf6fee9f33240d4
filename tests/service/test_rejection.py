"""Samples that a critic accepts: of the right distribution, each at its address."""

import asyncio
import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service import bundle, noise, rejection, sampling
from service.batching import Batcher
from service.calls import Answer
from service.condition import Condition
from service.engine import Engine
from service.errors import CapabilityMissing, InputInvalid, QueueFull
from service.feeds import Noise, Scattered
from service.interface import ATTEMPTS
from service.lanes import Job
from service.noise import ROWS, Stream
from service.operations import Extra
from service.sampling import Drawing
from service.session import Device
from tests.service.bundles import SIDES, STRICT, TILES, WIDE, wide_log_ratio
from tests.service.tiny import Tiny

EXTRAS: tuple[Extra, ...] = ("z", "label", "log_ratio", "attempts")


def engine_of(tiny: Tiny, folder: Path, batcher: Batcher) -> Engine:
    return Engine(bundle.read(tiny.publish(folder)), Device("cpu"), batcher=batcher)


@pytest.fixture(scope="module")
def batcher() -> Iterator[Batcher]:
    with closing(Batcher(devices=2)) as batcher:
        yield batcher


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory, batcher: Batcher) -> Engine:
    return engine_of(WIDE, tmp_path_factory.mktemp("wide"), batcher)


def drawn(engine: Engine, n: int, **options: Any) -> Answer:  # noqa: ANN401
    asked = Drawing(**{"n": n, "seed": 5, "rejection": True, "include": EXTRAS, **options})
    return asyncio.run(sampling.sample(engine, asked))


def by_hand(seed: int, row: int, label: int) -> tuple[np.ndarray, int]:
    """Return z of a row and the number of its candidate, by the recipe of docs/http.md."""
    best, found = -math.inf, np.zeros(2)
    for k in range(ATTEMPTS):
        place = {"start": k * ROWS + row, "rows": 1}
        z = noise.normal(seed, Stream.CANDIDATE, size=2, **place)[0]
        coin = noise.uniform(seed, Stream.COIN, size=1, **place)[0, 0]
        log_ratio = wide_log_ratio(z[None] + SIDES[[label]], np.array([label]))[0]
        if math.log(coin) < log_ratio - math.log(4):
            return z, k + 1
        if log_ratio > best:
            best, found = log_ratio, z
    return found, 0


def test_accepted_samples_follow_the_data(wide: Engine) -> None:
    n = 20_000
    answer = drawn(wide, n)
    about = answer["x"] - SIDES[answer["label"]]
    # N(0, 1/4): the errors of mean and variance are known.
    assert np.abs(about.mean(axis=0)).max() <= 4.5 * 0.5 / math.sqrt(n)
    assert np.abs(about.var(axis=0) - 0.25).max() <= 4.5 * 0.25 * math.sqrt(2 / n)
    attempts = answer["attempts"]
    assert (attempts > 0).all()
    # Geometric, of mean 4 and variance 12.
    assert abs(attempts.mean() - 4) <= 4.5 * math.sqrt(12 / n)
    np.testing.assert_allclose(answer["x"], answer["z"] + SIDES[answer["label"]], atol=1e-6)
    known = wide_log_ratio(answer["x"].astype(float), answer["label"])
    np.testing.assert_allclose(answer["log_ratio"], known, atol=1e-5)


def test_rows_are_those_of_the_recipe(wide: Engine) -> None:
    answer = drawn(wide, 50, seed=9, start=2**50)
    labels = noise.labels(9, start=2**50, rows=50, classes=2)
    np.testing.assert_array_equal(answer["label"], labels)
    for row, label in enumerate(labels):
        z, attempts = by_hand(9, 2**50 + row, int(label))
        np.testing.assert_array_equal(answer["z"][row], z.astype(np.float32))
        assert answer["attempts"][row] == attempts


@pytest.mark.parametrize("start", [0, 1, 17, 63])
def test_any_slice_is_the_slice_of_the_whole(wide: Engine, start: int) -> None:
    whole = drawn(wide, 70)
    for n in (1, 2, 7):
        part = drawn(wide, n, start=start)
        for name, array in part.items():
            assert array.tobytes() == whole[name][start : start + n].tobytes(), name


@pytest.mark.parametrize("at_once", [1, 3, 64])
def test_how_many_are_tried_at_once_does_not_show(
    wide: Engine, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = drawn(wide, 40)
    monkeypatch.setattr(
        rejection, "_at_once", lambda _, found: min(at_once, ATTEMPTS - found.tried)
    )
    for name, array in drawn(wide, 40).items():
        assert array.tobytes() == whole[name].tobytes(), name


def test_company_does_not_show(wide: Engine) -> None:
    alone = drawn(wide, 30)

    async def together() -> list[Answer]:
        asked = Drawing(n=30, seed=5, rejection=True, include=EXTRAS)
        others = [replace(asked, n=n, seed=n) for n in (1, 5, 100, 700)]
        plain = Drawing(n=333, seed=1)
        return await asyncio.gather(
            *(sampling.sample(wide, each) for each in (*others, asked, plain, *others))
        )

    for name, array in asyncio.run(together())[4].items():
        assert array.tobytes() == alone[name].tobytes(), name


def test_labels_and_no_rejection_are_as_ever(wide: Engine) -> None:
    plain = drawn(wide, 20, rejection=False, include=("label", "log_ratio"))
    np.testing.assert_array_equal(drawn(wide, 20)["label"], plain["label"])
    known = wide_log_ratio(plain["x"].astype(float), plain["label"])
    np.testing.assert_allclose(plain["log_ratio"], known, atol=1e-5)
    asked = drawn(wide, 6, condition=Condition(label=[0, 1, 1, 0, 1, 0]))
    np.testing.assert_array_equal(asked["label"], [0, 1, 1, 0, 1, 0])


def test_what_is_never_accepted_is_the_likeliest_of_all(tmp_path: Path, batcher: Batcher) -> None:
    answer = drawn(engine_of(STRICT, tmp_path, batcher), 5, condition=Condition(label=1))
    assert not answer["attempts"].any()
    for row in range(5):
        places = [{"start": k * ROWS + row, "rows": 1, "size": 2} for k in range(ATTEMPTS)]
        z = np.concatenate([noise.normal(5, Stream.CANDIDATE, **each) for each in places])
        best = wide_log_ratio(z + SIDES[1], np.ones(ATTEMPTS, int)).argmax()
        np.testing.assert_array_equal(answer["z"][row], z[best].astype(np.float32))


def test_stream_is_the_whole_window_by_window(
    wide: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "WINDOW_BYTES", 8 * 512)
    n = 2000
    asked = Drawing(n=n, seed=5, rejection=True, include=EXTRAS)

    async def streamed() -> list[Answer]:
        return [window async for window in sampling.stream(wide, asked)]

    windows, whole = asyncio.run(streamed()), drawn(wide, n)
    assert len(windows) > 1
    for name, array in whole.items():
        parts = [window[name] for window in windows]
        assert np.concatenate(parts).tobytes() == array.tobytes(), name


def test_a_row_costs_what_its_candidates_do(wide: Engine) -> None:
    asked = Drawing(n=10, seed=5, rejection=True)
    assert sampling.passes_of(wide.manifest, asked) == {"decode": 4, "critic": 4}
    told = Drawing(n=10, seed=5, include=["log_ratio"])
    assert sampling.passes_of(wide.manifest, told) == {"decode": 1, "critic": 1}


def test_only_the_first_run_can_be_refused_and_tells_of_the_others(
    wide: Engine, jobs: list[Job[Any]]
) -> None:
    dearer = wide.lanes["critic", None].row_s / wide.lanes["decode", None].row_s  # learnt by runs
    drawn(wide, 600)
    assert [job.begun for job in jobs[:4]] == [False, True, True, True]
    assert all(job.begun for job in jobs[4:])
    # One candidate of each; three more are to be expected of those that it leaves, and the critic
    # is asked of all four.
    assert jobs[0].rows == 600
    assert jobs[0].follows == round(1800 + 2400 * dearer)
    assert max(job.rows for job in jobs) == 600


def test_a_refused_request_has_begun_nothing(wide: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object, job: Job[Any]) -> None:
        raise QueueFull("full", retry_after_s=1)

    monkeypatch.setattr("service.queue.Queue._admit", refuse)
    with pytest.raises(QueueFull):
        drawn(wide, 3)


@pytest.mark.parametrize(
    ("options", "field", "error"),
    [
        ({"temperature": 0.5}, "temperature", InputInvalid),
        (
            {"temperature": 0.5, "rejection": False, "include": ["log_ratio"]},
            "temperature",
            InputInvalid,
        ),
        ({"rejection": False, "include": ["attempts"]}, "include", InputInvalid),
    ],
)
def test_what_does_not_go_together_is_refused(
    wide: Engine, options: dict[str, Any], field: str, error: type[InputInvalid]
) -> None:
    with pytest.raises(error) as caught:
        drawn(wide, 1, **options)
    assert caught.value.field == field


@pytest.mark.parametrize("field", ["rejection", "include"])
def test_a_model_without_a_critic_says_so(field: str, tmp_path: Path, batcher: Batcher) -> None:
    engine = engine_of(TILES, tmp_path, batcher)
    with pytest.raises(CapabilityMissing, match="has no critic") as caught:
        drawn(engine, 1, rejection=field == "rejection", include=["log_ratio"])
    assert caught.value.field == field


def test_scattered_rows_are_those_of_the_stream() -> None:
    whole = Noise(7, Stream.CANDIDATE, (3,)).rows(0, 2000)
    for places in ([5], [0, 1, 2], [3, 7, 400, 1999], [9, 9, 4, 1500, 2], [*range(0, 1900, 7)]):
        source = Scattered(7, Stream.CANDIDATE, (3,), places=np.array(places))
        np.testing.assert_array_equal(source.rows(0, len(places)), whole[places])
    far = Scattered(7, Stream.CANDIDATE, (3,), places=np.array([63 * ROWS + ROWS - 1]))
    wanted = Noise(7, Stream.CANDIDATE, (3,), start=64 * ROWS - 1).rows(0, 1)
    np.testing.assert_array_equal(far.rows(0, 1), wanted)
