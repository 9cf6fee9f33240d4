"""What samples are like beside test rows, and what training rows are like beside the same.

The second of each pair of figures is what a perfect model would get: it has the bias, the noise and
the features of the first. (Of a model that is told a context a little more: training rows have
about that of a test row, samples the same.) Of `ROWS` rows at most, whatever the family.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from scipy.spatial import KDTree
from torch import Tensor, nn

from service.manifest import Figure
from training import extractor
from training.classifier import read, recognised
from training.collapse import by_classes, by_modes
from training.data import Batch, Data
from training.discrepancy import Discrepancy
from training.family import Family
from training.features import Distance, frechet, kernel_distance, sliced_wasserstein
from training.kernels import LEAST_UNIT, SCALES, energy, mean_squared_distance, rational_quadratics
from training.manifolds import COUNTED, NEAREST, copying, support
from training.representation import labels, share_error
from training.sampling import sample
from training.two_sample import DRAWS, Verdict, classifier_test, mmd_test

ROWS = 2000
"""Rows of each sample, as most costs are their square."""
LEAST_ROWS = 20
"""Rows with which anything but MMD^2 can be said."""
READS = 0.9
"""Share of test rows whose label the named extractor must read to be believed of this data: it has
never seen clothes, whose classes may have the same names."""
NEIGHBOURS = 32
"""Training rows of the nearest contexts, of which the first that is not taken is compared with."""
BESIDE = "the row to compare with"


@dataclass(frozen=True)
class Features:
    """The numbers of an event that figures are of, and what they are called."""

    read: Callable[[Tensor], Float[Tensor, "rows feature"]]
    name: str
    reader: nn.Module | None = None
    """The classifier whose features these are: it reads labels."""


@dataclass(frozen=True)
class Compared:
    """What was compared, for a picture of it: samples and as many test rows, and training rows.

    Args:
        data: Of which the rows are.
        samples, test: Events.
        of_samples, of_test, of_train: Their features; the last of all training rows.
        features: What these are.
    """

    data: Data
    samples: Float[Tensor, "rows ..."]
    test: Float[Tensor, "rows ..."]
    of_samples: Float[Tensor, "rows feature"]
    of_test: Float[Tensor, "rows feature"]
    of_train: Float[Tensor, "others feature"]
    features: Features


def features_of(data: Data, test: Batch, trained: Callable[[], nn.Sequential]) -> Features:
    """Return what to compare images and vectors by.

    - Digits of MNIST's size: the features of the named extractor, if it reads their labels.
    - Other images that have labels: those of a classifier that was trained on the training split.
    - Else the numbers themselves. Vectors are few numbers, and a classifier would drop of them
      what does not tell classes apart.

    Args:
        data: Events.
        test: Rows to try the named extractor on.
        trained: Gives the classifier, if it is asked for.
    """
    if data.event.kind == "image" and data.labels:
        if data.event.shape == extractor.SHAPE and len(data.labels) == extractor.CLASSES:
            network, known = extractor.load()
            if recognised(network, test) >= READS * len(test):
                return Features(
                    _last(network),
                    f"the {known.features} features of {known.name} ({known.sha256[:8]})",
                    network,
                )
        classifier = trained()
        read_raw = _last(classifier)
        # As those of the named extractor, of mean square 1.
        size = read_raw(data.train.x).square().mean().sqrt()
        name = "the features of a classifier trained on the training split"
        return Features(lambda x: read_raw(x) / size, name, classifier)
    return Features(lambda x: numbers(data, x), _numbers(data))


def _last(network: nn.Sequential) -> Callable[[Tensor], Tensor]:
    """Return a function to what a network's last layer sees."""
    return lambda x: read(network[:-1], x)


def _numbers(data: Data) -> str:
    return "pixels" if data.event.kind == "image" else "standardised features"


def numbers(data: Data, x: Float[Tensor, "rows ..."]) -> Float[Tensor, "rows feature"]:
    """Return events as rows of numbers around 0 and 1; an image's pixels are that already."""
    x = x.flatten(1)
    if data.mean is None or data.std is None:
        return x
    return (x - torch.as_tensor(data.mean).to(x)) / torch.as_tensor(data.std).to(x)


def comparisons(
    model: Family,
    data: Data,
    test: Batch,
    features: Callable[[], Features],
    seed: int,
    show: Callable[[Compared], None] = lambda _: None,
) -> Iterator[Figure]:
    """Yield figures of samples against test rows, each with the same of training rows behind it.

    Args:
        model: In evaluation mode.
        data: Whose training split is compared too, and searched for what samples may be copies of.
        test: The rows to judge by.
        features: Gives what to compare by, if there are rows enough.
        seed: Of the samples, and of all draws.
        show: Told of what is compared, if there are rows enough.
    """
    rows = min(len(test), len(data.train), ROWS)
    drawn = sample(model, rows=rows, seed=seed, condition=model.condition(test[:rows])).x
    held_out, train = test.x[:rows], data.train.x
    chosen = partners(data.train, test[:rows], told=model.condition(test[:rows]))
    shown = model.interface.event.kind == "image" and model.interface.observation
    what = "samples are the means E[x|z]; " if shown else ""
    yield from _beside(
        by_numbers(data, drawn, held_out, seed=seed),
        by_numbers(data, train[chosen], held_out, seed=seed),
        what,
    )
    if rows < LEAST_ROWS:
        return
    seen = features()
    known, ours, theirs = (seen.read(each) for each in (train, drawn, held_out))
    yield from _beside(
        by_features(ours, theirs, name=seen.name, seed=seed),
        by_features(known[chosen], theirs, name=seen.name, seed=seed),
        what,
    )
    # Some training rows are looked for among the others, of which none is a copy.
    sought = chosen[: len(known) // 2]
    others = torch.ones(len(known), dtype=torch.bool).index_fill(0, sought, False)
    yield from _beside(
        by_neighbours(ours, theirs, known, name=seen.name),
        by_neighbours(known[sought], theirs, known[others], name=seen.name),
        what,
    )
    compared = Compared(data, drawn, held_out, ours, theirs, known, seen)
    yield from _beside(by_kinds(compared, drawn), by_kinds(compared, train[chosen]), what)
    show(compared)


def partners(train: Batch, test: Batch, *, told: Tensor | None) -> Int[Tensor, " rows"]:
    """Return training rows to compare with samples, each of them once.

    Args:
        train: Of these.
        test: As many as these.
        told: What the model is told of the test rows. Training rows then have the same labels, as
            far as there are enough of each, or contexts near by.
    """
    free = torch.ones(len(train), dtype=torch.bool)
    found = torch.full((len(test),), -1)
    if told is not None and told.is_floating_point():
        found = _nearest(train, told)
    elif told is not None:
        there = labels(train)
        for label in told.unique():
            places, rows = (torch.nonzero(each == label)[:, 0] for each in (told, there))
            found[places[: len(rows)]] = rows[: len(places)]
    free[found[found >= 0]] = False
    found[found < 0] = torch.nonzero(free)[: int((found < 0).sum()), 0]
    return found


def _nearest(train: Batch, context: Float[Tensor, "rows number"]) -> Int[Tensor, " rows"]:
    """Return for each context a training row whose own is near, and -1 where those are taken."""
    if train.context is None:
        raise ValueError("data: a model that is told a context learns of rows that have one")
    scale = train.context.std(0).clamp(min=LEAST_UNIT)
    tree = KDTree((train.context / scale).numpy())
    nearest = tree.query((context.cpu() / scale).numpy(), k=min(NEIGHBOURS, len(train)))[1]
    found, taken = torch.full((len(context),), -1), set[int]()
    for place, candidates in enumerate(nearest.reshape(len(context), -1).tolist()):
        if free := [row for row in candidates if row not in taken]:
            found[place] = free[0]
            taken.add(free[0])
    return found


def _beside(
    of_samples: Iterator[Figure], of_training: Iterator[Figure], what: str
) -> Iterator[Figure]:
    """Yield the figures in pairs, under their names and with their notes."""
    for ours, theirs in zip(of_samples, of_training, strict=True):
        # The oldest of these figures has kept its name.
        rows, ends = ("", " to test data") if ours.name == "MMD²" else (" rows", "")
        name = f"{ours.name} of samples{ends}"
        yield ours.model_copy(update={"name": name, "note": what + ours.note})
        name = f"{theirs.name} of training{rows}{ends}"
        yield theirs.model_copy(update={"name": name, "note": BESIDE})


def by_numbers(data: Data, x: Tensor, test: Tensor, *, seed: int) -> Iterator[Figure]:
    """Yield MMD^2 and, of rows enough, the other figures of the numbers themselves."""
    # Of all training rows: so that figures of several models are of one kernel.
    unit = mean_squared_distance(numbers(data, data.train.x))
    x, test = numbers(data, x), numbers(data, test)
    lengths = ", ".join(f"{scale * unit:.3g}" for scale in SCALES)
    where = _numbers(data)
    found = mmd_test(test, x, rational_quadratics(unit), seed=seed)
    note = (
        f"unbiased, closed-form error; rational-quadratic kernels on {where} at squared lengths "
        f"{lengths}"
    )
    yield _value("MMD²", found, found.rows, note)
    if len(x) < LEAST_ROWS:
        return
    yield _chance("MMD² p-value", found)
    distance = mmd_test(test, x, energy, seed=seed)
    yield _value("energy distance", distance, distance.rows, f"unbiased; on {where}")
    yield _chance("energy p-value", distance)
    sliced = sliced_wasserstein(test, x, seed=seed)
    note = f"W_1, error over directions only; on {where}"
    yield _value("sliced Wasserstein", sliced, len(x), note)


def by_features(x: Tensor, test: Tensor, *, name: str, seed: int) -> Iterator[Figure]:
    """Yield C2ST, KID, FID, precision, recall, density and coverage."""
    told = classifier_test(test, x, seed=seed)
    note = f"held-out rows told apart; by {name}"
    yield _value("C2ST accuracy", told, told.rows, note, unit="fraction")
    yield _chance("C2ST p-value", told)
    yield _value("KID", kernel_distance(test, x), len(x), f"unbiased; of {name}")
    distance = frechet(test, x)
    note = f"of it bias: {distance.bias:.2g}; of {name}, so no figure of Inception's"
    yield _value("FID", distance, len(x), note)
    found = support(x, test)
    for what, value, error, note in (
        ("precision", found.precision, None, f"k = {NEAREST}, error as if balls were given"),
        ("recall", found.recall, None, f"k = {NEAREST}, error as if balls were given"),
        ("density", found.density, found.density_error, f"k = {COUNTED}; like the data: 1"),
        ("coverage", found.coverage, None, f"k = {COUNTED}, error as if balls were given"),
    ):
        error = share_error(round(value * len(x)), len(x)) if error is None else error
        unit = "" if what == "density" else "fraction"
        yield Figure(
            name=what,
            value=value,
            standard_error=error,
            n=len(x),
            unit=unit,
            note=f"{note}; of {name}",
        )


def by_neighbours(x: Tensor, test: Tensor, train: Tensor, *, name: str) -> Iterator[Figure]:
    """Yield whether rows are nearer to training rows than test rows are."""
    found = copying(x, test, train)
    yield Figure(
        name="C_T",
        value=found.z,
        standard_error=1.0,
        n=len(x),
        unit="z",
        note=f"far below 0: copies, or ever the most usual; nearer to a training row than a test "
        f"row is: {found.share:.3f} of them; by {name}, among {len(train):,} training rows",
    )


def by_kinds(compared: Compared, x: Tensor) -> Iterator[Figure]:
    """Yield which modes or classes rows are of, where it is known which there are."""
    data, seen = compared.data, compared.features
    if data.mixture:
        yield from by_modes(x, data.mixture)
    elif seen.reader and data.labels:
        name = seen.name.partition(" features of ")[2]
        yield from by_classes(x, compared.test, seen.reader, data.labels, name=name)


def _value(
    name: str, found: Verdict | Discrepancy | Distance, n: int, note: str, unit: str = ""
) -> Figure:
    return Figure(
        name=name,
        value=found.value,
        standard_error=found.standard_error,
        n=n,
        unit=unit,
        note=note,
    )


def _chance(name: str, found: Verdict) -> Figure:
    return Figure(
        name=name,
        value=found.p_value,
        standard_error=found.p_error,
        n=found.rows,
        note=f"of as large a value, were both of one distribution; {DRAWS} draws",
    )
