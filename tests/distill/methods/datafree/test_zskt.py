import pytest
import torch

from tests.distill.golden import CASES, CHECKS
from tests.distill.methods import scenes
from tests.distill.methods.datafree import batches
from tests.distill.methods.datafree.batches import STUDENT, TEACHER
from workers.distill import errors
from workers.distill.methods.datafree import zskt
from workers.distill.methods.datafree.zskt import ZSKT

SHALLOW = [(2, 8, 8), (3, 4, 4)]
DEEP = [(2, 8, 8), (3, 6, 6), (4, 2, 2)]


def method(**params) -> ZSKT:
    return ZSKT(ZSKT.Params(**params), scenes.network(), scenes.other_network())


class TestAttentionLoss:
    def test_equals_the_published_value(self) -> None:
        loss = zskt.attention_loss([CHECKS.tensor("map_s")], [CHECKS.tensor("map_t")])
        assert CHECKS.close(loss, CHECKS.expected("at_same_size")["loss"])

    def test_equals_the_published_value_of_different_sizes(self) -> None:
        loss = zskt.attention_loss([CHECKS.tensor("map_s_8x8")], [CHECKS.tensor("map_t")])
        assert CHECKS.close(loss, CHECKS.expected("at_pooled")["loss"])

    def test_ignores_order_sign_and_scale_of_channels(self) -> None:
        teacher_maps = CHECKS.tensor("map_t")
        assert zskt.attention_loss([-3 * teacher_maps[:, [2, 0, 1]]], [teacher_maps]) < 1e-15

    def test_sums_over_stages(self) -> None:
        student, teacher = CHECKS.tensor("map_s"), CHECKS.tensor("map_t")
        one = zskt.attention_loss([student], [teacher])
        three = zskt.attention_loss([student] * 3, [teacher] * 3)
        assert torch.allclose(three, 3 * one, rtol=1e-12)

    def test_has_the_gradient_of_its_value(self) -> None:
        teacher_maps = CHECKS.tensor("map_t")
        assert torch.autograd.gradcheck(
            lambda maps: zskt.attention_loss([maps], [teacher_maps]),
            (CHECKS.tensor("map_s_8x8").requires_grad_(),),
            fast_mode=True,
        )


class TestSynthesis:
    @pytest.mark.parametrize("shape", [torch.clone, batches.dense])
    def test_seeks_the_divergence(self, shape) -> None:
        terms = method().synthesis_terms(batches.step(shape(TEACHER), shape(STUDENT)))
        assert list(terms) == ["adversarial"]
        assert abs(terms["adversarial"] - CASES.case("adv_loss_plain")) < CASES.tolerance

    def test_may_divide_by_the_classes(self) -> None:
        terms = method(element_mean=True).synthesis_terms(batches.step(TEACHER, STUDENT))
        assert abs(terms["adversarial"] + CASES.case("kl_element_mean_T1")) < CASES.tolerance


class TestStudent:
    def test_may_divide_by_the_classes(self) -> None:
        terms = method(element_mean=True).terms(
            batches.features(STUDENT),
            batches.features(TEACHER),
            scenes.batch(range(4)),
            scenes.MOMENT,
        )
        assert abs(terms["kd"] - CASES.case("kl_element_mean_T1")) < CASES.tolerance

    def test_looks_at_no_maps_unless_asked(self) -> None:
        logits = STUDENT.clone().requires_grad_()
        student_out, teacher_out = batches.features(logits), batches.features(TEACHER)
        term = method().terms(student_out, teacher_out, scenes.batch(range(4)), scenes.MOMENT)[
            "attention"
        ]
        assert float(term) == 0
        assert not term.requires_grad

    def test_may_learn_where_the_teacher_looks(self) -> None:
        student, teacher = scenes.network(), scenes.other_network()
        built = ZSKT(ZSKT.Params(attention_weight=250), student, teacher)
        student_out, teacher_out = scenes.observed(student, teacher, scenes.pictures(4))
        term = built.terms(student_out, teacher_out, scenes.batch(range(4)), scenes.MOMENT)[
            "attention"
        ]
        expected = 250 * zskt.attention_loss(student_out.stages, teacher_out.stages)
        assert torch.allclose(term, expected)
        term.backward()
        assert student.get_parameter("conv1.weight").grad is not None
        assert student.get_parameter("fc.weight").grad is None

    def test_attention_takes_stages_of_other_sizes(self) -> None:
        teacher = scenes.Pyramid(DEEP)
        params = ZSKT.Params(attention_weight=1)
        student = scenes.network()
        student_out, teacher_out = scenes.observed(student, teacher, scenes.pictures(2))
        built = ZSKT(params, student, teacher)
        assert (
            built.terms(student_out, teacher_out, scenes.batch(range(2)), scenes.MOMENT)[
                "attention"
            ]
            > 0
        )

    @pytest.mark.parametrize(
        ("student", "teacher"),
        [
            (scenes.Pyramid(SHALLOW), scenes.Pyramid(DEEP)),
            (scenes.Pyramid(DEEP), scenes.Pyramid(SHALLOW)),
            (
                batches.small(normed=False).float(),
                batches.small(normed=False).float(),
            ),
        ],
    )
    def test_attention_needs_equally_many_stages(self, student, teacher) -> None:
        with pytest.raises(errors.IncompatibleNetworks, match="equally many; the student returns"):
            ZSKT(ZSKT.Params(attention_weight=1), student, teacher)
        assert ZSKT(ZSKT.Params(), student, teacher).params.attention_weight == 0
