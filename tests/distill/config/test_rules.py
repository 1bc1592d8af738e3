from typing import Any

import pytest

from workers.distill.config import rules
from workers.distill.config.baseline import baseline_of
from workers.distill.config.federation import Privacy
from workers.distill.config.training import expand
from workers.distill.methods import catalog


def fields_refused(task: str, **training: Any) -> list[str]:
    settings = expand(training).model_dump()
    return [fault.field for fault in rules.of_task_and_training(task, settings)]


class TestOfTaskAndTraining:
    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("augmentation", "autoaugment"),
            ("augmentation", "randaugment"),
            ("augmentation", "trivialaugment"),
            ("random_resized_crop", {}),
            ("random_erasing", {"probability": 0.5}),
            ("crop_ratio", 0.875),
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


class TestOfWeighedLabels:
    def of(self, method: dict[str, Any], **training: Any) -> list[rules.Violation]:
        kind, params = catalog.find(method)
        asked = expand(training).model_dump()
        return list(rules.of_weighed_labels(kind.describe(), params.model_dump(), asked))

    def test_weights_of_classes_need_a_loss_that_they_weigh(self) -> None:
        (fault,) = self.of({"name": "cwd", "task_weight": 0}, class_weights=[1, 2.5])
        assert fault.field == "training/class_weights"
        assert fault.message == (
            "class_weights [1.0, 2.5] weigh the classes in the loss of the labels, and task_weight "
            "0 leaves that out of method cwd; raise task_weight, or leave class_weights out"
        )
        assert not self.of({"name": "cwd", "task_weight": 0})
        assert not self.of({"name": "cwd"}, class_weights=[1, 2.5])

    @pytest.mark.parametrize("name", ["pixelkd", "pixeldkd", "skd", "cirkd"])
    def test_imitated_pixels_are_weighed_without_the_labels(self, name: str) -> None:
        assert not self.of({"name": name, "task_weight": 0}, class_weights=[1, 2.5])

    def test_another_loss_of_the_labels_needs_the_labels(self) -> None:
        (fault,) = self.of({"name": "fkd"}, task_loss={"name": "bce"})
        assert fault.field == "training/task_loss"
        assert "task_weight 0 leaves the loss of the labels out of method fkd" in fault.message
        assert not self.of({"name": "fkd", "task_weight": 1}, task_loss={"name": "bce"})
        assert not self.of({"name": "fkd"})


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

    @pytest.mark.parametrize("augmentation", ["none", "flip", "scale_jitter"])
    def test_a_crop_that_nothing_cuts_is_refused(self, augmentation: str) -> None:
        settings = expand({"augmentation": augmentation, "random_resized_crop": {}}).model_dump()
        (fault,) = rules.of_training(settings)
        assert (fault.field, fault.code) == ("training/random_resized_crop", "crop_without_effect")
        assert augmentation in fault.message

    def test_bounds_of_crops_are_in_order(self) -> None:
        crop, erasing = {"scale": [0.5, 0.1]}, {"ratio": [3, 1]}
        settings = expand({"random_resized_crop": crop, "random_erasing": erasing}).model_dump()
        assert [fault.field for fault in rules.of_training(settings)] == [
            "training/random_resized_crop/scale",
            "training/random_erasing/ratio",
        ]

    def test_factors_of_scale_jitter_are_in_order(self) -> None:
        settings = expand({"scale_jitter": [2.0, 0.5]}).model_dump()
        assert [fault.field for fault in rules.of_training(settings)] == ["training/scale_jitter"]


def federated(name: str, **federation: Any) -> tuple[Any, dict[str, Any]]:
    """Return the description of a method, and the method with all of its defaults."""
    method, params = catalog.find({"name": name, "federation": federation})
    return method.describe(), {"name": name, **params.model_dump()}


class TestOfBaseline:
    def faults(self, name: str, **federation: Any) -> list[tuple[str, str]]:
        found = rules.of_baseline(*federated(name, **federation), "retort/mlp", {})
        return [(fault.field, fault.code) for fault in found]

    def test_the_data_of_remote_clients_is_elsewhere(self) -> None:
        assert self.faults("dsfl", clients="remote") == [("baseline", "clients_elsewhere")]
        assert self.faults("dsfl") == []

    def test_a_client_that_becomes_the_baseline_has_the_students_network(self) -> None:
        others = [{"network": "retort/resnet8"}]
        told = [("baseline", "student_not_among_clients")]
        assert self.faults("dsfl", networks=others) == told
        assert self.faults("dsfl", networks=[*others, {"network": "retort/mlp"}]) == []


class TestOfMethod:
    @pytest.mark.parametrize("images", [0.5, 9, None])
    def test_a_round_may_use_fewer_open_images_than_a_share_of_an_unknown_number(
        self, images: float | None
    ) -> None:
        given = {"open_images": images, "open_images_per_round": 9}
        assert not list(rules.of_method(*federated("dsfl", **given)))


class TestBaselineOf:
    def test_clients_keep_their_images_and_nothing_else_of_the_method(self) -> None:
        privacy, made = Privacy().model_dump(), {"generator": "gaussian"}
        description, method = federated("fedmd", privacy=privacy, augmentation=made, clients=4)
        alone = baseline_of(method, description.exchange)["federation"]
        assert (alone["privacy"], alone["augmentation"], alone["clients"]) == (None, None, 4)
        assert alone["open_images"] == 0.2
        description, method = federated("fedmd", open_images=7)
        assert baseline_of(method, description.exchange)["federation"]["open_images"] == 7
