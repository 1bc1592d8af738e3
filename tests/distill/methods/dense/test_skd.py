import pytest
import torch

from tests.distill.golden import DENSE
from tests.distill.methods import scenes as plain
from tests.distill.methods.dense import scenes
from workers.distill.methods import catalog
from workers.distill.methods.base import Terms
from workers.distill.methods.dense.skd import SKD

NAME = "skd_pairwise_2x3x4x4"
MASKS = torch.arange(2 * 16).reshape(2, 4, 4) % 3


class TestSKD:
    def test_equals_the_guide(self) -> None:
        found = scenes.terms({"name": "skd"}, *DENSE.pair(NAME), MASKS)
        assert list(found) == ["task", "skd_pixels", "skd_pairs", "skd_holistic", "skd_critic"]
        assert float(found["skd_holistic"]) == float(found["skd_critic"]) == 0
        assert DENSE.close(found["skd_pairs"] / 0.5, DENSE.expected(NAME)["loss"])
        pixels = DENSE.pair("pixel_kd_2x3x2x2")
        wanted = DENSE.expected("pixel_kd_2x3x2x2")["tau1_ignore_masked"]
        assert DENSE.close(scenes.terms({"name": "skd"}, *pixels)["skd_pixels"] / 10, wanted)

    def test_ignores_a_permutation_of_channels_but_not_of_positions(self) -> None:
        student, teacher = DENSE.pair(NAME)
        wanted = scenes.terms({"name": "skd"}, student, teacher, MASKS)["skd_pairs"]
        for dimension, is_equal in ((1, True), (3, False)):
            finals = (student.flip(dimension), teacher)
            found = scenes.terms({"name": "skd"}, student, teacher, MASKS, finals=finals)
            assert torch.allclose(found["skd_pairs"], wanted, rtol=1e-9) is is_equal

    def test_compares_maps_of_other_widths(self) -> None:
        student, teacher = DENSE.pair(NAME)
        wider = torch.cat([teacher, torch.zeros_like(teacher)], dim=1)
        one, other = (
            scenes.terms({"name": "skd"}, student, teacher, MASKS, finals=(student, each))
            for each in (teacher, wider)
        )
        assert torch.allclose(one["skd_pairs"], other["skd_pairs"], rtol=1e-12)

    def test_the_critic_learns_to_tell_both_networks_apart_and_the_student_to_deceive_it(
        self,
    ) -> None:
        student, teacher = (each.float() for each in DENSE.pair(NAME))
        method = catalog.build(
            {"name": "skd", "holistic_weight": 2.0, "critic_width": 4},
            scenes.segmenter(1, 4),
            scenes.segmenter(2, 4),
        )
        student.requires_grad_()

        def terms() -> Terms:
            torch.manual_seed(0)
            return method.terms(
                plain.features(student, final=student),
                plain.features(teacher, final=teacher),
                scenes.batch(MASKS),
                plain.MOMENT,
            )

        found = terms()
        assert isinstance(method, SKD)
        assert method.critic is not None
        score = method.critic(student.softmax(1)).mean()
        assert float(found["skd_holistic"].detach()) == pytest.approx(-2 * float(score.detach()))
        found["skd_critic"].backward()
        assert student.grad is None
        assert all(p.grad is not None for p in method.critic.parameters())
        method.zero_grad()
        found["skd_holistic"].backward()
        assert student.grad is not None
        assert all(p.grad is None for p in method.critic.parameters())
        optimizer = torch.optim.Adam(method.critic.parameters(), lr=0.01)
        for _ in range(20):
            optimizer.zero_grad()
            terms()["skd_critic"].backward()
            optimizer.step()
        scores = [
            float(method.critic(each.softmax(1)).mean().detach()) for each in (student, teacher)
        ]
        assert scores[0] < scores[1]
