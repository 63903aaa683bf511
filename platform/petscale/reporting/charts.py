"""Charts of a report as PNG: joint histograms, agreement, noise against bias, FROC, spectra, training curves."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from petscale.reporting.pictures import data_uri
from storage.source import ImageSource
from trainers.metrics.slabs import slabs

# Okabe and Ito, grey for the input; as many as a table may have images, and the full dose.
COLORS = ("#7a7a7a", "#e69f00", "#0072b2", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#b8a600", "#22303c", "#8c564b")

INK, FAINT = "#22303c", "#c9d1d8"


def joint_histogram(
    images: Mapping[str, ImageSource], reference: ImageSource, body: ImageSource, top: float
) -> dict[str, NDArray[np.float64]]:
    """Count voxels inside the body by (full-dose SUV, image SUV) in 100 x 100 bins from 0 to ``top``."""
    edges = np.linspace(0, top, 101)
    counts = {name: np.zeros((100, 100)) for name in images}
    for z0, z1 in slabs(reference.grid.shape):
        inside = body.read(z0, z1) > 0.5
        truth = reference.read(z0, z1)[inside]
        for name, source in images.items():
            counts[name] += np.histogram2d(truth, source.read(z0, z1)[inside], bins=(edges, edges))[0]
    return counts


def draw_histograms(counts: Mapping[str, NDArray[np.float64]], top: float) -> str:
    """Draw joint histograms side by side on one logarithmic count scale, with the line of identity."""
    figure = new_figure(3.1 * len(counts) + 0.9, 3.1)
    panels = figure.subplots(1, len(counts), squeeze=False, sharey=True)[0]
    most = max(2.0, max(float(count.max()) for count in counts.values()))
    mesh = None
    for axes, (name, count) in zip(panels, counts.items(), strict=True):
        edges = np.linspace(0, top, 101)
        mesh = axes.pcolormesh(edges, edges, np.ma.masked_equal(count.T, 0), cmap="cividis_r", norm=LogNorm(1, most))
        axes.plot([0, top], [0, top], color=INK, linewidth=0.8)
        axes.set_aspect("equal")
        dress(axes, name, "full-dose SUV", "SUV" if axes is panels[0] else "")
    if mesh is not None:
        bar = figure.colorbar(mesh, ax=list(panels), shrink=0.8, pad=0.02)
        bar.set_label("voxels", fontsize=8, color=INK)
        bar.ax.tick_params(labelsize=7)
    return figure_png(figure)


def draw_bland_altman(points: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]], quantity: str) -> str:
    """Draw (image - full) / full in % against the full-dose value, mean and 1.96 sd limits, one panel per image.

    Args:
        points: image -> (full-dose values, percent differences), regions of all cases.
        quantity: for instance ``SUVmean``.
    """
    figure = new_figure(3.1 * len(points), 2.7)
    panels = figure.subplots(1, len(points), squeeze=False, sharey=True)[0]
    for axes, (name, (truth, percent)), color in zip(panels, points.items(), COLORS, strict=False):
        axes.axhline(0, color=INK, linewidth=0.7)
        axes.plot(truth, percent, "o", markersize=3.5, alpha=0.75, color=color, markeredgewidth=0)
        mean, spread = float(percent.mean()), float(percent.std(ddof=1)) if percent.size > 1 else 0.0
        for level, style in ((mean, "-"), (mean - 1.96 * spread, "--"), (mean + 1.96 * spread, "--")):
            axes.axhline(level, color=color, linewidth=1, linestyle=style)
        axes.set_xlim(left=0)
        limits = f"limits {mean - 1.96 * spread:+.1f} to {mean + 1.96 * spread:+.1f}"
        title = f"{name}\n" + f"{mean:+.1f} % ({limits})".replace("-", "−")
        dress(axes, title, f"full-dose {quantity}", "difference [%]" if axes is panels[0] else "")
    return figure_png(figure)


def draw_noise_bias(points: Mapping[str, tuple[float, float]], organ: str) -> str:
    """Draw image -> (bias of lesion SUVmax in %, noise of ``organ`` in %) as one point each, named beside the chart."""
    figure = new_figure(5.6, 3.0)
    axes = figure.subplots()
    axes.axvline(0, color=FAINT, linewidth=0.8)
    for (name, (bias, noise)), color in zip(points.items(), COLORS, strict=False):
        axes.plot(bias, noise, "o", markersize=6, color=color, alpha=0.85, label=name, linestyle="none")
    axes.margins(0.15)
    axes.legend(fontsize=7.5, frameon=False, labelcolor=INK, loc="center left", bbox_to_anchor=(1.0, 0.5))
    dress(axes, "", "bias of lesion SUVmax [%]", f"CoV of {organ} [%]")
    return figure_png(figure)


def draw_froc(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], marks: Mapping[str, tuple[float, float]]
) -> str:
    """Draw image -> (false positives per scan, TPR) as steps, and the point of the threshold itself on each."""
    figure = new_figure(4.6, 3.0)
    axes = figure.subplots()
    furthest = max(1.0, *(point[0] for point in marks.values())) * 2
    for (name, (false, tpr)), color in zip(curves.items(), COLORS, strict=False):
        axes.step([*false, furthest], [*tpr, tpr[-1]], where="post", color=color, linewidth=1.2, label=name)
        axes.plot(*marks[name], "o", markersize=5, color=color)
    axes.set_xlim(-0.03 * furthest, furthest)
    axes.set_ylim(-0.03, 1.03)
    axes.legend(fontsize=7, frameon=False, loc="lower right")
    dress(axes, "FROC; dots: the threshold itself", "false positives per scan", "sensitivity (TPR)")
    return figure_png(figure)


def draw_spectra(
    frequency_per_mm: Sequence[float],
    correlation: Mapping[str, Sequence[float | None]],
    noise: Mapping[str, Sequence[float | None]],
    organ: str,
) -> str:
    """Draw image -> ring correlation with the full dose and, where an organ is known, image -> noise power spectrum."""
    figure = new_figure(7.4 if noise else 4.4, 2.8)
    panels = figure.subplots(1, 2 if noise else 1, squeeze=False)[0]
    frequency = np.array(frequency_per_mm)
    names = list(dict.fromkeys([*correlation, *noise]))
    colors = dict(zip(names, COLORS, strict=False))
    for axes, curves in zip(panels, (correlation, noise), strict=False):
        for name, values in curves.items():
            known = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
            shown = np.isfinite(known) & ((known > 0) if curves is noise else True)
            axes.plot(frequency[shown], known[shown], color=colors.get(name, INK), linewidth=1.2, label=name)
    panels[0].axhline(0.5, color=FAINT, linewidth=0.8)
    panels[0].set_ylim(-0.05, 1.03)
    dress(panels[0], "Agreement with the full dose", "spatial frequency [1/mm]", "ring correlation")
    if noise:
        panels[1].set_yscale("log")
        dress(panels[1], f"Noise power in the {organ}", "spatial frequency [1/mm]", "SUV² mm²")
    panels[-1].legend(fontsize=7, frameon=False, labelcolor=INK, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure_png(figure)


def draw_curves(panels: Sequence[tuple[str, Sequence[tuple[str, Sequence[float], Sequence[float]]]]]) -> str:
    """Draw small line charts over the training step.

    Args:
        panels: (title, curves), a curve being (label, steps, values); labels are phases and keep their colour.
    """
    columns = min(3, len(panels))
    num_rows = -(-len(panels) // columns)
    figure = new_figure(3.3 * columns, 2.0 * num_rows)
    grid = figure.subplots(num_rows, columns, squeeze=False)
    phases = list(dict.fromkeys(label for _, curves in panels for label, _, _ in curves))
    for axes, (title, curves) in zip(grid.flat, panels, strict=False):
        for label, steps, values in curves:
            color = COLORS[(2 + phases.index(label)) % len(COLORS)]
            marker = "o" if len(steps) == 1 else None
            axes.plot(steps, values, color=color, linewidth=1.1, label=label, marker=marker, markersize=3)
        dress(axes, title, "step", "")
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_visible(False)
    if len(phases) > 1:
        grid[0][0].legend(fontsize=7, frameon=False)
    return figure_png(figure)


def figure_png(figure: Figure) -> str:
    """Return a figure as a PNG data URI; no global state, so any thread may call it."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    rgba = np.asarray(canvas.buffer_rgba())
    return data_uri(Image.fromarray(rgba[..., :3]).quantize(128))


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure in the report's style, sizes in inches."""
    return Figure(figsize=(width, height), dpi=170, layout="constrained", facecolor="white")


def dress(axes: Axes, title: str, x: str, y: str) -> None:
    """Give an axes its title, labels and the report's plain style."""
    axes.set_title(title, fontsize=8.5, color=INK, loc="left")
    axes.set_xlabel(x, fontsize=8, color=INK)
    axes.set_ylabel(y, fontsize=8, color=INK)
    axes.tick_params(labelsize=7, color=FAINT, labelcolor=INK)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(FAINT)
