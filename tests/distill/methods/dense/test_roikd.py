"""Classes of proposals: value, gradient."""

import pytest
import torch

from tests.distill.methods.dense import scenes


class TestROIKD:
    @pytest.mark.parametrize("name", ["roikd", "roidkd"])
    def test_train_a_detector_by_the_proposals_that_it_learns_from(self, name: str) -> None:
        student = scenes.detector(1, "retort/fasterrcnn")
        teacher = scenes.frozen(scenes.detector(2, "retort/fasterrcnn", width=6, fpn_channels=64))
        terms = scenes.detection_terms({"name": name}, student, teacher)
        assert float(terms[name].detach()) > 0
        torch.stack(list(terms.values())).sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in student.parameters())
