"""Pictures of a model's samples, as matplotlib figures, and how a figure becomes a file."""

import io
import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from PIL import Image
from torch import Tensor

from service.interface import Event
from training.data import Batch
from training.family import Family
from training.sampling import sample

COLUMNS = 8
"""Images in a row of the grid."""
UNSEEN = 0.5
"""Grey levels by which fewer colours may be off on average. Half the bytes are worth it."""
LABELS = 16
"""Rows of the grid at most, where each shows one label."""
CONTEXTS = 8
"""Of how many held-out rows the contexts are averaged over, where a density is drawn."""
TILE = 64
"""Pixels that an image of the grid takes, at least: small images are enlarged whole times."""
POINTS = 2000
"""Samples in a scatter plot or a histogram."""
MARGINALS = 12
"""Features whose histogram is drawn, at most."""
NAMED = 6
"""Categories whose names stand below their bars, at most."""
GRID = 200
"""Points a side of the density's heat map."""
DECADES = 2.5
"""Of a logarithmic axis, up to which not only powers of ten are named."""
DATA, MODEL = "#4a4a4a", "#c8442b"
"""Colours of data and of samples, the same in every picture."""


@torch.no_grad()
def draw_samples(model: Family, rows: Batch, *, seed: int = 0) -> Figure:
    """Return a picture of seeded samples: a grid of images, or samples beside held-out rows."""
    model.eval()
    event = model.interface.event
    if event.kind == "image":
        return _image_grid(model, rows, seed)
    x = held_out(rows)
    what = "data" if rows.value is None else "integrand"
    drawn = sample(model, rows=POINTS, seed=seed, condition=_contexts(model, rows, POINTS))
    if event.size == 2:
        return _scatter(model, x, drawn.x.numpy(), rows, what=what)
    return _histograms(x, drawn.x.numpy(), event, what=what)


def held_out(batch: Batch) -> Float[np.ndarray, "rows feature"]:
    """Return rows to draw samples beside; of an integrand those points that it would choose.

    Among uniform points these are drawn again by their values, and a large one more than once.
    """
    if batch.value is None or not batch.value.any():
        return batch.x[:POINTS].cpu().numpy()
    generator = torch.Generator().manual_seed(0)
    chosen = torch.multinomial(batch.value.cpu(), POINTS, replacement=True, generator=generator)
    return batch.x.cpu()[chosen].numpy()


def _contexts(model: Family, rows: Batch, count: int) -> Tensor | None:
    """Return what the model is told of so many samples, if it is contexts: those of some rows."""
    if rows.context is None or model.interface.context is None:
        return None
    return rows.context.cpu()[torch.arange(count) % len(rows)]


def _image_grid(model: Family, held: Batch, seed: int) -> Figure:
    """Return 8 x 8 images, or a row of 8 for each label."""
    interface = model.interface
    names = (interface.labels or ())[:LABELS]
    rows = len(names) or COLUMNS
    told = _contexts(model, held, rows * COLUMNS)
    if names:
        told = torch.arange(rows).repeat_interleave(COLUMNS)
    x = sample(model, rows=rows * COLUMNS, seed=seed, condition=told).x
    tiled = mosaic(x.permute(0, 2, 3, 1).numpy(), columns=COLUMNS)
    margin = 0.0 if not names else 0.13 * max(len(name) for name in names) + 0.15
    height, width = (side / 100 for side in tiled.shape[:2])
    figure = Figure(figsize=(width + margin, height), dpi=100, facecolor="white")
    axes = figure.add_axes((margin / (width + margin), 0, width / (width + margin), 1))
    axes.imshow(tiled, cmap="gray", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
    axes.set_axis_off()
    for row, name in enumerate(names):
        y = 1 - (row + 0.5) / rows
        figure.text(margin / 2 / (width + margin), y, name, ha="center", va="center")
    return figure


def mosaic(
    images: Float[np.ndarray, "rows height width channel"], *, columns: int
) -> Float[np.ndarray, "tall wide channel"]:
    """Return the images side by side on white, with a gap, enlarged by a whole factor."""
    factor = max(1, math.ceil(TILE / max(images.shape[1:3])))
    gap = 4
    large = images.clip(0, 1).repeat(factor, axis=1).repeat(factor, axis=2)
    large = np.pad(large, ((0, 0), (gap, 0), (gap, 0), (0, 0)), constant_values=1.0)
    count, height, width, channels = large.shape
    tiles = large.reshape(count // columns, columns, height, width, channels)
    return tiles.swapaxes(1, 2).reshape(count // columns * height, columns * width, channels)


def _scatter(
    model: Family,
    x: Float[np.ndarray, "rows 2"],
    drawn: Float[np.ndarray, "samples 2"],
    held: Batch,
    *,
    what: str,
) -> Figure:
    """Return held-out rows beside samples and, where there is an exact density, its map."""
    exact = model.interface.density.kind == "exact"
    figure = Figure(figsize=(12.6 if exact else 8.4, 4.2), dpi=100, layout="constrained")
    panels = figure.subplots(1, 3 if exact else 2, sharex=True, sharey=True)
    low, high = np.quantile(x, 0.0005, axis=0), np.quantile(x, 0.9995, axis=0)
    pad = 0.15 * (high - low)
    names = model.interface.event.features or ("x₁", "x₂")
    for axes, rows, title, colour in (
        (panels[0], x, f"held-out {what}", DATA),
        (panels[1], drawn, "samples", MODEL),
    ):
        axes.scatter(rows[:, 0], rows[:, 1], s=4, alpha=0.5, color=colour, linewidths=0)
        axes.set_title(f"{title} ({len(rows)})")
        axes.set_xlabel(names[0])
    panels[0].set_ylabel(names[1])
    panels[0].set_xlim(low[0] - pad[0], high[0] + pad[0])
    panels[0].set_ylim(low[1] - pad[1], high[1] + pad[1])
    if exact:
        _heat_map(model, held, panels[2], low - pad, high + pad)
    return figure


def _heat_map(
    model: Family,
    held: Batch,
    axes: Axes,
    low: Float[np.ndarray, " 2"],
    high: Float[np.ndarray, " 2"],
) -> None:
    """Draw exp(log p(x)) over a rectangle."""
    device = next(model.parameters()).device
    across, up = (
        torch.linspace(float(start), float(end), GRID) for start, end in zip(low, high, strict=True)
    )
    points = torch.cartesian_prod(across, up).to(device)
    rows = torch.cat([_density(model, part, held) for part in points.split(4096)])
    density = rows.reshape(GRID, GRID).T.cpu().numpy()
    image = axes.imshow(
        density,
        extent=(low[0], high[0], low[1], high[1]),
        origin="lower",
        aspect="auto",
        cmap="magma",
        # A thin ridge would leave the rest black.
        vmax=float(np.quantile(density, 0.995)),
    )
    axes.set_title("density p(x)")
    axes.figure.colorbar(image, ax=axes, shrink=0.9)


def _density(
    model: Family, points: Float[Tensor, "points 2"], held: Batch
) -> Float[Tensor, " points"]:
    """Return p(x), of a conditional model the mean over what its samples are drawn for."""
    asked = [Batch(points)]
    if labels := model.interface.labels:
        one = torch.ones(len(points), dtype=torch.int64, device=points.device)
        asked = [Batch(points, one * label) for label in range(len(labels))]
    if (contexts := _contexts(model, held, CONTEXTS)) is not None:
        each = contexts.to(points).unsqueeze(1).expand(-1, len(points), -1)
        asked = [Batch(points, context=context) for context in each]
    found = [model.nats(batch, 1).values() for batch in asked]
    return torch.stack([nats.values.neg().exp() for (nats,) in found]).mean(0)


def _histograms(
    x: Float[np.ndarray, "rows feature"],
    drawn: Float[np.ndarray, "samples feature"],
    event: Event,
    *,
    what: str,
) -> Figure:
    """Return each feature's histogram, samples over held-out rows."""
    shown = min(x.shape[1], MARGINALS)
    columns = min(4, shown)
    lines = math.ceil(shown / columns)
    figure = Figure(figsize=(2.8 * columns, 2.2 * lines + 0.4), dpi=100, layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for feature, axes in enumerate(panels):
        if feature >= shown:
            axes.set_axis_off()
            continue
        bins = _bins(x[:, feature], event.categories[feature] if event.categories else ())
        axes.hist(x[:, feature], bins, density=True, color=DATA, alpha=0.45, label=what)
        axes.hist(
            drawn[:, feature], bins, density=True, color=MODEL, histtype="step", label="samples"
        )
        axes.set_title(event.features[feature] if event.features else f"x{feature + 1}", fontsize=9)
        if event.categories and (kinds := event.categories[feature]):
            shown = range(0, len(kinds), -(-len(kinds) // NAMED))
            axes.set_xticks(shown, [kinds[k][:12] for k in shown], fontsize=7)
        axes.set_yticks([])
    panels[0].legend(fontsize=8)
    return figure


def _bins(x: Float[np.ndarray, " rows"], categories: Sequence[str]) -> Float[np.ndarray, " edges"]:
    """Return the edges of a histogram: a bar for each category, or forty for numbers."""
    if categories:
        return np.arange(len(categories) + 1) - 0.5
    low, high = np.quantile(x, (0.001, 0.999))
    pad = 0.1 * (high - low)
    return np.linspace(low - pad, high + pad, 40)


def logarithmic(axis: Axis) -> None:
    """Give a logarithmic axis ticks at 1, and of few decades at 2 and 5, as plain numbers."""
    low, high = axis.get_view_interval()
    few = high < low * 10**DECADES
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def render(figure: Figure) -> UInt8[np.ndarray, "height width 3"]:
    """Return a figure's pixels."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def png(figure: Figure) -> bytes:
    """Return a figure as a PNG file, of 256 colours where nobody sees the difference."""
    whole = render(figure)
    picture = Image.fromarray(whole)
    fewer = picture.quantize(256)
    off = np.abs(np.asarray(fewer.convert("RGB"), dtype=np.int16) - whole)
    stream = io.BytesIO()
    (fewer if off.mean() < UNSEEN else picture).save(stream, format="PNG", optimize=True)
    return stream.getvalue()
