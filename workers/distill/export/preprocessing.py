"""How a picture becomes what a student was evaluated on, in words that `config.json` has.

Two steps. A picture gets the size of the data set's images: in classification it is scaled until
it just covers that size, divided by `training.crop_ratio`, and cut at its centre, in dense tasks it
is scaled until it fits and padded (`data.formats.classified`, `data.formats.letterbox`). Then
`Preprocessor` brings the image to the network's size, where that is another one, and normalises it.
"""

from typing import Any

from workers.distill.config.descriptions import DENSE_TASKS
from workers.distill.config.job import Input, Task
from workers.distill.data.formats import letterbox


def describe(
    task: Task, expected: Input, stored: tuple[int, int, int], crop_ratio: float | None = None
) -> dict[str, Any]:
    """Return the steps; `stored` is channels, height and width of the data set's images."""
    channels, height, width = stored
    colours = {1: "grey", 3: "RGB"}
    is_cropped = task not in DENSE_TASKS
    return {
        "picture_size": [height, width],
        "picture_channels": channels,
        "channels_order": colours.get(channels),
        "crop_mode": "center" if is_cropped else "pad",
        "crop_pct": crop_ratio or 1.0,
        "pad_value": None if is_cropped else letterbox.FILL,
        "interpolation": "bilinear",
        "antialias": True,
        "input_size": [expected.channels, expected.height, expected.width],
        "value_range": [0.0, 1.0],
        "mean": list(expected.mean),
        "std": list(expected.std),
    }
