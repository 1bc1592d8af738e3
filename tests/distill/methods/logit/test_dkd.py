import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.distill.golden import CHECKS
from tests.distill.methods.logit.test_ce import batch, features
from tests.distill.methods.logit.test_kd import network, random_pair
from workers.distill import errors
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
        loss.backward()
        assert loss.isfinite()
        assert student.grad is not None
        assert student.grad.isfinite().all()

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

    def test_wants_one_true_class_for_each_image(self) -> None:
        assert not dkd.DKD.accepts_mixed
