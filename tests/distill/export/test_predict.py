"""What is told of a picture that is not as wide as it is tall, in the picture's own pixels."""

import base64
import io
from typing import Any

import torch
from PIL import Image

from workers.distill.export import predict

STEPS = {
    "score_threshold": 0.1,
    "most_candidates": 10,
    "iou_threshold": 0.5,
    "across_classes": False,
    "most_detections": 10,
}
# A picture of 10 x 40 gets 16 x 64 pixels of a canvas of 32 x 64, and the network sees the canvas
# in 16 x 64: half as tall, and as wide.
WIDE = (10, 40)
DESCRIBED: dict[str, Any] = {
    "classes": ["a", "b", "c"],
    "preprocessing": {"picture_size": [32, 64], "input_size": [3, 16, 64]},
    "post_processing": STEPS,
}


def test_a_mask_is_of_the_picture_without_the_padding() -> None:
    numbers = torch.full((16, 64), 2)  # class c, which the padding alone has
    numbers[:8] = 0
    numbers[:8, :16] = 1
    logits = torch.nn.functional.one_hot(numbers, 3).permute(2, 0, 1).float()
    told = predict.ANSWERS["segmentation"](DESCRIBED, [logits], WIDE)
    assert told["shares"] == [{"class": "a", "share": 0.75}, {"class": "b", "share": 0.25}]
    mask = Image.open(io.BytesIO(base64.b64decode(told["mask_png"])))
    assert mask.size == (64, 8)
    assert (mask.getpixel((15, 7)), mask.getpixel((16, 7))) == (1, 0)


def test_boxes_are_in_pixels_of_the_picture() -> None:
    scores = torch.tensor([[0.0, 0.75, 0.0], [0.0, 0.0, 0.05]])
    corners = torch.tensor([[16.0, 2.0, 48.0, 6.0], [0.0, 0.0, 9.0, 9.0]])
    told = predict.ANSWERS["detection"](DESCRIBED, [scores, corners], WIDE)
    assert told == {"boxes": [{"class": "b", "score": 0.75, "box": [10.0, 2.5, 30.0, 7.5]}]}


def test_boxes_of_a_tall_picture_are_scaled_by_what_each_side_became() -> None:
    # 30 x 10 becomes 32 x 11.
    scores, corners = torch.tensor([[0.75, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 11.0, 16.0]])
    told = predict.ANSWERS["detection"](DESCRIBED, [scores, corners], (30, 10))
    assert told["boxes"][0]["box"] == [0.0, 0.0, 10.0, 30.0]
