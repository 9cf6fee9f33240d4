"""Compressed bodies: read up to a limit, written when they are liked."""

import gzip
import zlib

import numpy as np
import pytest

from service.api.oip import compression
from service.errors import BodyTooLarge, MediaTypeUnsupported, RequestMalformed

TEXT = b"a row, and a row, and a row. " * 50


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", gzip.compress(TEXT)),
        (" GZIP ", gzip.compress(TEXT)),
        ("deflate", zlib.compress(TEXT)),
        ("identity", TEXT),
        ("", TEXT),
    ],
)
def test_body_is_expanded_up_to_its_limit(encoding: str, body: bytes) -> None:
    assert compression.expand(body, encoding, limit=len(TEXT)) == TEXT


def test_bomb_is_stopped_at_the_limit() -> None:
    bomb = gzip.compress(b"0" * 10_000_000)
    assert len(bomb) < 100_000
    with pytest.raises(BodyTooLarge, match="more than 100000 bytes"):
        compression.expand(bomb, "gzip", limit=100_000)


@pytest.mark.parametrize(
    "body", [b"", TEXT, gzip.compress(TEXT)[:-1], gzip.compress(TEXT) + b"more"]
)
def test_broken_stream_is_malformed(body: bytes) -> None:
    with pytest.raises(RequestMalformed, match="gzip"):
        compression.expand(body, "gzip", limit=10_000)


def test_other_encoding_is_not_supported() -> None:
    with pytest.raises(MediaTypeUnsupported, match="gzip and deflate"):
        compression.expand(TEXT, "br", limit=10_000)


def test_only_what_shrinks_is_worth_compressing() -> None:
    noise = np.random.default_rng(0).normal(size=100_000).astype(np.float32)
    assert not compression.is_worthwhile([TEXT, noise.data.cast("B")])
    assert compression.is_worthwhile([TEXT, np.rint(noise).data.cast("B")])
    assert compression.is_worthwhile([TEXT])
    assert not compression.is_worthwhile([TEXT[:100], memoryview(b"short")])


def test_what_is_compressed_expands_again() -> None:
    parts = [TEXT, memoryview(TEXT)]
    for encoding in ("gzip", "deflate"):
        body = compression.compress(parts, encoding)  # type: ignore[arg-type]
        assert compression.expand(body, encoding, limit=10_000) == TEXT + TEXT


@pytest.mark.parametrize(
    ("accepted", "chosen"),
    [
        ("", None),
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("gzip, deflate, br", "gzip"),
        ("gzip;q=0.5, deflate;q=0.8", "deflate"),
        ("gzip;q=0, deflate;q=0", None),
        ("gzip;q=0.5, identity", None),
        ("identity;q=0.5, gzip", "gzip"),
        ("GZIP; Q=1", "gzip"),
        ("gzip;q=nonsense", "gzip"),
        ("br", None),
        ("*", None),
    ],
)
def test_client_chooses_the_encoding(accepted: str, chosen: str | None) -> None:
    assert compression.choose(accepted) == chosen
