"""Noise with an address: value j of row i of seed s is a pure function of (s, stream, i, j).

The generator is Philox4x64-10 (Salmon et al. 2011, "Parallel random numbers: as easy as
1, 2, 3"), as numpy ships it. Its key is (seed, stream), its counter is the position, so any row
is reached in O(1) and any slice can be computed anywhere. docs/http.md gives the recipe for
other languages:

* A *row* takes w = 4 ceil(size / 4) words; row i owns words [i w, (i + 1) w) of its stream.
* Words 4 b .. 4 b + 3 are Philox4x64-10 of counter b + 1 (a 256-bit little-endian integer).
* A word v becomes the uniform ((v >> 12) + 1/2) 2^-52, strictly between 0 and 1.
* Where a graph takes uniforms they are rounded to float32, and to BELOW_ONE instead of to 1.
* A uniform u becomes the normal Phi^-1(u) by algorithm AS 241 (Wichura 1988).

One word a value, never a rejection, so the position of a value does not depend on others. AS 241
uses +, -, *, / and sqrt, which IEEE 754 rounds exactly, and a logarithm, which it does not; the
logarithm here is a series of those four as well. The noise is therefore the same to the last
bit on every CPU.
"""

import math
import threading
from collections.abc import Callable, Sequence
from enum import IntEnum
from functools import reduce

import numexpr
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

SEEDS = 2**63
"""Seeds run from 0 to SEEDS - 1: what a signed 64-bit integer of any language can hold."""
ROWS = 2**53
"""Rows run from 0 to ROWS - 1: exact in a JSON number that is read as a double."""
DRAWS = 2**20
"""At most so many draws for one row: draw k of row i is row i DRAWS + k of its stream."""

BELOW_ONE = np.nextafter(np.float32(1), np.float32(0))
"""The largest float32 below 1: what a uniform so near to 1 is rounded to that it would become 1."""


class Stream(IntEnum):
    """What the noise is for. Streams of one seed are independent of each other."""

    LATENT = 0
    LABEL = 1
    OBSERVATION = 2
    POSTERIOR = 3
    DEQUANTISATION = 4
    REFINEMENT = 5
    PRIOR = 6
    PROBE = 7
    PERMUTATION = 8
    CANDIDATE = 9
    COIN = 10


def words_of(size: int) -> int:
    """Return how many words of its stream a row of so many values owns."""
    return -(-size // 4) * 4


def uniform(seed: int, stream: Stream, *, start: int, rows: int, size: int) -> Floats:
    """Return U(0, 1) noise of `rows` rows from `start` on, shape (rows, size), never 0 or 1."""
    blocks = words_of(size) // 4
    words = _words(seed, stream, counter=start * blocks, count=rows * blocks * 4)
    return np.asarray(((words.reshape(rows, -1)[:, :size] >> np.uint64(12)) + 0.5) * 2.0**-52)


_mine = threading.local()


def _words(seed: int, stream: Stream, *, counter: int, count: int) -> npt.NDArray[np.uint64]:
    """Return the words of the blocks that follow a counter.

    One generator a thread is set to the place, which takes a quarter of the time that making a
    new one does: numpy asks the system for entropy even if it is given a key.
    """
    if not hasattr(_mine, "generator"):
        _mine.generator = np.random.Philox(key=0)
        _mine.state = _mine.generator.state
    state = _mine.state
    state["state"]["key"][:] = seed, stream
    state["state"]["counter"][:] = counter % 2**64, counter // 2**64, 0, 0
    _mine.generator.state = state
    words: npt.NDArray[np.uint64] = _mine.generator.random_raw(count)
    return words


def normal(seed: int, stream: Stream, *, start: int, rows: int, size: int) -> Floats:
    """Return N(0, 1) noise of `rows` rows from `start` on, shape (rows, size), |z| < 8.2."""
    return inverse_normal_cdf(uniform(seed, stream, start=start, rows=rows, size=size))


def labels(seed: int, *, start: int, rows: int, classes: int) -> npt.NDArray[np.int64]:
    """Return labels 0 .. classes - 1, each equally likely, shape (rows,)."""
    draw = uniform(seed, Stream.LABEL, start=start, rows=rows, size=1)[:, 0]
    return np.floor(draw * classes).astype(np.int64)


# Wichura 1988, "Algorithm AS 241: The percentage points of the normal distribution",
# Applied Statistics 37, routine PPND16; relative error about 1e-16. Highest power first.
AS241_CENTRE = (
    (2.5090809287301226727e3, 3.3430575583588128105e4, 6.7265770927008700853e4,
     4.5921953931549871457e4, 1.3731693765509461125e4, 1.9715909503065514427e3,
     1.3314166789178437745e2, 3.3871328727963666080e0),
    (5.2264952788528545610e3, 2.8729085735721942674e4, 3.9307895800092710610e4,
     2.1213794301586595867e4, 5.3941960214247511077e3, 6.8718700749205790830e2,
     4.2313330701600911252e1, 1.0),
)  # fmt: skip
AS241_TAIL = (
    (7.74545014278341407640e-4, 2.27238449892691845833e-2, 2.41780725177450611770e-1,
     1.27045825245236838258e0, 3.64784832476320460504e0, 5.76949722146069140550e0,
     4.63033784615654529590e0, 1.42343711074968357734e0),
    (1.05075007164441684324e-9, 5.47593808499534494600e-4, 1.51986665636164571966e-2,
     1.48103976427480074590e-1, 6.89767334985100004550e-1, 1.67638483018380384940e0,
     2.05319162663775882187e0, 1.0),
)  # fmt: skip
AS241_FAR_TAIL = (
    (2.01033439929228813265e-7, 2.71155556874348757815e-5, 1.24266094738807843860e-3,
     2.65321895265761230930e-2, 2.96560571828504891230e-1, 1.78482653991729133580e0,
     5.46378491116411436990e0, 6.65790464350110377720e0),
    (2.04426310338993978564e-15, 1.42151175831644588870e-7, 1.84631831751005468180e-5,
     7.86869131145613259100e-4, 1.48753612908506148525e-2, 1.36929880922735805310e-1,
     5.99832206555887937690e-1, 1.0),
)  # fmt: skip


def _polynomial(coefficients: Sequence[float], x: str) -> str:
    """Return the expression of a polynomial by Horner's rule, its highest power first."""
    return reduce(lambda value, each: f"({value} * {x} + {each!r})", coefficients[1:],
                  repr(coefficients[0]))  # fmt: skip


def _quotient(coefficients: Sequence[Sequence[float]], x: str) -> str:
    """Return the expression of P(x) / Q(x)."""
    over, under = (_polynomial(each, x) for each in coefficients)
    return f"({over} / {under})"


class _Compiled(threading.local):
    """A function of arrays that goes through them once, one rounded operation at a time.

    A quotient of 55 numbers takes 2 microseconds, by numpy's calls 15 (measured 2026-11-28), and
    has the same bits. Each thread has its own: numexpr keeps what it is working on in what it has
    compiled.
    """

    def __init__(self, expression: str, *names: str) -> None:
        signature = [(name, np.float64) for name in names]
        self.call: Callable[..., Floats] = numexpr.NumExpr(expression, signature=signature)


numexpr.set_num_threads(1)  # the batcher's workers are as many as there are cores
_centre = _Compiled(f"q * {_quotient(AS241_CENTRE, 'r')}", "q", "r")
_tail = _Compiled(_quotient(AS241_TAIL, "r"), "r")
_far_tail = _Compiled(_quotient(AS241_FAR_TAIL, "r"), "r")


def inverse_normal_cdf(probability: Floats) -> Floats:
    """Return Phi^-1(p) for 0 < p < 1, to about 1e-15 relative (AS 241, PPND16)."""
    result = np.empty_like(probability)
    source, target = probability.reshape(-1), result.reshape(-1)
    for first in range(0, source.size, _CHUNK):
        part = slice(first, first + _CHUNK)
        target[part] = _ppnd16(source[part])
    return result


def _ppnd16(probability: Floats) -> Floats:
    q = probability - 0.5
    central = np.abs(q) <= 0.425
    result = np.empty_like(q)
    inner = q[central]
    result[central] = _centre.call(inner, 0.180625 - inner * inner)

    outside = ~central
    outer = probability[outside]
    # The smaller of p and 1 - p, each exact because p is a multiple of 2^-53.
    r = np.sqrt(-log(np.minimum(outer, 1.0 - outer)))
    tail = _tail.call(r - 1.6)
    far = r > 5.0
    if far.any():  # one value in 36 billion
        tail = np.where(far, _far_tail.call(r - 5.0), tail)
    result[outside] = np.copysign(tail, outer - 0.5)
    return result


_CHUNK = 8192
"""Values worked on at once, which then stay in the processor's cache."""


def log(x: Floats) -> Floats:
    """Return the natural logarithm, the same to the last bit on every CPU.

    log(m 2^e) = e log 2 + 2 atanh((m - 1) / (m + 1)).

    With sqrt(1/2) <= m < sqrt(2) the argument s of atanh is below 0.172, so that twelve terms
    of its series leave 2e-19. numpy's own log is not used because its last bit depends on the
    CPU (SIMD variants) and on the C library.
    """
    mantissa, exponent = np.frexp(x)
    small = mantissa < _SQRT_HALF
    mantissa = np.where(small, 2.0 * mantissa, mantissa)
    s = (mantissa - 1.0) / (mantissa + 1.0)
    return _log.call(exponent - small, s, s * s)


_SQRT_HALF = math.sqrt(0.5)
_LN2 = 0.6931471805599453
_ATANH = [1.0 / (2 * k + 1) for k in range(11, -1, -1)]
_log = _Compiled(f"e * {_LN2!r} + 2.0 * s * {_polynomial(_ATANH, 'square')}", "e", "s", "square")
