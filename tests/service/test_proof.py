"""What a bundle claims of its graphs is tried where it serves."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from service import bundle, engine
from service.batching import Batcher
from service.engine import Engine
from service.errors import BundleInvalid
from service.interface import DRAW_WIDTHS, Role
from service.proof import Company, ExactAt, Proof
from service.session import Device
from service.tensors import Array
from tests.service.bundles import AFFINE, ALL, MIX, SHIFT
from tests.service.ppca import LATENT
from tests.service.tiny import Tiny

CPU = Device("cpu")
OFF_BELOW_8 = "n = Shape<start=0, end=1>(z) small = Less(n, eight) o = Cast<to=1>(small)"
OFF_BY_SIZE = "n = Shape<start=0, end=1>(z) o = Cast<to=1>(n)"
OFF_BY_COMPANY = "o = ReduceMin<keepdims=0>(z)"


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


def proofs(read: bundle.Bundle) -> dict[Role, Proof]:
    with closing(Batcher(devices=1)) as batcher:
        return Engine(read, CPU, batcher=batcher, max_batch_rows=32).proofs


@pytest.mark.parametrize("tiny", ALL + LATENT, ids=lambda tiny: tiny.name)
def test_golden_vectors_come_out_of_every_graph(tiny: Tiny, tmp_path: Path) -> None:
    read = bundle.read(tiny.publish(tmp_path))
    found = proofs(read)
    for role, graph in read.manifest.graphs.items():
        proof = found[role]
        assert proof.errors.keys() == {spec.name for spec in graph.outputs}
        assert max(proof.errors.values()) < 1e-4
        assert proof.rows_exact_at == 8


def test_answer_off_the_golden_vectors_is_refused_with_its_distance(tmp_path: Path) -> None:
    wrong = {**AFFINE.references, "decode": lambda z: {"x": z @ MIX + SHIFT + 0.01}}
    read = bundle.read(replace(AFFINE, references=wrong).publish(tmp_path))
    with pytest.raises(BundleInvalid, match=r"decode\.x is off by 0\.01 from the golden vectors"):
        proofs(read)


@pytest.mark.parametrize(
    ("offset", "claimed", "found"),
    [
        (OFF_BELOW_8, 1, 8),
        (OFF_BELOW_8, 8, 8),
        (OFF_BY_SIZE, 1, None),
        (OFF_BY_SIZE, 8, None),
        (OFF_BELOW_8, None, None),
        (OFF_BY_COMPANY, 1, None),
        (OFF_BY_COMPANY, 8, None),
    ],
)
def test_claim_that_rows_do_not_depend_on_their_batch_is_looked_at(
    tmp_path: Path, offset: str, claimed: Literal[1, 8] | None, found: int | None
) -> None:
    read = claiming(in_company(offset), claimed, tmp_path)
    assert proofs(read)["decode"].rows_exact_at == found


def test_row_is_compared_with_itself_at_other_places_and_sizes(tmp_path: Path) -> None:
    read = bundle.read(AFFINE.publish(tmp_path))

    def watched(*sizes: int, off: int) -> ExactAt:
        """What is left of a claim when runs of one size answer otherwise."""
        company, runs = Company(read, "decode"), []
        for size in sizes:
            feeds, rows = company.feeds(size, None)
            assert np.array_equal(feeds["z"], read.golden["decode.z"][rows])
            company.saw(rows, {"x": feeds["z"] + (size == off)}, None)
            runs.append(tuple(rows))
        assert len(set(runs)) == len(runs), "each run has rows of its own"
        return company.holds(1)

    assert watched(2, 4, 8, 16, 32, 64, off=0) == 1
    assert watched(2, 4, 8, 16, 32, 64, off=4) == 8
    assert watched(2, 4, 8, 16, 32, 64, off=16) is None


def test_row_that_comes_twice_in_a_run_is_compared_with_itself(tmp_path: Path) -> None:
    company = Company(bundle.read(AFFINE.publish(tmp_path)), "decode")
    company.saw(np.zeros(16, np.int64), {"x": np.arange(16.0)[:, None]}, None)
    assert company.holds(8) is None


def test_slow_graph_is_run_twice_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of a graph with draws whose first bucket takes too long there is no other run.
    ppca = next(tiny for tiny in LATENT if tiny.name == "lean")
    read = claiming(ppca, 8, tmp_path)
    monkeypatch.setattr(engine, "ONCE_S", 0.0)
    runs: dict[int | None, int] = {}
    saw = Company.saw

    def counted(self: Company, which: Array, answers: dict[str, Array], width: int | None) -> None:
        runs[width] = runs.get(width, 0) + 1
        saw(self, which, answers, width)

    monkeypatch.setattr(Company, "saw", counted)
    with closing(Batcher(devices=1)) as batcher:
        Engine(read, CPU, batcher=batcher, max_batch_rows=32, max_batch_s=0.0)
    drawn = [role for role, graph in read.manifest.graphs.items() if graph.has_draws]
    assert drawn
    assert all(runs[width] == 2 * len(drawn) for width in DRAW_WIDTHS)


def test_answer_of_too_few_rows_is_refused(tmp_path: Path) -> None:
    company = Company(bundle.read(AFFINE.publish(tmp_path)), "decode")
    with pytest.raises(BundleInvalid, match=r"'x' has 1 rows where 3 went in"):
        company.saw(np.arange(3), {"x": np.zeros((1, 2))}, None)
