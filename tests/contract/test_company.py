"""On one CPU type a sample's bytes never depend on what else is in flight."""

import asyncio
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service import bundle, operations, sampling
from service.batching import Batcher
from service.condition import Condition
from service.engine import Engine
from service.sampling import Drawing
from service.session import Device
from tests.contract.test_shipped_bundles import MODELS, SHIPPED

Wanted = tuple[str, Drawing]


@pytest.fixture(scope="module")
def engines() -> Iterator[dict[str, Engine]]:
    with closing(Batcher(devices=2)) as batcher:
        yield {
            name: Engine(
                bundle.read(MODELS / name / str(bundle.versions(MODELS, name)[0])),
                Device("cpu"),
                batcher=batcher,
            )
            for name in sorted(SHIPPED)
        }


drawings = st.builds(
    Drawing,
    n=st.integers(1, 24),
    seed=st.integers(0, 3),
    start=st.integers(0, 40),
    temperature=st.sampled_from([1.0, 0.7]),
)
mixes = st.lists(st.tuples(st.sampled_from(sorted(SHIPPED)), drawings), min_size=2, max_size=12)


def told(engine: Engine, drawing: Drawing) -> Drawing:
    """Return what asks for the same, of a model that is told a context with one."""
    known = engine.manifest.context
    return replace(drawing, condition=Condition(context=known.minimum)) if known else drawing


def together(engines: dict[str, Engine], mix: list[Wanted]) -> list[np.ndarray]:
    async def ask() -> list[np.ndarray]:
        calls = (sampling.sample(engines[name], told(engines[name], each)) for name, each in mix)
        return [answer["x"] for answer in await asyncio.gather(*calls)]

    return asyncio.run(ask())


@settings(max_examples=25)
@given(mix=mixes, data=st.data())
def test_samples_are_the_same_to_the_bit_in_any_company(
    engines: dict[str, Engine], mix: list[Wanted], data: st.DataObject
) -> None:
    found = together(engines, mix)
    name, drawing = mix[(chosen := data.draw(st.integers(0, len(mix) - 1)))]
    (alone,) = together(engines, [(name, drawing)])
    np.testing.assert_array_equal(found[chosen], alone)
    first = data.draw(st.integers(0, drawing.n - 1))
    (slice_,) = together(engines, [(name, drawing.part(first, drawing.n - first))])
    np.testing.assert_array_equal(slice_, alone[first:])


@pytest.mark.parametrize("name", ["mnist-vae", "mnist-flow", "moons-flow"])
def test_estimates_are_the_same_to_the_bit_in_any_company(
    engines: dict[str, Engine], name: str
) -> None:
    engine = engines[name]
    x = together(engines, [(name, Drawing(n=3, seed=9))])[0]
    draws = None if engine.manifest.density.kind == "exact" else 37

    async def ask(others: int) -> np.ndarray:
        noise = [sampling.sample(engine, Drawing(n=1 + i, seed=i)) for i in range(others)]
        estimates = [
            operations.log_density(engine, x[: 1 + i % 3], draws=draws, seed=5)
            for i in range(others)
        ]
        answer, *_ = await asyncio.gather(
            operations.log_density(engine, x, draws=draws, seed=5), *noise, *estimates
        )
        return answer["log_density"]

    np.testing.assert_array_equal(asyncio.run(ask(0)), asyncio.run(ask(6)))
