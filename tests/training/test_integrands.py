"""Integrands: what is built in has the integral that it says; what is wrong gets a sentence."""

import itertools

import numpy as np
import pytest
from scipy import integrate

from training.data import DataConfig, load
from training.integrands import BUILT_IN, find
from training.raw import DataInvalid

OWN = "python:tests.training.bad_integrands:"


@pytest.mark.parametrize("name", BUILT_IN)
def test_known_integral_is_that_of_a_grid(name: str) -> None:
    found = find(f"integrand:{name}", dimensions=2, low=0.0, high=1.0)
    places = (np.arange(1000) + 0.5) / 1000
    grid = np.stack(np.meshgrid(places, places), axis=-1).reshape(-1, 2)
    assert found.exact == pytest.approx(found(grid.astype(np.float32)).mean(), rel=1e-5)


@pytest.mark.parametrize(("name", "dimensions"), [*itertools.product(BUILT_IN, [3, 5, 8])])
def test_known_integral_is_that_of_uniform_points(name: str, dimensions: int) -> None:
    found = find(f"integrand:{name}", dimensions=dimensions, low=0.0, high=1.0)
    values = found(np.random.default_rng(0).random((400_000, dimensions), dtype=np.float32))
    error = values.std() / len(values) ** 0.5
    assert found.exact is not None
    assert abs(values.mean() - found.exact) <= 4.5 * error


def test_ring_in_many_dimensions_is_the_radial_integral() -> None:
    found = find("integrand:ring", dimensions=7, low=0.0, high=1.0)
    sphere = 16 * np.pi**3 / 15
    radial, _ = integrate.quad(lambda r: sphere * (1 - ((r - 0.3) / 0.1) ** 2) * r**6, 0.2, 0.4)
    assert found.exact == pytest.approx(radial, rel=1e-10)


def test_points_are_uniform_in_their_box_with_their_values() -> None:
    asked = DataConfig(source=f"{OWN}slope", dimensions=3, low=0.1, high=0.7, rows=4000)
    data = load(asked)
    assert (data.event.minimum, data.event.maximum) == (
        float(np.float32(0.1)),
        float(np.float32(0.7)),
    )
    for split in (data.train, data.validation, data.test):
        assert split.value is not None
        assert split.x.min() >= data.event.minimum  # type: ignore[operator]
        assert split.x.max() <= data.event.maximum  # type: ignore[operator]
        assert np.array_equal(split.value.numpy(), split.x.double().sum(1).numpy())
    # Uniform: mean 0.4 and deviation 0.6 / sqrt(12), of 3,060 numbers a column.
    assert data.mean == pytest.approx(np.full(3, 0.4), abs=4.5 * 0.1732 / 3060**0.5)
    assert data.train[:7].value is not None


def test_other_values_at_the_same_points_are_other_data() -> None:
    one, other = (
        load(DataConfig(source=f"integrand:{name}", dimensions=2, rows=60))
        for name in ("camel", "ring")
    )
    assert np.array_equal(one.train.x, other.train.x)
    assert one.sha256 != other.sha256


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (f"{OWN}negative", "expected finite values of 0 or more; got -0."),
        (f"{OWN}missing", "expected finite values of 0 or more; got nan at x = [0."),
        (f"{OWN}infinite", "expected finite values of 0 or more; got inf"),
        (f"{OWN}a_column", "got float64 of shape (60, 1)"),
        (f"{OWN}one_number", "expected one number for each of 60 points, shape (60,); got float64"),
        (f"{OWN}words", "got <U1 of shape (60,)"),
        (f"{OWN}nothing", "0 at all 45 uniform points to train on; make the box smaller"),
        (f"{OWN}absent", "absent is not there in tests.training.bad_integrands"),
        (f"{OWN}number", "number is no function in tests.training.bad_integrands"),
        ("python:tests.absent:f", "the module cannot be imported (No module named 'tests.absent')"),
        ("python:tests.absent", "expected python:package.module:function"),
        ("integrand:dromedary", "unknown integrand; known here are camel, gaussian, ring"),
    ],
)
def test_what_is_no_integrand_is_refused_in_a_sentence(source: str, sentence: str) -> None:
    with pytest.raises(DataInvalid) as caught:
        load(DataConfig(source=source, dimensions=2, rows=60))
    assert str(caught.value).startswith(f"data.source {source}: ")
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "data.dimensions is missing"),
        (
            {"dimensions": 2, "low": -1.0},
            "data.low and data.high: integrand:camel lives on the unit",
        ),
    ],
)
def test_box_that_is_not_there_is_refused(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(DataInvalid, match=sentence):
        load(DataConfig.model_validate({"source": "integrand:camel", **options}))
