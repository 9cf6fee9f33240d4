"""Addressed noise: published vectors, any slice of the whole, and the normal quantiles."""

import math
from concurrent.futures import ThreadPoolExecutor
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import noise
from service.noise import Stream


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        # Random123's kat_vectors for philox4x64-10.
        (
            (0, 0, 0, 0),
            (0, 0),
            (0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B),
        ),
        (
            (2**64 - 1,) * 4,
            (2**64 - 1,) * 2,
            (0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0),
        ),
        (
            (0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89),
            (0x452821E638D01377, 0xBE5466CF34E90C6C),
            (0xA528F45403E61D95, 0x38C72DBD566E9788, 0xA5A1610E72FD18B5, 0x57BD43B5E52B7FE6),
        ),
    ],
)
def test_generator_is_the_published_one(
    counter: tuple[int, ...], key: tuple[int, ...], words: tuple[int, ...]
) -> None:
    # numpy adds 1 to the counter before the first block.
    position = (sum(part << (64 * i) for i, part in enumerate(counter)) - 1) % 2**256
    generator = np.random.Philox(key=np.array(key, dtype=np.uint64), counter=position)
    assert tuple(generator.random_raw(4).tolist()) == words


def test_first_values_of_a_seed_never_change() -> None:
    # The recipe of docs/http.md by hand, for seed 7, stream 1, row 3 of size 5.
    generator = np.random.Philox(key=np.array([7, 1], dtype=np.uint64), counter=3 * 8 // 4)
    words = generator.random_raw(8)[:5]
    expected = [((int(word) >> 12) + 0.5) / 2**52 for word in words]
    assert noise.uniform(7, Stream.LABEL, start=3, rows=1, size=5).tolist() == [expected]


@given(
    seed=st.integers(0, noise.SEEDS - 1),
    stream=st.sampled_from(Stream),
    start=st.integers(0, noise.ROWS - 1),
    rows=st.integers(1, 40),
    size=st.integers(1, 13),
    data=st.data(),
)
def test_any_slice_is_the_slice_of_the_whole(
    seed: int, stream: Stream, start: int, rows: int, size: int, data: st.DataObject
) -> None:
    first = data.draw(st.integers(0, rows - 1))
    n = data.draw(st.integers(1, rows - first))
    for draw in (noise.uniform, noise.normal):
        whole = draw(seed, stream, start=start, rows=rows, size=size)
        part = draw(seed, stream, start=start + first, rows=n, size=size)
        np.testing.assert_array_equal(part, whole[first : first + n])


def test_streams_and_seeds_do_not_share_values() -> None:
    blocks = [
        noise.uniform(seed, stream, start=0, rows=50, size=4)
        for seed in (0, 1, 2**63 - 1)
        for stream in Stream
    ]
    values = np.concatenate([block.ravel() for block in blocks])
    assert len(np.unique(values)) == values.size


def test_uniform_is_uniform_and_never_zero_or_one() -> None:
    values = noise.uniform(3, Stream.LATENT, start=0, rows=10_000, size=8).ravel()
    assert ((values > 0) & (values < 1)).all()
    z = (values.mean() - 0.5) * math.sqrt(12 * values.size)
    assert abs(z) <= 4.5
    counts = np.histogram(values, bins=16, range=(0, 1))[0]
    chi_square = ((counts - values.size / 16) ** 2 / (values.size / 16)).sum()
    assert chi_square < 15 + 4.5 * math.sqrt(30)


def test_normal_is_normal() -> None:
    values = noise.normal(4, Stream.LATENT, start=0, rows=10_000, size=8).ravel()
    n = values.size
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        z = ((values**power).mean() - moment) / math.sqrt(variance / n)
        assert abs(z) <= 4.5


def test_neighbouring_rows_and_values_are_uncorrelated() -> None:
    values = noise.normal(5, Stream.LATENT, start=0, rows=10_000, size=6)
    for apart in (values[1:] * values[:-1], values[:, 1:] * values[:, :-1]):
        assert abs(apart.mean() * math.sqrt(apart.size)) <= 4.5


def test_labels_are_equally_likely() -> None:
    labels = noise.labels(6, start=0, rows=30_000, classes=10)
    assert labels.dtype == np.int64
    counts = np.bincount(labels, minlength=10)
    assert len(counts) == 10
    assert np.abs((counts - 3000) / math.sqrt(3000 * 0.9)).max() <= 4.5


def test_quantiles_are_those_of_the_normal_distribution() -> None:
    probabilities = np.concatenate(
        [np.geomspace(2.0**-53, 0.5, 400), 1 - np.geomspace(2.0**-53, 0.5, 400)]
    )
    ours = noise.inverse_normal_cdf(probabilities)
    exact = [NormalDist().inv_cdf(p) for p in probabilities]
    np.testing.assert_allclose(ours, exact, rtol=1e-13, atol=1e-15)


def test_quantiles_are_odd_and_rise() -> None:
    probabilities = (np.arange(1, 4096) / 4096).astype(np.float64)
    quantiles = noise.inverse_normal_cdf(probabilities)
    np.testing.assert_array_equal(quantiles, -quantiles[::-1])
    assert (np.diff(quantiles) > 0).all()
    assert quantiles[2047] == 0


def test_quantiles_do_not_depend_on_what_other_threads_ask_for() -> None:
    """numexpr's compiled expressions are not to be shared: two threads at one end the process."""
    asked = np.random.default_rng(0).random((4, 8192))
    alone = [noise.inverse_normal_cdf(each) for each in asked]

    def ask_often(number: int) -> bool:
        found = (noise.inverse_normal_cdf(asked[number]) for _ in range(300))
        return all(np.array_equal(each, alone[number]) for each in found)

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(ask_often, range(4)))


def test_quantiles_keep_the_shape_and_do_not_depend_on_their_company() -> None:
    probabilities = noise.uniform(1, Stream.LATENT, start=0, rows=3, size=5000)
    whole = noise.inverse_normal_cdf(probabilities)
    assert whole.shape == (3, 5000)
    np.testing.assert_array_equal(
        whole[2, 77], noise.inverse_normal_cdf(probabilities[2, 77:78])[0]
    )
