"""Classes of a dense head: value, identity, refusals."""

import copy
import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows

from tests.distill.methods.dense import scenes
from tests.distill.methods.scenes import MOMENT, observed
from workers.distill import errors
from workers.distill.methods import catalog
from workers.distill.methods.dense.base import BACKGROUND, IGNORED, HeadMethod

BATCH = scenes.boxes_batch()


class TestHeadKD:
    @pytest.mark.parametrize("reference", ["retort/fcos", "retort/retinanet"])
    @pytest.mark.parametrize("name", ["headkd", "headdkd"])
    def test_train_a_detector_and_are_0_for_equal_heads(self, name: str, reference: str) -> None:
        student = scenes.detector(1, reference)
        teacher = scenes.frozen(scenes.detector(2, reference, width=6))
        terms = scenes.detection_terms({"name": name}, student, teacher)
        assert float(terms[name].detach()) > 0
        torch.stack(list(terms.values())).sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in student.parameters())
        same = scenes.detection_terms(
            {"name": name}, student.eval(), scenes.frozen(copy.deepcopy(student))
        )
        assert float(same[name].detach()) < 1e-9

    def test_value_counts_all_but_ignored_locations_by_the_number_of_positives(self) -> None:
        student = scenes.detector(1, "retort/retinanet", anchor_sizes=[16, 24])
        teacher = scenes.frozen(scenes.detector(2, "retort/retinanet", anchor_sizes=[16, 24]))
        student_out, teacher_out = observed(student, teacher, scenes.PICTURES)
        spread = dataclasses.replace(teacher_out, logits=3 * teacher_out.logits + 4)
        method = catalog.build({"name": "headkd", "kd_weight": 2.0}, student, teacher)
        assert isinstance(method, HeadMethod)
        classes = method.assigned(student_out, BATCH)
        assert set(classes.unique().tolist()) >= {IGNORED, BACKGROUND, 0, 2}
        assert not (classes[1] >= 0).any()
        ours, theirs = student_out.logits.sigmoid(), spread.logits.sigmoid()
        entropy = -theirs * theirs.log() - (1 - theirs) * (1 - theirs).log()
        apart = F.binary_cross_entropy(ours, theirs, reduction="none") - entropy
        weighed = apart * (ours - theirs).square() * (classes != IGNORED)[:, None]
        wanted = 2 * weighed.sum() / (classes >= 0).sum()
        found = method.terms(student_out, spread, BATCH, MOMENT)["headkd"]
        assert torch.allclose(found, wanted, rtol=1e-3)

    @pytest.mark.parametrize(
        ("reference", "arguments"), [("retort/fcos", {"levels": 3}), ("retort/retinanet", {})]
    )
    def test_refuse_heads_at_other_locations(
        self, reference: str, arguments: dict[str, Any]
    ) -> None:
        teacher = scenes.detector(2, reference, **arguments)
        with pytest.raises(errors.IncompatibleNetworks, match=r"levels of 8x8, 4x4 with 1, 1"):
            catalog.build({"name": "headkd"}, scenes.detector(1), scenes.frozen(teacher))

    @pytest.mark.parametrize(
        ("name", "reference"), [("headkd", "retort/fasterrcnn"), ("roikd", "retort/fcos")]
    )
    def test_refuse_a_head_of_another_kind(self, name: str, reference: str) -> None:
        network = scenes.detector(1, reference)
        with pytest.raises(errors.IncompatibleNetworks, match=r"shows none; choose another"):
            catalog.build({"name": name}, network, scenes.frozen(copy.deepcopy(network)))
