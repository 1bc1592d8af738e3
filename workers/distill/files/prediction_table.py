"""An uploaded table of predictions: a row of classes for each image of a data set.

NPZ or safetensors with an array [N, C], or [N, V, C] for V views, for each split: `train` (also
`logits`, `probabilities` or `predictions`), and, where they were predicted, `validation` and
`test`. Rows are in the data set's stored order, or stand beside `index` (`train_index`, ...), whose
numbers say which image each is of. Parquet has the columns `index`, `logits` (or one of the other
names, a list a row), and, where there are several splits, `split`.
"""

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from workers.distill import errors
from workers.distill.config.messages import SUM_TOLERANCE
from workers.distill.files import tensorfile

SPLITS = ("train", "validation", "test")
WORDS = ("logits", "probabilities", "predictions")
"""What a table may be called where there is one split."""
INDEX = "index"
MOST_BYTES = 4 << 30
MOST_LISTED = 5
SMALLEST_PROBABILITY = 1e-12
"""Taken for 0, whose logarithm no loss could take."""
PARQUET = b"PAR1"


def read(
    path: Path,
    *,
    classes: int,
    views: int,
    counts: Mapping[str, int],
    outputs: str | None = None,
) -> tuple[dict[str, Tensor], list[str]]:
    """Return logits [N, V, C] by split, in stored order, with notes for their owner.

    `counts` are the images of each split of the data set. `outputs` says whether the rows are
    logits or probabilities, of which the logarithm is taken; None: recognised by what they are.
    Raises `UploadRefused`, naming the images, for rows that are missing, doubled or not finite.
    """
    arrays, places = _arrays(path)
    tables: dict[str, NDArray[np.float32]] = {}
    for split, array in arrays.items():
        wanted = views if split == "train" else 1
        table = _shaped(split, array, classes, wanted)
        tables[split] = _placed(split, table, places.get(split), counts[split])
    if "train" not in tables:
        raise errors.UploadRefused(
            "no_predictions",
            f"{path.name} has no predictions of the train split; call their array 'train' or "
            f"'logits'. It has {', '.join(sorted(arrays)) or 'none'}",
        )
    notes = [
        f"the {split} split was not predicted: the teacher is not scored on it"
        for split in ("validation", "test")
        if split not in tables
    ]
    found, told = _as_logits(tables, outputs)
    return found, [*notes, *told]


def _arrays(
    path: Path,
) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """Return the tables and the numbers of their images, by split."""
    with path.open("rb") as stream:
        head = stream.read(4)
    if head == PARQUET:
        return _of_parquet(path)
    if tensorfile.looks_like(path):
        named = {name: _numpy(one) for name, one in tensorfile.read(path).items()}
    elif head[:2] == b"PK":
        named = _of_npz(path)
    else:
        raise errors.UploadRefused(
            "unsupported_format",
            f"{path.name} is no table of predictions: give an NPZ, a safetensors or a Parquet file",
        )
    tables: dict[str, NDArray[Any]] = {}
    places: dict[str, NDArray[Any]] = {}
    for name, array in named.items():
        split = "train" if name in WORDS else name
        counted = "train" if name == INDEX else name.removesuffix(f"_{INDEX}")
        if counted in SPLITS and name.endswith(INDEX):
            places[counted] = array
        elif split not in SPLITS:
            raise errors.UploadRefused(
                "unknown_array",
                f"{path.name} has an array {name!r}; arrays are called {', '.join(SPLITS)} "
                f"({', '.join(WORDS)} for train alone), and {INDEX} or <split>_{INDEX}",
            )
        elif split in tables:
            raise errors.UploadRefused(
                "unknown_array",
                f"{path.name} has two arrays for the train split, one of them {name!r}; leave one "
                "out",
            )
        else:
            tables[split] = array
    return tables, places


def _numpy(tensor: Tensor) -> NDArray[Any]:
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _of_npz(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > MOST_BYTES:
            raise errors.UploadRefused(
                "too_large",
                f"{path.name} unpacks to {unpacked} bytes, and at most {MOST_BYTES} are read",
            )
        with np.load(path, allow_pickle=False) as content:
            return {name: content[name] for name in content.files}
    except (EOFError, OSError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise errors.UploadRefused(
            "unreadable", f"{path.name} is not a readable NPZ archive: {error}"
        ) from error


def _of_parquet(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    # Imported where a file is opened: it starts a thread, which no fork survives.
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        content = pq.ParquetFile(path, memory_map=True)
        names = content.schema_arrow.names
        column = next((word for word in WORDS if word in names), None)
        if column is None or INDEX not in names:
            raise errors.UploadRefused(
                "unknown_array",
                f"{path.name} needs the columns {INDEX} and one of {', '.join(WORDS)}; it has "
                f"{', '.join(names)}",
            )
        if content.metadata.num_rows * 4 > MOST_BYTES:
            raise errors.UploadRefused("too_large", f"{path.name} has too many rows to be read")
        wanted = [INDEX, column, *(["split"] if "split" in names else [])]
        rows = content.read(columns=wanted).to_pydict()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise errors.UploadRefused(
            "unreadable", f"{path.name} is not a readable Parquet file: {error}"
        ) from error
    by_split: dict[str, list[int]] = {}
    for row, split in enumerate(rows.get("split") or ["train"] * len(rows[INDEX])):
        if split not in SPLITS:
            raise errors.UploadRefused(
                "unknown_split",
                f"row {row} of {path.name} is of the split {split!r}; there are "
                f"{', '.join(SPLITS)}",
            )
        by_split.setdefault(split, []).append(row)
    tables, places = {}, {}
    for split, chosen in by_split.items():
        lists = [rows[column][row] for row in chosen]
        lengths = {np.shape(one) for one in lists}
        if len(lengths) > 1:
            raise errors.UploadRefused(
                "class_count",
                f"the rows of {column} in {path.name} differ in length: {sorted(lengths)[:3]}",
            )
        tables[split] = np.array(lists)
        places[split] = np.array([rows[INDEX][row] for row in chosen])
    return tables, places


def _shaped(split: str, array: NDArray[Any], classes: int, views: int) -> NDArray[np.float32]:
    """Return a table as [N, V, C] of finite float32 numbers."""
    if array.dtype.kind not in "fiu" or array.ndim not in (2, 3):
        raise errors.UploadRefused(
            "not_a_table",
            f"the predictions of the {split} split have shape {list(array.shape)} of "
            f"{array.dtype}; give numbers as [images, classes] or [images, views, classes]",
        )
    table = array[:, None] if array.ndim == 2 else array
    if table.shape[2] != classes:
        raise errors.UploadRefused(
            "class_count",
            f"the predictions of the {split} split have {table.shape[2]} classes, and the data set "
            f"has {classes}; predict the classes of the data set, in its order",
        )
    if table.shape[1] != views:
        raise errors.UploadRefused(
            "view_count",
            f"the predictions of the {split} split have {table.shape[1]} views of each image, "
            f"expected {views} (arguments.views)",
        )
    table = table.astype(np.float32)
    faulty = np.flatnonzero(~np.isfinite(table).all(axis=(1, 2)))
    if len(faulty):
        raise errors.UploadRefused(
            "not_finite",
            f"rows of the {split} split hold NaN or infinity: {_listed(faulty)}; predict them "
            "again, or leave out what cannot be",
        )
    return table


def _placed(
    split: str, table: NDArray[np.float32], places: NDArray[Any] | None, count: int
) -> NDArray[np.float32]:
    """Return a table in the order of the stored images."""
    if places is None:
        if len(table) != count:
            raise errors.UploadRefused(
                "row_count",
                f"there are {len(table)} predictions of the {split} split, which has {count} "
                "images; give one row for each, in stored order, or their numbers as "
                f"{split}_{INDEX}",
            )
        return table
    if places.ndim != 1 or places.dtype.kind not in "iu" or len(places) != len(table):
        raise errors.UploadRefused(
            "bad_index",
            f"{INDEX} of the {split} split has shape {list(places.shape)} of {places.dtype}; give "
            f"{len(table)} whole numbers, one for each row",
        )
    outside = np.flatnonzero((places < 0) | (places >= count))
    if len(outside):
        raise errors.UploadRefused(
            "bad_index",
            f"{INDEX} of the {split} split names images that do not exist: "
            f"{_listed(places[outside])}; its {count} images are numbered from 0",
        )
    times = np.bincount(places, minlength=count)
    for faulty, code, words in (
        (np.flatnonzero(times > 1), "doubled_images", "are predicted more than once"),
        (np.flatnonzero(times == 0), "missing_images", "are not predicted"),
    ):
        if len(faulty):
            raise errors.UploadRefused(
                code,
                f"images of the {split} split {words}: {_listed(faulty)}; give each of the "
                f"{count} images one row",
            )
    ordered = np.empty_like(table)
    ordered[places] = table
    return ordered


def are_probabilities(table: Float[np.ndarray, "*N C"]) -> bool:
    """Return whether each row is not negative and has the sum 1, within `SUM_TOLERANCE`."""
    return bool((table >= 0).all() and np.allclose(table.sum(-1), 1, atol=SUM_TOLERANCE))


def _as_logits(
    tables: Mapping[str, NDArray[np.float32]], outputs: str | None
) -> tuple[dict[str, Tensor], list[str]]:
    is_probable = all(are_probabilities(table) for table in tables.values())
    if outputs == "probabilities" and not is_probable:
        raise errors.UploadRefused(
            "no_probabilities",
            "arguments.outputs says probabilities, and there are rows whose numbers are negative "
            "or do not add up to 1; leave it out to have them taken as logits",
        )
    if outputs == "logits" or not is_probable:
        return {split: torch.from_numpy(table) for split, table in tables.items()}, []
    told = (
        "the rows are probabilities: their logarithm is taken as the logits (arguments.outputs: "
        "logits takes them as they are)"
    )
    return {
        split: torch.from_numpy(np.log(np.maximum(table, SMALLEST_PROBABILITY)))
        for split, table in tables.items()
    }, [] if outputs else [told]


def _listed(numbers: Sequence[Any] | NDArray[Any]) -> str:
    more = f" and {len(numbers) - MOST_LISTED} more" if len(numbers) > MOST_LISTED else ""
    return ", ".join(str(number) for number in numbers[:MOST_LISTED]) + more
