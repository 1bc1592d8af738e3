"""Draws the pictures of a federation: rounds, traffic, who has what, how good each client is."""

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workers.distill.reporting import figures
from workers.distill.reporting.figures import PALETTE, STYLE, History

MOST_CLIENTS = 60
"""Clients that a picture shows; of more, those with the most images or the best scores."""
SPREAD = ("mean", "min", "max")
UNITS = ("B", "kB", "MB", "GB", "TB")


def accuracy(history: History) -> Figure:
    """Draw the delivered model's accuracy and the clients', by rounds and by bytes."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 4.4), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        rounds = [float(entry["epoch"]) for entry in history]
        total = [
            entry.get("federation/bytes_up", 0) + entry.get("federation/bytes_down", 0)
            for entry in history
        ]
        unit, size = _unit(max(total, default=0.0))
        _accuracies(left, history, rounds)
        _accuracies(right, history, [value / size for value in total])
        left.set(xlabel="round", ylabel="accuracy (%)")
        left.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=True))
        right.set(xlabel=f"sent and received by all clients ({unit})")
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
        figure.suptitle("Accuracy on the validation split")
    return figure


def _accuracies(axes: Axes, history: History, places: Sequence[float]) -> None:
    lines = (
        ("validation/accuracy", "delivered model", PALETTE[0], "-"),
        ("federation/client_accuracy_mean", "mean of the clients", PALETTE[1], "-"),
        ("federation/client_accuracy_before", "mean before they adapt", PALETTE[3], ":"),
        ("federation/ensemble_accuracy", "all clients together", PALETTE[2], "--"),
    )
    for key, label, colour, stroke in lines:
        points = [
            (place, 100 * entry[key])
            for place, entry in zip(places, history, strict=True)
            if key in entry
        ]
        if points:
            marker = "o" if len(points) == 1 else None
            axes.plot(
                *zip(*points, strict=True),
                label=label,
                color=colour,
                linestyle=stroke,
                marker=marker,
            )
    band = [
        (place, 100 * entry["federation/client_accuracy_min"], 100 * entry[_MAXIMUM])
        for place, entry in zip(places, history, strict=True)
        if _MAXIMUM in entry
    ]
    if len(band) > 1:
        x, low, high = zip(*band, strict=True)
        axes.fill_between(x, low, high, color=PALETTE[1], alpha=0.15, linewidth=0)
    axes.set_ylim(0, 101.5)
    axes.grid(axis="y", color="#E5E5E5", linewidth=0.8)


_MAXIMUM = "federation/client_accuracy_max"


def partition(label_counts: Mapping[str, Sequence[int]], classes: Sequence[str]) -> Figure:
    """Draw how many images of each class each client has."""
    names = sorted(label_counts)
    whole = len(names)
    if whole > MOST_CLIENTS:
        largest = sorted(names, key=lambda name: -sum(label_counts[name]))[:MOST_CLIENTS]
        names = sorted(largest)
    counts = np.array([label_counts[name] for name in names])
    with mpl.rc_context(STYLE):
        height = 1.8 + 0.24 * len(names)
        width = 2.8 + min(0.45 * len(classes), 9.0)
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots()
        image = axes.imshow(counts, cmap="Blues", vmin=0, aspect="auto")
        shown = [figures.short(name) for name in classes]
        axes.set(yticks=range(len(names)), yticklabels=names, xlabel="class")
        if len(classes) <= figures.MOST_LABELS:
            axes.set_xticks(range(len(classes)), shown, rotation=90)
        if len(classes) <= figures.MOST_COUNTS and len(names) <= MOST_CLIENTS:
            limit = counts.max() / 2
            for (row, column), count in np.ndenumerate(counts):
                if count:
                    colour = "white" if count > limit else "black"
                    axes.text(column, row, count, ha="center", va="center", color=colour, size=7.5)
        figure.colorbar(image, ax=axes, label="images")
        of_all = "" if whole == len(names) else f", the {len(names)} largest of {whole}"
        axes.set_title(f"Images by client and class{of_all}")
    return figure


def entropy(history: History) -> Figure:
    """Draw the entropy of targets, and of the clients' mean that they are made of."""
    figure, axes = figures.one_chart("Entropy of what the server sends back", "mean entropy (nats)")
    curves = [
        figures.curve_of(history, f"federation/{key}", label, colour, stroke)
        for key, label, colour, stroke in (
            ("mean_entropy", "mean of the clients", PALETTE[1], 1),
            ("target_entropy", "targets", PALETTE[0], 0),
        )
    ]
    with mpl.rc_context(STYLE):
        figures.draw(axes, [curve for curve in curves if curve.values])
        axes.set_ylim(bottom=0)
        axes.set_xlabel("round")
    return figure


def clients(scores: Mapping[str, float], label_counts: Mapping[str, Sequence[int]]) -> Figure:
    """Draw the accuracy of each client's model, and its number of images."""
    order = sorted(scores, key=lambda name: (-scores[name], name))
    names = order[:MOST_CLIENTS]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.6, 1.6 + 0.24 * len(names)), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
        places = np.arange(len(names))
        left.barh(places, [100 * scores[name] for name in names], color=PALETTE[0], height=0.7)
        sizes = [sum(label_counts.get(name, ())) for name in names]
        right.barh(places, sizes, color=PALETTE[4], height=0.7)
        left.set(yticks=places, yticklabels=names, xlim=(0, 100), xlabel="test accuracy (%)")
        left.invert_yaxis()
        right.set(xlabel="images")
        mean = sum(scores.values()) / len(scores)
        left.axvline(100 * mean, color="#333333", linewidth=1, linestyle="--")
        of_all = "" if len(order) == len(names) else f", the best {len(names)} of {len(order)}"
        figure.suptitle(f"Clients' own models: {mean:.1%} on average (dashed){of_all}")
    return figure


def _unit(most: float) -> tuple[str, float]:
    """Return the unit in which so many bytes are read easily, and its size."""
    size = 1.0
    for unit in UNITS:
        if most < 1000 * size or unit == UNITS[-1]:
            return unit, size
        size *= 1000
    raise AssertionError("the last unit is always taken")
