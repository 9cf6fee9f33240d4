"""The shipped bundles on a CUDA device, where there is one."""

from pathlib import Path

import pytest

from service import bundle
from service.errors import DeviceUnavailable
from service.session import Session, choose_device, replay
from tests.contract.test_shipped_bundles import FOLDERS

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_golden_vectors_come_out_on_cuda(folder: Path) -> None:
    try:
        device = choose_device("cuda")
    except DeviceUnavailable as missing:
        pytest.skip(missing.detail)
    read = bundle.read(folder)
    for role in read.manifest.graphs:
        session = Session(read, role, device)
        assert session.nodes["cuda"] > session.nodes.get("cpu", 0)
        replay(read, role, [session])
