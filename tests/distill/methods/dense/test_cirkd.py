import pytest
import torch

from tests.distill.golden import DENSE
from tests.distill.methods import scenes as plain
from tests.distill.methods.dense import scenes
from workers.distill import errors
from workers.distill.methods import catalog
from workers.distill.methods.base import Terms
from workers.distill.methods.dense.cirkd import CIRKD

NAME = "cirkd_minibatch_2x3x2x2"
BATCH_ALONE = {"name": "cirkd", "pool": 1, "memory_pixel_weight": 0, "memory_region_weight": 0}
MEMORIES = ["cirkd_memory_pixels", "cirkd_memory_regions"]


class TestCIRKD:
    def test_equals_the_guide(self) -> None:
        found = scenes.terms({**BATCH_ALONE, "relation_weight": 2.0}, *DENSE.pair(NAME))
        assert list(found) == ["task", "cirkd_pixels", "cirkd_relations", *MEMORIES]
        assert all(float(found[name]) == 0 for name in MEMORIES)
        assert DENSE.close(found["cirkd_relations"] / 2, DENSE.expected(NAME)["loss"])
        wanted = DENSE.expected("pixel_kd_2x3x2x2")["tau1_ignore_masked"]
        assert DENSE.close(found["cirkd_pixels"], wanted)

    def test_ignores_the_order_of_images_and_the_length_of_positions(self) -> None:
        student, teacher = DENSE.pair(NAME)
        one, other = (
            scenes.terms(BATCH_ALONE, *pair, scenes.without_labels())
            for pair in ((student, teacher), (3 * student.flip(0), teacher.flip(0)))
        )
        assert torch.allclose(one["cirkd_relations"], other["cirkd_relations"], rtol=1e-9)

    def test_pools_by_two(self) -> None:
        student, teacher = DENSE.student(2, 3, 4, 4), DENSE.teacher(2, 3, 4, 4)
        masks = torch.zeros(2, 4, 4, dtype=torch.int64)
        found = scenes.terms({**BATCH_ALONE, "pool": None}, student, teacher, masks)
        pooled = [each.reshape(2, 3, 2, 2, 2, 2).mean((3, 5)) for each in (student, teacher)]
        wanted = scenes.terms(BATCH_ALONE, student, teacher, masks, finals=(pooled[0], pooled[1]))
        assert torch.allclose(found["cirkd_relations"], wanted["cirkd_relations"], rtol=1e-9)


MASKS = torch.tensor([[[0, 0], [2, 255]], [[2, 2], [2, 2]]])


def remembering(**params: float) -> CIRKD:
    choice = {"name": "cirkd", "pool": 1, "pixel_memory": 6, "region_memory": 3, **params}
    torch.manual_seed(0)
    method = catalog.build(choice, scenes.segmenter(1, 4), scenes.segmenter(2, 8))
    assert isinstance(method, CIRKD)
    return method.double()


def maps(seed: int, channels: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(2, channels, 2, 2, generator=draw, dtype=torch.float64)


def with_memories(method: CIRKD, masks: torch.Tensor = MASKS) -> Terms:
    logits = torch.zeros(2, 3, 2, 2, dtype=torch.float64)
    return method.terms(
        plain.features(logits, final=maps(1, 4)),
        plain.features(logits, final=maps(2, 8)),
        scenes.batch(masks),
        plain.MOMENT,
    )


class TestMemories:
    def test_value_is_the_divergence_of_the_cosines_to_all_that_is_kept(self) -> None:
        method = remembering(memory_pixel_weight=2.0).eval()
        assert method.projector is not None
        assert method.pixels is not None
        assert method.regions is not None
        counted = (MASKS != 255).flatten()
        given, wanted = (
            each.detach().permute(0, 2, 3, 1).reshape(8, -1).numpy()[counted]
            for each in (method.projector(maps(1, 4)), maps(2, 8))
        )
        found = with_memories(method)
        for queues, name, weight in (
            (method.pixels, MEMORIES[0], 2.0),
            (method.regions, MEMORIES[1], 0.1),
        ):
            kept = queues.vectors.flatten(0, 1).numpy()
            chances = []
            for rows in (given, wanted):
                lengths = (rows**2).sum(1, keepdims=True) ** 0.5
                powers = 2.718281828459045 ** (rows / lengths @ kept.T / 0.1)
                chances.append(torch.from_numpy(powers / powers.sum(1, keepdims=True)))
            apart = (chances[1] * (chances[1] / chances[0]).log()).sum(1).mean()
            assert float(found[name].detach()) == pytest.approx(weight * float(apart), rel=1e-9)

    def test_the_teachers_positions_and_regions_enter(self) -> None:
        method = remembering()
        with_memories(method)
        assert method.pixels is not None
        assert method.regions is not None
        assert method.pixels.oldest.tolist() == [2, 0, 5]
        assert method.regions.oldest.tolist() == [1, 0, 2]
        vectors = torch.nn.functional.normalize(maps(2, 8).flatten(2).mT, dim=2)
        mean = torch.nn.functional.normalize(vectors[1].mean(0), dim=0)
        assert torch.allclose(method.regions.vectors[2, 1], mean)
        kept = {tuple(row.tolist()) for row in method.pixels.vectors[0, :2]}
        assert kept == {tuple(row.tolist()) for row in vectors[0, :2]}

    def test_batches_without_labels_teach_nothing(self) -> None:
        terms = with_memories(remembering(), scenes.without_labels(MASKS))
        assert all(float(terms[name].detach()) == 0 for name in MEMORIES)

    def test_refuses_memories_beyond_a_gibibyte(self) -> None:
        with pytest.raises(errors.IncompatibleNetworks, match=r"lower pixel_memory to \d+$"):
            catalog.build(
                {"name": "cirkd", "pixel_memory": 1_000_000},
                scenes.segmenter(1, 4),
                scenes.segmenter(2, 128),
            )
