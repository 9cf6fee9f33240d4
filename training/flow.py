"""Normalizing flows: invertible networks with a density that is known exactly.

Rows of features pass through couplings that move one half of the features after the other. An
image goes from fine to coarse: first the pixels between, by one coupling each that sees the
pixels around them, then every second pixel of every second row (the *coarse* image, which is
still a legible picture) by a stack of couplings that see all of it. Sampling goes the other way:
what is drawn first is the shape, what is drawn last are the edges.

Source: Durkan et al. 2019, arXiv:1906.04032 (spline couplings); Dinh et al. 2017,
arXiv:1605.08803 (masks, logit, multiple scales); Reed et al. 2017, arXiv:1703.03664 (pixels
from coarse to fine).
"""

import math
from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from service.interface import Density, Event, Frozen, Interface, Latent, Role
from training.bounds import log_mean
from training.box import Box
from training.conditioner import convolutional
from training.coupling import (
    Bijection,
    Chain,
    Coupling,
    First,
    Squeeze,
    Standardise,
    Unsqueeze,
    halves,
    with_digits,
)
from training.data import Batch, Data
from training.dequantise import Dequantise
from training.elementwise import Affine, Elementwise, Spline
from training.family import Call, Family, Nats, Pixels, Turn
from training.masked import Masked
from training.networks import normal_log_prob
from training.told import Told
from training.triangular import Inverted, Reverse, Triangular


class FlowConfig(Frozen):
    """Couplings or triangular maps, by splines or affine."""

    family: Literal["flow"] = Field("flow", description="Selects this family.")
    layer: Literal["coupling", "autoregressive", "inverse-autoregressive"] = Field(
        "coupling",
        description="What moves: half of the features, given the others; or of a vector each "
        "feature, given those before it, in one pass for densities (the samples take one pass for "
        "each feature) or in one pass for samples.",
    )
    transform: Literal["spline", "affine"] = Field(
        "spline", description="How: by rational-quadratic splines, or scaled and shifted."
    )
    layers: int = Field(
        8, ge=2, description="Layers that see the whole event, or of an image the coarse half."
    )
    width: int = Field(64, ge=1, description="Hidden units, or channels, of each network.")
    depth: int = Field(2, ge=1, description="Residual blocks of each network.")
    bins: int = Field(8, ge=2, le=64, description="Bins of each spline.")
    bound: float = Field(
        5.0, gt=0, description="Splines act in the box from -bound to bound, outside is identity."
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of hidden units dropped.")
    fine_width: int = Field(64, ge=1, description="Of an image: channels of the fine networks.")
    fine_depth: int = Field(2, ge=1, description="Of an image: blocks of the fine networks.")
    alpha: float = Field(
        0.05,
        gt=0,
        lt=0.5,
        description="Of an image: a grey level y enters as the logit of alpha + (1 - 2 alpha) y.",
    )
    conditional: bool = Field(
        False,
        description="Tell every network the label, or the context if data.context names one: "
        "p(x|label) or p(x|context).",
    )

    @model_validator(mode="after")
    def _options_are_used(self) -> "FlowConfig":
        if "bins" in self.model_fields_set and self.transform == "affine":
            raise ValueError('bins: is of transform = "spline"; leave it out')
        return self

    @property
    def map(self) -> Elementwise:
        """The kind of map that a layer applies to each value."""
        return Affine() if self.transform == "affine" else Spline(self.bins, self.bound)


class Flow(Family):
    """An invertible network between events x and standard normal noise z of the same shape.

    Args:
        config: Sizes.
        data: Whose event, mean and standard deviation the network is built for, and of a
            conditional one whose labels or context.

    Raises:
        ValueError: The event is a vector of one feature, a continuous image, or an image whose
            sides are no multiples of four; or there is nothing to be told.
    """

    def __init__(self, config: FlowConfig, data: Data) -> None:
        super().__init__()
        self.config = config
        self.event = data.event
        self.told = Told(data, conditional=config.conditional)
        self.dequantise: Dequantise | None = None
        if data.event.kind == "image":
            self.dequantise = _dequantise(config, data.event)
            self.network: Bijection = _image_network(config, data.event, context=self.told.size)
        else:
            self.network = _vector_network(config, data, context=self.told.size)

    @property
    def interface(self) -> Interface:
        """What is served: an exact density, or for images its mean over noise below a level."""
        event, given = self.event, self.told.what
        if self.dequantise is None:
            density = Density(
                kind="exact",
                estimator="exact",
                measure="per unit of x" + given,
                preprocessing="standardised with the mean and deviation of the training rows",
            )
        else:
            density = Density(
                kind="estimate",
                estimator="dequantisation",
                measure=f"probability of the image of {event.levels} grey levels{given}",
                preprocessing=(
                    f"y = (level + noise) / {event.levels}, then the logit of alpha + "
                    f"(1 - 2 alpha) y with alpha = {self.config.alpha}"
                ),
            )
        return Interface(
            family="flow",
            event=event,
            latent=Latent(shape=event.shape),
            labels=self.told.labels,
            context=self.told.context,
            density=density,
        )

    def turns(self) -> tuple[Turn, ...]:
        """Return the one move: maximum likelihood over all parameters."""
        return (Turn("likelihood", tuple(self.parameters()), self._loss),)

    def score(self, batch: Batch) -> Float[Tensor, ""]:
        """Return the mean negative log-density in nats."""
        return self._loss(batch)["loss"]

    def nats(self, batch: Batch, draws: int) -> dict[str, Nats]:
        """Return each event's negative log-density, of an image by noise below a grey level.

        That is the log of a mean over draws, an upper bound in expectation (Burda et al. 2016,
        arXiv:1509.00519).
        """
        if self.dequantise is None:
            return {"negative log-density": Nats(-self._log_density(batch))}
        found = [self._log_density(batch).double() for _ in range(draws)]
        nats = -log_mean(torch.stack(found, dim=1))
        note = f"an upper bound on average: dequantisation noise, draws per image: {draws}"
        return {"negative log-density": Nats(nats, note)}

    def encode(
        self, x: Float[Tensor, "batch ..."], *inputs: Tensor
    ) -> tuple[Float[Tensor, "batch ..."], Float[Tensor, " batch"]]:
        """Return z and log |det dz/dx|, such that log N(z) plus it is the log-density.

        Args:
            x: Events in the data's own units; an image is rounded to its grey levels.
            inputs: The label or the context, if the flow is conditional; then of an image the
                noise, which is its place below each level, uniform in [0, 1).
        """
        z, log_abs_det, _ = self.encode_and_log_density(x, *inputs)
        return z, log_abs_det

    def encode_and_log_density(
        self, x: Float[Tensor, "batch ..."], *inputs: Tensor
    ) -> tuple[Float[Tensor, "batch ..."], Float[Tensor, " batch"], Float[Tensor, " batch"]]:
        """Return z, log |det dz/dx| and log p(x), of which the last costs next to nothing."""
        condition, rest = (inputs[0], inputs[1:]) if self.told.size else (None, inputs)
        w, before = with_digits(x, training=self.training), x.new_zeros(x.shape[0])
        if self.dequantise is not None:
            w, before = self.dequantise(w, *rest)
        z, log_abs_det = self.network(w, self.told(condition, like=w))
        log_abs_det = before + log_abs_det
        log_density = normal_log_prob(z).flatten(1).sum(dim=1) + log_abs_det
        return z.to(x.dtype), log_abs_det.to(x.dtype), log_density.to(x.dtype)

    def log_density(
        self, x: Float[Tensor, "batch ..."], *inputs: Tensor
    ) -> Float[Tensor, " batch"]:
        """Return log p(x) in nats; for an image one draw, whose exp averages to P(image)."""
        return self.encode_and_log_density(x, *inputs)[2]

    def decode(
        self, z: Float[Tensor, "batch ..."], condition: Tensor | None = None
    ) -> Float[Tensor, "batch ..."]:
        """Return the events whose code z is; of an image the value between its grey levels."""
        w = with_digits(z, training=self.training)
        x: Tensor = self.network.inverse(w, self.told(condition, like=w))
        return (x if self.dequantise is None else self.dequantise.inverse(x)).to(z.dtype)

    def graphs(self) -> dict[Role, nn.Module]:
        """Return decode, and one graph for both encode and log_density."""
        decode, judge = Call(self, "decode"), Call(self, "encode_and_log_density")
        return {
            "decode": decode if self.dequantise is None else Pixels(decode),
            "encode": judge,
            "log_density": judge,
        }

    def _log_density(self, batch: Batch) -> Float[Tensor, " batch"]:
        """Return log p(x) of events as they are told, at noise of torch's global generator."""
        condition = self.condition(batch)
        told = () if condition is None else (condition,)
        noise = () if self.dequantise is None else (torch.rand_like(batch.x),)
        return self.log_density(batch.x, *told, *noise)

    def _loss(self, batch: Batch) -> Mapping[str, Float[Tensor, ""]]:
        nats = -self._log_density(batch).mean()
        return {"loss": nats, "bits_per_dim": nats.detach() / (self.event.size * math.log(2))}


def _dequantise(config: FlowConfig, event: Event) -> Dequantise:
    """Return the way from grey levels to the box of the splines."""
    if event.levels is None:
        raise ValueError("model.family: a flow of images needs grey levels; set data.levels")
    return Dequantise(levels=event.levels, alpha=config.alpha, bound=config.bound)


def _vector_network(config: FlowConfig, data: Data, *, context: int) -> Chain:
    """Return couplings over random halves of the features, or triangular maps."""
    features = data.event.size
    if features < 2:
        raise ValueError("model.family: a flow needs two features or more; got one")
    if data.mean is None or data.std is None:
        raise ValueError("data: a vector comes with the mean and deviation of its features")
    mean, std = (torch.as_tensor(each, dtype=torch.float32) for each in (data.mean, data.std))
    first: Bijection = Standardise(mean, std)
    if data.integrand is not None:
        first = Box(data.integrand.low, data.integrand.high)
    if config.layer == "coupling":
        layers: list[Bijection] = [
            *halves(
                features,
                layers=config.layers,
                transform=config.map,
                width=config.width,
                depth=config.depth,
                dropout=config.dropout,
                context=context,
            )
        ]
    else:
        layers = [*_triangles(config, features, context=context)]
    return Chain([first, *layers])


def _triangles(config: FlowConfig, features: int, *, context: int) -> Iterator[Bijection]:
    """Yield triangular maps, between which the order of the features is turned round."""
    for layer in range(config.layers):
        network = Masked(
            inputs=features,
            free=config.map.free,
            width=config.width,
            depth=config.depth,
            dropout=config.dropout,
            context=context,
        )
        triangle = Triangular(config.map, network)
        yield Inverted(triangle) if config.layer == "inverse-autoregressive" else triangle
        if layer < config.layers - 1:
            yield Reverse()


# Which phases of a squeezed image move, as (known, moved): checkerboard, rows, columns, each
# both ways. Phases are (0, 0), (0, 1), (1, 0), (1, 1) of every 2 x 2 block.
_MASKS = (
    ((0, 3), (1, 2)),
    ((1, 2), (0, 3)),
    ((0, 1), (2, 3)),
    ((2, 3), (0, 1)),
    ((0, 2), (1, 3)),
    ((1, 3), (0, 2)),
)


def _image_network(config: FlowConfig, event: Event, *, context: int) -> Chain:
    """Return the flow from the finest pixels to the coarse image and then within it."""
    if config.layer != "coupling":
        raise ValueError(
            f'model.layer: {config.layer} is for vectors; an image takes layer = "coupling"'
        )
    channels, height, width = event.shape
    if height % 4 or width % 4:
        raise ValueError(
            f"model.family: a flow needs image sides that are multiples of 4; got "
            f"{height} x {width}. Resize the images first."
        )

    def coupling(known: tuple[int, ...], moved: tuple[int, ...], *, fine: bool) -> Coupling:
        """Move whole phases, given whole phases."""
        known, moved = (
            tuple(phase * channels + c for phase in phases for c in range(channels))
            for phases in (known, moved)
        )
        network = convolutional(
            known=len(known),
            free=len(moved) * config.map.free,
            side=(height // 2, width // 2) if fine else (height // 4, width // 4),
            width=config.fine_width if fine else config.width,
            depth=config.fine_depth if fine else config.depth,
            dropout=config.dropout,
            context=context,
        )
        return Coupling(
            channels=4 * channels, known=known, moved=moved, network=network, transform=config.map
        )

    masks = (_MASKS[layer % len(_MASKS)] for layer in range(config.layers))
    coarse = Chain(
        [Squeeze(), *(coupling(*mask, fine=False) for mask in masks), Unsqueeze()],
    )
    return Chain(
        [
            Squeeze(),
            # The other colour of the checkerboard has all its four neighbours among the known.
            coupling((0, 3), (1, 2), fine=True),
            coupling((0,), (3,), fine=True),
            First(channels, coarse),
            Unsqueeze(),
        ]
    )
