"""Which levels our own detectors and their anchors have: known without building anything.

The service refuses arguments that contradict each other or the size of the images; the engine
executes the same rules while it builds a network. What depends on a backbone of timm is known to
the engine alone.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from workers.distill.config.rules import Violation

Sides: TypeAlias = tuple[int, int]
"""Height and width of an image."""

SMALL_RESNET = "small_resnet"
SMALL_STRIDES = (4, 8, 16)
"""Of the maps of `small_resnet`."""
SMALL_SIDE = 128
"""Images whose longer side is no larger count as small."""
SMALL_LEVELS = 2
LEVELS = 4
FCOS, RETINANET, FASTER_RCNN = "retort/fcos", "retort/retinanet", "retort/fasterrcnn"
STRIDES_PER_ANCHOR = {
    # With half a stride, a level takes boxes half as large as the paper's.
    FCOS: (0.5, 1),
    RETINANET: (4, 4),
    FASTER_RCNN: (4, 8),
}
"""Default side of an anchor in strides of its level, for small images and for others."""


def is_small(sides: Sides) -> bool:
    """Return whether images get finer levels and smaller anchors."""
    return max(sides) <= SMALL_SIDE


def most_levels(sides: Sides) -> int:
    """Return how many levels are read at most, where no number is given."""
    return SMALL_LEVELS if is_small(sides) else LEVELS


def default_sizes(reference: str, strides: Sequence[int], sides: Sides) -> list[int]:
    """Return the side of the anchors of each level in pixels."""
    small, large = STRIDES_PER_ANCHOR[reference]
    return [int((small if is_small(sides) else large) * stride) for stride in strides]


def of_arguments(
    role: str, reference: str, arguments: Mapping[str, Any], sides: Sides | None
) -> Iterator[Violation]:
    """Yield what is wrong with the arguments of an own detector, one at a time."""
    if reference not in STRIDES_PER_ANCHOR:
        return
    backbone, given = arguments.get("backbone", SMALL_RESNET), arguments.get("levels")
    strides = SMALL_STRIDES if backbone == SMALL_RESNET else None
    if given is not None and strides is not None:
        wrong = list(of_levels(role, reference, given, backbone, strides))
        if wrong:
            yield from wrong
            return
    levels = given
    if levels is None and strides is not None and sides is not None:
        levels = min(most_levels(sides), len(strides))
    sizes = arguments.get("anchor_sizes")
    if levels is not None and sizes is not None:
        yield from of_anchor_sizes(role, reference, sizes, levels)
    reg_max = arguments.get("reg_max")
    if reg_max is None or sides is None:
        return
    if sizes is None and strides is not None and levels is not None:
        sizes = default_sizes(reference, strides[:levels], sides)
    if sizes is not None:
        yield from of_reach(role, reference, reg_max, sizes[-1], sides)


def of_levels(
    role: str, reference: str, levels: int, backbone: str, strides: Sequence[int]
) -> Iterator[Violation]:
    """Yield that a backbone has fewer maps than levels are asked for, if so."""
    if levels > len(strides):
        yield _refused(
            role,
            reference,
            "levels",
            f"{levels} levels, and the backbone {backbone} has {len(strides)} maps, at strides "
            f"{', '.join(map(str, strides))}; ask for at most {len(strides)}",
        )


def of_anchor_sizes(
    role: str, reference: str, sizes: Sequence[int], levels: int
) -> Iterator[Violation]:
    """Yield that there are not as many sizes of anchors as levels, if so."""
    if len(sizes) != levels:
        yield _refused(
            role,
            reference,
            "anchor_sizes",
            f"{len(sizes)} sizes for {levels} levels; give one size per level, or set levels to "
            f"{len(sizes)}",
        )


def of_reach(
    role: str, reference: str, reg_max: int, largest: int, sides: Sides
) -> Iterator[Violation]:
    """Yield that a box as large as the image cannot be predicted at its centre, if so.

    `largest` is the side of the anchors of the coarsest level.
    """
    needed = math.ceil(max(sides) / 2 / largest)
    if reg_max < needed:
        yield _refused(
            role,
            reference,
            "reg_max",
            f"{reg_max} anchor sizes of {largest} pixels do not reach from the centre to the "
            f"border of images of {sides[0]}x{sides[1]}; set reg_max to {needed} or more, or "
            "anchor_sizes to larger ones",
        )


def _refused(role: str, reference: str, argument: str, reason: str) -> Violation:
    field = f"student/arguments/{argument}" if role == "student" else role
    message = f"{reference} does not accept argument {argument!r}: {reason}"
    return Violation(field, "bad_network", message)
