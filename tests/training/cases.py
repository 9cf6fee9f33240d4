"""The table of cases: a tiny model of every kind, beside data that it can learn from.

A new family adds its own here, and the laws of `test_laws.py` run over them.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar, get_args

import numpy as np
import torch
from torch import Tensor, nn

from service.interface import Context, Event
from training.adversarial import Name
from training.bbvi import BBVI, BBVIConfig
from training.continuous import ContinuousFlow
from training.continuous_config import ContinuousFlowConfig
from training.data import Batch, Data, DataConfig, load
from training.family import Family
from training.flow import Flow
from training.flow_config import FlowConfig, Layer
from training.gan import GAN, GANConfig
from training.proposal import Objective, Proposal, ProposalConfig
from training.vae import VAE, VAEConfig

Shaken = TypeVar("Shaken", bound=nn.Module)

FLOW = FlowConfig(layers=2, width=16, depth=1, bins=4)
FINE = {"fine_width": 16, "fine_depth": 1}
FLOW_OF_IMAGES = FLOW.model_copy(update=FINE)
MASKED = FLOW.model_copy(update={"layer": "autoregressive"})
MASKED_AFFINE = FlowConfig(layer="autoregressive", transform="affine", layers=2, width=16, depth=1)
AFFINE = MASKED_AFFINE.model_copy(update={"layer": "coupling"})
BACKWARDS = MASKED.model_copy(update={"layer": "inverse-autoregressive"})
RASTER_BACKWARDS = MASKED_AFFINE.model_copy(
    update={"layer": "inverse-autoregressive", "conditional": True}
)
CONDITIONAL = FLOW.model_copy(update={"conditional": True})
MASKED_CONDITIONAL = MASKED.model_copy(update={"conditional": True})
GLOW = FlowConfig(layer=("actnorm", "mix", "coupling"), layers=2, width=8, depth=1, bins=4)
GLOW_AFFINE = GLOW.model_copy(update={"transform": "affine", "conditional": True})
WHITENED = MASKED.model_copy(update={"whiten": True, "noise": 0.1})
NICE = FLOW.model_copy(update={"transform": "additive"})
COMPOSED = FlowConfig(
    layer=(
        "actnorm",
        "mix",
        Layer(kind="coupling", transform="affine"),
        "coupling",
        Layer(kind="autoregressive", transform="additive"),
        "reverse",
        "inverse-autoregressive",
    ),
    layers=1,
    width=16,
    depth=1,
    bins=4,
)
VAE_OF_IMAGES = VAEConfig(latent=3, width=4)
VAE_OF_FEATURES = VAEConfig(observation="normal", scale="per-feature", latent=3, width=8, depth=2)
BBVI_OF_IMAGES = BBVIConfig(latent=3, width=4, score_steps=5)
BBVI_OF_FEATURES = BBVIConfig(
    gradient="reparametrization", observation="normal", latent=3, width=8, depth=2, score_steps=5
)
BBVI_OF_BITS = BBVI_OF_IMAGES.model_copy(update={"latents": "binary", "latent": 6})
MATCHING = ContinuousFlowConfig(width=16, depth=1, steps=3)
MATCHING_OF_IMAGES = MATCHING.model_copy(update={"width": 4, "steps": 2})
MATCHING_CONDITIONAL = MATCHING.model_copy(update={"conditional": True})
TRANSPORT = MATCHING_CONDITIONAL.model_copy(update={"pairing": "optimal-transport"})
WAVES = MATCHING.model_copy(update={"waves": 6, "frequency": 1.5, "times": "late"})
CONTINUOUS = ContinuousFlowConfig(
    objective="likelihood", width=16, depth=1, solver="rk4", steps=3, likelihood_steps=2
)
GAN_CONFIG = GANConfig(latent=5, width=8, critic_width=8, embedding=4)


def of(
    x: Tensor,
    event: Event | None = None,
    *,
    label: Tensor | None = None,
    context: Tensor | None = None,
    named: Context | None = None,
    mean: np.ndarray | None = None,
    std: np.ndarray | None = None,
) -> Data:
    """Return rows as all three splits; without an event they are features, of these moments."""
    if event is None:
        mean = x.mean(0).numpy() if mean is None else mean
        std = x.std(0).numpy() if std is None else std
    batch = Batch(x, label, context)
    return Data(
        train=replace(batch, row=torch.arange(len(x))),
        validation=batch,
        test=batch,
        event=event or Event(kind="vector", shape=(x.shape[1],)),
        labels=None if label is None else tuple(map(str, range(int(label.max()) + 1))),
        mean=mean,
        std=std,
        description="made up",
        sha256="0" * 64,
        context=named,
    )


def images(
    rows: int = 40, *, shape: tuple[int, ...] = (1, 8, 8), levels: int = 17, classes: int = 0
) -> Data:
    """Return images on their grey levels; with classes, their brightness says which."""
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(rows, *shape, generator=generator)
    label = None
    if classes:
        label = torch.arange(rows) % classes
        x = (x + label.view(-1, 1, 1, 1) / classes) / 2
    x = (x * (levels - 1)).round() / (levels - 1)
    event = Event(kind="image", shape=shape, minimum=0.0, maximum=1.0, levels=levels)
    return of(x, event, label=label)


def vectors(*, mean: np.ndarray, std: np.ndarray, rows: int = 40) -> Data:
    """Return independent normal features."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(rows, len(mean), generator=generator, dtype=torch.float64)
    x = torch.as_tensor(mean) + torch.as_tensor(std) * noise
    return of(x.float(), mean=mean, std=std)


def features() -> Data:
    """Return three features of very different sizes."""
    return vectors(mean=np.array([1.0, -50.0, 3.0]), std=np.array([0.25, 8.0, 1.0]))


def labelled(rows: int = 40, classes: int = 3) -> Data:
    """Return two features whose mean is their class."""
    generator = torch.Generator().manual_seed(1)
    label = torch.arange(rows) % classes
    return of(label[:, None] + torch.randn(rows, 2, generator=generator), label=label)


def contextual(rows: int = 40) -> Data:
    """Return two features whose mean and scale are the two numbers that each row is given."""
    generator = torch.Generator().manual_seed(2)
    low, high = torch.tensor([-3.0, 0.5]), torch.tensor([3.0, 2.0])
    context = low + (high - low) * torch.rand(rows, 2, generator=generator)
    x = context[:, :1] + context[:, 1:] * torch.randn(rows, 2, generator=generator)
    named = Context(names=("where", "scale"), minimum=(-3.0, 0.5), maximum=(3.0, 2.0))
    return of(x, context=context, named=named)


def mixed(rows: int = 40) -> Data:
    """Return a number, a category of three, a number and one of two; the mean is the category."""
    generator = torch.Generator().manual_seed(3)
    chances = torch.tensor([0.2, 0.3, 0.5])
    kind = torch.multinomial(chances, rows, replacement=True, generator=generator)
    other = torch.rand(rows, generator=generator) < 0.25 + 0.25 * kind
    x = torch.stack(
        (
            kind + torch.randn(rows, generator=generator),
            kind,
            2 * other + 0.5 * torch.randn(rows, generator=generator),
            other,
        ),
        dim=1,
    )
    categories = ((), ("low", "mid", "high"), (), ("no", "yes"))
    event = Event(
        kind="vector", shape=(4,), features=("a", "kind", "b", "is"), categories=categories
    )
    return of(x, event, mean=x.mean(0).numpy(), std=x.std(0).numpy())


def shaken(flow: Shaken, scale: float = 0.3) -> Shaken:
    """Return the flow with random weights in place of the identity it starts as."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in flow.parameters():
            inputs = math.prod(parameter.shape[1:])
            parameter.add_(scale * torch.randn_like(parameter) / inputs**0.5)
    return flow


def _vae(config: VAEConfig, data: Data) -> tuple[Family, Data]:
    model = VAE(config, data)
    shaken(model.prior)
    return model, data


def _bbvi(config: BBVIConfig, data: Data) -> tuple[Family, Data]:
    return BBVI(config, data), data


def _flow(data: Data, config: FlowConfig = FLOW, scale: float = 0.3) -> tuple[Family, Data]:
    if data.event.kind == "image" and config.layer == "coupling":
        config = config.model_copy(update=FINE)
    return shaken(Flow(config, data), scale), data


def _continuous(data: Data, config: ContinuousFlowConfig = MATCHING) -> tuple[Family, Data]:
    return shaken(ContinuousFlow(config, data)), data


def _gan(data: Data, config: GANConfig = GAN_CONFIG) -> tuple[Family, Data]:
    return GAN(config, data), data


def _game(options: Mapping[str, Any]) -> tuple[Family, Data]:
    sizes = GAN_OF_FEATURES.model_dump(exclude_unset=True)
    model = GAN(GANConfig(**sizes, **options), labelled())
    shaken(model.critic, 2.0)  # Or every verdict would be within the margins of a hinge.
    return model, labelled()


def integrand(name: str = "camel", *, dimensions: int = 2, rows: int = 40) -> Data:
    """Return points of an integrand that is built in."""
    return load(DataConfig(source=f"integrand:{name}", dimensions=dimensions, rows=rows))


def _proposal(data: Data, objective: Objective) -> tuple[Family, Data]:
    config = ProposalConfig(objective=objective, layers=2, width=16, depth=1, bins=4)
    return shaken(Proposal(config, data)), data


R1 = GAN_CONFIG.model_copy(update={"regulariser": "r1"})
GAN_OF_FEATURES = GANConfig(latent=4, width=8, critic_width=8, depth=2, embedding=4)
KEPT = GAN_CONFIG.model_copy(update={"keep_critic": True, "objective": "least-squares"})
KEPT_OF_FEATURES = GAN_OF_FEATURES.model_copy(update={"keep_critic": True, "objective": "pearson"})
GAMES: dict[str, dict[str, Any]] = {
    name: {"objective": name, **({"critic_features": 3} if name.startswith("mmd") else {})}
    for name in get_args(Name)
}
"""Each objective of a GAN."""
STEEPNESS: dict[str, dict[str, Any]] = {
    "r1": {"regulariser": "r1"},
    "a gradient penalty": {
        "objective": "wasserstein", "regulariser": "gradient-penalty", "penalty": 10.0,
    },
    "the gradient penalty of a witness": {
        "objective": "mmd-rational-quadratic", "regulariser": "gradient-penalty",
    },
    "clipped weights": {"objective": "wasserstein", "regulariser": "clip", "bound": 0.1},
    "a scaled MMD": {"objective": "mmd-gaussian", "regulariser": "scaling", "critic_features": 3},
    "nothing that keeps it from being steep": {"objective": "hinge", "regulariser": "none"},
}  # fmt: skip
"""Each regulariser of a GAN besides the usual one."""
GREYS = VAE_OF_IMAGES.model_copy(update={"observation": "normal"})
LEVELS = VAE_OF_IMAGES.model_copy(update={"observation": "logistic"})
LABELLED = VAE_OF_IMAGES.model_copy(update={"conditional": True})
FULL_LABELLED = LABELLED.model_copy(update={"posterior": "full"})
FULL_OF_FEATURES = VAE_OF_FEATURES.model_copy(update={"posterior": "full"})
FLOW_POSTERIOR = VAE_OF_IMAGES.model_copy(
    update={"posterior": "flow", "flow_layers": 2, "flow_width": 8, "flow_context": 4}
)
FLOW_LABELLED = FLOW_POSTERIOR.model_copy(update={"conditional": True})
FLOW_PRIOR = VAE_OF_IMAGES.model_copy(update={"prior": "flow", "prior_layers": 2, "prior_width": 8})
FLOWS = FLOW_LABELLED.model_copy(update={"prior": "flow", "prior_layers": 2, "prior_width": 8})
FULL_LEARNED = FULL_OF_FEATURES.model_copy(update={"prior": "flow", "objective": "dreg"})
WEIGHTED = VAE_OF_IMAGES.model_copy(update={"objective": "iwae", "draws": 4})
DOUBLY = WEIGHTED.model_copy(update={"objective": "dreg"})

CASES: dict[str, Callable[[], tuple[Family, Data]]] = {
    "vae of binary images": lambda: _vae(VAE_OF_IMAGES, images()),
    "vae of binary images of odd size": lambda: _vae(VAE_OF_IMAGES, images(shape=(3, 7, 6))),
    "vae of grey images": lambda: _vae(GREYS, images()),
    "vae of grey levels": lambda: _vae(LEVELS, images()),
    "vae of features": lambda: _vae(VAE_OF_FEATURES, features()),
    "vae with labels": lambda: _vae(LABELLED, images(classes=3)),
    "vae of full covariance with labels": lambda: _vae(FULL_LABELLED, images(classes=3)),
    "vae of features of full covariance": lambda: _vae(FULL_OF_FEATURES, features()),
    "vae with a flow posterior": lambda: _vae(FLOW_POSTERIOR, images()),
    "vae with a flow posterior and labels": lambda: _vae(FLOW_LABELLED, images(classes=3)),
    "vae with a learned prior": lambda: _vae(FLOW_PRIOR, images()),
    "vae with a flow for both and labels": lambda: _vae(FLOWS, images(classes=3)),
    "vae of full covariance with a learned prior": lambda: _vae(FULL_LEARNED, features()),
    "vae by importance weights": lambda: _vae(WEIGHTED, images()),
    "vae by doubly reparametrised gradients": lambda: _vae(DOUBLY, images()),
    "bbvi of images": lambda: _bbvi(BBVI_OF_IMAGES, images()),
    "bbvi of features": lambda: _bbvi(BBVI_OF_FEATURES, features()),
    "bbvi of images with binary latents": lambda: _bbvi(BBVI_OF_BITS, images()),
    "flow of images": lambda: _flow(images()),
    "flow of features": lambda: _flow(features()),
    "flow of two features": lambda: _flow(vectors(mean=np.zeros(2), std=np.ones(2))),
    "flow of features by affine couplings": lambda: _flow(features(), AFFINE),
    "flow of images by affine couplings": lambda: _flow(images(), AFFINE),
    "flow of features by masked splines": lambda: _flow(features(), MASKED),
    "flow of features by masked affine maps": lambda: _flow(features(), MASKED_AFFINE),
    "flow of features by masked splines backwards": lambda: _flow(features(), BACKWARDS),
    "flow of images by masked splines": lambda: _flow(images(shape=(3, 3, 5)), MASKED),
    "flow of images by masked affine maps backwards with labels": lambda: _flow(
        images(classes=3), RASTER_BACKWARDS
    ),
    "flow of images with labels": lambda: _flow(images(classes=3), CONDITIONAL),
    "flow of features with labels": lambda: _flow(labelled(), CONDITIONAL),
    "flow of features by masked splines with labels": lambda: _flow(labelled(), MASKED_CONDITIONAL),
    "flow of numbers and categories": lambda: _flow(mixed()),
    "flow of features with a context": lambda: _flow(contextual(), CONDITIONAL),
    "flow of features by masked splines with a context": lambda: _flow(
        contextual(), MASKED_CONDITIONAL
    ),
    "continuous flow with a context": lambda: _continuous(contextual(), MATCHING_CONDITIONAL),
    "glow of images": lambda: _flow(images(), GLOW),
    "glow of images in colour with labels": lambda: _flow(
        images(shape=(3, 4, 8), classes=3), GLOW_AFFINE, 0.1
    ),
    "flow of whitened features": lambda: _flow(features(), WHITENED),
    "flow of features by additive couplings": lambda: _flow(features(), NICE),
    "flow of features by a list of layers": lambda: _flow(features(), COMPOSED, 0.1),
    "proposal by the forward divergence": lambda: _proposal(integrand(), "forward-kl"),
    "proposal by the reverse divergence": lambda: _proposal(integrand(), "reverse-kl"),
    "proposal by the variance": lambda: _proposal(integrand(dimensions=3), "chi-square"),
    "continuous flow of features": lambda: _continuous(features()),
    "continuous flow that sees waves": lambda: _continuous(features(), WAVES),
    "continuous flow with labels": lambda: _continuous(labelled(), MATCHING_CONDITIONAL),
    "continuous flow by optimal transport": lambda: _continuous(labelled(), TRANSPORT),
    "continuous flow by likelihood": lambda: _continuous(features(), CONTINUOUS),
    "continuous flow of one feature": lambda: _continuous(
        vectors(mean=np.zeros(1), std=np.ones(1)), CONTINUOUS
    ),
    "continuous flow of many features": lambda: _continuous(
        vectors(mean=np.zeros(70), std=np.ones(70))
    ),
    "continuous flow of images": lambda: _continuous(images(8), MATCHING_OF_IMAGES),
    "continuous flow of larger images": lambda: _continuous(
        images(8, shape=(1, 12, 12)), MATCHING_OF_IMAGES
    ),
    "continuous flow of images in colour with labels": lambda: _continuous(
        images(8, shape=(3, 7, 9), classes=3),
        MATCHING_OF_IMAGES.model_copy(update={"conditional": True}),
    ),
    "gan with labels": lambda: _gan(images(classes=3)),
    "gan without labels": lambda: _gan(images()),
    "gan with r1": lambda: _gan(images(classes=3), R1),
    "gan in colour": lambda: _gan(images(shape=(3, 8, 8), classes=3)),
    "gan of MNIST's size": lambda: _gan(images(6, shape=(1, 28, 28), classes=3)),
    "gan of odd size": lambda: _gan(images(shape=(1, 7, 9), classes=3)),
    "gan of features": lambda: _gan(features(), GAN_OF_FEATURES),
    "gan of features with labels": lambda: _gan(labelled(), GAN_OF_FEATURES),
    "gan of features that keeps its critic": lambda: _gan(labelled(), KEPT_OF_FEATURES),
    "gan of images that keeps its critic": lambda: _gan(images(classes=3), KEPT),
    "gan of images by an MMD with labels": lambda: _gan(
        images(classes=3),
        GAN_CONFIG.model_copy(update={"objective": "mmd-distance", "critic_features": 3}),
    ),
}
CASES |= {f"gan by {name}": partial(_game, options) for name, options in GAMES.items()}
CASES |= {f"gan with {how}": partial(_game, options) for how, options in STEEPNESS.items()}

EXPORTED = (
    "vae of binary images",
    "vae of features",
    "vae with a learned prior",
    "bbvi of images with binary latents",
    "flow of images",
    "flow of features",
    "flow of features by masked splines",
    "flow of images by masked splines",
    "flow of images with labels",
    "flow of features by masked splines with labels",
    "flow of features with a context",
    "flow of numbers and categories",
    "continuous flow with a context",
    "glow of images",
    "glow of images in colour with labels",
    "flow of whitened features",
    "flow of features by additive couplings",
    "flow of features by a list of layers",
    "proposal by the variance",
    "continuous flow that sees waves",
    "continuous flow with labels",
    "continuous flow of images",
    "continuous flow of larger images",
    "gan with labels",
    "gan without labels",
    "gan of features",
    "gan of features with labels",
    "gan of features that keeps its critic",
    "gan of images that keeps its critic",
)
"""Those whose graphs the suite exports, which takes seconds: one of each kind."""


def case(label: str) -> tuple[Family, Data]:
    """Return a case's model in evaluation mode, the same each time, and its data."""
    torch.manual_seed(0)
    family, data = CASES[label]()
    return family.eval(), data
