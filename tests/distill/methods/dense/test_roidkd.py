"""Decoupled classes of proposals: value, gradient, and the row DKD + ReviewKD."""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows

from tests.distill.golden import DENSE
from tests.distill.methods.dense import scenes
from tests.distill.methods.scenes import MOMENT, observed
from workers.distill.functional import divergences
from workers.distill.methods import catalog

BATCH = scenes.boxes_batch()


class TestROIDKD:
    def test_values_are_means_over_proposals(self) -> None:
        student = scenes.detector(1, "retort/fasterrcnn")
        teacher = scenes.frozen(scenes.detector(2, "retort/fasterrcnn"))
        student_out, teacher_out = observed(student, teacher, scenes.PICTURES)
        found = {
            name: catalog.build({"name": name}, student, teacher).terms(
                student_out, teacher_out, BATCH, MOMENT
            )[name]
            for name in ("roikd", "roidkd")
        }
        detector: Any = student_out.detector
        proposals = detector.sample_proposals(BATCH.labels[..., :7])
        others: Any = teacher_out.detector
        ours, theirs = detector.roi_logits(proposals), others.roi_logits(proposals)
        assert ours.shape == theirs.shape == (16, 4)
        assert proposals.labels.max() == 3  # background
        wanted = F.kl_div(
            ours.log_softmax(1), theirs.log_softmax(1), log_target=True, reduction="batchmean"
        )
        assert torch.allclose(found["roikd"], wanted, rtol=1e-4)
        decoupled = divergences.decoupled_kl(
            ours, theirs, proposals.labels, alpha=1.0, beta=0.25, temperature=1.0
        )
        assert torch.allclose(found["roidkd"], decoupled.mean(), rtol=1e-4)

    def test_dkd_of_the_guide_is_that_of_proposals(self) -> None:
        student, teacher = DENSE.pair("dkd_roi_4x5")
        labels = torch.tensor(DENSE.inputs("dkd_roi_4x5")["labels"])
        found = divergences.decoupled_kl(
            student, teacher, labels, alpha=1.0, beta=0.25, temperature=1.0
        )
        assert DENSE.close(found.mean(), DENSE.expected("dkd_roi_4x5")["total"])

    def test_combine_with_knowledge_review_as_the_authors_do(self) -> None:
        student = scenes.detector(1, "retort/fasterrcnn")
        teacher = scenes.frozen(scenes.detector(2, "retort/fasterrcnn", fpn_channels=64))
        parts = [{"name": "roidkd"}, {"name": "reviewkd"}]
        terms = scenes.detection_terms({"name": "combine", "methods": parts}, student, teacher)
        assert list(terms) == ["task", "roidkd", "reviewkd"]
        torch.stack(list(terms.values())).sum().backward()
        assert all(p.grad is not None for p in student.parameters())
