from typing import Any

import pytest
import torch

from tests.distill.methods import scenes
from workers.distill import errors
from workers.distill.methods.feature import embedkd


class TestCosineDistance:
    def test_counts_angles_and_no_lengths(self) -> None:
        student = torch.tensor([[2.0, 0.0], [0.0, 5.0]])
        teacher = torch.tensor([[0.0, 1.0], [0.0, 0.1]])
        assert float(embedkd.cosine_distance(student, teacher)) == pytest.approx(0.5)


class TestStandardisedMSE:
    def test_compares_with_the_teachers_standardised_row(self) -> None:
        teacher = torch.tensor([[3.0, 5.0]])  # mean 4, deviation 1
        loss = embedkd.standardised_mse(torch.tensor([[0.0, 1.0]]), teacher)
        assert float(loss) == pytest.approx(0.5, abs=1e-4)


class TestEmbedKD:
    @pytest.mark.parametrize("projector", ["linear", "mlp"])
    def test_projects_to_the_teachers_width(self, projector: Any) -> None:
        student, teacher = scenes.network(), scenes.other_network()
        params = embedkd.EmbedKD.Params(projector=projector, embed_weight=2.0)
        method = embedkd.EmbedKD(params, student, teacher)
        student_out, teacher_out = scenes.observed(student, teacher, scenes.pictures(4))
        terms = method.terms(student_out, teacher_out, scenes.batch([0, 1, 2, 0]), scenes.MOMENT)
        projected = method.projector(student_out.pooled)
        assert projected.shape == teacher_out.pooled.shape
        expected = 2 * embedkd.cosine_distance(projected, teacher_out.pooled)
        assert torch.allclose(terms["embed"], expected)

    def test_compares_the_embedding_itself_where_widths_are_equal(self) -> None:
        network = scenes.network()
        params = embedkd.EmbedKD.Params(projector="none", distance="cosine")
        method = embedkd.EmbedKD(params, network, scenes.network())
        assert list(method.parameters()) == []
        out, same = scenes.observed(network, network, scenes.pictures(4))
        terms = method.terms(out, same, scenes.batch([0, 1, 2, 0]), scenes.MOMENT)
        assert float(terms["embed"].detach()) == pytest.approx(0, abs=1e-6)

    def test_names_both_widths_where_they_differ_and_nothing_projects(self) -> None:
        params = embedkd.EmbedKD.Params(projector="none")
        with pytest.raises(errors.IncompatibleNetworks, match="8 numbers, the teacher's 9; choose"):
            embedkd.EmbedKD(params, scenes.network(), scenes.other_network())
