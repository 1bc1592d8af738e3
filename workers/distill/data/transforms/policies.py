"""Policies: AutoAugment, RandAugment, TrivialAugment, and the strong view of FixMatch.

They draw on the CPU from the image's own random stream; `operations` applies them on the device.

Sources: Cubuk et al., arXiv 1805.09501 (AutoAugment) and 1909.13719 (RandAugment); Müller and
Hutter, ICCV 2021, arXiv 2103.10158 (TrivialAugment); Sohn et al., arXiv 2001.07685 (FixMatch).
Checked against: pytorch/vision, transforms/v2.
"""

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from workers.distill.data.stateless_rng import StatelessRNG
from workers.distill.data.transforms.operations import DrawnOperations, Operation

RANDOM = 14
"""RandAugment draws among the first so many operations."""
SIGNED = 10
"""Operations below this number go either way; all others have one direction."""
BINS = 9
MAGNITUDES = 30
TRIVIAL_LEVELS = 31
TRANSLATION = 150 / 331
FIXMATCH_OPERATIONS = 2
CUTOUT_SHARE = 0.5
CUTOUT_COLOUR = (125, 123, 114)

_O = Operation
POLICY: tuple[tuple[tuple[Operation, float, int], tuple[Operation, float, int]], ...] = (
    ((_O.INVERT, 0.1, 0), (_O.CONTRAST, 0.2, 6)),
    ((_O.ROTATE, 0.7, 2), (_O.TRANSLATE_X, 0.3, 9)),
    ((_O.SHARPNESS, 0.8, 1), (_O.SHARPNESS, 0.9, 3)),
    ((_O.SHEAR_Y, 0.5, 8), (_O.TRANSLATE_Y, 0.7, 9)),
    ((_O.AUTOCONTRAST, 0.5, 0), (_O.EQUALIZE, 0.9, 0)),
    ((_O.SHEAR_Y, 0.2, 7), (_O.POSTERIZE, 0.3, 7)),
    ((_O.COLOR, 0.4, 3), (_O.BRIGHTNESS, 0.6, 7)),
    ((_O.SHARPNESS, 0.3, 9), (_O.BRIGHTNESS, 0.7, 9)),
    ((_O.EQUALIZE, 0.6, 0), (_O.EQUALIZE, 0.5, 0)),
    ((_O.CONTRAST, 0.6, 7), (_O.SHARPNESS, 0.6, 5)),
    ((_O.COLOR, 0.7, 7), (_O.TRANSLATE_X, 0.5, 8)),
    ((_O.EQUALIZE, 0.3, 0), (_O.AUTOCONTRAST, 0.4, 0)),
    ((_O.TRANSLATE_Y, 0.4, 3), (_O.SHARPNESS, 0.2, 6)),
    ((_O.BRIGHTNESS, 0.9, 6), (_O.COLOR, 0.2, 8)),
    ((_O.SOLARIZE, 0.5, 2), (_O.INVERT, 0.0, 0)),
    ((_O.EQUALIZE, 0.2, 0), (_O.AUTOCONTRAST, 0.6, 0)),
    ((_O.EQUALIZE, 0.2, 0), (_O.EQUALIZE, 0.6, 0)),
    ((_O.COLOR, 0.9, 9), (_O.EQUALIZE, 0.6, 0)),
    ((_O.AUTOCONTRAST, 0.8, 0), (_O.SOLARIZE, 0.2, 8)),
    ((_O.BRIGHTNESS, 0.1, 3), (_O.COLOR, 0.7, 0)),
    ((_O.SOLARIZE, 0.4, 5), (_O.AUTOCONTRAST, 0.9, 0)),
    ((_O.TRANSLATE_Y, 0.9, 9), (_O.TRANSLATE_Y, 0.7, 9)),
    ((_O.AUTOCONTRAST, 0.9, 0), (_O.SOLARIZE, 0.8, 3)),
    ((_O.EQUALIZE, 0.8, 0), (_O.INVERT, 0.1, 0)),
    ((_O.TRANSLATE_Y, 0.7, 9), (_O.AUTOCONTRAST, 0.9, 0)),
)
"""The 25 pairs that were found for CIFAR-10: operation, probability, strength in 0..9."""


def amount(operation: Operation, share: float) -> float:
    """Return the strength of an operation at a share of its range."""
    match operation:
        case _O.SHEAR_X | _O.SHEAR_Y:
            return 0.3 * share
        case _O.TRANSLATE_X | _O.TRANSLATE_Y:
            return TRANSLATION * share
        case _O.ROTATE:
            return 30 * share
        case _O.BRIGHTNESS | _O.COLOR | _O.CONTRAST | _O.SHARPNESS:
            return 0.9 * share
        case _O.POSTERIZE:
            return float(round(8 - 4 * share))
        case _O.SOLARIZE:
            return 255 * (1 - share)
        case _:
            return 0.0


def draw_autoaugment(draws: StatelessRNG) -> DrawnOperations:
    """Draw one pair of the policy for each image."""
    chosen = draws.whole(len(POLICY))
    operations, amounts = [], []
    for slot in range(2):
        steps = [pair[slot] for pair in POLICY]
        operation = torch.tensor([int(step[0]) for step in steps])[chosen]
        likely = torch.tensor([step[1] for step in steps], dtype=torch.float64)[chosen]
        strength = _doubles([amount(step[0], step[2] / BINS) for step in steps])[chosen]
        operations.append(torch.where(draws.shares() < likely, operation, _O.IDENTITY))
        amounts.append(_either_way(operation, strength, draws))
    return DrawnOperations(torch.stack(operations), torch.stack(amounts))


def draw_randaugment(draws: StatelessRNG, count: int, magnitude: int) -> DrawnOperations:
    """Draw operations of one magnitude (0..30) for each image."""
    strengths = _doubles([amount(_O(code), magnitude / MAGNITUDES) for code in range(RANDOM)])
    operations, amounts = [], []
    for _ in range(count):
        operation = draws.whole(RANDOM)
        operations.append(operation)
        amounts.append(_either_way(operation, strengths[operation], draws))
    return DrawnOperations(torch.stack(operations), torch.stack(amounts))


def draw_trivialaugment(draws: StatelessRNG, height: int, width: int) -> DrawnOperations:
    """Draw one operation of any strength for each image of this size, as TrivialAugmentWide."""
    operation, level = draws.whole(RANDOM), draws.whole(TRIVIAL_LEVELS)
    sizes = {_O.TRANSLATE_X: width, _O.TRANSLATE_Y: height}
    table = [
        [wide_amount(_O(code), each, sizes.get(_O(code), 1)) for each in range(TRIVIAL_LEVELS)]
        for code in range(RANDOM)
    ]
    strength = torch.tensor(table, dtype=torch.float64)[operation, level]
    signed = _either_way(operation, strength, draws)
    return DrawnOperations(operation[None], signed[None])


def wide_amount(operation: Operation, level: int, side: int) -> float:
    """Return the strength of an operation at a level of TrivialAugmentWide (0..30).

    `side` is that along which an image is translated, in pixels.
    """
    share = level / (TRIVIAL_LEVELS - 1)
    match operation:
        case _O.SHEAR_X | _O.SHEAR_Y | _O.BRIGHTNESS | _O.COLOR | _O.CONTRAST | _O.SHARPNESS:
            return 0.99 * share
        case _O.TRANSLATE_X | _O.TRANSLATE_Y:
            # Whole pixels; the half keeps a product with the side from rounding down to one less.
            pixels = int(32 * share)
            return (pixels + 0.5) / side if pixels else 0.0
        case _O.ROTATE:
            return 135 * share
        case _O.POSTERIZE:
            return float(8 - round(level / 5))
        case _O.SOLARIZE:
            return 255 * (1 - share)
        case _:
            return 0.0


def draw_strong(draws: StatelessRNG) -> DrawnOperations:
    """Draw two operations of any magnitude for each image, as FixMatch does."""
    ranges = [_FIXMATCH.get(_O(code), (0.0, 0.0)) for code in range(RANDOM)]
    low, high = _doubles([low for low, _ in ranges]), _doubles([high for _, high in ranges])
    operations, amounts = [], []
    for _ in range(FIXMATCH_OPERATIONS):
        operation = draws.whole(RANDOM)
        drawn = torch.lerp(low[operation], high[operation], draws.shares())
        operations.append(operation)
        amounts.append(torch.where(operation == _O.POSTERIZE, drawn.floor(), drawn))
    return DrawnOperations(torch.stack(operations), torch.stack(amounts))


_FIXMATCH: dict[Operation, tuple[float, float]] = {
    _O.SHEAR_X: (-0.3, 0.3),
    _O.SHEAR_Y: (-0.3, 0.3),
    _O.TRANSLATE_X: (-0.3, 0.3),
    _O.TRANSLATE_Y: (-0.3, 0.3),
    _O.ROTATE: (-30.0, 30.0),
    _O.BRIGHTNESS: (-0.95, -0.05),
    _O.COLOR: (-0.95, -0.05),
    _O.CONTRAST: (-0.95, -0.05),
    _O.SHARPNESS: (-0.95, -0.05),
    _O.POSTERIZE: (4.0, 8.0),
    _O.SOLARIZE: (0.0, 256.0),
}


def cut_out(images: UInt8[Tensor, "N c h w"], draws: StatelessRNG) -> UInt8[Tensor, "N c h w"]:
    """Return the images with a grey box of at most half the side somewhere in each."""
    channels, height, width = images.shape[1:]
    share, down, across = CUTOUT_SHARE * draws.shares(), draws.shares(), draws.shares()
    inside = torch.ones(1, 1, 1, dtype=torch.bool)
    for size, centre, axis in ((height, down, 2), (width, across, 1)):
        start = (size * (centre - share / 2)).clamp(min=0).floor()[:, None, None]
        places = torch.arange(size).unsqueeze(axis - 1)
        inside = inside & (places >= start) & (places < start + size * share[:, None, None])
    grey = CUTOUT_COLOUR if channels == 3 else (round(sum(CUTOUT_COLOUR) / 3),) * channels
    colour = torch.tensor(grey, dtype=torch.uint8, device=images.device)[:, None, None]
    return torch.where(inside.to(images.device)[:, None], colour, images)


def _either_way(
    operation: Int[Tensor, " N"], strength: Float[Tensor, " N"], draws: StatelessRNG
) -> Float[Tensor, " N"]:
    return torch.where(draws.coins() & (operation < SIGNED), -strength, strength)


def _doubles(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
