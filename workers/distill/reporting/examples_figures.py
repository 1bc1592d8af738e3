"""Draws test images with true and predicted boxes or masks side by side.

Style and helpers are those of `figures`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import Float, Integer, UInt8
from matplotlib import colors, patheffects
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from workers.distill.data import dataset
from workers.distill.reporting import figures
from workers.distill.reporting.figures import DPI, MOST_COUNTS, PALETTE, STYLE
from workers.distill.tasks.comparisons import Box, BoxComparison, Comparison, MaskComparison

CELL = 2.35 * DPI
"""Pixels of the sheet that the longer side of an image takes."""
GAP = 6
NAMES, HEAD, MARGIN = 1.3 * DPI, 0.85 * DPI, 0.1 * DPI
SMALLEST_WIDTH = 7.4 * DPI
LEGEND_NAME_WIDTH = 20
LEGEND_COLUMN, LEGEND_LINE = 1.85 * DPI, 0.2 * DPI
"""Room of one name in the legend."""
MOST_NAMED = 8
"""Boxes of an image whose classes are written beside them; of more, the colours tell."""
STROKES: dict[str, Any] = {"right": "-", "wrong": (0, (4, 2)), "ignored": (0, (1, 1))}
"""Of boxes by their state; Any: what matplotlib takes."""
STATES = {"wrong": "wrong", "ignored": "crowd or difficult"}
"""Words for the states that the legend explains."""
NO_CLASS_COLOUR = "#AAAAAA"
CLASS_COLOURS = tuple(colour for colour in PALETTE if colour not in ("#000000", "#999999"))
"""The palette without grey, which stands for pixels without a class, and black, which is hardly
seen on dark images."""
RGB = tuple[float, float, float]


@dataclass(frozen=True)
class SheetRow:
    """One test image: what is written beside it, and the answers by network."""

    label: str
    image: UInt8[np.ndarray, "c h w"]
    answers: Mapping[str, Comparison]

    @property
    def truth(self) -> Comparison:
        """Return one of the answers: all are compared with the same truth."""
        return next(iter(self.answers.values()))


class Colouring:
    """A colour for each class that a sheet shows: the palette, then darker and paler tones of it.

    From the 25th class on colours repeat.
    """

    def __init__(self, labels: Sequence[int], classes: Sequence[str]) -> None:
        self.labels = list(labels)
        self.names = {label: classes[label] for label in labels}
        self._places = {label: place for place, label in enumerate(labels)}

    def __getitem__(self, label: int) -> RGB:
        tone, place = divmod(self._places[label], len(CLASS_COLOURS))
        colour = np.array(colors.to_rgb(CLASS_COLOURS[place]))
        red, green, blue = (colour, 0.5 * colour, 0.5 + 0.5 * colour)[tone % 3].tolist()
        return red, green, blue


def sheet(rows: Sequence[SheetRow], classes: Sequence[str], *, title: str, about: str) -> Figure:
    """Draw a row for each image: the truth, then the networks, in the order of the first row.

    Masks stand beside their image; boxes are drawn into it. All images have one size.
    """
    colouring = Colouring(sorted({label for row in rows for label in _labels(row)}), classes)
    scale = CELL / max(rows[0].image.shape[1:])
    height, width = (scale * side for side in rows[0].image.shape[1:])
    across = max(NAMES + len(_columns(rows[0])) * (width + GAP) + MARGIN, SMALLEST_WIDTH)
    keys = [*_class_keys(colouring), *_stroke_keys(rows), *_no_class_keys(rows)]
    in_a_line = int((across - 2 * MARGIN) // LEGEND_COLUMN)
    foot = 2 * MARGIN + LEGEND_LINE * math.ceil(len(keys) / in_a_line)
    down = HEAD + len(rows) * (height + GAP) + foot
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(across / DPI, down / DPI))
        _draw_rows(figure, rows, colouring, height=height, width=width)
        left = MARGIN / across
        figure.suptitle(title, x=left, y=1 - MARGIN / down, ha="left")
        figure.text(left, 1 - 0.37 * DPI / down, about, color="#555555", fontsize=8.5, va="top")
        if keys:
            figure.legend(
                handles=keys,
                loc="lower left",
                bbox_to_anchor=(left, 0.0),
                ncols=in_a_line,
                fontsize=8.5,
                borderaxespad=0.2,
            )
    return figure


def _draw_rows(
    figure: Figure, rows: Sequence[SheetRow], colouring: Colouring, *, height: float, width: float
) -> None:
    """Draw each row's panels of this size, in pixels of the figure, and its label."""
    across, down = (DPI * inches for inches in figure.get_size_inches())
    for line, row in enumerate(rows):
        bottom = 1 - (HEAD + line * (height + GAP) + height) / down
        for place, column in enumerate(_columns(rows[0])):
            left = (NAMES + place * (width + GAP)) / across
            axes = figure.add_axes((left, bottom, width / across, height / down))
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            _draw(axes, row, column, colouring)
            if line == 0:
                axes.set_title(column, loc="center", fontsize=9.5, pad=4)
        figure.text(
            *((NAMES - GAP) / across, bottom + height / down / 2, row.label),
            ha="right",
            va="center",
            fontsize=8.5,
        )


def _columns(row: SheetRow) -> list[str]:
    beside = ["image"] if isinstance(row.truth, MaskComparison) else []
    return [*beside, "true", *row.answers]


def _labels(row: SheetRow) -> set[int]:
    """Return the classes that a row shows."""
    found: set[int] = set()
    for answer in row.answers.values():
        if isinstance(answer, MaskComparison):
            for mask in (answer.truth, answer.predicted):
                found |= set(np.unique(mask).tolist()) - {dataset.IGNORE_INDEX}
        elif isinstance(answer, BoxComparison):
            found |= {box.label for box in (*answer.true_boxes, *answer.detected_boxes)}
    return found


def _class_keys(colouring: Colouring) -> list[Artist]:
    """Return an entry of the legend for each class, as many as can be read."""
    keys: list[Artist] = [
        Patch(
            color=colouring[label], label=figures.short(colouring.names[label], LEGEND_NAME_WIDTH)
        )
        for label in colouring.labels[:MOST_COUNTS]
    ]
    rest = len(colouring.labels) - len(keys)
    return [*keys, Patch(color="none", label=f"and {rest} more")] if rest else keys


def _stroke_keys(rows: Sequence[SheetRow]) -> list[Artist]:
    """Return an entry of the legend for each stroke of a box that is no ordinary one."""
    answers = [answer for row in rows for answer in row.answers.values()]
    states = {
        box.state
        for answer in answers
        if isinstance(answer, BoxComparison)
        for box in (*answer.true_boxes, *answer.detected_boxes)
    }
    return [
        Line2D([], [], color="#333333", linestyle=STROKES[state], label=words)
        for state, words in STATES.items()
        if state in states
    ]


def _no_class_keys(rows: Sequence[SheetRow]) -> list[Artist]:
    masks = [row.truth.truth for row in rows if isinstance(row.truth, MaskComparison)]
    shows_grey = any((mask == dataset.IGNORE_INDEX).any() for mask in masks)
    return [Patch(color=NO_CLASS_COLOUR, label="no class")] if shows_grey else []


def _draw(axes: Axes, row: SheetRow, column: str, colouring: Colouring) -> None:
    """Draw one panel: the image, the truth or a network's answer."""
    answer = row.answers.get(column, row.truth)
    if isinstance(answer, MaskComparison) and column != "image":
        mask = answer.truth if column == "true" else answer.predicted
        axes.imshow(_painted(mask, colouring), interpolation="nearest")
        return
    axes.imshow(figures.colour_image(row.image), interpolation="nearest", aspect="auto")
    if isinstance(answer, BoxComparison):
        drawn = answer.true_boxes if column == "true" else answer.detected_boxes
        for box in drawn:
            _draw_box(axes, box, colouring, named=len(drawn) <= MOST_NAMED)


def _draw_box(axes: Axes, box: Box, colouring: Colouring, *, named: bool) -> None:
    x1, y1, x2, y2 = box.corners.tolist()
    colour = colouring[box.label]
    outline = Rectangle(
        (x1 - 0.5, y1 - 0.5),
        x2 - x1,
        y2 - y1,
        fill=False,
        edgecolor=colour,
        linewidth=1.6,
        linestyle=STROKES[box.state],
    )
    # A light rim shows a dark box on a dark image.
    outline.set_path_effects([patheffects.withStroke(linewidth=2.8, foreground="#FFFFFFB0")])
    axes.add_patch(outline)
    if not named:
        return
    name = figures.short(colouring.names[box.label]).strip()
    text = name if box.score is None else f"{name} {box.score:.2f}"
    height, width = axes.images[0].get_size()
    is_right_half = x1 > 0.55 * width
    is_at_top = y1 < 0.08 * height
    axes.text(
        x2 - 0.5 if is_right_half else x1 - 0.5,
        y1 - 0.5,
        text,
        ha="right" if is_right_half else "left",
        va="top" if is_at_top else "bottom",
        fontsize=6.5,
        color="white" if _luminance(colour) < 0.45 else "black",
        bbox={"facecolor": colour, "edgecolor": "none", "pad": 0.8, "alpha": 0.85},
        clip_on=True,
    )


def _painted(mask: Integer[np.ndarray, "h w"], colouring: Colouring) -> Float[np.ndarray, "h w 3"]:
    painted = np.empty((*mask.shape, 3))
    painted[:] = colors.to_rgb(NO_CLASS_COLOUR)
    for label in np.unique(mask):
        if label != dataset.IGNORE_INDEX:
            painted[mask == label] = colouring[int(label)]
    return painted


def _luminance(colour: RGB) -> float:
    """Return how light a colour looks, 0 to 1 (weights of Rec. 709)."""
    return 0.2126 * colour[0] + 0.7152 * colour[1] + 0.0722 * colour[2]
