"""Which data sets are built in. The formats of uploads are in `formats/catalog.py`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workers.distill.data import dataset
from workers.distill.data.builtin import digit_scenes, digits


@dataclass(frozen=True)
class BuiltinDataset:
    """One built-in data set."""

    version: int
    title: str
    source: str
    describe: Callable[[], dataset.DatasetRecord]
    write: Callable[[Path], dataset.DatasetRecord]


_SCENES_SOURCE = (
    "composed: the digits of scikit-learn (Alpaydin and Kaynak, UCI, 1998) on photographs that "
    "scikit-learn and scikit-image ship"
)
DATASETS: dict[str, BuiltinDataset] = {
    "digits": BuiltinDataset(
        version=1,
        title="Handwritten digits, 8x8",
        source="Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998; "
        "the copy in scikit-learn",
        describe=digits.describe,
        write=digits.write,
    ),
    "digit_scenes": BuiltinDataset(
        version=1,
        title="Composed scenes: real digits on real photographs, 96x96, with boxes",
        source=_SCENES_SOURCE,
        describe=digit_scenes.describe,
        write=digit_scenes.write,
    ),
    "digit_scenes_masks": BuiltinDataset(
        version=1,
        title="Composed scenes: real digits on real photographs, 96x96, with masks",
        source=_SCENES_SOURCE,
        describe=digit_scenes.describe_masks,
        write=digit_scenes.write_masks,
    ),
}


def describe() -> list[dict[str, Any]]:  # Any: JSON for the catalog
    """Return the built-in data sets as the catalog publishes them."""
    return [
        {
            **entry.describe().model_dump(mode="json", exclude_none=True),
            "name": name,
            "version": entry.version,
            "title": entry.title,
            "source": entry.source,
        }
        for name, entry in DATASETS.items()
    ]
