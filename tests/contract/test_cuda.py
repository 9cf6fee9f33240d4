"""The shipped bundles on a CUDA device, where there is one."""

import asyncio
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from service import bundle, sampling
from service.batching import Batcher
from service.engine import Engine
from service.errors import DeviceUnavailable
from service.proof import replay
from service.sampling import Drawing
from service.session import Device, Session, choose_device
from tests.contract.test_shipped_bundles import FOLDERS, condition

pytestmark = pytest.mark.gpu

by_folder = pytest.mark.parametrize(
    "folder", FOLDERS, ids=lambda path: f"{path.parent.name}/{path.name}"
)


@pytest.fixture(scope="module")
def cuda() -> Device:
    try:
        return choose_device("cuda")
    except DeviceUnavailable as missing:
        pytest.skip(missing.detail)


@pytest.fixture(scope="module")
def batcher() -> Iterator[Batcher]:
    with closing(Batcher(devices=1, ahead=1)) as running:
        yield running


@by_folder
def test_golden_vectors_come_out_on_cuda(folder: Path, cuda: Device) -> None:
    read = bundle.read(folder)
    for role in read.manifest.graphs:
        session = Session(read, role, cuda)
        assert session.nodes["cuda"] > session.nodes.get("cpu", 0)
        replay(read, [role], session)


@by_folder
def test_graph_that_is_wholly_on_cuda_is_captured(folder: Path, cuda: Device) -> None:
    read = bundle.read(folder)
    for role in read.manifest.graphs:
        session = Session(read, role, cuda)
        assert session.is_captured == (set(session.nodes) == {"cuda"})


@by_folder
def test_samples_are_those_of_the_cpu_and_do_not_depend_on_their_company(
    folder: Path, cuda: Device, batcher: Batcher
) -> None:
    read = bundle.read(folder)
    engine = Engine(read, cuda, batcher=batcher)

    async def ask(*drawings: Drawing) -> list[np.ndarray]:
        answers = await asyncio.gather(*(sampling.sample(engine, each) for each in drawings))
        return [answer["x"] for answer in answers]

    drawing = Drawing(n=40, seed=7, condition=condition(read, 40))
    (alone,) = asyncio.run(ask(drawing))
    others = [
        Drawing(n=1 + seed, seed=seed, condition=condition(read, 1 + seed)) for seed in range(20)
    ]
    in_company = asyncio.run(ask(drawing, *others))[0]
    tolerance = read.manifest.graphs["leave" if read.manifest.ode else "decode"].tolerance["x"]
    np.testing.assert_allclose(in_company, alone, atol=tolerance.absolute, rtol=tolerance.relative)
    with closing(Batcher(devices=1)) as on_cpu:
        reference = Engine(read, Device("cpu"), batcher=on_cpu)
        expected = asyncio.run(sampling.sample(reference, drawing))["x"]
    np.testing.assert_allclose(alone, expected, atol=10 * tolerance.absolute, rtol=1e-3)
