"""Methods that learn from a teacher without a classifier, for a student without one."""

import dataclasses

import pytest
import torch

from tests.distill.methods import scenes
from workers.distill.methods import catalog
from workers.distill.methods.base import Moment
from workers.distill.methods.catalog import METHODS

CHOICES = {"pcka": {"patch": 1}}
FITTING = sorted(name for name, method in METHODS.items() if "embedding" in method.tasks)
WITHOUT_EMBEDDING = {"at", "fitnet", "kdsvd", "nst", "ofd", "pcka", "reviewkd", "sp", "vid"}


def test_there_are_methods_for_maps_and_for_embeddings() -> None:
    assert set(FITTING) - WITHOUT_EMBEDDING == {"cc", "embedkd", "mmd", "pkt", "rkd"}


@pytest.mark.parametrize("name", FITTING)
def test_learns_without_logits_and_labels(name: str) -> None:
    student, teacher = scenes.network(classes=0), scenes.other_network(classes=0)
    student.task = teacher.task = "embedding"
    method = catalog.build({"name": name, **CHOICES.get(name, {})}, student, teacher)
    outputs = scenes.observed(student, teacher, scenes.pictures(6))
    # Whoever read logits or labels would give nothing but NaN, or fail.
    student_out, teacher_out = (
        dataclasses.replace(one, logits=torch.full_like(one.logits, torch.nan)) for one in outputs
    )
    batch = scenes.batch([-1] * 6)
    terms = method.terms(
        student_out, teacher_out, batch, Moment(epoch=2, step=2, steps_per_epoch=1)
    )
    assert float(terms["task"]) == 0
    total = torch.stack(list(terms.values())).sum()
    total.backward()
    gradients = [one.grad for one in student.parameters() if one.grad is not None]
    assert gradients
    assert any(bool(one.abs().sum() > 0) for one in gradients)
    assert all(bool(one.isfinite().all()) for one in gradients)
