"""Normalizing flows: invertible networks with a density that is known exactly.

Rows of features pass through couplings that move one half of the features after the other, or
through triangular maps. Images go from fine to coarse (`coarse.py`), or through triangular maps
pixel by pixel. A list of layers is taken as it is, of images at several scales (`glow.py`).

Source: Durkan et al. 2019, arXiv:1906.04032 (spline couplings); Dinh et al. 2017, 1605.08803
(affine ones, logit); Papamakarios et al. 2017, 1705.07057 (triangular); Rothfuss et al. 2019,
1907.08982 (noise in training rows).
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from service.interface import DEFAULT_DRAWS, Density, Event, Interface, Latent, Role
from training.bounds import log_mean
from training.box import Box
from training.coarse import coarse_to_fine
from training.conditioner import Sizes
from training.coupling import Bijection, Chain, Standardise, with_digits
from training.data import Batch, Data
from training.dequantise import Columns, Dequantise
from training.family import Call, Family, Nats, Pixels, Score, Turn
from training.flow_config import FlowConfig, check
from training.glow import multi_scale, of_features
from training.linear import ActNorm, Whiten
from training.networks import normal_log_prob
from training.told import Told
from training.triangular import Flat


class Flow(Family):
    """An invertible network between events x and standard normal noise z of the same shape.

    Args:
        config: Sizes.
        data: Whose event, mean and standard deviation the network is built for, and of a
            conditional one whose labels or context.

    Raises:
        ValueError: The event is one number, a continuous image, or an image whose sides cannot be
            halved so often; a layer or an option is not for such events; or there is nothing to be
            told.
    """

    def __init__(self, config: FlowConfig, data: Data) -> None:
        super().__init__()
        self.config = config
        self.event = data.event
        self.told = Told(data, conditional=config.conditional)
        self.dequantise: Dequantise | Columns | None = None
        check(config, data)
        if data.event.kind == "image":
            self.dequantise = _dequantise(config, data.event)
            self.network: Bijection = _image_network(config, data.event, context=self.told.size)
        else:
            first = _first(config, data)
            if isinstance(first, Columns):
                # As many as the service takes: its anomaly scores compare like with like.
                self.dequantise, self.usual_draws = first, DEFAULT_DRAWS
            if config.noise:
                noise = config.noise * torch.as_tensor(data.std).float()
                self.register_buffer("noise", noise, persistent=False)
            layers = _of_features(config, data, context=self.told.size)
            self.network = Chain([*layers] if isinstance(first, Columns) else [first, *layers])

    @property
    def interface(self) -> Interface:
        """What is served: an exact density, or where x has gaps its mean over noise in those."""
        event, given, noise = self.event, self.told.what, self.config.noise
        if self.dequantise is None:
            density = Density(
                kind="exact",
                estimator="exact",
                measure="per unit of x" + given,
                preprocessing=(
                    "whitened with the mean and covariance of the training rows"
                    if self.config.whiten
                    else "standardised with the mean and deviation of the training rows"
                )
                + (f", learned with noise of {noise:g} deviations in them" if noise else ""),
            )
        elif isinstance(self.dequantise, Columns):
            density = Density(
                kind="estimate",
                estimator="dequantisation",
                measure=f"per unit of the numbers in x, and probability of its categories{given}",
                preprocessing=(
                    "numbers standardised with the mean and deviation of the training rows; of k "
                    "categories y = (number + noise) / k, then the logit of alpha + (1 - 2 alpha) "
                    f"y with alpha = {self.config.alpha}"
                ),
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

    @torch.no_grad()
    def prepare(self, batch: Batch) -> None:
        """Let the layers that begin with the moments of a batch have them."""
        if any(isinstance(part, ActNorm) for part in self.modules()):
            self._loss(batch)

    def turns(self) -> tuple[Turn, ...]:
        """Return the one move: maximum likelihood over all parameters."""
        return (Turn("likelihood", tuple(self.parameters()), self._loss),)

    def score(self, batch: Batch) -> Score:
        """Return the mean negative log-density in nats."""
        return Score.mean(-self._log_density(batch))

    def nats(self, batch: Batch, draws: int) -> dict[str, Nats]:
        """Return each event's negative log-density, of grey levels or categories by noise in them.

        That is the log of a mean over draws, an upper bound in expectation (Burda et al. 2016,
        arXiv:1509.00519).
        """
        if self.dequantise is None:
            return {"negative log-density": Nats(-self._log_density(batch))}
        found = [self._log_density(batch).double() for _ in range(draws)]
        nats = -log_mean(torch.stack(found, dim=1))
        note = f"an upper bound on average: dequantisation noise, draws per event: {draws}"
        return {"negative log-density": Nats(nats, note)}

    def encode(
        self, x: Float[Tensor, "batch ..."], *inputs: Tensor
    ) -> tuple[Float[Tensor, "batch ..."], Float[Tensor, " batch"]]:
        """Return z and log |det dz/dx|, such that log N(z) plus it is the log-density.

        Args:
            x: Events in the data's own units; images and categories are rounded.
            inputs: The label or the context, if the flow is conditional; then of images and
                categories the noise, which is the place within each level, uniform in [0, 1).
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
        """Return log p(x) in nats; of levels or categories one draw, whose exp averages to p."""
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
            "decode": Pixels(decode) if self.event.kind == "image" else decode,
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
        if self.config.noise:
            noise = self.get_buffer("noise") * torch.randn_like(batch.x)
            batch = replace(batch, x=batch.x + noise)
        nats = -self._log_density(batch).mean()
        return {"loss": nats, "bits_per_dim": nats.detach() / (self.event.size * math.log(2))}


def _dequantise(config: FlowConfig, event: Event) -> Dequantise:
    """Return the way from grey levels to the box of the splines."""
    if event.levels is None:
        raise ValueError("model.family: a flow of images needs grey levels; set data.levels")
    return Dequantise(levels=event.levels, alpha=config.alpha, bound=config.bound)


def _of_features(config: FlowConfig, data: Data, *, context: int) -> Iterator[Bijection]:
    """Return the layers of features."""
    features = data.event.size
    if features < 2:
        raise ValueError("model.family: a flow needs two features or more; got one")
    return of_features(config.steps, features, config.sizes(context))


def _first(config: FlowConfig, data: Data) -> Bijection | Columns:
    """Return what brings features to mean 0 and variance 1, or into the box of the splines."""
    if data.mean is None or data.std is None:
        raise ValueError("data: a vector comes with the mean and deviation of its features")
    mean, std = (torch.as_tensor(each, dtype=torch.float32) for each in (data.mean, data.std))
    if config.whiten:
        return Whiten(data.train.x, config.noise)
    if data.integrand is not None:
        return Box(data.integrand.low, data.integrand.high)
    if data.event.categories:
        counts = [len(names) for names in data.event.categories]
        return Columns(mean, std, counts, alpha=config.alpha, bound=config.bound)
    return Standardise(mean, std)


def _image_network(config: FlowConfig, event: Event, *, context: int) -> Bijection:
    """Return the flow from fine to coarse, pixel by pixel, or by a list at several scales."""
    sizes = config.sizes(context)
    if not isinstance(config.layer, str):
        return multi_scale(config.steps, event.shape, scales=config.scales, sizes=sizes)
    if config.layer != "coupling":
        return Flat(Chain([*of_features(config.steps, event.size, sizes)]), event.shape)
    fine: Sizes = {**sizes, "width": config.fine_width, "depth": config.fine_depth}
    return coarse_to_fine(
        event.shape,
        layers=config.layers,
        transform=config.map(config.transform),
        coarse=sizes,
        fine=fine,
    )
