"""Distributions over the sides of boxes: value, identity, refusals."""

import copy
import dataclasses

import numpy as np
import pytest
import torch

from tests.distill.methods.dense import scenes
from tests.distill.methods.scenes import MOMENT, observed
from workers.distill import errors
from workers.distill.methods import catalog
from workers.distill.methods.base import Terms
from workers.distill.methods.dense.base import HeadMethod
from workers.distill.methods.dense.ld import LD
from workers.distill.networks.dense import detectors
from workers.distill.networks.interface import Features, Network

BATCH = scenes.boxes_batch()


def pair() -> tuple[Network, Network]:
    teacher = scenes.detector(2, width=6, reg_max=8)
    # Fresh ones all but agree.
    torch.nn.init.normal_(teacher.get_parameter("head.regression_head.bbox_reg.weight"))
    return scenes.detector(1, reg_max=8), scenes.frozen(teacher)


def distributions(output: Features) -> torch.Tensor:
    assert isinstance(output.detector, detectors.FCOSOutput)
    assert output.detector.box_distributions is not None
    return output.detector.box_distributions


class TestLD:
    def test_trains_a_detector_and_is_0_for_equal_heads(self) -> None:
        student, teacher = pair()
        terms = scenes.detection_terms({"name": "ld"}, student, teacher)
        assert list(terms) == ["task", "ld", "ld_valuable"]
        assert all(float(term.detach()) > 0 for term in terms.values())
        torch.stack(list(terms.values())).sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in student.parameters())
        same = scenes.detection_terms({"name": "ld"}, teacher, copy.deepcopy(teacher))
        assert max(float(same[name].detach()) for name in ("ld", "ld_valuable")) < 1e-9

    def test_value_is_the_mean_over_sides_and_locations_that_learn_a_box(self) -> None:
        student, teacher = pair()
        method = catalog.build({"name": "ld", "ld_weight": 2.0}, student, teacher)
        assert isinstance(method, HeadMethod)
        student_out, teacher_out = observed(student, teacher, scenes.PICTURES)
        learns = (method.assigned(student_out, BATCH) >= 0).numpy()
        chances = [
            np.exp(z) / np.exp(z).sum(-1, keepdims=True)
            for z in (
                distributions(each).detach().numpy()[learns] / 10
                for each in (student_out, teacher_out)
            )
        ]
        apart = (chances[1] * np.log(chances[1] / chances[0])).sum(-1)
        found = method.terms(student_out, teacher_out, BATCH, MOMENT)["ld"]
        assert learns.sum() > 1
        assert float(found.detach()) == pytest.approx(2 * 100 * apart.mean(), rel=1e-4)

    def test_a_shift_of_all_logits_changes_nothing(self) -> None:
        student, teacher = pair()
        method = catalog.build({"name": "ld"}, student, teacher)
        student_out, teacher_out = observed(student, teacher, scenes.PICTURES)

        def terms(shift: float) -> Terms:
            assert isinstance(student_out.detector, detectors.FCOSOutput)
            moved = copy.copy(student_out.detector)
            moved.box_distributions = distributions(student_out) + shift
            shown = dataclasses.replace(student_out, detector=moved)
            return method.terms(shown, teacher_out, BATCH, MOMENT)

        for name, term in terms(3.0).items():
            assert torch.allclose(term, terms(0.0)[name], rtol=1e-3), name

    def test_an_image_without_boxes_teaches_nothing(self) -> None:
        student, teacher = pair()
        method = catalog.build({"name": "ld"}, student, teacher)
        student_out, teacher_out = observed(student, teacher, scenes.PICTURES)
        terms = method.terms(student_out, teacher_out, scenes.boxes_batch([], []), MOMENT)
        assert all(float(terms[name].detach()) == 0 for name in ("ld", "ld_valuable"))

    def test_refuses_other_distances_and_heads_without_any(self) -> None:
        teacher = pair()[1]
        with pytest.raises(errors.IncompatibleNetworks, match=r"student has 13, the teacher 9"):
            catalog.build({"name": "ld"}, scenes.detector(1, reg_max=12), teacher)
        with pytest.raises(errors.IncompatibleNetworks, match=r"\(reg_max\), and the student"):
            catalog.build({"name": "ld"}, scenes.detector(1), teacher)
        assert LD.describe().required_features("student", "detection")[-1] == "distributions"
