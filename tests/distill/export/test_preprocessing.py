import pytest

from workers.distill.config.job import Input, Task
from workers.distill.export import preprocessing

EXPECTED = Input(channels=3, height=64, width=48, mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6])


class TestDescribe:
    @pytest.mark.parametrize(
        ("task", "mode", "fill"),
        [("classification", "center", None), ("segmentation", "pad", 114)],
    )
    def test_says_how_pictures_and_images_are_brought_to_size(
        self, task: Task, mode: str, fill: int | None
    ) -> None:
        assert preprocessing.describe(task, EXPECTED, (1, 32, 40)) == {
            "picture_size": [32, 40],
            "picture_channels": 1,
            "channels_order": "grey",
            "crop_mode": mode,
            "crop_pct": 1.0,
            "pad_value": fill,
            "interpolation": "bilinear",
            "antialias": True,
            "input_size": [3, 64, 48],
            "value_range": [0.0, 1.0],
            "mean": [0.1, 0.2, 0.3],
            "std": [0.4, 0.5, 0.6],
        }
