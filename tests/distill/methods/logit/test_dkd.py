import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.distill import gradients
from tests.distill.golden import CHECKS
from tests.distill.methods.logit.test_ce import batch, features
from tests.distill.methods.logit.test_kd import network, random_pair
from workers.distill import errors
from workers.distill.config import rules
from workers.distill.data.types import Batch
from workers.distill.functional import divergences, standardization
from workers.distill.methods.base import Moment
from workers.distill.methods.logit import dkd, kd


class TestDKDLoss:
    @pytest.mark.parametrize("temperature", [1.0, 4.0])
    def test_parts_equal_the_published_values(self, temperature: float) -> None:
        expected = CHECKS.expected(f"dkd_parts_tau{temperature:.0f}")
        given_tensors = (CHECKS.tensor("logits_s"), CHECKS.tensor("logits_t"))
        labels = CHECKS.tensor("target")
        whole = divergences.softened_kl(*given_tensors, temperature=temperature)
        target = divergences.target_kl(*given_tensors, labels, temperature=temperature)
        others = divergences.non_target_kl(*given_tensors, labels, temperature=temperature)
        assert CHECKS.close(whole, expected["kl_per_sample"])
        assert CHECKS.close(target, expected["tckd_per_sample"])
        assert CHECKS.close(others, expected["nckd_per_sample"])
        assert CHECKS.close(temperature**2 * target.mean(), expected["tckd"])
        assert CHECKS.close(temperature**2 * others.mean(), expected["nckd"])

    def test_whole_equals_the_published_value(self) -> None:
        loss = dkd.dkd_loss(
            CHECKS.tensor("logits_s"),
            CHECKS.tensor("logits_t"),
            CHECKS.tensor("target"),
            alpha=1.0,
            beta=8.0,
            temperature=4.0,
        )
        assert CHECKS.close(loss, CHECKS.expected("dkd_a1_b8_tau4")["loss"])

    def test_two_classes_have_no_non_target_part(self) -> None:
        pair = (CHECKS.tensor("logits2_s"), CHECKS.tensor("logits2_t"))
        labels = CHECKS.tensor("target2")
        expected = CHECKS.expected("dkd_two_classes")
        others = divergences.non_target_kl(*pair, labels, temperature=4.0)
        assert torch.equal(others, torch.zeros(2, dtype=torch.float64))
        loss = dkd.dkd_loss(*pair, labels, alpha=1.0, beta=8.0, temperature=4.0)
        assert CHECKS.close(loss, expected["tckd"])
        assert CHECKS.close(kd.kd_loss(*pair, temperature=4.0), expected["kd"])

    @given(
        seed=st.integers(0, 10_000),
        classes=st.sampled_from([2, 3, 100]),
        temperature=st.sampled_from([0.5, 1.0, 4.0, 20.0]),
    )
    def test_equals_kd_when_beta_is_the_teachers_doubt(
        self, seed: int, classes: int, temperature: float
    ) -> None:
        student, teacher = random_pair(seed, 1, classes)
        label = torch.tensor([seed % classes])
        doubt = 1 - (teacher / temperature).softmax(1)[0, label[0]]
        loss = dkd.dkd_loss(
            student, teacher, label, alpha=1.0, beta=float(doubt), temperature=temperature
        )
        # Absolute too: near agreement both are differences of numbers near one.
        expected = kd.kd_loss(student, teacher, temperature=temperature)
        assert torch.allclose(loss, expected, rtol=1e-9, atol=1e-11)

    def test_is_zero_when_both_agree(self) -> None:
        _, teacher = random_pair(4, 6, 5)
        labels = torch.arange(6) % 5
        assert (
            float(dkd.dkd_loss(teacher, teacher, labels, alpha=1.0, beta=8.0, temperature=4.0)) == 0
        )

    def test_ignores_a_constant_added_to_a_row(self) -> None:
        student, teacher = random_pair(5, 6, 5)
        labels = torch.arange(6) % 5
        shifted = student + torch.arange(6, dtype=torch.float64)[:, None]
        one, other = (
            dkd.dkd_loss(logits, teacher, labels, alpha=1.0, beta=8.0, temperature=4.0)
            for logits in (student, shifted)
        )
        assert torch.allclose(one, other, rtol=1e-9)

    def test_has_the_gradient_of_its_value(self) -> None:
        student, teacher = random_pair(6, 4, 5)
        labels = torch.tensor([0, 4, 2, 2])
        student.requires_grad_()
        assert torch.autograd.gradcheck(
            lambda logits: dkd.dkd_loss(
                logits, teacher, labels, alpha=1.0, beta=8.0, temperature=2.0
            ),
            (student,),
        )

    @pytest.mark.parametrize("gap", [500.0, 1000.0, 50_000.0])
    @pytest.mark.parametrize("label", [0, 1])
    def test_is_finite_however_far_apart_the_logits_are(self, gap: float, label: int) -> None:
        student = torch.tensor([[gap, 0.0, -gap]], requires_grad=True)
        teacher = torch.tensor([[-gap, gap, 0.0]])
        labels = torch.tensor([label])
        loss = dkd.dkd_loss(student, teacher, labels, alpha=1.0, beta=8.0, temperature=1.0)
        assert gradients.is_finite(loss, student)

    def test_one_class_is_refused(self) -> None:
        with pytest.raises(ValueError, match="at least 2 classes"):
            dkd.dkd_loss(
                torch.ones(2, 1),
                torch.ones(2, 1),
                torch.zeros(2, dtype=torch.int64),
                alpha=1.0,
                beta=8.0,
                temperature=4.0,
            )


def batch_part(whole: Batch, part: slice | torch.Tensor) -> Batch:
    return dataclasses.replace(
        whole, images=whole.images[part], labels=whole.labels[part], index=whole.index[part]
    )


class TestDKD:
    @pytest.mark.parametrize("epoch", [1, 20, 240])
    def test_fades_in_by_whole_epochs(self, epoch: int) -> None:
        method = dkd.DKD(dkd.DKD.Params(), network(3), network(3))
        terms = method.terms(
            features(CHECKS.tensor("logits_s")),
            features(CHECKS.tensor("logits_t")),
            batch(CHECKS.tensor("target")),
            Moment(epoch=epoch, step=epoch, steps_per_epoch=1),
        )
        expected = CHECKS.expected("dkd_a1_b8_tau4")[f"warmup20_epoch{epoch}"]
        assert CHECKS.close(terms["dkd"], expected)
        assert CHECKS.close(terms["task"], CHECKS.expected("ce")["loss"])

    def test_refuses_one_class(self) -> None:
        with pytest.raises(errors.IncompatibleNetworks, match="at least 2 classes, got 1"):
            dkd.DKD(dkd.DKD.Params(), network(1), network(1))

    @pytest.mark.parametrize("by", ["population", "sample"])
    def test_standardizes_both_networks_logits_when_asked(
        self, by: standardization.Deviation
    ) -> None:
        # As LSKD's authors: alpha and beta times 9, temperature 2.
        params = dkd.DKD.Params(alpha=9, beta=72, temperature=2, warmup_epochs=0, standardize=by)
        student, teacher = random_pair(7, 3, 5)
        labels = torch.tensor([0, 4, 2])
        terms = dkd.DKD(params, network(5), network(5)).terms(
            features(5 * student + 1), features(teacher), batch(labels), Moment(1, 1, 1)
        )
        one, other = (
            (logits - logits.mean(1, keepdim=True))
            / (logits.std(1, correction=int(by == "sample"), keepdim=True) + 1e-7)
            for logits in (student, teacher)
        )
        expected = dkd.dkd_loss(one, other, labels, alpha=9.0, beta=72.0, temperature=2.0)
        # The student's scale is gone, up to the 1e-7 in the denominator.
        assert torch.allclose(terms["dkd"], expected, rtol=1e-6)

    @pytest.mark.parametrize(
        ("samples", "kept"), [("most_confident", [1, 3, 4]), ("least_confident", [0, 2, 5])]
    )
    def test_distils_other_classes_from_the_chosen_images_alone(
        self, samples: str, kept: list[int]
    ) -> None:
        # Saturated: in float32 the two surest have a probability of 1, and are still told apart.
        sure = torch.tensor([0.5, 40.0, -1.0, 5.0, 60.0, 2.0])
        teacher = torch.stack([sure, torch.zeros(6), torch.linspace(-1, 0, 6)], dim=1)
        student, labels = random_pair(8, 6, 3)[0].float(), torch.zeros(6, dtype=torch.int64)
        whole = batch(labels)
        params = dkd.DKD.Params.model_validate(
            {"alpha": 2, "beta": 3, "warmup_epochs": 0, "samples": samples}
        )
        method = dkd.DKD(params, network(3), network(3))
        # In several parts, and trained on in another order.
        parts = [slice(0, 4), slice(4, 6)]
        method.read_teacher([(labels[part], teacher[part]) for part in parts])
        order = torch.tensor([5, 2, 0, 1, 4, 3])
        terms = method.terms(
            features(student[order]),
            features(teacher[order]),
            batch_part(whole, order),
            Moment(1, 1, 1),
        )
        target = divergences.target_kl(student, teacher, labels, temperature=4.0)
        others = divergences.non_target_kl(student, teacher, labels, temperature=4.0)
        expected = 16 * (2 * target.sum() + 3 * others[kept].sum()) / 6
        assert torch.allclose(terms["dkd"], expected, rtol=1e-5)
        assert method.facts() == {samples: 3}
        resumed = dkd.DKD(params, network(3), network(3))
        resumed.read_teacher([(labels, -teacher)])
        resumed.load_state_dict(method.state_dict())
        weights = [torch.as_tensor(one.beta_of(whole)) for one in (resumed, method)]
        assert torch.equal(*weights)
        assert weights[0].tolist() == [3.0 * (image in kept) for image in range(6)]

    @pytest.mark.parametrize(("gap", "expected"), [(0.1, 1.0), (4.0, 4.0), (90.0, 10.0)])
    def test_takes_beta_from_the_teachers_confidence(self, gap: float, expected: float) -> None:
        # Two other classes of logit log(1/2) each: the log-odds of the first are the gap.
        rest = math.log(0.5)
        teacher = torch.tensor([[gap - 1, rest, rest], [gap + 1, rest, rest]])
        student, labels = random_pair(9, 2, 3)[0].float(), torch.tensor([0, 0])
        params = dkd.DKD.Params(beta="auto", warmup_epochs=0)
        method = dkd.DKD(params, network(3), network(3))
        with pytest.raises(RuntimeError, match="dkd has not read the teacher's outputs"):
            method.beta_of(batch(labels))
        method.read_teacher([(labels, teacher)])
        terms = method.terms(features(student), features(teacher), batch(labels), Moment(1, 1, 1))
        loss = dkd.dkd_loss(student, teacher, labels, alpha=1.0, beta=expected, temperature=4.0)
        assert torch.allclose(terms["dkd"], loss, rtol=1e-5)
        assert method.facts() == {"beta": pytest.approx(expected, abs=1e-4)}

    def test_reads_the_teacher_first_only_where_that_decides_something(self) -> None:
        method = dkd.DKD(dkd.DKD.Params(), network(3), network(3))
        assert not method.reads_teacher_first
        assert not method.facts()
        assert not method.state_dict()

    def test_refuses_a_share_without_effect(self) -> None:
        found = list(rules.of_method(dkd.DKD.describe(), dkd.DKD.Params(share=0.3).model_dump()))
        assert [(violation.field, violation.code) for violation in found] == [
            ("method/share", "no_samples_chosen")
        ]
        assert "share 0.3 has no effect while samples is all" in found[0].message

    def test_wants_one_true_class_for_each_image(self) -> None:
        assert not dkd.DKD.accepts_mixed
