"""Decoupled classes of a dense head: value, identity."""

import torch

from tests.distill.methods.dense import scenes
from tests.distill.methods.scenes import MOMENT, observed
from workers.distill.methods import catalog
from workers.distill.methods.dense.base import HeadMethod

BATCH = scenes.boxes_batch()


class TestHeadDKD:
    def test_parts_of_headdkd_add_up(self) -> None:
        student, teacher = scenes.detector(1), scenes.frozen(scenes.detector(2))
        student_out, teacher_out = observed(student, teacher, scenes.PICTURES)
        found = {}
        for alpha, beta in ((1.0, 0.0), (0.0, 1.0), (1.0, 0.25)):
            choice = {"name": "headdkd", "alpha": alpha, "beta": beta}
            method = catalog.build(choice, student, teacher)
            found[alpha, beta] = method.terms(student_out, teacher_out, BATCH, MOMENT)[
                "headdkd"
            ].detach()
        assert isinstance(method, HeadMethod)
        assert torch.allclose(found[1, 0.25], found[1, 0] + 0.25 * found[0, 1])
        classes = method.assigned(student_out, BATCH)
        rows = classes >= 0
        ours, theirs = (each.logits.transpose(1, 2)[rows] for each in (student_out, teacher_out))
        labels = classes[rows]
        others = torch.ones(len(labels), 3).scatter(1, labels[:, None], 0).bool()
        ours, theirs = (each[others].view(-1, 2).log_softmax(1) for each in (ours, theirs))
        wanted = (theirs.exp() * (theirs - ours)).sum() / len(labels)
        assert torch.allclose(found[0, 1], wanted, rtol=1e-3)
