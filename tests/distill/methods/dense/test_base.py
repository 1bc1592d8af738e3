"""What dense methods share: one resolution, pixels with labels, and the whole way of a step."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows

from tests.distill.golden import DENSE
from tests.distill.methods.dense import scenes
from tests.distill.methods.scenes import MOMENT, observed, pictures
from workers.distill import errors
from workers.distill.methods import catalog
from workers.distill.methods.dense import base

DENSE_NAMES = sorted(name for name in catalog.METHODS if catalog.METHODS[name].family == "dense")
OF_SEGMENTERS = [name for name in DENSE_NAMES if "segmentation" in catalog.METHODS[name].tasks]
SEGMENTING: list[dict[str, Any]] = [
    {"name": "ce"},
    {"name": "at"},
    {"name": "at", "patch": 4},
    {"name": "cwd", "patch": 4},
    {"name": "pkd", "patch": 4},
    {"name": "pixeldist", "patch": 4},
    {"name": "densepcka", "classes_weight": 1.0, "centered": True},
    {"name": "combine", "methods": [{"name": "densepcka"}, {"name": "mimic"}, {"name": "at"}]},
]


WITHOUT_MEMORIES = {"memory_pixel_weight": 0, "memory_region_weight": 0}


class TestResolution:
    @pytest.mark.parametrize("name", OF_SEGMENTERS)
    def test_networks_of_other_strides_meet_at_the_smaller_one(self, name: str) -> None:
        student, teacher = DENSE.student(2, 3, 8, 8), DENSE.teacher(2, 3, 4, 4)
        masks = torch.arange(2 * 64).reshape(2, 8, 8) % 3
        choice = {"name": name, **(WITHOUT_MEMORIES if name == "cirkd" else {})}
        found = scenes.terms(choice, student, teacher, masks)
        small = F.avg_pool2d(student, 2)
        # The label under the centre of each square.
        wanted = scenes.terms(choice, small, teacher, masks[:, 1::2, 1::2])
        for term in set(found) - {"task"}:
            assert torch.allclose(found[term], wanted[term], rtol=1e-9), term

    def test_task_is_learned_at_the_size_of_the_masks(self) -> None:
        coarse = DENSE.student(2, 3, 2, 2)
        masks = torch.arange(2 * 16).reshape(2, 4, 4) % 3
        found = scenes.terms({"name": "cwd"}, coarse, coarse, masks)
        full = F.interpolate(coarse.float(), (4, 4), mode="bilinear")
        assert torch.allclose(found["task"], F.cross_entropy(full, masks))


class TestPixelWeights:
    WEIGHTS = torch.tensor([1.5, 4.0, 20.0])

    @pytest.mark.parametrize(
        "choice",
        [
            {"name": "pixelkd"},
            {"name": "pixelkd", "temperature": 4},
            {"name": "pixeldkd"},
            {"name": "skd"},
            {"name": "cirkd", **WITHOUT_MEMORIES},
        ],
    )
    def test_are_those_of_the_classes_in_the_loss_of_the_labels(
        self, choice: dict[str, Any]
    ) -> None:
        student, teacher = DENSE.pair("pixel_kd_2x3x2x2")
        term = next(name for name in scenes.terms(choice, student, teacher) if name != "task")
        each = []
        for index in range(8):
            masks = torch.full((2, 2, 2), 255)
            labels = torch.tensor(scenes.MASKS)
            masks.view(-1)[index] = labels.view(-1)[index]
            weight = float(self.WEIGHTS[label]) if (label := int(masks.view(-1)[index])) < 3 else 0
            each.append((weight, float(scenes.terms(choice, student, teacher, masks)[term])))
        wanted = sum(weight * loss for weight, loss in each) / sum(weight for weight, _ in each)
        found = scenes.terms(choice, student, teacher, class_weights=self.WEIGHTS)[term]
        assert float(found) == pytest.approx(wanted, rel=1e-6)  # weights are float32

    def test_of_pixels_without_a_label_are_those_of_the_teachers_classes(self) -> None:
        student, teacher = DENSE.pair("pixel_kd_2x3x2x2")
        choice = {"name": "pixelkd", "only_labelled": False}
        likely, ours = teacher.softmax(1), student.softmax(1)
        known = torch.tensor(scenes.MASKS)
        expected = (likely * self.WEIGHTS[:, None, None]).sum(1)
        weights = torch.where(known == 255, expected, self.WEIGHTS[known.clamp(max=2)])
        apart = (likely * (likely / ours).log()).sum(1)
        found = scenes.terms(choice, student, teacher, class_weights=self.WEIGHTS)["pixelkd"]
        wanted = float((apart * weights).sum() / weights.sum())
        assert float(found) == pytest.approx(wanted, rel=1e-6)

    def test_of_equal_size_change_nothing(self) -> None:
        pair = DENSE.pair("pixel_kd_2x3x2x2")
        choices: list[dict[str, Any]] = [
            {"name": "pixelkd"},
            {"name": "pixelkd", "patch": 2},
            {"name": "pixeldkd"},
        ]
        for choice in choices:
            one, other = (
                scenes.terms(choice, *pair, class_weights=weights)
                for weights in (None, torch.full((3,), 7.0))
            )
            assert torch.allclose(one[choice["name"]], other[choice["name"]], rtol=1e-6)

    def test_of_patches_are_those_of_the_class_whose_map_is_cut(self) -> None:
        student, teacher = DENSE.pair("pixel_kd_2x3x2x2")
        choice = {"name": "pixelkd", "patch": 2, "only_labelled": False}
        chances = [each.movedim(1, 0).flatten(1).softmax(1) for each in (student, teacher)]
        apart = (chances[1] * (chances[1] / chances[0]).log()).sum(1)
        found = scenes.terms(choice, student, teacher, class_weights=self.WEIGHTS)["pixelkd"]
        wanted = float((apart * self.WEIGHTS).sum() / self.WEIGHTS.sum())
        assert float(found) == pytest.approx(wanted, rel=1e-6)


class TestPixelLabels:
    def test_pixels_without_a_label_have_class_0_and_do_not_count(self) -> None:
        method = catalog.build({"name": "cwd"}, scenes.segmenter(1, 4), scenes.segmenter(2, 4))
        assert isinstance(method, base.DenseMethod)
        masks = torch.tensor([[[0, 2], [255, 1]]], dtype=torch.uint8)
        labels, known = method.pixel_labels(scenes.batch(masks), torch.zeros(1, 3, 2, 2))
        assert labels.tolist() == [[[0, 2], [0, 1]]]
        assert labels.dtype == torch.int64
        assert known.tolist() == [[[True, True], [False, True]]]


class TestPoolSide:
    @pytest.mark.parametrize(
        ("height", "width", "most", "side"),
        [(8, 8, 16, 2), (9, 9, 16, 3), (64, 64, 1024, 2), (65, 65, 1024, 3), (1, 1, 16, 2)],
    )
    def test_is_the_least_that_leaves_few_positions(
        self, height: int, width: int, most: int, side: int
    ) -> None:
        maps = torch.zeros(1, 1, height, width)
        assert base.pool_side(None, maps, most=most) == side
        assert base.pool_side(1, maps, most=most) == 1


class TestSegmentation:
    @pytest.mark.parametrize("choice", SEGMENTING, ids=str)
    def test_methods_train_a_segmenter(self, choice: dict[str, Any]) -> None:
        student, teacher = scenes.segmenter(1, 4, 6), scenes.segmenter(2, 6, 8).eval()
        method = catalog.build(choice, student, teacher.requires_grad_(False))
        catalog.check_task(choice, "segmentation")
        student_out, teacher_out = observed(student, teacher, pictures(3))
        masks = torch.arange(3 * 64).reshape(3, 8, 8) % 3
        terms = method.terms(student_out, teacher_out, scenes.batch(masks), MOMENT)
        torch.stack(list(terms.values())).sum().backward()
        assert all(term.isfinite() for term in terms.values())
        for parameter in (*student.parameters(), *method.parameters()):
            assert parameter.grad is not None
            assert parameter.grad.isfinite().all()

    @pytest.mark.parametrize("name", DENSE_NAMES)
    def test_dense_methods_are_not_for_classification(self, name: str) -> None:
        with pytest.raises(errors.BadRecipe, match="classification"):
            catalog.check_task({"name": name}, "classification")

    def test_parts_for_different_tasks_do_not_combine(self) -> None:
        choice = {"name": "combine", "methods": [{"name": "kd"}, {"name": "cwd"}]}
        with pytest.raises(errors.BadRecipe, match="no task that all its parts are for"):
            catalog.check_task(choice, "segmentation")

    def test_feature_methods_refuse_a_segmenter_that_shows_no_last_map(self) -> None:
        class Hidden(type(scenes.segmenter(1, 4))):  # type: ignore[misc]  # a class that a call returns
            def observe(self, images: torch.Tensor) -> Any:
                shown = super().observe(images)
                return type(shown)(logits=shown.logits, pooled=shown.pooled)

        student = scenes.segmenter(1, 4)
        student.__class__ = Hidden
        with pytest.raises(errors.IncompatibleNetworks, match="a last feature map"):
            catalog.build({"name": "skd"}, student, scenes.segmenter(2, 4))
