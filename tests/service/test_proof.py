"""What a bundle claims of its graphs is tried where it serves."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from service import bundle
from service.errors import BundleInvalid
from service.proof import prove
from service.session import Device, Session
from tests.service.bundles import AFFINE, ALL, MIX, SHIFT
from tests.service.ppca import LATENT
from tests.service.tiny import Tiny

CPU = Device("cpu")
OFF_BELOW_8 = "n = Shape<start=0, end=1>(z) small = Less(n, eight) o = Cast<to=1>(small)"
OFF_BY_SIZE = "n = Shape<start=0, end=1>(z) o = Cast<to=1>(n)"


def in_company(offset: str) -> Tiny:
    """Return the affine model, its decoder off by an amount that depends on its batch."""
    decode = f"{offset} tiny = Mul(o, step) {AFFINE.nodes['decode']}"
    return replace(
        AFFINE,
        nodes={
            **AFFINE.nodes,
            "decode": decode.replace("x = Add(y, shift)", "w = Add(y, shift)")
            + " x = Add(w, tiny)",
        },
        constants={
            **AFFINE.constants,
            "eight": np.array([8]),
            "step": np.array([2e-6], np.float32),
        },
    )


def claiming(tiny: Tiny, rows: Literal[1, 8] | None, models: Path) -> bundle.Bundle:
    """Publish a model whose manifest says that all its graphs are exact from so many rows on."""
    files = tiny.files()
    manifest = tiny.manifest(files)
    graphs = {
        role: graph.model_copy(update={"rows_exact_at": rows})
        for role, graph in manifest.graphs.items()
    }
    return bundle.read(
        bundle.publish(models, manifest.model_copy(update={"graphs": graphs}), files)
    )


@pytest.mark.parametrize("tiny", ALL + LATENT, ids=lambda tiny: tiny.name)
def test_golden_vectors_come_out_of_every_graph(tiny: Tiny, tmp_path: Path) -> None:
    read = bundle.read(tiny.publish(tmp_path))
    for role, graph in read.manifest.graphs.items():
        proof = prove(read, role, [Session(read, role, CPU)])
        assert proof.errors.keys() == {spec.name for spec in graph.outputs}
        assert max(proof.errors.values()) < 1e-4
        assert proof.rows_exact_at == 8


def test_answer_off_the_golden_vectors_is_refused_with_its_distance(tmp_path: Path) -> None:
    wrong = {**AFFINE.references, "decode": lambda z: {"x": z @ MIX + SHIFT + 0.01}}
    read = bundle.read(replace(AFFINE, references=wrong).publish(tmp_path))
    with pytest.raises(BundleInvalid, match=r"decode\.x is off by 0\.01 from the golden vectors"):
        prove(read, "decode", [Session(read, "decode", CPU)])


@pytest.mark.parametrize(
    ("offset", "claimed", "found"),
    [
        (OFF_BELOW_8, 1, 8),
        (OFF_BELOW_8, 8, 8),
        (OFF_BY_SIZE, 1, None),
        (OFF_BY_SIZE, 8, None),
        (OFF_BELOW_8, None, None),
    ],
)
def test_claim_that_rows_do_not_depend_on_their_batch_is_looked_at(
    tmp_path: Path, offset: str, claimed: Literal[1, 8] | None, found: int | None
) -> None:
    read = claiming(in_company(offset), claimed, tmp_path)
    assert prove(read, "decode", [Session(read, "decode", CPU)]).rows_exact_at == found
