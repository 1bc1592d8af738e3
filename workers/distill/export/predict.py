"""Answer a few pictures with a graph in ONNX, by onnxruntime: for trying a model out.

`python -m workers.distill.export.predict REQUEST.json --workdir DIR` reads `DIR/model.onnx`,
`DIR/export.json` and `DIR/pictures/0` and so on. The last line on standard output is a JSON object:
`result` with one answer a picture (exit code 0) or `failure` (exit code 1).
"""

import base64
import io
import json
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from workers.distill import errors
from workers.distill.config.exports import DESCRIPTION_FILE, ONNX_FILE
from workers.distill.config.job import Input
from workers.distill.data.formats import classified, letterbox, pictures
from workers.distill.data.preprocessing import Preprocessor
from workers.distill.export import boxes, onnx_graph
from workers.distill.runtime import child_options, events, memory, shutdown

PICTURES = "pictures"
MOST_CLASSES = 5
"""Of an answer, the likeliest first."""
LEAST_SHARE = 0.001
"""Classes with fewer of a picture's pixels are left out."""

Json = dict[str, Any]


def answer(workdir: Path) -> Json:
    """Return the answers to all pictures of a working folder, in their order."""
    description = json.loads((workdir / DESCRIPTION_FILE).read_text(encoding="utf-8"))
    run = onnx_graph.OnnxGraph(workdir / ONNX_FILE)
    files = sorted((workdir / PICTURES).iterdir(), key=lambda path: int(path.name))
    began = time.perf_counter()
    placed = [_read(file, workdir / PICTURES, description) for file in files]
    outputs = run(_inputs(torch.stack([image for image, _ in placed]), description))
    tell = ANSWERS[description["task"]]
    found = [
        tell(description, [output[place] for output in outputs], size)
        for place, (_, size) in enumerate(placed)
    ]
    milliseconds = 1000 * (time.perf_counter() - began)
    return {"answers": found, "milliseconds": round(milliseconds, 3)}


def _read(
    file: Path, root: Path, description: Json
) -> tuple[UInt8[Tensor, "c h w"], tuple[int, int]]:
    """Return a picture as the data set's images are stored, and its own height and width."""
    given = description["preprocessing"]
    height, width = given["picture_size"]
    channels = given["picture_channels"]
    if channels not in (1, 3):
        raise errors.UploadRefused(
            "bad_channels",
            f"this model takes images of {channels} channels, and a picture has 1 or 3: use the "
            "export itself",
        )
    header = pictures.read_header(file, root)
    white = pictures.GreyScale.of(pictures.highest_value(file, root)).white if header.is_deep else 1
    image = pictures.decode(file, root, channels, white=white)
    size = (image.height, image.width)
    if given["crop_mode"] == "pad":
        pixels = letterbox.Canvas(height, width).place(image)
    else:
        pixels = pictures.to_array(classified.fitted(image, height, width, given["crop_pct"]))
    return torch.from_numpy(pixels.copy()), size


def _inputs(images: UInt8[Tensor, "N c h w"], description: Json) -> Tensor:
    given = description["preprocessing"]
    channels, height, width = given["input_size"]
    expected = Input(
        channels=channels, height=height, width=width, mean=given["mean"], std=given["std"]
    )
    count = given["picture_channels"]
    stored = Input(
        channels=count,
        height=images.shape[2],
        width=images.shape[3],
        mean=[0.0] * count,
        std=[1.0] * count,
    )
    return Preprocessor("model", expected, stored, torch.device("cpu"))(images).contiguous()


def _class(description: Json, outputs: Sequence[Tensor], _size: tuple[int, int]) -> Json:
    """Return the likeliest classes with their probabilities."""
    values, places = outputs[0].softmax(0).sort(descending=True)
    names = description["classes"]
    return {
        "classes": [
            {"class": names[place], "probability": round(float(value), 6)}
            for value, place in zip(
                values[:MOST_CLASSES].tolist(), places[:MOST_CLASSES].tolist(), strict=True
            )
        ]
    }


def _mask(description: Json, outputs: Sequence[Tensor], size: tuple[int, int]) -> Json:
    """Return the share of each class, and the number of each pixel's class as a grey PNG."""
    numbers = outputs[0].argmax(0)
    tall, wide = _placed(description, size)
    factor_y = numbers.shape[0] / description["preprocessing"]["picture_size"][0]
    factor_x = numbers.shape[1] / description["preprocessing"]["picture_size"][1]
    inside = numbers[: max(1, round(tall * factor_y)), : max(1, round(wide * factor_x))]
    names = description["classes"]
    counts = torch.bincount(inside.flatten(), minlength=len(names)) / inside.numel()
    shares = sorted(enumerate(counts.tolist()), key=lambda pair: -pair[1])
    file = io.BytesIO()
    Image.fromarray(inside.to(torch.uint8).numpy()).save(file, "PNG")
    return {
        "shares": [
            {"class": names[place], "share": round(share, 6)}
            for place, share in shares
            if share >= LEAST_SHARE
        ],
        "mask_png": base64.b64encode(file.getvalue()).decode(),
    }


def _boxes(description: Json, outputs: Sequence[Tensor], size: tuple[int, int]) -> Json:
    """Return the detections in pixels of the picture itself, the highest score first."""
    rows = boxes.choose(outputs[0], outputs[1], description["post_processing"])
    tall, wide = _placed(description, size)
    given = description["preprocessing"]
    _, height, width = given["input_size"]
    x_factor = given["picture_size"][1] / width * size[1] / wide
    y_factor = given["picture_size"][0] / height * size[0] / tall
    names = description["classes"]
    return {
        "boxes": [
            {
                "class": names[int(number)],
                "score": round(score, 6),
                "box": [
                    round(x1 * x_factor, 2),
                    round(y1 * y_factor, 2),
                    round(x2 * x_factor, 2),
                    round(y2 * y_factor, 2),
                ],
            }
            for number, score, x1, y1, x2, y2 in rows.tolist()
        ]
    }


ANSWERS: Mapping[str, Callable[[Json, Sequence[Tensor], tuple[int, int]], Json]] = {
    "classification": _class,
    "segmentation": _mask,
    "detection": _boxes,
}


def _placed(description: Json, size: tuple[int, int]) -> tuple[int, int]:
    """Return the height and width that a picture has on the canvas of its data set."""
    at = letterbox.Canvas(*description["preprocessing"]["picture_size"]).placement(*size)
    return at.height, at.width


def main(arguments: Sequence[str]) -> int:
    """Answer, report result or failure, and return the exit code."""
    options = child_options.read("workers.distill.export.predict", arguments, reads="`pictures`")
    reporter = events.open_stream()
    try:
        reporter.result(**answer(options.workdir))
    # The last line of defence: whatever a picture provokes must end in a line for its owner.
    except Exception as error:
        traceback.print_exc()
        if isinstance(error, errors.UploadRefused):
            reporter.failure(error.refusal, f"picture {error.message}")
        elif memory.is_exhausted(error):
            reporter.failure(
                "out_of_memory", "the pictures need too much memory: send fewer, or smaller ones"
            )
        else:
            reporter.failure("internal_error", f"{type(error).__name__}: {error}")
        return 1
    return 0


if __name__ == "__main__":
    shutdown.exit_process(main(sys.argv[1:]))
