"""Draws how good detections are: precision by recall, by size, and kinds of errors.

Style and helpers are those of `figures`.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import matplotlib as mpl
import numpy as np
from jaxtyping import Float
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workers.distill.reporting import figures
from workers.distill.reporting.figures import PALETTE, ROLES, STROKES, STYLE

CLASS_COLOURS = (PALETTE[2], PALETTE[3], PALETTE[4], PALETTE[5], PALETTE[9])
"""Not those of `ROLES`, which stand for networks."""


def precision_recall(
    recalls: Float[np.ndarray, " R"],
    networks: Mapping[str, Float[np.ndarray, " R"]],
    classes: Sequence[tuple[str, Float[np.ndarray, " R"]]],
) -> Figure:
    """Draw precision by recall, a line for each network; right of it, for some classes by name."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.8 if classes else 5.4, 5.6), layout="constrained")
        left, *rest = figure.subplots(1, 2 if classes else 1, sharey=True, squeeze=False)[0]
        for place, (name, values) in enumerate(networks.items()):
            label = f"{name} (AP50 {100 * values.mean():.1f} %)"
            _line(left, recalls, values, label, ROLES[name], place)
        for right in rest:
            for place, (name, values) in enumerate(classes):
                label = f"{figures.short(name)} ({100 * values.mean():.1f} %)"
                _line(right, recalls, values, label, CLASS_COLOURS[place], place)
            right.set_title("The student's classes with the lowest AP50", fontsize=10)
            left.set_title("Mean over classes", fontsize=10)
        for axes in (left, *rest):
            axes.set(xlim=(0, 100), ylim=(0, 101.5), xlabel="recall (%)")
            _grid(axes, "both")
            axes.legend(loc="upper left", bbox_to_anchor=(0.0, -0.13))
        left.set_ylabel("precision (%)")
        figure.suptitle("Precision by recall at an IoU of 0.5")
    return figure


def size_bars(networks: Mapping[str, Sequence[float | None]], labels: Sequence[str]) -> Figure:
    """Draw AP of boxes of each size, a bar for each network; None has no bar."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.0, 4.4), layout="constrained")
        axes = figure.subplots()
        width = 0.8 / len(networks)
        for place, (name, values) in enumerate(networks.items()):
            known = [number for number, value in enumerate(values) if value is not None]
            bars = axes.bar(
                [number - 0.4 + (place + 0.5) * width for number in known],
                [100 * value for value in values if value is not None],
                width=0.92 * width,
                color=ROLES[name],
                label=name,
            )
            axes.bar_label(bars, fmt="{:.1f}", fontsize=8, padding=2)
        for number in range(len(labels)):
            if all(values[number] is None for values in networks.values()):
                axes.text(number, 1, "no true boxes", ha="center", color="#777777", fontsize=8.5)
        axes.set_xticks(range(len(labels)), labels)
        axes.set(xlim=(-0.5, len(labels) - 0.5), ylabel="AP on the test split (%)")
        axes.set_ylim(0, max(5.0, 1.08 * axes.get_ylim()[1]))
        _grid(axes, "y")
        axes.set_title("Average precision by the size of the boxes")
        figure.legend(loc="outside lower center", ncols=len(networks))
    return figure


def error_bars(
    networks: Mapping[str, Sequence[int]], labels: Sequence[str], *, title: str
) -> Figure:
    """Draw how many detections of each kind there are, a bar for each network."""
    with mpl.rc_context(STYLE):
        figure = Figure(
            figsize=(7.6, 1.4 + len(labels) * (0.3 + 0.19 * len(networks))), layout="constrained"
        )
        axes = figure.subplots()
        thick = 0.8 / len(networks)
        for place, (name, counts) in enumerate(networks.items()):
            bars = axes.barh(
                np.arange(len(labels)) - 0.4 + (place + 0.5) * thick,
                counts,
                height=0.92 * thick,
                color=ROLES[name],
                label=name,
            )
            axes.bar_label(bars, [f"{count:,}" for count in counts], fontsize=8, padding=3)
        axes.set_yticks(range(len(labels)), labels)
        axes.invert_yaxis()
        most = max(max(counts) for counts in networks.values())
        axes.set(xlim=(0, 1.1 * max(1, most)), xlabel="number on the test split")
        axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
        _grid(axes, "x")
        axes.set_title(title)
        figure.legend(loc="outside lower center", ncols=len(networks))
    return figure


def _line(
    axes: Axes,
    recalls: Float[np.ndarray, " R"],
    values: Float[np.ndarray, " R"],
    label: str,
    colour: str,
    place: int,
) -> None:
    axes.plot(
        100 * recalls,
        100 * values,
        label=label,
        color=colour,
        linestyle=STROKES[place % len(STROKES)],
        # A line along the border is drawn whole.
        clip_on=False,
    )


def _grid(axes: Axes, which: Literal["both", "x", "y"]) -> None:
    axes.grid(axis=which, color="#E5E5E5", linewidth=0.8)
    axes.set_axisbelow(True)
