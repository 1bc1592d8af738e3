import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows

from tests.distill.golden import DENSE
from workers.distill.functional import relations
from workers.distill.functional.rows import rows


def random_maps(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


class TestCorrelationGaps:
    def test_equals_the_guide_on_logits(self) -> None:
        pair, wanted = DENSE.pair("dist_logits_4x3"), DENSE.expected("dist_logits_4x3")
        found = relations.correlation_gaps(*pair, temperature=1.0)
        assert DENSE.close(found.inter, wanted["inter_tau1"])
        assert DENSE.close(found.intra, wanted["intra_tau1"])
        assert DENSE.close(found.inter + found.intra, wanted["sum_tau1"])
        softer = relations.correlation_gaps(*pair, temperature=4.0)
        assert DENSE.close(softer.inter + softer.intra, wanted["sum_tau4"])

    def test_equals_the_guide_on_pixels(self) -> None:
        student, teacher = (rows(each) for each in DENSE.pair("dist_dense_2x3x2x2"))
        found = relations.correlation_gaps(student, teacher, temperature=1.0)
        wanted = DENSE.expected("dist_dense_2x3x2x2")
        assert DENSE.close(found.inter, wanted["inter"])
        assert DENSE.close(found.intra, wanted["intra"])

    @pytest.mark.parametrize("kind", [torch.float32, torch.float64])
    def test_rows_that_are_equally_likely_get_no_gradient(self, kind: torch.dtype) -> None:
        logits = random_maps(0, 5, 3).to(kind)
        logits[2] = 0.3
        logits.requires_grad_()
        found = relations.correlation_gaps(logits, random_maps(1, 5, 3).to(kind), temperature=1.0)
        found.inter.backward()
        assert logits.grad is not None
        # Not 1e8, which a division by 1e-8 gives.
        assert not logits.grad[2].any()
        assert logits.grad[0].any()

    def test_a_teacher_that_is_equally_sure_of_all_gives_no_gradient(self) -> None:
        teacher = random_maps(1, 5, 3)
        teacher[2] = 0.3  # a row; and below, the column of a class that it never answers
        teacher[:, 1] = -800
        logits = random_maps(0, 5, 3).requires_grad_()
        found = relations.correlation_gaps(logits, teacher, temperature=1.0)
        (found.inter + found.intra).backward()
        assert logits.grad is not None
        assert logits.grad.isfinite().all()
        assert logits.grad[0].any()


class TestPositionCosineGap:
    def test_equals_the_guide(self) -> None:
        side = DENSE.inputs("skd_pairwise_2x3x4x4")["pool"]
        pooled = [F.max_pool2d(each, side) for each in DENSE.pair("skd_pairwise_2x3x4x4")]
        wanted = DENSE.expected("skd_pairwise_2x3x4x4")["loss"]
        assert DENSE.close(relations.position_cosine_gap(*pooled), wanted)

    def test_ignores_the_length_of_every_position_and_a_rotation_of_channels(self) -> None:
        student, teacher = random_maps(2, 2, 3, 2, 3), random_maps(3, 2, 5, 2, 3)
        lengths = random_maps(4, 2, 1, 2, 3).exp()
        turned, _ = torch.linalg.qr(random_maps(5, 3, 3))
        other = torch.einsum("ab,nbhw->nahw", turned, lengths * student)
        found = relations.position_cosine_gap(student, teacher)
        assert torch.allclose(relations.position_cosine_gap(other, teacher), found, rtol=1e-9)

    def test_has_the_gradient_of_its_value(self) -> None:
        student, teacher = random_maps(6, 2, 3, 2, 2).requires_grad_(), random_maps(7, 2, 4, 2, 2)
        assert torch.autograd.gradcheck(
            lambda maps: relations.position_cosine_gap(maps, teacher), (student,)
        )


class TestCrossImageKL:
    def test_equals_the_guide(self) -> None:
        name = "cirkd_minibatch_2x3x2x2"
        found = relations.cross_image_kl(*DENSE.pair(name), temperature=DENSE.inputs(name)["tau"])
        assert DENSE.close(found, DENSE.expected(name)["loss"])

    def test_is_the_mean_over_ordered_pairs_of_images(self) -> None:
        student, teacher = random_maps(8, 3, 4, 2, 2), random_maps(9, 3, 5, 2, 2)
        one, other = (F.normalize(each, dim=1).flatten(2) for each in (student, teacher))
        pairs = []
        for i in range(3):
            for j in range(3):
                mine, theirs = (each[i].mT @ each[j] / 0.5 for each in (one, other))
                pairs.append(
                    F.kl_div(
                        mine.log_softmax(1),
                        theirs.log_softmax(1),
                        reduction="batchmean",
                        log_target=True,
                    )
                )
        found = relations.cross_image_kl(student, teacher, temperature=0.5)
        assert torch.allclose(found, torch.stack(pairs).mean(), rtol=1e-9)
        assert math.isclose(
            float(relations.cross_image_kl(teacher, teacher, temperature=0.5)), 0, abs_tol=1e-12
        )

    def test_has_the_gradient_of_its_value(self) -> None:
        student, teacher = random_maps(10, 2, 3, 2, 2).requires_grad_(), random_maps(11, 2, 4, 2, 2)
        assert torch.autograd.gradcheck(
            lambda maps: relations.cross_image_kl(maps, teacher, temperature=0.5), (student,)
        )
