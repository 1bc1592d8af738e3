"""Trained layers that map a student's features to a teacher's shape.

They are built from shapes alone and trained with the student.
"""

from torch import nn

Shape = tuple[int, int, int]
"""Channels, height and width of a map."""


def projection(channels: int, wanted: int) -> nn.Sequential:
    """Return a 1x1 convolution without bias, then a batch norm."""
    return nn.Sequential(nn.Conv2d(channels, wanted, 1, bias=False), nn.BatchNorm2d(wanted))


def regressor(given: Shape, wanted: Shape) -> nn.Sequential:
    """Return one convolution from shape to shape, then a batch norm and a ReLU.

    Half the size takes a stride, twice the size a transposed convolution; any other smaller or
    equal size a kernel as large as what is to be cut off, without padding. Raises `ValueError` for
    every other shape.
    """
    convolution = _convolution(given, wanted)
    return nn.Sequential(convolution, nn.BatchNorm2d(wanted[0]), nn.ReLU())


def _convolution(given: Shape, wanted: Shape) -> nn.Module:
    channels, height, width = given
    target, rows, columns = wanted
    if (height, width) == (2 * rows, 2 * columns):
        return nn.Conv2d(channels, target, 3, stride=2, padding=1)
    if (2 * height, 2 * width) == (rows, columns):
        return nn.ConvTranspose2d(channels, target, 4, stride=2, padding=1)
    if height >= rows and width >= columns:
        return nn.Conv2d(channels, target, (1 + height - rows, 1 + width - columns))
    raise ValueError(
        f"no convolution leads from maps of {height}x{width} to maps of {rows}x{columns}: they "
        "must be at least as large, or exactly half as large"
    )
