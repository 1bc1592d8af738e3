import torch

from tests.distill.golden import DENSE
from tests.distill.methods.dense import scenes

NAME = "cirkd_minibatch_2x3x2x2"


class TestCIRKD:
    def test_equals_the_guide(self) -> None:
        choice = {"name": "cirkd", "pool": 1, "relation_weight": 2.0}
        found = scenes.terms(choice, *DENSE.pair(NAME))
        assert list(found) == ["task", "cirkd_pixels", "cirkd_relations"]
        assert DENSE.close(found["cirkd_relations"] / 2, DENSE.expected(NAME)["loss"])
        wanted = DENSE.expected("pixel_kd_2x3x2x2")["tau1_ignore_masked"]
        assert DENSE.close(found["cirkd_pixels"], wanted)

    def test_ignores_the_order_of_images_and_the_length_of_positions(self) -> None:
        student, teacher = DENSE.pair(NAME)
        one, other = (
            scenes.terms({"name": "cirkd", "pool": 1}, *pair, scenes.without_labels())
            for pair in ((student, teacher), (3 * student.flip(0), teacher.flip(0)))
        )
        assert torch.allclose(one["cirkd_relations"], other["cirkd_relations"], rtol=1e-9)

    def test_pools_by_two(self) -> None:
        student, teacher = DENSE.student(2, 3, 4, 4), DENSE.teacher(2, 3, 4, 4)
        masks = torch.zeros(2, 4, 4, dtype=torch.int64)
        found = scenes.terms({"name": "cirkd"}, student, teacher, masks)
        pooled = [each.reshape(2, 3, 2, 2, 2, 2).mean((3, 5)) for each in (student, teacher)]
        wanted = scenes.terms(
            {"name": "cirkd", "pool": 1}, student, teacher, masks, finals=(pooled[0], pooled[1])
        )
        assert torch.allclose(found["cirkd_relations"], wanted["cirkd_relations"], rtol=1e-9)
