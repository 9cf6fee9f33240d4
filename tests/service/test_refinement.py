"""Bounds of posteriors that are refined, full, flows, of labels or not there: in closed form."""

import asyncio
import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from service import bundle, calls, noise, operations, refinement, sampling
from service.batching import Batcher
from service.calls import Answer, Events
from service.condition import UNTOLD, Condition
from service.engine import Engine
from service.errors import CapabilityMissing, InputInvalid
from service.feeds import Given
from service.interface import REFINE_DRAWS, Density, Estimator, Role
from service.noise import Stream
from service.refinement import amortised, rate, refined
from service.session import Device
from tests.service.ppca import DIAGONAL, FULL, LATENT, LEAN, TWO_CLASSES, WIDE, Factors, bundle_of
from tests.service.tiny import Tiny

X = np.random.default_rng(3).normal(size=(40, 3)).astype(np.float32)
LABEL = [row % 2 for row in range(40)]
TOLD = Condition(LABEL)
Engines = dict[str, Engine]
MOVED = {"lean": DIAGONAL, "lean-full": FULL, "lean-labels": TWO_CLASSES, "lean-learned": WIDE}


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    folder = tmp_path_factory.mktemp("latent")
    with closing(Batcher(devices=2)) as batcher:
        yield {tiny.name: served(tiny, folder, batcher) for tiny in LATENT}


def served(tiny: Tiny, folder: Path, batcher: Batcher, *, rows: int = 64) -> Engine:
    read = bundle.read(tiny.publish(folder))
    return Engine(read, Device("cpu"), batcher=batcher, max_batch_rows=rows, max_batch_s=1)


def bounds(engine: Engine, *, steps: int, draws: int, told: Condition = UNTOLD) -> Answer:
    """Return the refined bound of X, with what its elbo gained."""
    after, before = asyncio.run(
        operations.refined_elbo(engine, X, steps=steps, draws=draws, seed=1, condition=told)
    )
    return {**after, "gain": after["elbo"] - before["elbo"]}


def by_hand(model: Factors, *, steps: int, label: np.ndarray | int = 0) -> dict[str, np.ndarray]:
    """Return q after the steps of the graph in float64, with the noise that docs/http.md names."""
    mean = model.mean(X.astype(float), label)
    name = "scale_tril" if model is FULL else "scale"
    own = FULL.factor.T if model is FULL else np.diag(model.factor)
    q = {"mean": mean, name: np.broadcast_to(own, (len(X), *own.shape))}
    for step in range(steps):
        eps = np.stack([
            noise.normal(1, Stream.REFINEMENT, start=row * 2**20 + step * REFINE_DRAWS,
                         rows=REFINE_DRAWS, size=2)
            for row in range(len(X))
        ])  # fmt: skip
        answer = model.step(
            X.astype(float), rate=np.full(len(X), rate(step)), noise=eps, label=label, **q
        )
        q = {key.removeprefix("refined_"): value for key, value in answer.items()}
    return q


@pytest.mark.parametrize(("name", "model"), MOVED.items())
def test_steps_are_those_of_the_recipe_with_noise_of_their_own(
    engines: Engines, name: str, model: Factors
) -> None:
    labels = np.array(LABEL) if model is TWO_CLASSES else None
    events = Events(X, {} if labels is None else {"label": Given(labels)})

    async def ask() -> dict[str, np.ndarray]:
        q = await amortised(engines[name], events)
        return (await refined(engines[name], events, q, steps=12, seed=1)).parameters

    expected = by_hand(model, steps=12, label=0 if labels is None else labels)
    found = asyncio.run(ask())
    assert found.keys() == expected.keys()
    for key, value in found.items():
        np.testing.assert_allclose(value, expected[key], rtol=1e-4, atol=1e-5)


def test_steps_become_smaller_and_never_stop() -> None:
    rates = [rate(step) for step in range(1000)]
    assert rates[0] == 0.5
    assert (np.diff(rates) < 0).all()
    assert rates[180] == pytest.approx(0.05)
    assert sum(rates) > 10


@pytest.mark.parametrize("name", ["lean", "lean-full", "lean-learned"])
def test_refined_bound_is_that_of_the_best_posterior_of_its_kind(
    engines: Engines, name: str
) -> None:
    model = MOVED[name]
    least = 0.0 if model is FULL else model.least_gap
    answer = bounds(engines[name], steps=150, draws=1024)
    gap = model.log_density(X.astype(float)) - answer["elbo"]
    assert (abs(gap - least) < 4.5 * answer["standard_error"]).all()
    assert gap.mean() == pytest.approx(least, abs=0.01)
    np.testing.assert_allclose(answer["gain"], model.own_gap - least, atol=0.1)


def test_full_posterior_of_many_latents_is_refined_by_few_draws(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    weight = generator.normal(size=(24, 30)) / 5
    start = Factors(weight, np.zeros((1, 30)), np.full(24, 0.2), 0.7 * np.eye(24))
    wide = bundle_of("wide", start, posterior="full")
    x = generator.normal(size=(6, 30)).astype(np.float32)
    truth = start.log_density(x.astype(float))
    with closing(Batcher(devices=1)) as batcher:
        engine = served(wide, tmp_path, batcher)
        after, before = asyncio.run(
            operations.refined_elbo(engine, x, steps=100, draws=256, seed=1)
        )
    assert (truth - before["elbo"] > 15).all()
    np.testing.assert_allclose(after["importance_weighted"], truth, atol=0.1)


def test_posterior_that_is_exact_makes_every_draw_the_density(engines: Engines) -> None:
    answer = bounds(engines["lean-full"], steps=150, draws=64)
    truth = FULL.log_density(X.astype(float))
    np.testing.assert_allclose(answer["importance_weighted"], truth, atol=1e-5)
    np.testing.assert_allclose(answer["effective_sample_size"], 64, rtol=1e-5)
    assert (answer["standard_error"] > 0.05).all()  # that of the reconstruction alone


def test_bound_before_the_steps_is_that_of_the_encoder(engines: Engines) -> None:
    for name in MOVED:
        told = Condition(LABEL if name == "lean-labels" else None)
        _, before = asyncio.run(
            operations.refined_elbo(engines[name], X, steps=1, draws=100, seed=1, condition=told)
        )
        plain = asyncio.run(operations.elbo(engines[name], X, draws=100, seed=1, condition=told))
        for part, value in plain.items():
            np.testing.assert_allclose(before[part], value, rtol=1e-4, atol=1e-4, err_msg=part)


def test_a_step_of_nothing_gains_nothing(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.refinement.FIRST_RATE", 0.0)
    np.testing.assert_array_equal(bounds(engines["lean"], steps=3, draws=8)["gain"], 0)


def test_refined_bound_is_the_same_bytes_however_it_is_batched(
    engines: Engines, tmp_path: Path
) -> None:
    async def ask(engine: Engine, company: int) -> Answer:
        call = operations.refined_elbo
        mine = call(engine, X, steps=5, draws=37, seed=1)
        others = [call(engine, X[:7], steps=9, draws=3, seed=seed) for seed in range(company)]
        return (await asyncio.gather(mine, *others))[0][0]

    alone = asyncio.run(ask(engines["lean"], 0))
    with closing(Batcher(devices=1)) as batcher:
        small = served(LEAN, tmp_path, batcher, rows=8)
        for answer in (asyncio.run(ask(engines["lean"], 9)), asyncio.run(ask(small, 9))):
            for part, value in alone.items():
                np.testing.assert_array_equal(answer[part], value)


def test_first_steps_do_not_depend_on_how_many_follow_nor_on_other_rows(
    engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps_seen: list[Answer] = []
    call = calls.run

    async def record(engine: Engine, role: Role, *args: object, **kwargs: object) -> Answer:
        answer = await call(engine, role, *args, **kwargs)  # type: ignore[arg-type]
        if role == "refine":
            steps_seen.append(answer)
        return answer

    async def ask(rows: int, steps: int) -> list[Answer]:
        steps_seen.clear()
        events = Events(X[:rows])
        q = await amortised(engines["lean"], events)
        await refined(engines["lean"], events, q, steps=steps, seed=1)
        return list(steps_seen)

    monkeypatch.setattr(refinement, "run", record)
    few, many = asyncio.run(ask(3, 6)), asyncio.run(ask(40, 12))
    assert (len(few), len(many)) == (6, 12)
    for fewer, more in zip(few, many[:6], strict=True):
        for name, value in fewer.items():
            np.testing.assert_array_equal(value, more[name][:3], err_msg=name)


def test_caller_that_goes_ends_the_steps(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Role] = []
    fifth = asyncio.Event()
    run = Engine.run

    async def count(self: Engine, role: Role, *args: object, **kwargs: object) -> Answer:
        asked.append(role)
        if asked.count("refine") == 5:
            fifth.set()
        return await run(self, role, *args, **kwargs)  # type: ignore[arg-type]

    async def leave() -> None:
        call = operations.refined_elbo(engines["lean"], X, steps=10_000, draws=4, seed=1)
        task = asyncio.ensure_future(call)
        await fifth.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0.05)

    monkeypatch.setattr(Engine, "run", count)
    asyncio.run(leave())
    assert 5 <= asked.count("refine") < 10
    assert "likelihood" not in asked


def test_row_that_cannot_be_refined_is_named(engines: Engines) -> None:
    x = X.copy()
    x[3] = 3e38
    with pytest.raises(InputInvalid, match="'x': row 3 is too large for lean"):
        asyncio.run(operations.refined_elbo(engines["lean"], x, steps=2, draws=4, seed=1))


# --- a posterior that is a flow ---


def test_divergence_of_a_flow_is_the_mean_over_its_draws(engines: Engines) -> None:
    answer = asyncio.run(operations.elbo(engines["lean-flow"], X, draws=4000, seed=1))
    np.testing.assert_array_equal(answer["elbo"], answer["reconstruction"] - answer["kl"])
    truth = FULL.log_density(X.astype(float)) - FULL.own_gap
    score = (answer["elbo"] - truth) / answer["standard_error"]
    assert np.abs(score).max() < 4.5
    assert score.std() > 0.5
    kl = 0.5 * (FULL.mean(X.astype(float)) ** 2).sum(1) + FULL.kl_offset
    np.testing.assert_allclose(answer["kl"], kl, rtol=0.1)


def test_error_of_a_flow_is_that_of_the_difference(engines: Engines) -> None:
    full, flow = (
        asyncio.run(operations.elbo(engines[name], X, draws=64, seed=1))
        for name in ("lean-full", "lean-flow")
    )
    np.testing.assert_allclose(flow["reconstruction"], full["reconstruction"], rtol=1e-5)
    assert flow["standard_error"].mean() < 0.8 * full["standard_error"].mean()
    values = [
        FULL.terms_by_draw(X[row : row + 1].astype(float), eps[None])
        for row, eps in enumerate(_posterior_noise(64))
    ]
    expected = [(each["reconstruction"] - each["kl"]).std(ddof=1) / 8 for each in values]
    np.testing.assert_allclose(flow["standard_error"], expected, rtol=1e-4)


def _posterior_noise(draws: int) -> np.ndarray:
    rows = [
        noise.normal(1, Stream.POSTERIOR, start=row * 2**20, rows=draws, size=2)
        for row in range(len(X))
    ]
    return np.stack(rows)


def test_code_of_a_flow_is_what_it_makes_of_no_noise_or_of_draws(engines: Engines) -> None:
    one = asyncio.run(operations.encode(engines["lean-flow"], X, draws=None, seed=1))
    assert one.keys() == {"z"}
    np.testing.assert_allclose(one["z"], FULL.mean(X.astype(float)), atol=1e-5)
    many = asyncio.run(operations.encode(engines["lean-flow"], X, draws=21, seed=1))
    expected = FULL.codes(X.astype(float), _posterior_noise(21))["z"]
    np.testing.assert_allclose(many["z"], expected, atol=1e-5)


def test_draws_of_a_full_posterior_are_those_of_the_flow_that_it_is(engines: Engines) -> None:
    answer = asyncio.run(operations.encode(engines["lean-full"], X, draws=21, seed=1))
    assert answer.keys() == {"z", "mean", "scale_tril"}
    expected = FULL.codes(X.astype(float), _posterior_noise(21))["z"]
    np.testing.assert_allclose(answer["z"], expected, atol=1e-5)


# --- estimators ---


def test_estimate_by_the_prior_is_of_its_own_noise_and_right(engines: Engines) -> None:
    ways: list[tuple[str, Estimator | None]] = [("lean-bare", None), ("lean", "prior")]
    own, named = (
        asyncio.run(
            operations.log_density(engines[name], X[:8], draws=20_000, seed=1, estimator=estimator)
        )
        for name, estimator in ways
    )
    np.testing.assert_array_equal(own["log_density"], named["log_density"])
    score = own["log_density"] - DIAGONAL.log_density(X[:8].astype(float))
    assert np.abs(score / own["standard_error"]).max() < 4.5
    z = noise.normal(1, Stream.PRIOR, start=5 * 2**20, rows=20_000, size=2)
    likelihood = DIAGONAL.likelihood(X[5:6].astype(float), z[None])["log_likelihood"]
    expected = np.log(np.exp(likelihood).mean())
    np.testing.assert_allclose(own["log_density"][5], expected, rtol=1e-5)


def test_own_estimator_is_the_first_and_a_missing_one_is_told(engines: Engines) -> None:
    offered = {name: operations.estimators(engine.manifest) for name, engine in engines.items()}
    assert offered == {
        "lean": ["importance", "prior"],
        "lean-full": ["importance", "prior"],
        "lean-flow": ["importance", "prior"],
        "lean-labels": ["importance", "prior"],
        "lean-bare": ["prior"],
        "lean-learned": ["importance", "prior"],
    }
    with pytest.raises(CapabilityMissing, match=r"no estimator 'importance'\. It has: prior\."):
        asyncio.run(
            operations.log_density(engines["lean-bare"], X, draws=4, seed=1, estimator="importance")
        )


@pytest.mark.parametrize("estimator", ["importance", "prior"])
def test_density_of_a_label_is_that_of_its_class(engines: Engines, estimator: Estimator) -> None:
    truth = TWO_CLASSES.log_density(X.astype(float), np.array(LABEL))
    ask, engine = operations.log_density, engines["lean-labels"]
    answer = asyncio.run(ask(engine, X, draws=2000, seed=1, condition=TOLD, estimator=estimator))
    near = answer["effective_sample_size"] > 100  # else the error is not to be believed
    assert near.sum() > 20
    score = (answer["log_density"] - truth)[near] / answer["standard_error"][near]
    assert np.abs(score).max() < 4.5


def test_bounds_and_codes_of_a_label_are_those_of_its_class(engines: Engines) -> None:
    labels, engine = np.array(LABEL), engines["lean-labels"]
    code = asyncio.run(operations.encode(engine, X, draws=None, seed=1, condition=Condition(1)))
    np.testing.assert_allclose(code["mean"], TWO_CLASSES.mean(X.astype(float), 1), atol=1e-5)
    bound = asyncio.run(operations.elbo(engine, X, draws=1000, seed=1, condition=TOLD))
    truth = TWO_CLASSES.log_density(X.astype(float), labels) - TWO_CLASSES.own_gap
    assert np.abs((bound["elbo"] - truth) / bound["standard_error"]).max() < 4.5
    answer = bounds(engines["lean-labels"], steps=150, draws=1000, told=TOLD)
    least = TWO_CLASSES.log_density(X.astype(float), labels) - TWO_CLASSES.least_gap
    assert np.abs((answer["elbo"] - least) / answer["standard_error"]).mean() < 2


# --- what is not there ---


def test_bound_without_its_graph_is_made_of_the_encoder_and_the_likelihood(
    engines: Engines, tmp_path: Path
) -> None:
    plain = LEAN.interface.model_copy(
        update={"density": Density(kind="estimate", estimator="prior")}
    )
    roles = [role for role in LEAN.nodes if role != "elbo"]
    tiny = replace(
        LEAN,
        name="lean-least",
        interface=plain,
        nodes={role: LEAN.nodes[role] for role in roles},
        references={role: LEAN.references[role] for role in roles},
    )
    with closing(Batcher(devices=1)) as batcher:
        engine = served(tiny, tmp_path, batcher)
        assert operations.capabilities(engine.manifest)[-1] == "elbo"
        assert operations.estimators(engine.manifest) == ["prior", "importance"]
        found = asyncio.run(operations.elbo(engine, X, draws=100, seed=1))
        density = asyncio.run(
            operations.log_density(engine, X, draws=100, seed=1, estimator="importance")
        )
    expected = asyncio.run(operations.elbo(engines["lean"], X, draws=100, seed=1))
    for part, value in expected.items():
        np.testing.assert_allclose(found[part], value, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(density["log_density"], found["importance_weighted"])


def test_model_without_an_encoder_samples_decodes_and_has_a_density(engines: Engines) -> None:
    bare = engines["lean-bare"]
    assert operations.capabilities(bare.manifest) == ["sample", "decode", "log-density"]
    drawing = sampling.Drawing(n=4, seed=1, observation="draw")
    assert asyncio.run(sampling.sample(bare, drawing))["x"].shape == (4, 3)
    with pytest.raises(CapabilityMissing, match="lean-bare has no posterior and cannot encode"):
        operations.require(bare.manifest, "encode")


@pytest.mark.parametrize(
    ("name", "why"),
    [("lean-flow", "its posterior is a flow"), ("lean-bare", "has no posterior and cannot elbo")],
)
def test_what_cannot_be_refined_says_why(engines: Engines, name: str, why: str) -> None:
    with pytest.raises(CapabilityMissing, match=why) as refused:
        operations.require_refinement(engines[name].manifest)
    assert refused.value.field == ("refine" if name == "lean-flow" else "model")


def test_windows_of_draws_add_up_to_the_same(
    engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = bounds(engines["lean"], steps=2, draws=100)
    monkeypatch.setattr("service.monte_carlo.WINDOW_DRAWS", 1)
    cut = bounds(engines["lean"], steps=2, draws=100)
    for part, value in whole.items():
        np.testing.assert_allclose(cut[part], value, rtol=1e-10, atol=1e-12)
    assert math.isfinite(whole["elbo"].sum())
