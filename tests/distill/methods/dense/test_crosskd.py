"""The rest of the teacher's head on the student's maps: value, identity, refusals."""

import copy
from typing import Any

import pytest
import torch
from torchvision.ops import generalized_box_iou

from tests.distill.methods.dense import scenes
from tests.distill.methods.scenes import MOMENT, observed
from workers.distill import errors
from workers.distill.methods import catalog
from workers.distill.methods.dense import crosskd
from workers.distill.methods.dense.base import IGNORED
from workers.distill.networks import interface
from workers.distill.networks.interface import Network

BATCH = scenes.boxes_batch()
TERMS = ["crosskd_classes", "crosskd_boxes"]


def teacher(reference: str = "retort/fcos", **arguments: Any) -> Network:
    network = scenes.detector(2, reference, width=6, head_convs=2, **arguments)
    for name, parameter in network.named_parameters():
        # Fresh heads give all but the same answer everywhere.
        if name.endswith(("cls_logits.weight", "bbox_reg.weight")):
            torch.nn.init.normal_(parameter, std=0.1)
    return scenes.frozen(network)


class TestAligned:
    def test_has_the_teachers_moments_whatever_the_students_scale(self) -> None:
        draw = torch.Generator().manual_seed(0)
        student, wanted = (
            torch.randn(2, 3, 4, 5, generator=draw, dtype=torch.float64) for _ in range(2)
        )
        found = crosskd.aligned(student, 4 * wanted + 1)
        for moment in (torch.mean, torch.std):
            one, other = (moment(each, dim=(0, 2, 3)) for each in (found, 4 * wanted + 1))
            assert torch.allclose(one, other, rtol=1e-5)
        assert torch.allclose(crosskd.aligned(9 * student - 2, 4 * wanted + 1), found, atol=1e-4)
        assert torch.allclose(crosskd.aligned(wanted, wanted), wanted, atol=1e-4)

    def test_gradient_is_right(self) -> None:
        draw = torch.Generator().manual_seed(0)
        student, wanted = (
            torch.randn(2, 2, 2, 2, generator=draw, dtype=torch.float64) for _ in range(2)
        )
        assert torch.autograd.gradcheck(crosskd.aligned, (student.requires_grad_(), wanted))

    def test_a_single_position_is_the_teachers(self) -> None:
        one, other = torch.ones(1, 2, 1, 1), torch.full((1, 2, 1, 1), 3.0)
        assert torch.equal(crosskd.aligned(one, other), other)


class TestCrossKD:
    @pytest.mark.parametrize("reference", ["retort/fcos", "retort/retinanet"])
    def test_trains_the_first_part_of_a_head_and_is_0_for_equal_detectors(
        self, reference: str
    ) -> None:
        student = scenes.detector(1, reference, head_convs=2)
        terms = scenes.detection_terms({"name": "crosskd"}, student, teacher(reference))
        assert list(terms) == ["task", *TERMS]
        assert all(float(terms[name].detach()) > 0 for name in TERMS)
        (terms[TERMS[0]] + terms[TERMS[1]]).backward()
        trained = {name for name, value in student.named_parameters() if value.grad is not None}
        assert {name.partition(".")[0] for name in trained} == {"backbone", "head"}
        in_head = [name for name in trained if name.startswith("head.")]
        # The first convolution and its norm: what follows is the teacher's.
        first = ("_head.conv.0.", "_head.conv.1.")[: 2 if reference == "retort/fcos" else 1]
        assert all(any(part in name for part in first) for name in in_head), in_head
        same = teacher(reference)
        equal = scenes.detection_terms({"name": "crosskd"}, same, copy.deepcopy(same))
        assert all(float(equal[name].detach()) < 1e-3 for name in TERMS)

    def test_value(self) -> None:
        student = scenes.detector(1, "retort/retinanet", anchor_sizes=[16, 24])
        frozen = teacher("retort/retinanet", anchor_sizes=[16, 24])
        student_out, teacher_out = observed(student, frozen, scenes.PICTURES)
        choice = {"name": "crosskd", "box_weight": 2.0, "focus": 0.0}
        method = catalog.build(choice, student, frozen)
        assert isinstance(method, crosskd.CrossKD)
        assert isinstance(student_out.detector, interface.BranchedDetectorOutput)
        head: Any = frozen.get_submodule("head")
        crossed = []
        for level, maps in zip(student_out.stages, teacher_out.stages, strict=True):
            per_branch = []
            for name in ("classification_head", "regression_head"):
                first, second = getattr(head, name).conv
                before_activation = first[1](first[0](maps))
                moved = crosskd.aligned(level, before_activation)
                per_branch.append(second(moved.relu()))
            crossed.append(per_branch)
        logits = head.classification_head.cls_logits
        wanted = torch.cat(
            [
                logits(maps).unflatten(1, (9, 3)).permute(0, 3, 4, 1, 2).flatten(1, 3)
                for maps, _ in crossed
            ],
            dim=1,
        ).sigmoid()
        shares = teacher_out.logits.mT.sigmoid()
        gaps = shares * (shares / wanted).log() + (1 - shares) * ((1 - shares) / (1 - wanted)).log()
        classes = method.assigned(student_out, BATCH)
        counted = classes != IGNORED
        assert not counted.all()
        positives = (classes >= 0).sum()
        found = method.terms(student_out, teacher_out, BATCH, MOMENT)
        value = (gaps.sum(2) * counted).sum() / positives
        assert torch.allclose(found["crosskd_classes"], value, rtol=1e-3)

        theirs = teacher_out.detector
        assert isinstance(theirs, interface.BranchedDetectorOutput)
        deltas = head.regression_head.bbox_reg
        codes = torch.cat(
            [
                deltas(maps).unflatten(1, (9, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3)
                for _, maps in crossed
            ],
            dim=1,
        )
        coder = head.regression_head.box_coder
        boxes = [
            coder.decode_single(code, anchors)
            for code, anchors in zip(codes, theirs.anchors(), strict=True)
        ]
        apart = torch.stack(
            [
                1 - generalized_box_iou(one, other).diagonal()
                for one, other in zip(boxes, theirs.predicted_boxes(), strict=True)
            ]
        )
        value = 2 * (apart * shares.amax(2) * counted).sum() / positives
        assert torch.allclose(found["crosskd_boxes"], value, rtol=1e-3)

    def test_handles_distributions_and_other_widths(self) -> None:
        student = scenes.detector(1, reg_max=8, fpn_channels=64)
        method = catalog.build({"name": "crosskd"}, student, teacher(reg_max=8))
        assert sum(p.numel() for p in method.parameters()) == 2 * (64 * 32 + 32)
        terms = method.terms(*observed(student, teacher(reg_max=8), scenes.PICTURES), BATCH, MOMENT)
        torch.stack(list(terms.values())).sum().backward()
        assert all(p.grad is not None and p.grad.any() for p in method.parameters())

    def test_refuses_more_convolutions_than_there_are(self) -> None:
        with pytest.raises(errors.IncompatibleNetworks, match=r"student's has 1.*lower it to 1"):
            catalog.build({"name": "crosskd", "remaining_convs": 2}, scenes.detector(1), teacher())

    def test_refuses_a_head_without_branches(self) -> None:
        network = scenes.detector(1, "retort/fasterrcnn")
        with pytest.raises(errors.IncompatibleNetworks, match=r"at each location or anchor"):
            catalog.build({"name": "crosskd"}, network, scenes.frozen(copy.deepcopy(network)))
