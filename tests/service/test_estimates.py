"""Means of draws that come in blocks, against the plain sums over all of them."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from service.estimates import LogMean, Moments, anomaly_scores


def log_mean(blocks: list[np.ndarray]) -> LogMean:
    mean = LogMean(len(blocks[0]))
    for block in blocks:
        mean.add(block)
    return mean


@given(st.lists(st.floats(-50, 50), min_size=2, max_size=20), st.data())
def test_log_mean_is_that_of_the_plain_sum(log_weights: list[float], data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, len(log_weights) - 1))))
    mean = log_mean(np.split(np.array([log_weights]), cuts, axis=1))
    weights = np.exp(np.array(log_weights))
    np.testing.assert_allclose(mean.value, np.log(weights.mean()), rtol=1e-10, atol=1e-12)
    expected = weights.std(ddof=1) / math.sqrt(len(weights)) / weights.mean()
    np.testing.assert_allclose(mean.standard_error, expected, rtol=1e-7, atol=1e-12)
    size = weights.sum() ** 2 / (weights**2).sum()
    np.testing.assert_allclose(mean.effective_sample_size, size, rtol=1e-8)


def test_log_mean_neither_overflows_nor_underflows() -> None:
    mean = log_mean([np.array([[1000.0], [-1000.0]])] * 2)
    assert mean.value.tolist() == [1000.0, -1000.0]
    assert mean.effective_sample_size.tolist() == [2.0, 2.0]


def test_rising_weights_do_not_lose_those_before() -> None:
    mean = log_mean([np.array([[value]]) for value in (-800.0, 0.0, 800.0)])
    np.testing.assert_allclose(mean.value, 800 - math.log(3))


def test_impossible_draws_count_and_an_impossible_event_has_no_error() -> None:
    never = np.full((1, 3), -np.inf)
    mean = log_mean([never, never])
    assert mean.value.tolist() == [-np.inf]
    assert np.isnan(mean.standard_error).all()
    mean = log_mean([never, np.zeros((1, 3)), never])
    np.testing.assert_allclose(mean.value, math.log(1 / 3))


def test_a_single_draw_has_no_error() -> None:
    assert np.isnan(log_mean([np.zeros((2, 1))]).standard_error).all()


def test_equal_draws_have_an_error_of_nothing() -> None:
    moments = Moments(1)
    for _ in range(1000):
        moments.add(np.full((1, 7), 0.1))
    np.testing.assert_allclose(moments.mean, 0.1, rtol=1e-14)
    assert moments.standard_error[0] < 1e-17


def test_anomaly_score_is_the_share_of_what_is_more_probable() -> None:
    held_out = (1.0, 2.0, 2.0, 5.0)
    log_density = np.array([0.0, -1.0, -1.5, -2.0, -3.0, -5.0, -9.0, -np.inf, np.inf])
    expected = np.array([0, 0, 1, 1, 3, 3, 4, 4, 0]) / 5
    np.testing.assert_array_equal(anomaly_scores(log_density, held_out), expected)


def test_one_less_the_anomaly_score_is_a_p_value() -> None:
    """Of events like the held-out ones, no more than a share a has a p-value of a or less."""
    rng = np.random.default_rng(0)
    scores = np.concatenate([
        anomaly_scores(-rng.normal(size=50), tuple(np.sort(rng.normal(size=199))))
        for _ in range(400)
    ])  # fmt: skip
    for share in (0.01, 0.05, 0.5):
        found = (scores >= 1 - share - 1e-12).mean()
        # All 50 of a round share its held-out events: the error is theirs as well.
        error = math.sqrt(share * (1 - share) * (1 / 20_000 + 1 / (400 * 199)))
        assert abs(found - share) <= 4.5 * error
