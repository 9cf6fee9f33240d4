"""The model card: what a person should know of a model before using it, as Markdown."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from service.interface import Event
from service.manifest import Manifest
from training.checkpoint import Fit
from training.proposal import ProposalConfig
from training.quality import quality

CARD = "card.md"
"""Its name in a bundle."""
DIAGNOSTICS = "diagnostics.png"
"""The name of the picture of what samples leave out and copy, where there is one."""
_QUALITY = "Quality"

_WHAT = {
    "vae": "a latent-variable model: a decoder pushes latent noise to the mean of p(x|z)",
    "flow": "a normalizing flow: one invertible network carries noise to events and events back "
    "to noise, so its density is known by the change of variables",
    "continuous-flow": "a continuous flow: an ordinary differential equation carries noise to "
    "events and events back to noise",
    "gan": "a generative adversarial network: a generator that learnt to fool a critic; it draws "
    "samples and knows no density",
}


_POSTERIORS = {
    "diagonal": ", and an encoder gives the posterior q(z|x) of an event, normal with independent "
    "latents (a variational autoencoder)",
    "full": ", and an encoder gives the posterior q(z|x) of an event, normal with a covariance of "
    "its own (a variational autoencoder)",
    "flow": ", and an encoder gives the posterior q(z|x) of an event as draws of a flow (a "
    "variational autoencoder)",
}


def card(manifest: Manifest, trained: Fit, *, diagnosed: bool = False) -> str:
    """Return the card of a bundle, next to which `samples.png` and `curves.png` lie.

    Args:
        manifest: The bundle's.
        trained: How it was trained.
        diagnosed: Whether `diagnostics.png` lies there too.
    """
    sections = {
        f"{manifest.title}": _introduction(manifest),
        _QUALITY: _quality(manifest, diagnosed),
        "Its density": _density(manifest),
        "Ask for samples": _usage(manifest),
        **({"Integrate": _integration(manifest)} if is_proposal(manifest) else {}),
        "Data": _data(manifest),
        "Training": _training(manifest, trained),
        "Intended use and limits": _limits(manifest),
        "Provenance": _provenance(manifest),
    }
    head, *others = sections.items()
    parts = [f"# {head[0]}\n\n{head[1]}"]
    parts += [f"## {title}\n\n{text}" for title, text in others]
    return "\n\n".join(parts) + "\n"


def with_quality(text: str, manifest: Manifest, *, diagnosed: bool = False) -> str:
    """Return a card with the figures of this manifest; all else stays as it is."""
    section = f"## {_QUALITY}\n\n{_quality(manifest, diagnosed)}\n\n"
    there = re.compile(rf"^## {_QUALITY}\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
    if there.search(text):
        return there.sub(lambda _: section, text, count=1).rstrip("\n") + "\n"
    return f"{text.rstrip()}\n\n{section.rstrip()}\n"


def _quality(manifest: Manifest, diagnosed: bool) -> str:
    picture = f"\n\n![What samples leave out, and what they are near]({DIAGNOSTICS})"
    return quality(manifest) + (picture if diagnosed else "")


def score_name(manifest: Manifest) -> str:
    """Return what the validation score of a model is."""
    return "held-out MMD²" if manifest.family == "gan" else "validation score"


def sample_command(manifest: Manifest) -> str:
    """Return a curl command that asks a service on this machine for sixteen samples."""
    query = f"model={manifest.name}&n=16&seed=7"
    if context := manifest.context:
        ends = zip(context.minimum, context.maximum, strict=True)
        query += "&context=" + ",".join(f"{(low + high) / 2:.4g}" for low, high in ends)
    if manifest.event.kind == "image":
        return f"curl 'localhost:8000/sample?{query}' -H 'Accept: image/png' > samples.png"
    return f"curl 'localhost:8000/sample?{query}'"


def _introduction(manifest: Manifest) -> str:
    event = manifest.event
    kind = _WHAT.get(manifest.family, f"a generative model of the family {manifest.family}")
    kind += _POSTERIORS[manifest.posterior] if manifest.posterior else ""
    if manifest.latent.distribution == "learned":
        kind += "; the distribution of z is learned as well, by a flow of normal noise"
    what = f"`{manifest.name}` version {manifest.version} is {kind}."
    shape = " x ".join(map(str, event.shape))
    if event.kind == "image":
        made = f"It makes images of {shape} (channels, height, width), from 0 (black) to 1"
    else:
        names = f": {', '.join(_features(event))}" if event.features else ""
        made = f"It makes rows of {event.size} features{names}"
    made += f", from {manifest.latent.size} independent standard normals."
    asked = ""
    if manifest.labels:
        asked = f" A sample can be asked for by label: {', '.join(manifest.labels)}."
    if context := manifest.context:
        ranges = (
            f"{name} (from {low:.4g} to {high:.4g} in training)"
            for name, low, high in zip(context.names, context.minimum, context.maximum, strict=True)
        )
        asked = f" Each event is given its context: {', '.join(ranges)}."
    return f"{what} {made}{asked}\n\n![Seeded samples](samples.png)"


def _features(event: Event) -> Iterator[str]:
    """Yield the name of each feature, of a categorical one with what its numbers mean."""
    for index, name in enumerate(event.features):
        kinds = event.categories[index] if event.categories else ()
        told = "; ".join(f"{number} {kind}" for number, kind in enumerate(kinds[:12]))
        more = "; ..." if len(kinds) > 12 else ""
        yield f"{name} ({told}{more})" if kinds else name


_ESTIMATORS = {
    "exact": "Exact: one pass gives the number.",
    "importance": "An estimate: the mean of importance weights over draws from q(z|x). Its "
    "logarithm is too low on average, less so with more draws; the service gives its standard "
    "error. The ELBO is a lower bound of it.",
    "prior": "An estimate: the mean of p(x|z) over draws from p(z). Its logarithm is too low on "
    "average, and far too low unless there are very many draws or few latents; the service gives "
    "its standard error.",
    "dequantisation": "An estimate: the probability of a discrete image is the mean of the flow's "
    "density over uniform noise below one grey level. Its logarithm is too low on average, less "
    "so with more draws; the service gives its standard error.",
    "hutchinson": "An estimate: the divergence of the velocity, which the density needs, is that "
    "along random probes, and of an image there is uniform noise below one grey level besides. "
    "The mean over draws is given with its standard error; of an image it is too low on average, "
    "by what a mean of logarithms is below the logarithm of a mean.",
}


_OF_CATEGORIES = (
    "An estimate: that of a row with categories is the mean of the flow's density over uniform "
    "noise in the bins of those. Its logarithm is too low on average, less so with more draws; the "
    "service gives its standard error."
)


def _density(manifest: Manifest) -> str:
    density = manifest.density
    if density.estimator is None:
        return (
            "None. The model is implicit: it can be sampled, but it cannot say how probable an "
            "event is, and the service answers such a question with 409."
        )
    text = _ESTIMATORS[density.estimator]
    if density.estimator == "dequantisation" and manifest.event.kind == "vector":
        text = _OF_CATEGORIES
    if density.measure:
        text += f" Measure: {density.measure}."
    if density.preprocessing:
        text += f" Preprocessing: {density.preprocessing}. Its Jacobian is part of the density."
    if manifest.ode and manifest.ode.guidance:
        text += f" It is the density with the model's own guidance, {manifest.ode.guidance:g}."
    black = ": an image of plain black may be more probable than any single good sample"
    typical = black if manifest.event.kind == "image" else ""
    return f"{text}\n\nA probable event is not the same as a typical one{typical}."


def _usage(manifest: Manifest) -> str:
    more = ""
    if manifest.labels:
        wanted = min(3, len(manifest.labels) - 1)
        more += "\n\nWith a label:\n\n" + _told(manifest, f'"label": {wanted}')
    if manifest.ode and manifest.ode.guidance is not None:
        more += (
            f"\n\nWith more `guidance` than its own {manifest.ode.guidance:g} a label is more "
            "plainly read, and samples of it are more alike; 0 is the flow as it was learnt. "
            "`/log-density`, `/encode` and `/decode` take it too:\n\n"
        ) + _told(manifest, '"guidance": 1')
    if manifest.rejection:
        more += (
            "\n\nThose that the critic accepts; whether they are better says its table above, by "
            "MMD²:\n\n"
        ) + _told(manifest, '"rejection": true')
    return (
        "```sh\nmake serve\n" + sample_command(manifest) + "\n```\n\n"
        "The same seed gives the same samples, and `start` asks for later rows of the same "
        f"sequence.{more}"
    )


def _told(manifest: Manifest, option: str) -> str:
    """Return a command that asks for samples with an option."""
    return (
        "```sh\ncurl localhost:8000/sample -H 'Content-Type: application/json' \\\n  -d "
        f'\'{{"model": "{manifest.name}", "n": 4, "seed": 7, {option}}}\'\n```'
    )


def is_proposal(manifest: Manifest) -> bool:
    """Return whether the model is a flow that was trained to integrate a function."""
    kind: object = manifest.provenance.recipe.get("model", {}).get("family")
    return kind == "proposal"


def _integration(manifest: Manifest) -> str:
    chosen = manifest.provenance.recipe["model"]
    uniform = chosen.get("uniform", ProposalConfig.model_fields["uniform"].default)
    source = manifest.provenance.recipe["data"]["source"]
    return (
        "The service draws from the flow q alone. A client adds a share of uniform points, so that "
        "the weight f / m of no point exceeds volume x largest f / share, m = (1 - share) q + "
        f"share / volume. With `f` the integrand ({source}), of points (n, dimensions):\n\n"
        f"```python\n{client(manifest.name, uniform)}```"
    )


def client(name: str, uniform: float) -> str:
    """Return the Python code of a client that integrates its own `f` with a proposal."""
    return _CLIENT.replace("NAME", name).replace("SHARE", f"{uniform:g}")


_CLIENT = """import httpx
import numpy as np

api = httpx.Client(base_url="http://localhost:8000", timeout=60)
model, uniform, n = "NAME", SHARE, 20_000
event = api.get(f"/models/{model}").json()["event"]
low, high, dimensions = event["minimum"], event["maximum"], event["shape"][0]
volume = (high - low) ** dimensions

# Some points are uniform in the box, the others are the flow's; of all it tells log q.
generator = np.random.default_rng(7)
spread = generator.uniform(low, high, (generator.binomial(n, uniform), dimensions))
told = api.post("/log-density", json={"model": model, "x": spread.tolist()}).json()
asked = {"model": model, "n": n - len(spread), "seed": 7, "include": ["log_density"]}
drawn = api.post("/sample", json=asked).json()

x = np.concatenate([spread, drawn["x"]])
log_q = np.concatenate([told["log_density"], drawn["log_density"]])
weight = f(x) / ((1 - uniform) * np.exp(log_q) + uniform / volume)
integral, error = float(weight.mean()), float(weight.std() / n**0.5)
print(f"{integral:.4f} ± {error:.4f}, effective {weight.sum() ** 2 / (n * (weight**2).sum()):.3f}")
"""


def _data(manifest: Manifest) -> str:
    provenance = manifest.provenance
    return (
        f"{provenance.data.rstrip('.')}. The validation rows chose the best weights; the test "
        "rows made the table above and nothing else.\n\n"
        f"SHA-256 of all rows and labels: `{provenance.data_sha256}`."
    )


def _training(manifest: Manifest, trained: Fit) -> str:
    provenance = manifest.provenance
    return (
        f"{provenance.parameters:,} parameters, {len(trained.history):,} epochs in "
        f"{_duration(trained.wall_time_s)} on {trained.device}. {_selection(manifest, trained)}\n\n"
        "![Training and validation curves](curves.png)\n\n"
        f"The recipe, overrides included:\n\n```toml\n{toml(provenance.recipe)}```"
    )


def _selection(manifest: Manifest, trained: Fit) -> str:
    """Return which epoch's weights were kept and why, and how sure that is."""
    history, best = trained.history, trained.history[trained.best_epoch - 1]
    planned = manifest.provenance.recipe.get("train", {}).get("epochs", len(history))
    text = (
        f"The weights are those of epoch {best.number}, the best by {score_name(manifest)} "
        f"({best.score:.5g}"
    )
    if best.score_error is not None:
        near = sum(epoch.score <= best.score + best.score_error for epoch in history)
        text += f" ± {best.score_error:.2g}; {near:,} of {len(history):,} epochs are within that"
    text += "), and not by the loss."
    if len(history) < planned:
        text += (
            f" Training stopped {len(history) - best.number:,} epochs later, as none was better."
        )
    return text


def _limits(manifest: Manifest) -> str:
    points = [
        "Made to try, teach and test generative models and their serving. It knows its training "
        "data and nothing else; what it draws has the habits and the gaps of that data.",
        "Samples are fiction. Do not take them for measurements, and do not train or judge a "
        "decision about people with them.",
        "Nobody has tested it for privacy: a sample may come close to a training row.",
    ]
    if manifest.observation:
        points.append(
            "What `decode` and `sample` show by default is the mean of p(x|z), smoother than a "
            "draw from the model."
        )
    if manifest.density.kind == "none":
        points.append(
            "A model without a density may leave out part of its data; good-looking samples do "
            "not prove that all kinds of events are there."
        )
    else:
        points.append(
            "Densities of events unlike the training data are extrapolations, and a flow or VAE "
            "may find strangers more probable than its own data. Not an outlier detector by itself."
        )
    return "\n".join(f"- {point}" for point in points)


def _provenance(manifest: Manifest) -> str:
    provenance = manifest.provenance
    versions = ", ".join(f"{name} {version}" for name, version in provenance.versions.items())
    return "\n".join(
        (
            f"- Created {provenance.created}, seed {provenance.seed}, on {provenance.device}.",
            f"- Commit: {provenance.git_commit or 'unknown'}.",
            f"- Versions: {versions}.",
            f"- Licence of the weights: {manifest.licence}.",
        )
    )


def toml(table: Mapping[str, Any]) -> str:
    """Return a recipe's table as TOML: values, then the tables in it. None is left out."""
    return "".join(_toml(table))


def _toml(table: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in table.items():
        if not isinstance(value, Mapping) and value is not None:
            yield f"{key} = {_value(value)}\n"
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield f"\n[{prefix}{key}]\n"
            yield from _toml(value, f"{prefix}{key}.")


def _value(value: object) -> str:
    # JSON's strings, numbers, booleans and lists are TOML's too.
    return json.dumps(value, ensure_ascii=False)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
