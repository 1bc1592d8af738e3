"""Draws the pictures of a report: numbers in, figures out, each readable at a glance.

Colours can be told apart by everybody (Okabe and Ito), and lines differ in their strokes or marks
as well. Nothing here touches matplotlib's global figure state.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from jaxtyping import Float, Int, UInt8
from matplotlib import colors, ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from workers.distill.functional import calibration as calibration_bins

DPI = 110
FORMATS = ("png", "svg")
PALETTE = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"),
    *("#56B4E9", "#000000", "#999999", "#B8A800", "#7F3C8D"),
)
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
STROKES = ("-", (0, (6, 2)), (0, (2, 1.5)), (0, (6, 2, 1.5, 2)), (0, (1, 1)))
ROLES = {"student": PALETTE[0], "teacher": PALETTE[1], "baseline": "#5F5F5F"}
MOST_LABELS = 25
MOST_COUNTS = 20
NAME_WIDTH = 16
FEWEST_FOR_LINE = 10
MOST_BARS = 40
METRIC_WORDS = {"ap": "AP", "miou": "mean IoU", "knn": "k-NN accuracy"}
STYLE: Any = {  # Any: the keys are literals that matplotlib lists
    "axes.grid": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "figure.titlesize": 12,
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    # The same numbers give the same file; words stay words, in the reader's own fonts.
    "svg.fonttype": "none",
    "svg.hashsalt": "retort",
    # A dollar in the name of a class is no formula.
    "text.parse_math": False,
}
History = Sequence[Mapping[str, int | float]]


@dataclass(frozen=True)
class Curve:
    """One line of a chart over epochs."""

    label: str
    epochs: Sequence[int]
    values: Sequence[float]
    colour: str
    stroke: int = 0


def save(figure: Figure, folder: Path, stem: str) -> list[Path]:
    """Write a figure in every format, and return the files."""
    written = []
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        # Names of classes may be in any script; what the font lacks is drawn as a box.
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from font")
        for form in FORMATS:
            path = folder / f"{stem}.{form}"
            # Neither a date nor a version: the same numbers give the same bytes.
            metadata = {"Date": None, "Creator": None} if form == "svg" else {"Software": None}
            figure.savefig(path, format=form, dpi=DPI, metadata=metadata)
            written.append(path)
    return written


def losses(student: History, baseline: History | None) -> Figure:
    """Draw each term of the student's loss, and the baseline's sum of terms."""
    keys = sorted({key for entry in student for key in entry if key.startswith("loss/")})
    terms = ["loss/total", *(key for key in keys if key != "loss/total")]
    curves = [
        curve_of(student, key, key.removeprefix("loss/"), PALETTE[place % len(PALETTE)], place)
        for place, key in enumerate(terms)
    ]
    if baseline:
        curves.append(curve_of(baseline, "loss/total", "baseline's total", ROLES["baseline"], 3))
    figure, axes = one_chart("Loss while the student trains", "loss (nats, mean of an epoch)")
    with mpl.rc_context(STYLE):
        draw(axes, curves)
        log_if_wide(axes, [value for curve in curves for value in curve.values])
    return figure


def balance(student: History) -> Figure:
    """Draw how many times the task's gradient that of the distillation terms is, and its factor."""
    keys = {
        "balance/ratio": "distillation : task, at published weights",
        "balance/factor": "factor that is applied",
    }
    figure, axes = one_chart("How strong the teacher is beside the labels", "ratio of gradients")
    with mpl.rc_context(STYLE):
        curves = [
            curve_of(student, key, label, PALETTE[place], place)
            for place, (key, label) in enumerate(keys.items())
        ]
        draw(axes, [curve for curve in curves if curve.values])
        log_if_wide(axes, [value for curve in curves for value in curve.values])
    return figure


def metric_curve(
    histories: Mapping[str, History],
    name: str,
    *,
    teacher: float | None,
    best_epochs: Mapping[str, int],
) -> Figure:
    """Draw a share such as `accuracy` on the train and validation splits, epoch by epoch."""
    words = metric_words(name)
    figure, axes = one_chart(f"{capitalized(words)} while training", f"{words} (%)")
    with mpl.rc_context(STYLE):
        for phase, history in histories.items():
            colour = ROLES[phase]
            for split, stroke in (("validation", 0), ("train", 2)):
                curve = curve_of(history, f"{split}/{name}", f"{phase}, {split}", colour, stroke)
                if curve.values:
                    draw(axes, [_percent(curve)], legend=False)
            delivered = best_epochs[phase]
            best = curve_of(
                [entry for entry in history if entry["epoch"] == delivered],
                f"validation/{name}",
                f"{phase}, delivered (epoch {delivered})",
                colour,
                0,
            )
            if best.values:
                axes.plot(
                    best.epochs,
                    _percent(best).values,
                    marker="o",
                    markersize=9,
                    markerfacecolor="white",
                    markeredgecolor=colour,
                    markeredgewidth=2,
                    linestyle="none",
                    label=best.label,
                )
        if teacher is not None:
            axes.axhline(
                100 * teacher,
                color=ROLES["teacher"],
                linestyle=STROKES[3],
                label=f"teacher, validation ({100 * teacher:.1f} %)",
            )
        axes.set_ylim(top=min(101.5, axes.get_ylim()[1] + 2))
        _legend(axes)
    return figure


def likeness(histories: Mapping[str, History]) -> Figure:
    """Draw how alike the pooled features of student and teacher become."""
    figure, axes = one_chart(
        "How alike the features of student and teacher are", "linear CKA with the teacher"
    )
    with mpl.rc_context(STYLE):
        curves = _by_phase(histories, "validation/cka")
        draw(axes, curves)
        low = min((v for c in curves for v in c.values if math.isfinite(v)), default=0.0)
        axes.set_ylim(min(0.0, low - 0.02), 1.02)
    return figure


def confusion(
    counts: Int[np.ndarray, "C C"], classes: Sequence[str], *, title: str, kept: Sequence[int]
) -> Figure:
    """Draw which classes are taken for which; `kept` are the classes that are shown."""
    submatrix = counts[np.ix_(kept, kept)]
    totals = counts[kept].sum(1, keepdims=True)
    shares = 100 * submatrix / np.maximum(totals, 1)
    names = [classes[place] for place in kept]
    few = len(kept) <= MOST_COUNTS
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.4, 6.4), layout="constrained")
        axes = figure.subplots()
        # Errors are rare: of many classes they would be too pale to be seen on a straight scale.
        norm = colors.Normalize(0, 100) if few else colors.PowerNorm(0.4, 0, 100)
        image = axes.imshow(shares, cmap="Blues", norm=norm)
        _class_axes(axes, names, rows="true class", columns="predicted class")
        _bar(figure, image, [axes], "share of the true class (%)")
        if few:
            for row, column in zip(*np.nonzero(submatrix), strict=True):
                tone = "white" if shares[row, column] > 55 else "black"
                axes.text(
                    column,
                    row,
                    f"{submatrix[row, column]:,}",
                    ha="center",
                    va="center",
                    color=tone,
                    fontsize=9 if len(kept) <= 12 else 7,
                )
        figure.suptitle(title)
    return figure


def correlation_difference(
    differences: Mapping[str, Float[np.ndarray, "C C"]], classes: Sequence[str]
) -> Figure:
    """Draw each network's correlation of logits less the teacher's, on one scale."""
    sizes = [np.abs(matrix[np.isfinite(matrix)]) for matrix in differences.values()]
    # Of many classes a single pair would take the whole scale for itself.
    share = 100 if len(classes) <= MOST_COUNTS else 99.5
    limit = max([0.02, *(float(np.percentile(size, share)) for size in sizes if size.size)])
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(1.0 + 5.6 * len(differences), 5.6), layout="constrained")
        every = list(figure.subplots(1, len(differences), squeeze=False)[0])
        for axes, (name, matrix), size in zip(every, differences.items(), sizes, strict=True):
            image = axes.imshow(matrix, cmap="RdBu_r", vmin=-limit, vmax=limit)
            axes.set_facecolor("#DDDDDD")  # of logits that never change
            _class_axes(axes, list(classes), rows="class", columns="class")
            mean = f"{size.mean():.3f}" if size.size else "unknown"
            axes.set_title(f"{name} − teacher (mean size {mean})")
        beyond = any(size.size and size.max() > limit for size in sizes)
        _bar(figure, image, every, "difference of correlations", beyond=beyond)
        figure.suptitle("How the classes' logits correlate, compared with the teacher")
    return figure


def calibration(networks: Mapping[str, calibration_bins.Reliability]) -> Figure:
    """Draw how often a network is right where it is so sure, and how sure it is how often."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 6.6), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        above.plot([0, 100], [0, 100], color="#999999", linewidth=1, label="right as often as sure")
        edges = np.linspace(0, 100, len(next(iter(networks.values())).counts) + 1)
        for place, (name, bins) in enumerate(networks.items()):
            x, y = 100 * bins.confidence, 100 * bins.accuracy
            # A few images prove little: their bins are only hinted at, and join no line.
            firm = bins.counts >= FEWEST_FOR_LINE
            hinted = (bins.counts > 0) & ~firm
            (line,) = above.plot(
                x[firm],
                y[firm],
                color=ROLES[name],
                linestyle=STROKES[place],
                marker=MARKS[place],
                label=f"{name} (ECE {100 * bins.error:.1f} %)",
                zorder=3,
            )
            hints = above.scatter(
                x[hinted],
                y[hinted],
                s=20,
                marker=MARKS[place],
                facecolors="none",
                edgecolors=ROLES[name],
                alpha=0.6,
                linewidths=0.9,
            )
            for marks in (line, hints):
                # Marks on the edge are drawn whole; one may be empty, and then has no extent.
                marks.set_clip_on(False)
                marks.set_in_layout(False)
            below.stairs(
                100 * bins.counts / bins.counts.sum(),
                edges,
                color=ROLES[name],
                linestyle=STROKES[place],
                linewidth=1.6,
            )
        above.plot(
            [],
            [],
            "o",
            color="#777777",
            mfc="none",
            ms=4,
            label=f"bin of under {FEWEST_FOR_LINE} images",
        )
        above.set(xlim=(0, 100), ylim=(0, 100), ylabel="right (%)")
        above.set_title("How far the networks' confidence can be trusted", pad=10)
        above.legend(loc="lower right")
        below.set(xlabel="confidence in the predicted class (%)", ylabel="images (%)")
    return figure


def embedding(
    planes: Mapping[str, Float[np.ndarray, "K 2"]],
    labels: Int[np.ndarray, " K"],
    classes: Sequence[str],
    *,
    title: str,
    axis_names: Mapping[str, tuple[str, str]],
) -> Figure:
    """Draw one point for each image, a panel for each network."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(0.9 + 4.1 * len(planes), 5.3), layout="constrained")
        every = figure.subplots(1, len(planes), squeeze=False)[0]
        marks = []
        for axes, (name, points) in zip(every, planes.items(), strict=True):
            marks = [
                axes.scatter(
                    *points[labels == label].T,
                    s=17,
                    marker=MARKS[place % len(MARKS)],
                    color=PALETTE[place % len(PALETTE)],
                    alpha=0.8,
                    linewidths=0,
                )
                for place, label in enumerate(np.unique(labels))
            ]
            axes.set(title=name, xticks=[], yticks=[])
            axes.spines[:].set(visible=True, color="#BBBBBB")
            axes.set(xlabel=axis_names[name][0], ylabel=axis_names[name][1])
        names = [short(classes[label]) for label in np.unique(labels)]
        figure.legend(
            marks,
            names,
            loc="outside lower center",
            ncols=min(len(names), 5 if len(planes) < 3 else 10),
            markerscale=1.6,
            handletextpad=0.2,
        )
        figure.suptitle(title)
    return figure


def agreement(histories: Mapping[str, History]) -> Figure:
    """Draw how often a student answers as its teacher does, on the images it learns from."""
    figure, axes = one_chart("Agreement with the teacher on synthetic images", "equal answers (%)")
    with mpl.rc_context(STYLE):
        draw(axes, [_percent(curve) for curve in _by_phase(histories, "train/agreement")])
        axes.set_ylim(0, 101.5)
    return figure


def overlap(networks: Mapping[str, Float[np.ndarray, " C"]], classes: Sequence[str]) -> Figure:
    """Draw the intersection over union of each class; NaN where no pixel has or gets the class."""
    return class_bars(
        networks,
        classes,
        title="How well the areas of each class are met",
        values_name="intersection over union on the test split (%)",
    )


def class_bars(
    networks: Mapping[str, Float[np.ndarray, " C"]],
    classes: Sequence[str],
    *,
    title: str,
    values_name: str,
) -> Figure:
    """Draw a share for each class, a bar for each network.

    The student's best class is on top; of many classes its worst ones are shown. NaN has no bar.
    """
    order = np.argsort(-np.nan_to_num(networks["student"], nan=-1.0), kind="stable")
    shown = order[-MOST_BARS:]
    part = f" (the lowest {MOST_BARS} of {len(order)} classes)" if len(order) > MOST_BARS else ""
    thick = 0.8 / len(networks)
    with mpl.rc_context(STYLE):
        size = (7.6, 1.6 + len(shown) * (0.1 + 0.13 * len(networks)))
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        for place, (name, values) in enumerate(networks.items()):
            mean = np.nanmean(values) if np.isfinite(values).any() else math.nan
            axes.barh(
                np.arange(len(shown)) - 0.4 + (place + 0.5) * thick,
                100 * np.nan_to_num(values[shown]),
                height=0.92 * thick,
                color=ROLES[name],
                label=f"{name} (mean {100 * mean:.1f} %)",
            )
        axes.set_yticks(range(len(shown)), [short(classes[place]) for place in shown])
        axes.invert_yaxis()
        axes.margins(y=0.01)
        axes.grid(axis="x", color="#E5E5E5", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.set(xlim=(0, 100), xlabel=values_name)
        axes.set_title(f"{title}{part}")
        figure.legend(loc="outside lower center", ncols=len(networks))
    return figure


def one_chart(title: str, values: str) -> tuple[Figure, Axes]:
    """Return a figure with one chart over epochs; `values` names what stands upwards."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.6, 4.6), layout="constrained")
        axes = figure.subplots()
        axes.set(xlabel="epoch", ylabel=values)
        axes.set_title(title)
        axes.grid(axis="y", color="#E5E5E5", linewidth=0.8)
        axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    return figure, axes


def curve_of(history: History, key: str, label: str, colour: str, stroke: int) -> Curve:
    """Return the line through the epochs that have this number."""
    entries = [entry for entry in history if key in entry]
    return Curve(
        label,
        [int(entry["epoch"]) for entry in entries],
        [float(entry[key]) for entry in entries],
        colour,
        stroke,
    )


def _by_phase(histories: Mapping[str, History], key: str) -> list[Curve]:
    """Return the line of each phase that has this number."""
    curves = [
        curve_of(history, key, phase, ROLES[phase], 0 if phase == "student" else 1)
        for phase, history in histories.items()
    ]
    return [curve for curve in curves if curve.values]


def _percent(curve: Curve) -> Curve:
    values = [100 * value for value in curve.values]
    return Curve(curve.label, curve.epochs, values, curve.colour, curve.stroke)


def draw(axes: Axes, curves: Sequence[Curve], *, legend: bool = True) -> None:
    """Draw lines into a chart."""
    for curve in curves:
        axes.plot(
            curve.epochs,
            curve.values,
            label=curve.label,
            color=curve.colour,
            linestyle=STROKES[curve.stroke % len(STROKES)],
            # A line through a single point cannot be seen.
            marker="o" if len(curve.values) == 1 else "",
        )
    if legend:
        _legend(axes)


def log_if_wide(axes: Axes, values: Sequence[float]) -> None:
    """Take a logarithmic scale for positive numbers of very different sizes."""
    finite = [value for value in values if math.isfinite(value)]
    if finite and min(finite) > 0 and max(finite) > 30 * min(finite):
        axes.set_yscale("log")
        many = max(finite) > 1e4 * min(finite)
        axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1.0,) if many else (1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(ticker.NullLocator())


def _legend(axes: Axes) -> None:
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _class_axes(axes: Axes, names: list[str], *, rows: str, columns: str) -> None:
    """Name the classes along both sides, as many as can be read."""
    name_classes(axes, names, columns)
    places, shown = _named(names)
    axes.set_yticks(places, shown, fontsize=9 if len(shown) <= 12 else 7.5)
    axes.set_ylabel(rows)
    axes.spines[:].set_visible(False)


def name_classes(axes: Axes, names: list[str], what: str) -> None:
    """Name the classes below a chart, as many as can be read."""
    places, shown = _named(names)
    size = 9 if len(shown) <= 12 else 7.5
    long = max((len(name) for name in shown), default=0) > 3 or len(shown) > 12
    axes.set_xticks(places, shown, rotation=90 if long else 0, fontsize=size)
    every = math.ceil(len(names) / MOST_LABELS)
    note = f" (every {_ordinal(every)} of {len(names)} is named)" if every > 1 else ""
    axes.set_xlabel(what + note)


def _named(names: list[str]) -> tuple[list[int], list[str]]:
    """Return the places of the classes that are named on an axis, and their names."""
    places = list(range(0, len(names), math.ceil(len(names) / MOST_LABELS)))
    return places, [short(names[place]) for place in places]


def _ordinal(number: int) -> str:
    teens = 10 < number % 100 < 14
    ending = "th" if teens else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def _bar(
    figure: Figure, image: AxesImage, axes: list[Axes], label: str, *, beyond: bool = False
) -> None:
    extend: Literal["both", "neither"] = "both" if beyond else "neither"
    bar = figure.colorbar(image, ax=axes, label=label, shrink=0.85, pad=0.02, extend=extend)
    bar.outline.set_visible(False)


def metric_words(name: str) -> str:
    """Return how a metric is called in a sentence."""
    return METRIC_WORDS.get(name, name.replace("_", " "))


def capitalized(words: str) -> str:
    """Return words with a capital letter in front, the others as they are."""
    return words[:1].upper() + words[1:]


def colour_image(image: UInt8[np.ndarray, "c h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """Return an image as it is drawn: with other than three channels its first one, in grey."""
    shown = image if len(image) == 3 else np.repeat(image[:1], 3, 0)
    return shown.transpose(1, 2, 0)


def short(name: str, width: int = NAME_WIDTH) -> str:
    """Return a name that fits beside an axis: printable, not long, not hidden from a legend."""
    plain = "".join(letter if letter.isprintable() else " " for letter in name)
    cut = plain if len(plain) <= width else plain[: width - 1] + "…"
    return f" {cut}" if cut.startswith("_") else cut  # matplotlib hides labels that begin so
