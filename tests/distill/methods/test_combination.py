from typing import Any

import pytest
import torch

from tests.distill.methods.logit.test_ce import batch, features
from tests.distill.methods.logit.test_kd import network, random_pair
from workers.distill import errors
from workers.distill.methods import catalog, combination
from workers.distill.methods.base import Method, Moment
from workers.distill.methods.logit import dkd, kd

MOMENT = Moment(epoch=1, step=1, steps_per_epoch=1)
KD_TWICE = {
    "name": "combine",
    "task_weight": 0.5,
    "methods": [
        {"name": "kd", "temperature": 2.0, "weight": 3.0},
        {"name": "dkd", "warmup_epochs": 4},
        {"name": "kd", "temperature": 8.0},
    ],
}


def build(choice: dict[str, Any]) -> Method:
    return catalog.build(choice, network(5), network(5))


class TestCombination:
    def test_is_one_task_term_and_each_parts_weighted_terms(self) -> None:
        student, teacher = random_pair(1, 6, 5)
        labels = torch.arange(6) % 5
        terms = build(KD_TWICE).terms(features(student), features(teacher), batch(labels), MOMENT)
        decoupled = dkd.dkd_loss(student, teacher, labels, alpha=1.0, beta=8.0, temperature=4.0)
        expected = {
            "task": 0.5 * torch.nn.functional.cross_entropy(student, labels),
            "kd": 3.0 * 0.9 * kd.kd_loss(student, teacher, temperature=2.0),
            "dkd": decoupled / 4,
            "kd_3": 0.9 * kd.kd_loss(student, teacher, temperature=8.0),
        }
        assert list(terms) == list(expected)
        for name, value in expected.items():
            assert torch.allclose(terms[name], value, rtol=1e-9), name

    def test_needs_what_any_part_needs(self) -> None:
        method, _ = catalog.find(KD_TWICE)
        assert set(method.needs) == {"labels", "teacher", "equal_classes"}
        assert not method.accepts_mixed  # because of dkd
        assert catalog.find({**KD_TWICE, "methods": [{"name": "kd"}] * 2})[0].accepts_mixed

    def test_lets_every_part_follow_training(self) -> None:
        followed = []

        class Following(kd.KD):
            def prepare(self, labels: torch.Tensor) -> None:
                followed.append(("prepare", len(labels)))

            def after_step(self, moment: Moment) -> None:
                followed.append(("after_step", moment.step))

        parts = [combination.Part(1.0, Following, kd.KD.Params()) for _ in range(2)]
        kind = combination.of(parts)
        params = kind.Params.model_validate({"methods": [{"name": "kd"}] * 2})
        method = kind(params, network(5), network(5))
        method.prepare(torch.arange(5))
        method.after_step(MOMENT)
        assert followed == [("prepare", 5), ("prepare", 5), ("after_step", 1), ("after_step", 1)]

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"methods": [{"name": "kd"}]}, "methods: List should have at least 2"),
            ({"methods": [{"name": "kd"}, {"name": "ce"}]}, "methods.1.name: 'ce' is no method"),
            ({"methods": [{"name": "kd"}, {}]}, "methods.1.name: None is no method"),
            ({"methods": [{"name": "kd"}, {"name": "kd", "weight": -1}]}, "methods.1.weight"),
            ({"methods": [{"name": "kd"}, {"name": "kd", "weight": "1"}]}, "methods.1.weight"),
            (
                {"methods": [{"name": "kd"}, {"name": "kd", "task_weight": 1}]},
                "methods.1.task_weight: the labels are learned once",
            ),
            ({"methods": [{"name": "kd", "beta": 1}, {"name": "dkd"}]}, "method kd: beta"),
        ],
    )
    def test_refuses_parts_that_make_no_sense(self, changes: dict, message: str) -> None:
        with pytest.raises(errors.BadRecipe) as refused:
            catalog.find({**KD_TWICE, **changes})
        assert message in str(refused.value)


def test_reads_labels_where_a_part_does() -> None:
    choice = {"name": "combine", "methods": [{"name": "at"}, {"name": "crd"}]}
    found, _ = catalog.find(choice)
    assert found.describe().reads_labels
    assert not catalog.find({**choice, "methods": [{"name": "at"}, {"name": "kd"}]})[0].reads_labels
