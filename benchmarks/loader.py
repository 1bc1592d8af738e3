"""How fast pictures become batches, beside torchvision's ImageFolder, and what memory it takes.

`python -m benchmarks.loader --images 2000` makes synthetic JPEGs of 400 pixels, stores them as an
upload is stored, and reads both in turns with as many workers as threads: random resized crop to
224, flip, normalisation. Then it reads whole epochs and watches the memory of the process.
"""

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from workers.distill.config.training import expand
from workers.distill.data import dataset, encoded_images
from workers.distill.data.formats import classified, conversion
from workers.distill.data.formats.classified import LabelledPicture
from workers.distill.data.loader import BatchLoader
from workers.distill.data.preprocessing import Preprocessor

CLASSES = 10
BATCH = 64
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
CPU = torch.device("cpu")


def make(folder: Path, count: int, side: int) -> list[LabelledPicture]:
    """Write JPEGs with edges and noise, about as large as photographs of that size."""
    found = []
    for number in range(count):
        random = np.random.default_rng(number)
        coarse = random.integers(0, 256, (side // 16, side // 16, 3), dtype=np.uint8)
        image = np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))
        noisy = image + random.normal(0, 8, image.shape)
        file = folder / str(number % CLASSES) / f"{number:06}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = noisy.clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(file, quality=85)
        found.append(LabelledPicture(file, number % CLASSES))
    return found


def ours(stored: dataset.StoredDataset) -> Iterator[Tensor]:
    """Yield normalised batches of a data set that is stored encoded, epoch after epoch."""
    split = stored.open_split("train")
    training = expand({"recipe": "imagenet", "batch_size": BATCH})
    loader = BatchLoader(split.images, split.labels, training=training, flip=True, device=CPU)
    size = stored.record.input
    preprocess = Preprocessor("student", size, size, CPU)
    epoch = 0
    while True:
        epoch += 1
        for batch in loader.epoch(epoch):
            yield preprocess(batch.images)


def theirs(folder: Path, size: int, workers: int) -> Generator[Tensor, None, None]:
    """Yield normalised batches of torchvision's reader, epoch after epoch."""
    change = v2.Compose(
        [
            v2.RandomResizedCrop(size, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    loader = DataLoader(
        ImageFolder(folder, change),
        batch_size=BATCH,
        shuffle=True,
        num_workers=workers,
        persistent_workers=True,
        drop_last=True,
    )
    while True:
        for images, _ in loader:
            yield images


def seconds_of(batches: Iterator[Tensor], count: int) -> float:
    """Return how long so many batches take."""
    start = time.perf_counter()
    for _ in range(count):
        next(batches)
    return time.perf_counter() - start


def turn(batches: Iterator[Tensor], count: int, workers: int) -> tuple[float, float]:
    """Return seconds and processor seconds of so many batches, of one side alone.

    What the side had made in advance is taken first, and not timed; then as much is on its way at
    the end as at the beginning. At last its threads or workers come to rest.
    """
    seconds_of(batches, 2 * workers)
    spent = cpu_seconds()
    taken = seconds_of(batches, count)
    spent = cpu_seconds() - spent
    last = -1.0
    while cpu_seconds() - last > 0.02:
        last = cpu_seconds()
        time.sleep(1)
    return taken, spent


def cpu_seconds() -> float:
    """Return the processor time of this process, its threads and its workers.

    Other programs on the machine do not change it, as they change how long a turn takes.
    """
    ticks = 0
    for process in [os.getpid(), *(each.pid for each in multiprocessing.active_children())]:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def resident_bytes() -> int:
    """Return the memory that this process has now; mapped files count where they were read."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def main(arguments: Sequence[str]) -> int:
    """Print what was measured as one JSON object."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loader")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--side", type=int, default=400, help="of the pictures, in pixels")
    parser.add_argument("--size", type=int, default=224, help="of the input, in pixels")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--batches", type=int, default=5, help="a turn")
    parser.add_argument("--epochs", type=int, default=2, help="while memory is watched")
    options = parser.parse_args(arguments)
    workers = encoded_images.threads()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        pictures = Path(scratch) / "pictures"
        found = make(pictures, options.images, options.side)
        hints = conversion.InputHints(
            height=options.size, width=options.size, mean=MEAN, std=STD, storage="encoded"
        )
        start = time.perf_counter()
        classified.write(
            Path(scratch) / "stored",
            {"train": found},
            pictures,
            classes=[str(number) for number in range(CLASSES)],
            hints=hints,
            notes=(),
            task="classification",
        )
        stored_seconds = time.perf_counter() - start
        stored = dataset.load(Path(scratch) / "stored")
        one, other = ours(stored), theirs(pictures, options.size, workers)
        for batches in (one, other):  # threads and processes start
            seconds_of(batches, 2)
        turns, spent = [], []
        for _ in range(options.turns):
            mine, library = (turn(each, options.batches, workers) for each in (one, other))
            turns.append((mine[0], library[0]))
            spent.append((mine[1], library[1]))
        shown = BATCH * options.batches
        other.close()
        epoch = stored.record.splits["train"] // BATCH
        memory = []
        for _ in range(options.epochs * 4):
            seconds_of(one, max(1, epoch // 4))
            memory.append(round(resident_bytes() / 2**20))
    line = {
        "images": options.images,
        "picture": f"{options.side}x{options.side} JPEG",
        "input": options.size,
        "workers": workers,
        "images_per_second": round(shown / statistics.median(mine for mine, _ in turns), 1),
        "torchvision_images_per_second": round(
            shown / statistics.median(library for _, library in turns), 1
        ),
        "ratio_median": round(statistics.median(library / mine for mine, library in turns), 2),
        "ratios": [round(library / mine, 2) for mine, library in turns],
        "cpu_ms_per_image": round(1000 * statistics.median(m for m, _ in spent) / shown, 2),
        "torchvision_cpu_ms_per_image": round(
            1000 * statistics.median(library for _, library in spent) / shown, 2
        ),
        "stored_per_second": round(options.images / stored_seconds, 1),
        "resident_mib_by_quarter_epoch": memory,
        # Of the whole run, storing included.
        "peak_resident_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    sys.stdout.write(json.dumps(line) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
