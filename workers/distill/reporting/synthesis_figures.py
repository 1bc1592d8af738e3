"""Draws the synthetic images of a data-free method: sheets, what the buffer holds, and time.

Style and helpers are those of `figures`.
"""

import math
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from jaxtyping import Float, Int, UInt8
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workers.distill.reporting import figures
from workers.distill.reporting.figures import DPI, PALETTE, STROKES, STYLE

CELL = 56
"""Pixels of a sheet that an image takes at least; each of its own pixels becomes a square."""
GAP = 4
TIMES = ("#A6CEE3", "#3B8BC2", "#08306B")
"""Earlier is paler."""


def sheet(
    images: UInt8[np.ndarray, "R c h w"],
    rows: Sequence[tuple[str, Sequence[int]]],
    *,
    title: str,
    about: str,
) -> Figure:
    """Draw images in rows, each with a name and its images' places, below a title and a line.

    Of images with other than three channels the first one is drawn, in grey.
    """
    columns = max(len(places) for _, places in rows)
    scale = max(1, round(CELL / max(images.shape[2:])))
    height, width = (scale * side for side in images.shape[2:])
    size = (len(rows) * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3)
    canvas = np.full(size, 255, np.uint8)
    for row, (_, places) in enumerate(rows):
        for column, place in enumerate(places):
            top, left = row * (height + GAP), column * (width + GAP)
            canvas[top : top + height, left : left + width] = _enlarged(images[place], scale)
    # Each pixel of the canvas is one of the picture: resampling would blur or lose some.
    names, head, margin = 1.75 * DPI, 0.62 * DPI, 0.1 * DPI
    across = max(names + canvas.shape[1] + margin, 6.2 * DPI)
    down = head + canvas.shape[0] + margin
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(across / DPI, down / DPI))
        inside = (canvas.shape[1] / across, canvas.shape[0] / down)
        axes = figure.add_axes((names / across, margin / down, *inside))
        axes.imshow(canvas, interpolation="nearest", aspect="auto")
        axes.spines[:].set_visible(False)
        middles = [row * (height + GAP) + (height - 1) / 2 for row in range(len(rows))]
        axes.set_yticks(middles, [name for name, _ in rows], fontsize=9)
        axes.set_xticks([])
        axes.tick_params(length=0)
        left = margin / across
        figure.suptitle(title, x=left, y=1 - 0.1 * DPI / down, ha="left")
        figure.text(left, 1 - 0.35 * DPI / down, about, color="#555555", fontsize=8.5, va="top")
    return figure


def class_histograms(
    shares: Mapping[str, Float[np.ndarray, " C"]], classes: Sequence[str]
) -> Figure:
    """Draw which share of the buffer each class has, a panel for each moment."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.6, 1.3 + 1.55 * len(shares)), layout="constrained")
        every = figure.subplots(len(shares), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
        even = 100 / len(classes)
        for axes, colour, (label, values) in zip(
            every, _times(len(shares)), shares.items(), strict=True
        ):
            width = 0.8 if len(classes) <= 4 * figures.MOST_LABELS else 1.0
            axes.bar(range(len(values)), 100 * values, width=width, color=colour)
            axes.axhline(even, color="#777777", linewidth=1, linestyle=STROKES[1])
            axes.set_title(label, fontsize=9.5)
            axes.set_xlim(-0.7, len(values) - 0.3)
        every[0].text(
            *(1.005, even, "even"),
            transform=every[0].get_yaxis_transform(),
            color="#777777",
            fontsize=8.5,
            va="center",
        )
        figures.name_classes(every[-1], list(classes), "what the teacher takes an image for")
        figure.supylabel("share of the buffer (%)", fontsize=9.5)
        figure.suptitle("Classes of the images in the buffer")
    return figure


def difficulties(counts: Mapping[str, Int[np.ndarray, " B"]]) -> Figure:
    """Draw how unsure the teacher is of the images, a panel for each moment."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(1.4 + 2.7 * len(counts), 3.4), layout="constrained")
        every = figure.subplots(1, len(counts), sharex=True, sharey=True, squeeze=False)[0]
        for axes, colour, (label, values) in zip(
            every, _times(len(counts)), counts.items(), strict=True
        ):
            edges = np.linspace(0, 1, len(values) + 1)
            axes.stairs(100 * values / max(1, values.sum()), edges, fill=True, color=colour)
            easy = float(values[0] / max(1, values.sum()))
            axes.set_title(f"{label}\n({easy:.0%} below {edges[1]:g})", fontsize=9.5)
            axes.grid(axis="y", color="#E5E5E5", linewidth=0.8)
            axes.set_axisbelow(True)
        every[0].set(xlim=(0, 1), ylabel="images (%)")
        figure.supxlabel("difficulty: 1 − the teacher's confidence", fontsize=9.5)
        figure.suptitle("How difficult the images in the buffer are")
    return figure


def draws(
    shares: Mapping[str, Float[np.ndarray, " Q"]], kl: Mapping[str, Float[np.ndarray, " Q"]]
) -> Figure:
    """Draw how unevenly the student sees the buffer's images, and how far it is from the teacher.

    Without `shares` all images are drawn evenly, which needs no chart.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10.0 if shares else 5.6, 4.8), layout="constrained")
        *rest, right = figure.subplots(1, 2 if shares else 1, squeeze=False)[0]
        title = "How far the student is from the teacher on the buffer's images"
        for left in rest:
            title = "Which images of the buffer the student learns from"
            left.axhline(1, color="#777777", linewidth=1, linestyle=STROKES[4], label="evenly")
            _sorted_curves(left, shares)
            figures.log_if_wide(left, np.concatenate(list(shares.values())).tolist())
            left.set_ylabel("draws, against drawing evenly (times)")
            left.set_title("How often the student sees an image", fontsize=10)
            right.set_title("How far the student is from the teacher", fontsize=10)
        _sorted_curves(right, kl)
        right.set_ylim(bottom=0)
        right.set_ylabel("KL of student from teacher (nats)")
        figure.suptitle(title)
    return figure


def time_split(synthesis: Sequence[float], distillation: Sequence[float], *, title: str) -> Figure:
    """Draw the seconds spent on both halves of the work until the end of each epoch, stacked."""
    unit, seconds = _time_unit(max(synthesis[-1] + distillation[-1], 1e-9))
    figure, axes = figures.one_chart(title, f"time spent ({unit})")
    with mpl.rc_context(STYLE):
        axes.stackplot(
            range(len(synthesis) + 1),
            [[0.0, *(value / seconds for value in part)] for part in (synthesis, distillation)],
            labels=["synthesis: images are made", "distillation: the student learns"],
            colors=[PALETTE[4], PALETTE[0]],
            linewidth=0,
        )
        axes.set(xlim=(0, len(synthesis)), ylim=0)
        handles, labels = axes.get_legend_handles_labels()
        axes.legend(handles[::-1], labels[::-1], loc="upper left", frameon=True, edgecolor="none")
    return figure


def panels(history: figures.History, labels: Mapping[str, str], *, title: str) -> Figure:
    """Draw numbers of an epoch, each by the key of a label, on scales of their own."""
    columns = 2 if len(labels) == 4 else min(3, len(labels))
    lines = math.ceil(len(labels) / columns)
    with mpl.rc_context(STYLE):
        size = (max(4.6, 0.6 + 2.9 * columns), 0.7 + 2.1 * lines)
        figure = Figure(figsize=size, layout="constrained")
        every = figure.subplots(lines, columns, sharex=True, squeeze=False).ravel()
        for axes, (key, label) in zip(every, labels.items(), strict=False):
            curve = figures.curve_of(history, key, label, PALETTE[0], 0)
            figures.draw(axes, [curve], legend=False)
            if all(value >= 0 for value in curve.values):
                axes.set_ylim(bottom=0)
            axes.set_title(label, fontsize=9.5)
            axes.grid(axis="y", color="#E5E5E5", linewidth=0.8)
            if len(history) == 1:
                axes.set_xticks([history[0]["epoch"]])
            else:
                axes.xaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))
            axes.xaxis.set_tick_params(labelbottom=True)
            axes.yaxis.set_major_formatter(ticker.ScalarFormatter(useOffset=False))
        for axes in every[len(labels) :]:
            axes.set_visible(False)
        figure.supxlabel("epoch", fontsize=9.5)
        figure.suptitle(title)
    return figure


def _sorted_curves(axes: Axes, curves: Mapping[str, Float[np.ndarray, " Q"]]) -> None:
    strokes = (STROKES[2], STROKES[1], STROKES[0])[-len(curves) :]
    for (label, values), colour, stroke in zip(
        curves.items(), _times(len(curves)), strokes, strict=True
    ):
        places = np.linspace(0, 100, len(values))
        axes.plot(places, values, color=colour, linestyle=stroke, label=label)
    axes.set(xlim=(0, 100), xlabel="images, sorted (%)")
    axes.grid(axis="y", color="#E5E5E5", linewidth=0.8)
    axes.legend(loc="upper left", bbox_to_anchor=(0.0, -0.14))


def _times(count: int) -> Sequence[str]:
    """Return a colour for each moment, the last one darkest."""
    return TIMES[-count:]


def _time_unit(seconds: float) -> tuple[str, float]:
    """Return the unit in which a time is read easily, and its seconds."""
    for unit, size in (("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * size:
            return unit, size
    return "seconds", 1.0


def _enlarged(image: UInt8[np.ndarray, "c h w"], scale: int) -> UInt8[np.ndarray, "y x 3"]:
    """Return an image in colours, with a square for each pixel."""
    return figures.colour_image(image).repeat(scale, 0).repeat(scale, 1)
