"""What a manifest says of a posterior, and whether that goes with its graphs."""

from pathlib import Path
from typing import Any

import pytest

from service import bundle
from service.interface import Event, Latent
from service.manifest import Figure
from tests.service.bundles import TILES, WIDE
from tests.service.ppca import LEAN, LEAN_BARE, LEAN_FLOW, LEAN_FULL, LEAN_LEARNED, PPCA
from tests.service.test_bundle import Change, edit, refused
from tests.service.tiny import Tiny


def another(role: str, tiny: Tiny = LEAN) -> dict[str, Any]:
    """Return a graph of the manifest of LEAN, or of another."""
    graph: dict[str, Any] = tiny.manifest(tiny.files()).model_dump(mode="json")["graphs"][role]
    return graph


def learned(role: str) -> dict[str, Any]:
    return another(role, LEAN_LEARNED)


def widen(manifest: dict[str, Any]) -> None:
    """Claim so many latents that their covariance alone is 16 million numbers and more."""
    manifest["latent"]["shape"] = [4097]
    interface = LEAN_FULL.interface.model_copy(update={"latent": Latent(shape=(4097,))})
    for role, graph in manifest["graphs"].items():
        inputs, outputs = interface.signature(role)
        graph["inputs"] = [spec.model_dump(mode="json") for spec in inputs]
        graph["outputs"] = [spec.model_dump(mode="json") for spec in outputs]


@pytest.mark.parametrize(
    ("tiny", "change", "by"),
    [
        (LEAN, lambda m: m.update(posterior=None), "graphs.encode.outputs: expected z float32"),
        (LEAN, lambda m: m.update(posterior="cauchy"), "posterior: Input should be 'diagonal'"),
        (LEAN, lambda m: m.update(posterior="full"), "graphs.encode.outputs: expected mean"),
        (LEAN, lambda m: m["graphs"].pop("encode"), "refine: needs the encode graph beside it"),
        (LEAN, lambda m: m["graphs"].pop("likelihood"), "refine: needs the likelihood graph"),
        (LEAN_FULL, lambda m: m["graphs"]["refine"]["outputs"].reverse(), "graphs.refine.outputs"),
        (LEAN_FULL, widen, "posterior: at most 16777216 numbers make a covariance; 4097 latents"),
        (
            LEAN_FLOW,
            lambda m: m["graphs"].update(refine=another("refine")),
            "refine: it moves a Gaussian; this posterior is a flow",
        ),
        (
            LEAN_BARE,
            lambda m: m.update(posterior="diagonal"),
            "posterior: goes with an elbo or a refine graph",
        ),
        (LEAN_BARE, lambda m: m["graphs"].pop("likelihood"), "prior needs a likelihood graph"),
        (LEAN_BARE, lambda m: m.update(observation="poisson"), "observation: Input should be"),
        (WIDE, lambda m: m.update(rejection=None), "rejection: goes with a critic graph"),
        (WIDE, lambda m: m["graphs"].pop("critic"), "rejection: goes with a critic graph"),
        (WIDE, lambda m: m.update(family="vae"), "by the critic of a gan; this is a vae"),
        (WIDE, lambda m: m["rejection"].update(acceptance=0.01), "rejection.acceptance: Input"),
        (
            WIDE,
            lambda m: m["graphs"]["critic"]["inputs"].pop(),
            "graphs.critic.inputs: expected x float32 (batch, 2), label int64 (batch); got x",
        ),
        (
            TILES,
            lambda m: m.update(rejection={"log_bound": 0.0, "acceptance": 1.0, "rows": 9}),
            "rejection: goes with a critic graph",
        ),
        (LEAN_LEARNED, lambda m: m["graphs"].pop("prior"), "learned goes with a prior graph"),
        (LEAN, lambda m: m["graphs"].update(prior=learned("prior")), "goes with a prior graph"),
        (
            LEAN_LEARNED,
            lambda m: m["graphs"].update(likelihood=another("likelihood")),
            "graphs.likelihood.outputs: expected log_likelihood float32 (batch, draws), log_prior",
        ),
        (
            LEAN,
            lambda m: m["latent"].update(distribution="uniform"),
            "latent.distribution: Input should be 'normal' or 'learned'",
        ),
    ],
)
def test_posterior_that_does_not_fit_its_graphs_is_refused(
    tmp_path: Path, tiny: Tiny, change: Change, by: str
) -> None:
    folder = tiny.publish(tmp_path)
    edit(folder, change)
    refused(folder, by=by)


def test_bound_of_before_there_were_kinds_of_posterior_is_of_a_diagonal_one(
    tmp_path: Path,
) -> None:
    folder = PPCA.publish(tmp_path)
    edit(folder, lambda manifest: manifest.pop("posterior"))
    edit(folder, lambda manifest: manifest["graphs"].pop("refine"))
    assert bundle.read(folder).manifest.posterior == "diagonal"


@pytest.mark.parametrize("graphs", [None, 5, "elbo", ["elbo"], {"elbo": None}])
def test_manifest_without_sound_graphs_is_refused_by_them(tmp_path: Path, graphs: object) -> None:
    folder = PPCA.publish(tmp_path)
    edit(folder, lambda manifest: manifest.update(graphs=graphs))
    refused(folder, by="graphs")


@pytest.mark.parametrize(
    "categories",
    [((),), ((), ()), (("a",), ()), (("a", "a"), ()), (("a", "b"), (), ())],
)
def test_categories_are_of_each_feature_and_two_or_more(
    categories: tuple[tuple[str, ...], ...],
) -> None:
    with pytest.raises(ValueError, match="categories: "):
        Event(kind="vector", shape=(2,), categories=categories)


def test_values_of_held_out_events_ascend() -> None:
    figure = {"name": "nll", "value": 1.5, "standard_error": None, "n": 2}
    assert Figure(**figure, values=(1.0, 1.0, 2.0)).values == (1.0, 1.0, 2.0)
    with pytest.raises(ValueError, match="values: they do not ascend"):
        Figure(**figure, values=(2.0, 1.0))
