"""Probabilistic PCA as tiny bundles: a latent-variable model of which everything is known.

x = z W + b + s e (Tipping & Bishop 1999), so that p(z|x) is a normal with the same covariance for
every x. Each bundle has another q(z|x): off from that by a known step, and as wide as is said. One
has a prior of its own, z = WIDTH noise, as a learned one would be.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from service.interface import Density, Estimator, Event, Interface, Latent, Role
from tests.service.tiny import Floats, Reference, Tiny

Labels = npt.NDArray[np.int64]
Posterior = Literal["diagonal", "full", "flow"]

NOISE = 0.5
FARTHEST, WIDEST = 1.0, 0.5
"""Most that one step moves a mean in units of q's scale, and the logarithm of a scale. Of a full
covariance each is the length of the whole step: its entries are noise that adds up."""


@dataclass(frozen=True)
class Factors:
    """The model, in float64.

    `biases` has a row for each label, or one. q(z|x) = N(p's mean + `off`, F'F), where F is
    `factor`, transposed: z = mean + eps F.
    """

    weight: Floats
    biases: Floats
    off: Floats
    factor: Floats
    width: float = 1.0
    """Of p(z) = N(0, width^2)."""

    @property
    def precision(self) -> Floats:
        """Of p(z|x)."""
        own = np.eye(len(self.weight)) / self.width**2
        return np.asarray(self.weight @ self.weight.T / NOISE**2 + own)

    @property
    def to_mean(self) -> Floats:
        """What x - b is multiplied by to be the mean of p(z|x)."""
        return np.asarray(self.weight.T / NOISE**2 @ np.linalg.inv(self.precision))

    def centred(self, x: Floats, label: Labels | int = 0) -> Floats:
        return np.asarray(x - self.biases[np.broadcast_to(label, len(x))])

    def log_density(self, x: Floats, label: Labels | int = 0) -> Floats:
        noise = NOISE**2 * np.eye(self.weight.shape[1])
        covariance = self.width**2 * self.weight.T @ self.weight + noise
        apart = self.centred(x, label)
        distance = (apart @ np.linalg.inv(covariance) * apart).sum(axis=1)
        return np.asarray(-0.5 * (distance + np.linalg.slogdet(2 * np.pi * covariance)[1]))

    def gap(self, off: Floats, covariance: Floats) -> float:
        """KL(N(m + off, C) || N(m, S)): what the bound lacks, for every x."""
        apart = off @ self.precision @ off + np.trace(self.precision @ covariance) - len(off)
        return float(0.5 * (apart - np.linalg.slogdet(self.precision @ covariance)[1]))

    @property
    def own_gap(self) -> float:
        """Of the encoder's q."""
        return self.gap(self.off, self.factor.T @ self.factor)

    @property
    def least_gap(self) -> float:
        """Of the best q with independent latents: variances 1 / P_ii about the right mean."""
        return self.gap(np.zeros(len(self.off)), np.diag(1 / np.diag(self.precision)))

    # --- the graphs ---

    def prior(self, noise: Floats) -> dict[str, Floats]:
        return {"z": self.width * noise}

    def decode(self, z: Floats, label: Labels | int = 0) -> dict[str, Floats]:
        return {"x": z @ self.weight + self.biases[np.broadcast_to(label, len(z))]}

    def observe(self, z: Floats, noise: Floats, label: Labels | int = 0) -> dict[str, Floats]:
        return {"x": self.decode(z, label)["x"] + NOISE * noise}

    def mean(self, x: Floats, label: Labels | int = 0) -> Floats:
        return np.asarray(self.centred(x, label) @ self.to_mean + self.off)

    def codes(self, x: Floats, noise: Floats, label: Labels | int = 0) -> dict[str, Floats]:
        return {"z": self.mean(x, label)[:, None] + noise @ self.factor}

    def likelihood(self, x: Floats, z: Floats, label: Labels | int = 0) -> dict[str, Floats]:
        apart = (self.centred(x, label)[:, None] - z @ self.weight) / NOISE
        norm = 0.5 * apart.shape[2] * np.log(2 * np.pi * NOISE**2)
        return {"log_likelihood": -0.5 * (apart**2).sum(axis=2) - norm}

    def likelihood_and_prior(
        self, x: Floats, z: Floats, label: Labels | int = 0
    ) -> dict[str, Floats]:
        """The same of a bundle whose prior is learned."""
        norm = 0.5 * z.shape[2] * np.log(2 * np.pi * self.width**2)
        log_prior = -0.5 * (z**2).sum(axis=2) / self.width**2 - norm
        return {**self.likelihood(x, z, label), "log_prior": log_prior}

    def terms(self, x: Floats, noise: Floats, label: Labels | int = 0) -> dict[str, Floats]:
        """The elbo graph of a Gaussian q."""
        mean, z = self.mean(x, label), self.codes(x, noise, label)["z"]
        reconstruction = self.likelihood(x, z, label)["log_likelihood"]
        log_det = np.linalg.slogdet(self.factor)[1] - len(self.factor) * np.log(self.width)
        ratio = 0.5 * (noise**2 - (z / self.width) ** 2).sum(axis=2) + log_det
        kl = 0.5 * (mean**2).sum(axis=1) + self.kl_offset
        return {"reconstruction": reconstruction, "kl": kl, "log_weight": reconstruction + ratio}

    def terms_by_draw(self, x: Floats, noise: Floats, label: Labels | int = 0) -> dict[str, Floats]:
        """The elbo graph where only draws can tell the divergence."""
        terms = self.terms(x, noise, label)
        return {**terms, "kl": terms["reconstruction"] - terms["log_weight"]}

    @property
    def kl_offset(self) -> float:
        trace = (self.factor**2).sum() - len(self.factor)
        return float(0.5 * trace - np.linalg.slogdet(self.factor)[1])

    def step(
        self,
        x: Floats,
        mean: Floats,
        rate: Floats,
        noise: Floats,
        label: Labels | int = 0,
        **scale: Floats,
    ) -> dict[str, Floats]:
        """The refine graph, for `scale` or `scale_tril`."""
        (name, spread), eps = *scale.items(), np.concatenate([noise, -noise], axis=1)
        factor = spread if name == "scale_tril" else spread[:, :, None] * np.eye(mean.shape[1])
        z = mean[:, None] + eps @ factor.transpose(0, 2, 1)
        apart = self.centred(x, label)[:, None] - z @ self.weight
        h = (apart @ self.weight.T / NOISE**2 - z / self.width**2) @ factor + eps
        move = rate[:, None] * h.mean(axis=1)
        if name == "scale":
            move = np.clip(move, -FARTHEST, FARTHEST)
            growth = rate[:, None] * (h * eps).mean(axis=1) / 2
            scale_after = spread * np.exp(np.clip(growth, -WIDEST, WIDEST))
            return {"refined_mean": mean + spread * move, "refined_scale": scale_after}
        move /= np.maximum(np.linalg.norm(move, axis=1, keepdims=True), FARTHEST)
        moved = mean + (factor @ move[:, :, None])[:, :, 0]
        tangent = np.tril(rate[:, None, None] * (h.transpose(0, 2, 1) @ eps) / eps.shape[1])
        tangent /= np.maximum(np.linalg.norm(tangent, axis=(1, 2), keepdims=True), 2 * WIDEST)
        growth = np.exp(np.diagonal(tangent, axis1=1, axis2=2) / 2)
        change = np.tril(tangent, -1) + growth[:, :, None] * np.eye(mean.shape[1])
        return {"refined_mean": moved, "refined_scale_tril": factor @ change}


CENTRED = "c = Sub(x, bias) "
MEAN = CENTRED + "y = MatMul(c, to_mean) mean = Add(y, off) "
SPREAD = "o = Mul(mean, zero) "
LIKELIHOOD = (
    "u = Unsqueeze(c, one) w = MatMul(z, weight) d = Sub(u, w) t = Div(d, spread) q = Mul(t, t) "
    "s = ReduceSum<keepdims=0>(q, two) h = Mul(s, minus_half) "
)
CODES = "m = Unsqueeze(mean, one) e = MatMul(noise, factor) z = Add(m, e) "
TERMS = (
    MEAN + CODES + LIKELIHOOD + "reconstruction = Sub(h, log_norm) "
    "zw = Div(z, width) zz = Mul(zw, zw) nn = Mul(noise, noise) nz = Sub(nn, zz) "
    "ns = ReduceSum<keepdims=0>(nz, two) nh = Mul(ns, half) "
    "r = Add(nh, log_det) log_weight = Add(reconstruction, r) "
)
LOG_PRIOR = (
    "zw = Div(z, width) zz = Mul(zw, zw) zs = ReduceSum<keepdims=0>(zz, two) "
    "zh = Mul(zs, minus_half) log_prior = Sub(zh, prior_norm)"
)
# One step, with h = g L + e, and a = E[h'e] for what has a full covariance.
PAIRS = CENTRED + (
    "u = Unsqueeze(c, one) minus = Neg(noise) e = Concat<axis=1>(noise, minus) "
    "m = Unsqueeze(mean, one) r = Unsqueeze(rate, one) "
)
GRADIENT = (
    "z = Add(m, le) w = MatMul(z, weight) d = Sub(u, w) k = MatMul(d, back) "
    "z1 = Div(z, width) z2 = Div(z1, width) g = Sub(k, z2) "
)
MOVE = "h = Add(gl, e) hm = ReduceMean<keepdims=0>(h, one) v = Mul(r, hm) "
DIAGONAL_STEP = (
    PAIRS + "l = Unsqueeze(scale, one) le = Mul(l, e) " + GRADIENT + "gl = Mul(g, l) " + MOVE +
    "v1 = Max(v, minus_farthest) v2 = Min(v1, farthest) "
    "lv = Mul(scale, v2) refined_mean = Add(mean, lv) "
    "he = Mul(h, e) a = ReduceMean<keepdims=0>(he, one) b = Mul(r, a) "
    "b0 = Mul(b, half) b1 = Max(b0, minus_widest) b2 = Min(b1, widest) x2 = Exp(b2) "
    "refined_scale = Mul(scale, x2)"
)  # fmt: skip
FULL_STEP = (
    PAIRS + "lt = Transpose<perm=[0, 2, 1]>(scale_tril) le = MatMul(e, lt) " + GRADIENT +
    "gl = MatMul(g, scale_tril) " + MOVE +
    "vn = ReduceL2<keepdims=1>(v, one) v1 = Max(vn, farthest) v2 = Div(v, v1) "
    "vc = Unsqueeze(v2, two) lv = MatMul(scale_tril, vc) l0 = Squeeze(lv, two) "
    "refined_mean = Add(mean, l0) "
    "ht = Transpose<perm=[0, 2, 1]>(h) he = MatMul(ht, e) a = Mul(he, eighth) "
    "rr = Unsqueeze(r, two) b0 = Mul(rr, a) b1 = Mul(b0, lower) "
    "bn = ReduceL2<keepdims=1>(b1, within) b2 = Max(bn, farthest) b = Div(b1, b2) "
    "below = Mul(b, strict) b3 = Mul(b, half) x2 = Exp(b3) across = Mul(x2, eye) "
    "f = Add(below, across) refined_scale_tril = MatMul(scale_tril, f)"
)  # fmt: skip


def bundle_of(
    name: str,
    model: Factors,
    *,
    posterior: Posterior | None,
    estimator: Estimator = "importance",
    labels: tuple[str, ...] | None = None,
) -> Tiny:
    """Return a bundle of the model with the graphs that go with a posterior, or with none."""
    nodes, references = _graphs(model, posterior)
    if is_learned := model.width != 1:
        nodes |= {
            "prior": "z = Mul(noise, width)",
            "likelihood": f"{nodes['likelihood']} {LOG_PRIOR}",
            "elbo": TERMS + "kl = Neg(r)",
        }
        references |= {
            "prior": model.prior,
            "likelihood": model.likelihood_and_prior,
            "elbo": model.terms_by_draw,
        }
    if labels:
        read = "bias = Gather(biases, label) "
        nodes = {role: read + text for role, text in nodes.items()}
    return Tiny(
        name=name,
        interface=Interface(
            family="vae",
            event=Event(kind="vector", shape=(model.weight.shape[1],)),
            latent=Latent(
                shape=(len(model.weight),), distribution="learned" if is_learned else "normal"
            ),
            labels=labels,
            observation="normal",
            posterior=posterior,
            density=Density(kind="estimate", estimator=estimator, measure="per unit of x"),
        ),
        nodes=nodes,
        constants=_constants(model) | ({} if labels else {"bias": _single(model.biases[0])}),
        references=references,
    )


def _graphs(
    model: Factors, posterior: Posterior | None
) -> tuple[dict[Role, str], dict[Role, Reference]]:
    nodes: dict[Role, str] = {
        "decode": "y = MatMul(z, weight) x = Add(y, bias)",
        "observe": "y = MatMul(z, weight) m = Add(y, bias) e = Mul(noise, spread) x = Add(m, e)",
        "likelihood": CENTRED + LIKELIHOOD + "log_likelihood = Sub(h, log_norm)",
    }
    references: dict[Role, Reference] = {
        "decode": model.decode,
        "observe": model.observe,
        "likelihood": model.likelihood,
    }
    known = "mm = Mul(mean, mean) ms = ReduceSum<keepdims=0>(mm, one) mh = Mul(ms, half) "
    known += "kl = Add(kl_offset, mh)"
    match posterior:
        case "diagonal":
            nodes |= {"encode": MEAN + SPREAD + "scale = Add(o, scales)", "elbo": TERMS + known}
            nodes["refine"] = DIAGONAL_STEP
        case "full":
            spread = SPREAD + "o2 = Unsqueeze(o, two) scale_tril = Add(o2, tril)"
            nodes |= {"encode": MEAN + spread, "elbo": TERMS + known, "refine": FULL_STEP}
        case "flow":
            nodes |= {"encode": MEAN + CODES, "elbo": TERMS + "kl = Neg(r)"}
            references |= {"encode": model.codes, "elbo": model.terms_by_draw}
    if posterior in ("diagonal", "full"):
        references |= {"encode": _encode(model, posterior), "elbo": model.terms}
        references["refine"] = model.step
    return nodes, references


def _encode(model: Factors, posterior: Posterior) -> Reference:
    def encode(x: Floats, label: Labels | int = 0) -> dict[str, Floats]:
        mean, size = model.mean(x, label), len(model.factor)
        if posterior == "full":
            tril = np.broadcast_to(model.factor.T, (len(x), size, size))
            return {"mean": mean, "scale_tril": tril}
        return {"mean": mean, "scale": np.broadcast_to(np.diag(model.factor), (len(x), size))}

    return encode


def _single(values: npt.ArrayLike) -> npt.NDArray[np.float32]:
    return np.atleast_1d(np.asarray(values, dtype=np.float32))


def _constants(model: Factors) -> dict[str, npt.NDArray[Any]]:
    size, width = model.weight.shape
    numbers: dict[str, npt.ArrayLike] = {
        "weight": model.weight,
        "biases": model.biases,
        "to_mean": model.to_mean,
        "back": model.weight.T / NOISE**2,
        "off": model.off,
        "factor": model.factor,
        "scales": np.diag(model.factor),
        "tril": model.factor.T,
        "spread": NOISE,
        "zero": 0,
        "half": 0.5,
        "minus_half": -0.5,
        "eighth": 1 / 8,
        "farthest": FARTHEST,
        "minus_farthest": -FARTHEST,
        "widest": WIDEST,
        "minus_widest": -WIDEST,
        "eye": np.eye(size),
        "lower": np.tril(np.ones((size, size))),
        "strict": np.tril(np.ones((size, size)), -1),
        "log_norm": 0.5 * width * np.log(2 * np.pi * NOISE**2),
        "log_det": np.linalg.slogdet(model.factor)[1] - size * np.log(model.width),
        "width": model.width,
        "prior_norm": 0.5 * size * np.log(2 * np.pi * model.width**2),
        "kl_offset": model.kl_offset,
    }
    single: dict[str, npt.NDArray[Any]] = {name: _single(v) for name, v in numbers.items()}
    axes = {"one": np.array([1]), "two": np.array([2]), "within": np.array([1, 2])}
    return single | axes


# The rows of this W are orthogonal, so that p(z|x) has independent latents. q is WIDER than it,
# so that estimates are not exact.
WEIGHT = np.array([[1.0, 1.0, 0.0], [0.5, -0.5, 1.0]])
BIAS = np.array([0.5, 0.0, -0.5])
WIDER = 1.25
SCALE = WIDER / np.sqrt((WEIGHT**2).sum(axis=1) / NOISE**2 + 1)
UPRIGHT = Factors(WEIGHT, BIAS[None], np.zeros(2), np.diag(SCALE))
TO_MEAN = UPRIGHT.to_mean
PPCA = bundle_of("ppca", UPRIGHT, posterior="diagonal")
ppca_log_density = UPRIGHT.log_density


def ppca_elbo(x: Floats) -> Floats:
    """The bound in closed form: log p(x) - KL(q || posterior), the same for every x."""
    return np.asarray(UPRIGHT.log_density(x) - UPRIGHT.own_gap)


# Of this one the latents depend on each other, given x. An encoder's answer is off, too.
LEANING = np.array([[1.0, 0.5, 0.0], [0.7, -0.2, 0.6]])
OFF = np.array([0.3, -0.2])
BIASES = np.array([[0.5, 0.0, -0.5], [-1.0, 0.5, 1.0]])


def leaning(
    covariance: Literal["diagonal", "full"], biases: Floats = BIAS[None], width: float = 1.0
) -> Factors:
    """Return the model with a q that is WIDER than the best of its kind, and off."""
    exact = Factors(LEANING, biases, OFF, np.eye(2), width)
    if covariance == "diagonal":
        factor = np.diag(WIDER / np.sqrt(np.diag(exact.precision)))
    else:
        factor = WIDER * np.linalg.cholesky(np.linalg.inv(exact.precision)).T
    return Factors(LEANING, biases, OFF, factor, width)


DIAGONAL, FULL = leaning("diagonal"), leaning("full")
TWO_CLASSES = leaning("diagonal", BIASES)
WIDE = leaning("diagonal", width=1.5)
LEAN = bundle_of("lean", DIAGONAL, posterior="diagonal")
LEAN_FULL = bundle_of("lean-full", FULL, posterior="full")
LEAN_FLOW = bundle_of("lean-flow", FULL, posterior="flow")
LEAN_LABELS = bundle_of("lean-labels", TWO_CLASSES, posterior="diagonal", labels=("low", "high"))
LEAN_BARE = bundle_of("lean-bare", DIAGONAL, posterior=None, estimator="prior")
LEAN_LEARNED = bundle_of("lean-learned", WIDE, posterior="diagonal")
LATENT = (LEAN, LEAN_FULL, LEAN_FLOW, LEAN_LABELS, LEAN_BARE, LEAN_LEARNED)
