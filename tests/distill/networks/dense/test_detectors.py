"""Detectors of torchvision keep their names, losses and detections behind our interface."""

import copy
import functools
import json
import math
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torchvision.models.detection
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from tests.distill.networks.dense import scenes
from workers.distill import errors
from workers.distill.evaluation import profiling
from workers.distill.networks import catalog, folding, interface, weights
from workers.distill.networks.dense import detectors

SMALL: dict[str, Any] = {"width": 4, "blocks": 1, "fpn_channels": 32}
LITE = "torchvision/ssdlite320_mobilenet_v3_large"
OWN = {
    "retort/fcos": {**SMALL, "head_convs": 1},
    "retort/retinanet": {**SMALL, "head_convs": 1},
    "retort/fasterrcnn": {**SMALL, "representation_size": 16},
}
BUILT: dict[str, dict[str, Any]] = {**OWN, LITE: {}}
DENSE = [reference for reference in BUILT if reference != "retort/fasterrcnn"]


def build(reference: str, *, side: int = scenes.SIDE, **arguments: Any) -> detectors.Detector:
    torch.manual_seed(0)
    given = arguments or BUILT.get(reference, {})
    made = catalog.build(reference, classes=3, channels=3, height=side, width=side, arguments=given)
    return cast(detectors.Detector, made)


@functools.cache
def built(reference: str) -> detectors.Detector:
    return build(reference)


def fresh(reference: str) -> detectors.Detector:
    return copy.deepcopy(built(reference))


class Unchanged(nn.Module):
    """Stands for torchvision's transform: images come normalised and in their size."""

    def forward(self, images: list[Tensor], targets: Any) -> tuple[ImageList, Any]:
        return ImageList(torch.stack(images), [(64, 64)] * len(images)), targets

    def postprocess(self, found: Any, _sizes: Any, _originals: Any) -> Any:
        return found


def plain(network: detectors.Detector) -> Any:
    """Return a copy that is torchvision's own class again."""
    twin: Any = copy.deepcopy(network)
    twin.__class__ = type(network).__bases__[1]
    twin.transform = Unchanged()
    return twin


def output(network: detectors.Detector, images: Tensor | None = None) -> Any:
    seen = network.observe(scenes.pictures() if images is None else images)
    assert seen.detector is not None
    return seen.detector


def first_class(network: detectors.Detector) -> int:
    return 0 if isinstance(network, detectors.FCOSDetector | detectors.RetinaNetDetector) else 1


class TestDetector:
    @pytest.mark.parametrize("reference", BUILT)
    def test_learns_by_the_losses_of_torchvision(self, reference: str) -> None:
        network = fresh(reference).train()
        theirs = plain(network)
        rows, images = scenes.two_boxes(), scenes.pictures()
        torch.manual_seed(5)
        expected = theirs(list(images), scenes.as_library(rows, first_class=first_class(network)))
        torch.manual_seed(5)
        losses = output(network).losses(rows)
        assert losses.keys() == expected.keys()
        for name, loss in losses.items():
            # What is pooled in boxes equals the library's to rounding alone (`region_pooling`).
            rounding = 1e-5 if name in ("loss_classifier", "loss_box_reg") else 0
            torch.testing.assert_close(loss, expected[name], rtol=rounding, atol=0, msg=name)

    @pytest.mark.parametrize("reference", BUILT)
    def test_finds_the_boxes_that_torchvision_finds(self, reference: str) -> None:
        network = fresh(reference).eval()
        with torch.no_grad():
            expected = plain(network)(list(scenes.pictures()))
            found = network(scenes.pictures())
        assert found.shape == (2, network.detections_per_image, 6)
        for image, theirs in zip(found, expected, strict=True):
            count = len(theirs["scores"])
            assert torch.equal(image[:count, 0], theirs["labels"].float() - first_class(network))
            assert torch.equal(image[:count, 1], theirs["scores"])
            assert torch.equal(image[:count, 2:], theirs["boxes"])
            assert (image[count:, 0] == -1).all()
            assert not image[count:, 1:].any()
            assert (image[:, 1].diff() <= 0).all()

    @pytest.mark.parametrize("reference", BUILT)
    def test_gradients_reach_every_parameter(self, reference: str) -> None:
        network = fresh(reference).train()
        sum(output(network).losses(scenes.two_boxes()).values()).backward()
        unused = [name for name, value in network.named_parameters() if value.grad is None]
        assert unused == []

    @pytest.mark.parametrize("reference", BUILT)
    def test_rows_that_are_no_examples_change_nothing(self, reference: str) -> None:
        network = fresh(reference).train()
        crowd, difficult = [1.0, 2, 2, 50, 50, 2304, 1], [1.0, 0, 0, 64, 64, 4096, 2]
        flat = [1.0, 9, 9, 9, 40, 0, 0]
        more = scenes.targets(
            [crowd, [0, 4, 4, 20, 24], difficult, [2, 30, 28, 60, 56], flat], [crowd]
        )
        seen = output(network)
        torch.manual_seed(5)
        expected = seen.losses(scenes.two_boxes())
        torch.manual_seed(5)
        assert seen.losses(more) == expected

    @pytest.mark.parametrize("reference", BUILT)
    def test_batches_without_boxes_have_finite_losses(self, reference: str) -> None:
        losses = output(fresh(reference).train()).losses(scenes.targets([], []))
        assert all(math.isfinite(float(loss.detach())) for loss in losses.values())

    @pytest.mark.parametrize("reference", BUILT)
    def test_shows_the_maps_of_its_pyramid(self, reference: str) -> None:
        network = built(reference).eval()
        with torch.no_grad():
            seen = network.observe(scenes.pictures())
        assert network.task == "detection"
        assert seen.logits.shape[:2] == (2, 3)
        assert seen.detector is not None
        assert seen.detector.image_size == (64, 64)
        for stage, known in zip(seen.stages, network.stages_info, strict=True):
            assert stage.shape[1] == known.channels
            assert stage.shape[2] == max(1, 64 // known.stride)
        assert torch.equal(seen.pooled, seen.stages[-1].mean(dim=(2, 3)))
        assert network.pooled_width == seen.pooled.shape[1]

    @pytest.mark.parametrize("reference", OWN)
    def test_sides_are_padded_to_what_the_coarsest_map_divides(self, reference: str) -> None:
        network = build(reference, side=40).eval()
        with torch.no_grad():
            seen = network.observe(scenes.pictures(side=64)[:, :, :40, :40])
            found = network(scenes.pictures()[:, :, :40, :40])
        assert found[..., 2:].max() <= 40
        # 48 pixels at stride 4.
        assert seen.stages[0].shape[2:] == (12, 12)

    @pytest.mark.parametrize("reference", BUILT)
    def test_is_folded_to_the_same_boxes(self, reference: str) -> None:
        network = fresh(reference).eval()
        folded = cast(detectors.Detector, folding.folded(network, scenes.pictures()))
        assert not interface.batch_norms(folded)
        assert isinstance(folded, detectors.Detector)
        with torch.no_grad():
            torch.testing.assert_close(
                folded.observe(scenes.pictures()).pooled,
                network.observe(scenes.pictures()).pooled,
                rtol=1e-3,
                atol=1e-4,
            )

    @pytest.mark.parametrize("reference", OWN)
    def test_delivered_students_rebuild_from_their_file(
        self, tmp_path: Path, reference: str
    ) -> None:
        network = fresh(reference).eval()
        said = {
            "network": reference,
            "arguments": BUILT[reference],
            "classes": 3,
            "input": {"channels": 3, "height": 64, "width": 64},
        }
        path = tmp_path / "student.safetensors"
        weights.save_student(path, network, {weights.HEADER_KEY: json.dumps(said)})
        torch.manual_seed(1)
        again, _ = weights.rebuild(path)
        with torch.no_grad():
            assert torch.equal(again.eval()(scenes.pictures()), network(scenes.pictures()))

    def test_arithmetic_is_counted(self) -> None:
        counted = profiling.flops(built("retort/fcos").eval(), scenes.pictures())
        assert counted is not None
        assert counted > 1_000_000

    def test_half_precision_is_computed_in_float32(self) -> None:
        for reference in ("retort/fcos", "retort/fasterrcnn"):
            network = fresh(reference).train()
            with torch.autocast("cpu", torch.bfloat16):
                seen = output(network)
            losses = seen.losses(scenes.two_boxes())
            assert all(loss.dtype == torch.float32 for loss in losses.values())
            assert seen.detections().dtype == torch.float32


class TestDenseOutput:
    @pytest.mark.parametrize("reference", DENSE)
    def test_says_what_each_location_is(self, reference: str) -> None:
        network = built(reference).train()
        seen = network.observe(scenes.pictures())
        found = seen.detector
        assert isinstance(found, interface.DenseDetectorOutput)
        sizes = zip(found.level_sizes, found.boxes_per_location, strict=True)
        count = sum(height * width * boxes for (height, width), boxes in sizes)
        assert seen.logits.shape == (2, 3, count)
        assert found.box_deltas.shape == (2, count, 4)
        assert (found.centerness is not None) == (reference == "retort/fcos")
        assigned = found.assigned(scenes.two_boxes())
        assert assigned.shape == (2, count)
        ignored = {-2} if reference == "retort/retinanet" else set()
        assert set(assigned[0].tolist()) == {-1, 0, 2} | ignored
        assert set(assigned[1].tolist()) == {-1}

    def test_is_no_two_stage_output(self) -> None:
        found = built("retort/fcos").observe(scenes.pictures()).detector
        assert not isinstance(found, interface.TwoStageDetectorOutput)


class TestFCOSOutput:
    def test_locations_are_assigned_by_the_rules_of_the_paper(self) -> None:
        found = output(built("retort/fcos").train())
        assigned = found.assigned(scenes.targets([[1, 6, 6, 18, 18]], [[1, 4, 4, 60, 60]]))
        near, far = assigned.split([16 * 16, 8 * 8], dim=1)
        # Level 0: centres at multiples of 4, anchors of 2; within 1.5 anchors of the centre, which
        # is (12, 12), so that location alone, whose farthest side is 6 away.
        assert (near[0] == 1).nonzero().flatten().tolist() == [3 * 16 + 3]
        assert not (far[0] == 1).any()
        # 28 pixels to each side are for level 1: centres at multiples of 8, within 6 of (32, 32).
        assert not (near[1] == 1).any()
        assert (far[1] == 1).nonzero().flatten().tolist() == [4 * 8 + 4]

    def test_boxes_are_distances_in_anchors_from_the_location(self) -> None:
        network = built("retort/fcos").eval()
        seen = output(network)
        outputs = {name: torch.zeros_like(values) for name, values in seen.outputs.items()}
        outputs["cls_logits"] -= 20
        # Level 0, row 5, column 3: centre (12, 20), anchors of 2 pixels; level 1: (40, 16), 4.
        near, far = 5 * 16 + 3, 16 * 16 + 2 * 8 + 5
        outputs["cls_logits"][0, near, 2] = 1.0
        outputs["cls_logits"][0, far, 0] = 3.0
        outputs["bbox_ctrness"][0, far] = 2.0
        outputs["bbox_regression"][0, near] = torch.tensor([1.0, 2.0, 3.0, 4.0])
        outputs["bbox_regression"][0, far] = torch.tensor([0.5, 1.5, 100.0, 2.0])
        maps = [torch.zeros(2, 1, side, side) for side in (16, 8)]
        made = detectors.FCOSOutput(
            cast(detectors.DenseDetector, network),
            outputs,
            maps,
            image_size=(64, 64),
            padded_size=(64, 64),
        ).detections()

        def sigmoid(value: float) -> float:
            return 1 / (1 + math.exp(-value))

        expected = torch.tensor(
            [
                [0, math.sqrt(sigmoid(3) * sigmoid(2)), 38, 10, 64, 24],
                [2, math.sqrt(sigmoid(1) * 0.5), 10, 16, 18, 28],
            ]
        )
        torch.testing.assert_close(made[0, :2], expected)
        assert (made[0, 2:, 0] == -1).all()
        assert (made[1, :, 0] == -1).all()


class TestRetinaNetOutput:
    def test_boxes_are_offsets_from_anchors(self) -> None:
        network = built("retort/retinanet").eval()
        seen = output(network)
        outputs = {name: torch.zeros_like(values) for name, values in seen.outputs.items()}
        outputs["cls_logits"] -= 20
        # Level 1, row 3, column 2, second ratio (1), first size (32): a square around (16, 24).
        place = 16 * 16 * 9 + (3 * 8 + 2) * 9 + 3
        outputs["cls_logits"][0, place, 1] = 0.5
        outputs["bbox_regression"][0, place] = torch.tensor([0.25, -0.125, math.log(0.5), 0.0])
        made = detectors.RetinaNetOutput(
            cast(detectors.DenseDetector, network),
            outputs,
            [torch.zeros(2, 1, side, side) for side in (16, 8)],
            image_size=(64, 64),
            padded_size=(64, 64),
        ).detections()
        # The centre moves by 8 and -4 to (24, 20); 16 wide and 32 high.
        expected = torch.tensor([1, 1 / (1 + math.exp(-0.5)), 16, 4, 32, 36])
        torch.testing.assert_close(made[0, 0], expected)
        assert (made[0, 1:, 0] == -1).all()


class TestTwoStageOutput:
    def test_proposals_are_those_that_the_losses_learn_from(self) -> None:
        network = fresh("retort/fasterrcnn").train()
        rows, found = scenes.two_boxes(), output(network)
        proposals = found.sample_proposals(rows)
        losses = found.losses(rows.clone())
        logits = found.roi_logits(proposals)
        assert logits.shape == (len(proposals.labels), 4)
        assert sum(map(len, proposals.boxes)) == len(proposals.labels)
        expected = nn.functional.cross_entropy(logits, proposals.labels)
        torch.testing.assert_close(losses["loss_classifier"], expected)
        first, second = proposals.labels.split([len(boxes) for boxes in proposals.boxes])
        assert {0, 2, 3} >= set(first.tolist()) >= {0, 2}
        assert set(second.tolist()) == {3}
        # Drawn once, whoever asks.
        assert found.sample_proposals(rows) is proposals

    def test_a_teacher_is_asked_for_the_proposals_of_a_student(self) -> None:
        student, teacher = (
            fresh("retort/fasterrcnn").train(),
            build("retort/fasterrcnn", **{**OWN["retort/fasterrcnn"], "width": 6}),
        )
        proposals = output(student).sample_proposals(scenes.two_boxes())
        with torch.no_grad():
            seen = output(teacher.eval())
            assert seen.roi_logits(proposals).shape == (len(proposals.labels), 4)
            # Twice as large for both: the same pixels of the teacher's maps.
            doubled = interface.Proposals(
                tuple(2 * boxes for boxes in proposals.boxes), proposals.labels, (128, 128)
            )
            torch.testing.assert_close(seen.roi_logits(doubled), seen.roi_logits(proposals))

    def test_sampling_needs_training_mode(self) -> None:
        with pytest.raises(RuntimeError, match="training mode only; call train"):
            output(fresh("retort/fasterrcnn").eval()).losses(scenes.two_boxes())

    def test_detections_do_not_depend_on_the_mode(self) -> None:
        network = fresh("retort/fasterrcnn")
        for norm in interface.batch_norms(network).values():
            norm.momentum = 0.0
        found = output(network.train())
        shown = found.detections()
        assert network.get_submodule("rpn").training
        network.eval()
        assert torch.equal(found.detections(), shown)

    def test_logits_are_empty_but_part_of_the_graph(self) -> None:
        logits = fresh("retort/fasterrcnn").train().observe(scenes.pictures()).logits
        assert logits.shape == (2, 3, 0)
        logits.sum().backward()


class TestNames:
    def test_lists_detectors_that_learn_from_boxes_alone(self) -> None:
        assert {"fcos_resnet50_fpn", "ssd300_vgg16"} <= set(detectors.names())
        assert not any(name.startswith(("mask", "keypoint")) for name in detectors.names())

    @pytest.mark.parametrize("name", detectors.names())
    def test_all_have_the_keys_and_shapes_of_torchvision(self, name: str) -> None:
        side = 300 if name == "ssd300_vgg16" else 64
        classes = 3 if name.startswith(("fcos", "retinanet")) else 4
        with torch.device("meta"):
            network = build(f"torchvision/{name}", side=side, score_threshold=0.1)
            made = getattr(torchvision.models.detection, name)(
                weights=None, weights_backbone=None, num_classes=classes
            )
        shapes = {key: value.shape for key, value in made.state_dict().items()}
        assert {key: value.shape for key, value in network.state_dict().items()} == shapes
        assert not any("Frozen" in type(part).__name__ for part in network.modules())
        assert network.smallest_batch == (2 if name.startswith("ssdlite") else 1)
        if name.startswith(("fcos", "retinanet")):
            strides = [stage.stride for stage in network.stages_info]
            assert strides == [8, 16, 32, 64, 128]


class TestCheckSize:
    def test_layers_for_one_size_refuse_others(self) -> None:
        with pytest.raises(errors.UnknownNetwork, match="images of 300x300 only, got 64x64"):
            build("torchvision/ssd300_vgg16", score_threshold=0.1)


class TestKeywords:
    def test_arguments_reach_the_head(self) -> None:
        for name in ("fcos_resnet50_fpn", "fasterrcnn_resnet50_fpn"):
            with torch.device("meta"):
                network = build(
                    f"torchvision/{name}", detections_per_image=7, score_threshold=0.125
                )
            assert network.detections_per_image == 7
            holder: Any = network if name.startswith("fcos") else network.roi_heads
            assert holder.score_thresh == 0.125

    def test_what_torchvision_would_drop_is_refused(self) -> None:
        with pytest.raises(errors.UnknownNetwork, match="no argument 'dropout'; it accepts detec"):
            build("torchvision/fcos_resnet50_fpn", dropout=0.5)

    def test_classifiers_take_no_detections(self) -> None:
        with pytest.raises(errors.UnknownNetwork, match="detections_per_image"):
            build("torchvision/resnet18", detections_per_image=7)


def older(name: str) -> str:
    """Return the name that a tensor had in torchvision 0.12."""
    if "fpn." in name:
        return name.replace(".0.weight", ".weight").replace(".0.bias", ".bias")
    return name.replace("rpn.head.conv.0.0.", "rpn.head.conv.")


class TestCurrentNames:
    @pytest.mark.parametrize("reference", ["retort/retinanet", "retort/fasterrcnn"])
    def test_checkpoints_of_older_versions_load(self, tmp_path: Path, reference: str) -> None:
        network = fresh(reference)
        today = network.state_dict()
        # Frozen norms count no batches.
        former = {older(name): name for name in today if not name.endswith("num_batches_tracked")}
        assert "backbone.fpn.inner_blocks.0.weight" in former
        torch.save({name: today[now].clone() for name, now in former.items()}, tmp_path / "file")
        again = build(reference)
        with torch.no_grad():
            for parameter in again.parameters():
                parameter.zero_()
        loaded = weights.load_into(again, tmp_path / "file")
        assert loaded.warnings
        found = again.state_dict()
        assert all(torch.equal(today[name], found[name]) for name in former.values())

    def test_heads_of_older_versions_skip_their_rectifiers(self) -> None:
        network = built("retort/retinanet")
        branch = "head.classification_head.conv"
        given = {f"{branch}.{index}.weight": torch.zeros(1) for index in (0, 2, 4, 6)}
        assert list(network.current_names(given)) == [
            f"{branch}.{index}.0.weight" for index in range(4)
        ]
        # In FCOS the same names are those of today.
        assert network.current_names({f"{branch}.1.0.weight": torch.zeros(1)}).keys() == {
            f"{branch}.1.0.weight"
        }
        assert list(built("retort/fcos").current_names(given)) == list(given)


class TestAgnostic:
    def test_the_best_box_of_several_classes_stays(self) -> None:
        boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 0, 30, 10]])
        found = {
            "boxes": boxes,
            "scores": torch.tensor([0.9, 0.8, 0.7]),
            "labels": torch.tensor([0, 2, 2]),
        }
        (kept,) = detectors.agnostic([found], 0.5)
        assert kept["labels"].tolist() == [0, 2]
        assert torch.equal(kept["boxes"], boxes[[0, 2]])
