from typing import Any

import pytest

from workers.distill.config import rules
from workers.distill.config.training import expand


def fields_refused(task: str, **training: Any) -> list[str]:
    settings = expand(training).model_dump()
    return [fault.field for fault in rules.of_task_and_training(task, settings)]


class TestOfTaskAndTraining:
    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("augmentation", "autoaugment"),
            ("augmentation", "randaugment"),
            ("mixing", {"name": "cutmix"}),
            ("label_noise", 0.1),
        ],
    )
    def test_what_needs_one_class_for_each_image_is_refused_for_masks(
        self, field: str, value: object
    ) -> None:
        assert fields_refused("segmentation", **{field: value}) == [f"training/{field}"]
        assert fields_refused("classification", **{field: value}) == []

    @pytest.mark.parametrize("augmentation", ["none", "flip", "standard", "scale_jitter"])
    def test_what_moves_masks_with_their_images_is_not(self, augmentation: str) -> None:
        assert fields_refused("segmentation", augmentation=augmentation) == []

    def test_a_teacher_cache_holds_no_boxes(self) -> None:
        cache = {"views": 2}
        assert fields_refused("detection", teacher_cache=cache) == ["training/teacher_cache"]
        assert fields_refused("segmentation", teacher_cache=cache) == []


class TestOfTraining:
    @pytest.mark.parametrize(
        ("flip", "augmentation", "refused"),
        [
            (None, "none", False),
            (True, "none", True),
            (False, "none", False),
            (False, "flip", True),
            (True, "flip", False),
            (False, "standard", False),
        ],
    )
    def test_a_choice_of_mirroring_has_an_effect(
        self, flip: bool | None, augmentation: str, refused: bool
    ) -> None:
        settings = expand({"flip": flip, "augmentation": augmentation}).model_dump()
        faults = [fault.field for fault in rules.of_training(settings)]
        assert faults == (["training/flip"] if refused else [])

    def test_factors_of_scale_jitter_are_in_order(self) -> None:
        settings = expand({"scale_jitter": [2.0, 0.5]}).model_dump()
        assert [fault.field for fault in rules.of_training(settings)] == ["training/scale_jitter"]
