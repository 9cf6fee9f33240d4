"""Training's tests compute small things, for which threads would wait for each other."""

from collections.abc import Iterator
from typing import Any

import jaxtyping
import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Keep torch to one thread. On a machine with other work, two take ten times as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="session")
def unchecked_exports() -> Iterator[None]:
    """Check no shapes while a graph is exported: the tracer of loops cannot follow the checks."""
    export = torch.export.export

    def unchecked(*args: Any, **kwargs: Any) -> torch.export.ExportedProgram:  # noqa: ANN401
        jaxtyping.config.update("jaxtyping_disable", True)
        try:
            return export(*args, **kwargs)
        finally:
            jaxtyping.config.update("jaxtyping_disable", False)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.export, "export", unchecked)
        yield
