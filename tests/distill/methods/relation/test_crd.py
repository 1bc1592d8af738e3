import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows

from tests.distill import gradients
from tests.distill.golden import CHECKS
from tests.distill.methods import scenes
from workers.distill import errors
from workers.distill.data.types import Batch
from workers.distill.methods.base import Terms
from workers.distill.methods.relation import crd

LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0])
CHECK = CHECKS.parameters("crd_first_step")


def random_rows(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def batch(*places: int, labels: torch.Tensor = LABELS) -> Batch:
    index = torch.tensor(places)
    pictures = torch.zeros(len(places), 1, 8, 8, dtype=torch.uint8)
    return Batch(images=pictures, labels=labels[index], index=index)


def method(labels: torch.Tensor = LABELS, **values: float | str) -> crd.CRD:
    params = crd.CRD.Params.model_validate({"width": 4, "negatives": 4, **values})
    made = crd.CRD(params, scenes.network(), scenes.other_network(classes=5))
    made.prepare(labels)
    return made


def terms_of(made: crd.CRD, batch: Batch, seed: int = 0) -> Terms:
    student, teacher = random_rows(seed, 7, 8).float(), random_rows(seed + 1, 7, 9).float()
    logits = torch.zeros(len(batch.index), 3)
    return made.terms(
        scenes.features(logits, pooled=student[batch.index]),
        scenes.features(logits, pooled=teacher[batch.index]),
        batch,
        scenes.MOMENT,
    )


class TestFirstStep:
    def scored(
        self, embeddings: str, memories: torch.Tensor
    ) -> tuple[crd.MemoryScores, torch.Tensor]:
        places = CHECKS.tensor("crd_contrast_index").long()
        counts = F.one_hot(places[:, 1:], CHECK["n_data"]).sum(1).double()
        rows = CHECKS.tensor(embeddings)
        scores = crd.score(rows, memories[places[:, 0]], memories, counts, temperature=CHECK["tau"])
        return scores, rows

    def test_and_the_second_equal_the_published_values(self) -> None:
        expected = CHECKS.expected("crd_first_step")
        memories = {side: CHECKS.tensor(f"crd_memory_{side}") for side in "st"}
        index = CHECKS.tensor("crd_index").long()
        log_z, losses = {}, []
        for side, other in ("st", "ts"):
            scores, rows = self.scored(f"crd_emb_{side}", memories[other])
            log_z[side] = crd.log_normaliser(scores, images=CHECK["n_data"])
            assert CHECKS.close(log_z[side].exp(), expected[f"Z_{side}"])
            loss = crd.crd_loss(scores, log_z[side], negatives=CHECK["K"], images=CHECK["n_data"])
            assert CHECKS.close(loss, expected[f"loss_{side}"])
            losses.append(loss)
        assert CHECKS.close(torch.stack(losses).sum(), expected["loss"])
        for side in "st":
            rows = CHECKS.tensor(f"crd_emb_{side}")
            moved = crd.updated(memories[side][index], rows, momentum=CHECK["momentum"])
            memories[side][index] = moved
        assert CHECKS.close(memories["s"][1], expected["memory_s_row1_after"])
        assert CHECKS.close(memories["t"][4], expected["memory_t_row4_after"])
        second = [
            crd.crd_loss(
                self.scored(f"crd_emb_{side}", memories[other])[0],
                log_z[side],
                negatives=CHECK["K"],
                images=CHECK["n_data"],
            )
            for side, other in ("st", "ts")
        ]
        assert CHECKS.close(torch.stack(second).sum(), expected["loss_second_step_same_batch"])


class TestCRDLoss:
    def scores(self, embeddings: torch.Tensor) -> crd.MemoryScores:
        counts = torch.tensor([[2.0, 0.0, 1.0], [0.0, 3.0, 0.0]], dtype=torch.float64)
        return crd.score(
            embeddings, random_rows(1, 2, 4), random_rows(2, 3, 4), counts, temperature=0.5
        )

    def test_equals_the_sum_over_every_single_draw(self) -> None:
        scores = self.scores(random_rows(0, 2, 4))
        noise, z = 3 / 10, 7.0
        total = 0.0
        for row in range(2):
            positive = math.exp(float(scores.positive[row])) / z
            total -= math.log(positive / (positive + noise + crd.EPS))
            for column in range(3):
                negative = math.exp(float(scores.negative[row, column])) / z
                share = math.log(noise / (negative + noise + crd.EPS))
                total -= float(scores.counts[row, column]) * share
        log_z = torch.tensor(math.log(z), dtype=torch.float64)
        loss = crd.crd_loss(scores, log_z, negatives=3, images=10)
        assert math.isclose(float(loss), total / 2, rel_tol=1e-9)
        # And Z is a mean over the same draws.
        several = scores.negative.exp() * scores.counts
        mean = (scores.positive.exp().sum() + several.sum()) / 8 * 10
        assert torch.allclose(crd.log_normaliser(scores, images=10).exp(), mean, rtol=1e-9)

    def test_has_the_gradient_of_its_value(self) -> None:
        log_z = torch.tensor(1.0, dtype=torch.float64)
        assert torch.autograd.gradcheck(
            lambda rows: crd.crd_loss(self.scores(rows), log_z, negatives=3, images=10),
            (random_rows(0, 2, 4).requires_grad_(),),
        )

    def test_is_finite_for_scores_of_any_size(self) -> None:
        for size in (0.0, 1e3, 1e6):
            rows = (size * random_rows(0, 2, 4)).float().requires_grad_()
            scores = crd.score(
                rows, torch.ones(2, 4), torch.ones(3, 4), torch.ones(2, 3), temperature=0.07
            )
            log_z = crd.log_normaliser(scores, images=10).detach()
            loss = crd.crd_loss(scores, log_z, negatives=3, images=10)
            assert gradients.is_finite(loss, rows)


class TestPools:
    def counted(self, negatives: int, labels: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """Return how often each image is a negative of each sample, by its place."""
        places, counts = crd.Pools(labels, negatives).draw(wanted)
        if places is None:
            return counts
        whole = torch.zeros(len(wanted), len(labels))
        return whole.index_add_(1, places, counts)

    @pytest.mark.parametrize("negatives", [1, 3, 4])
    def test_draw_without_replacement_where_every_pool_is_large_enough(
        self, negatives: int
    ) -> None:
        labels = torch.tensor([0, 1, 2, 1])
        for _ in range(20):
            counts = self.counted(negatives, LABELS, labels)
            assert (counts.sum(1) == negatives).all()
            assert counts.max() == 1
            assert not counts[labels[:, None] == LABELS].any()
        # Four is every image that is not of class 0.
        if negatives == 4:
            assert torch.equal(counts[0], (LABELS != 0).float())

    @pytest.mark.parametrize("by_class", [True, False])
    def test_draw_with_replacement_from_other_classes_where_one_is_too_small(
        self, by_class: bool
    ) -> None:
        labels = torch.tensor([0, 1, 2, 1] if by_class else [2, 0])
        counts = self.counted(5, LABELS, labels)
        assert (counts.sum(1) == 5).all()
        assert not counts[labels[:, None] == LABELS].any()

    @pytest.mark.parametrize("negatives", [2, 5])
    def test_draw_every_image_of_other_classes_equally_often(self, negatives: int) -> None:
        torch.manual_seed(0)
        labels = torch.tensor([0, 1, 2])
        draws = 1_000
        total = torch.stack([self.counted(negatives, LABELS, labels) for _ in range(draws)]).sum(0)
        pools = torch.tensor([4, 5, 5])[:, None]
        expected = (labels[:, None] != LABELS) * draws * negatives / pools
        # Six standard deviations of a count.
        assert ((total - expected).abs() <= 6 * expected.sqrt()).all()

    def test_draw_pairs_of_images_equally_often(self) -> None:
        torch.manual_seed(1)
        draws = [self.counted(2, LABELS, torch.tensor([0]))[0] for _ in range(1_200)]
        pairs = torch.stack([torch.outer(drawn, drawn) for drawn in draws]).sum(0)
        others = torch.tensor([1, 2, 4, 5])
        together = pairs[others][:, others][~torch.eye(4, dtype=torch.bool)]
        # Six pairs, 200 times each, give or take six standard deviations.
        assert ((together - 200).abs() <= 6 * math.sqrt(200)).all()

    def test_relatives_are_of_the_same_class(self) -> None:
        pools = crd.Pools(LABELS, 4)
        labels = torch.tensor([0, 1, 2] * 50)
        relatives = pools.relatives(labels)
        assert torch.equal(LABELS[relatives], labels)
        assert len(relatives[labels == 0].unique()) == 3


class TestCRD:
    def test_scores_every_image_of_other_classes_where_so_many_are_asked_for(self) -> None:
        labels = torch.tensor([0, 0, 1, 1, 2, 2, 2])
        made = method(labels, negatives=4, crd_weight=2.0)
        images = batch(4, 5, labels=labels)  # class 2, whose pool is exactly four
        memories = {"student": made.memory_student.clone(), "teacher": made.memory_teacher.clone()}
        terms = terms_of(made, images)
        student, teacher = random_rows(0, 7, 8).float()[4:6], random_rows(1, 7, 9).float()[4:6]
        total = torch.zeros(())
        for rows, bank in (
            (F.normalize(made.student_head(student), dim=1), memories["teacher"]),
            (F.normalize(made.teacher_head(teacher), dim=1), memories["student"]),
        ):
            scores = (rows @ bank.mT / 0.07).exp()
            every = torch.cat([scores[[0, 1], [4, 5]][:, None], scores[:, :4]], dim=1)
            every = every / (every.mean() * 7)
            noise = 4 / 7
            kept = (every[:, 0] / (every[:, 0] + noise + crd.EPS)).log()
            left = (noise / (every[:, 1:] + noise + crd.EPS)).log().sum(1)
            total = total - (kept + left).mean()
        # float32.
        assert torch.allclose(terms["crd"], 2 * total, rtol=1e-4)

    def test_trains_both_heads(self) -> None:
        made = method()
        terms_of(made, batch(0, 1, 2))["crd"].backward()
        heads = (made.student_head, made.teacher_head)
        assert all(head.weight.grad is not None and head.weight.grad.any() for head in heads)

    def test_updates_memories_after_the_step_by_the_embeddings(self) -> None:
        made = method()
        before = made.memory_student.clone()
        terms_of(made, batch(1, 4))
        assert torch.equal(made.memory_student, before)
        made.after_step(scenes.MOMENT)
        rows = F.normalize(made.student_head(random_rows(0, 7, 8).float()[[1, 4]]), dim=1)
        expected = F.normalize(before[[1, 4]] + rows, dim=1)
        assert torch.allclose(made.memory_student[[1, 4]], expected, atol=1e-6)
        others = [0, 2, 3, 5, 6]
        assert torch.equal(made.memory_student[others], before[others])
        made.after_step(scenes.MOMENT)  # nothing was seen since
        assert torch.allclose(made.memory_student[[1, 4]], expected, atol=1e-6)

    @pytest.mark.parametrize("negatives", [3, 50])
    def test_keeps_the_constants_of_the_first_batch(self, negatives: int) -> None:
        made = method(negatives=negatives)
        assert made.log_z.isnan().all()
        terms_of(made, batch(0, 1, 2))["crd"].backward()
        first = made.log_z.clone()
        assert first.isfinite().all()
        made.after_step(scenes.MOMENT)
        terms_of(made, batch(3, 4), seed=5)["crd"].backward()
        assert torch.equal(made.log_z, first)

    @pytest.mark.parametrize(("negatives", "mode"), [(4, "exact"), (50, "relax")])
    def test_continues_exactly_from_its_state_and_the_generators(
        self, negatives: int, mode: str
    ) -> None:
        made = method(negatives=negatives, mode=mode)
        terms_of(made, batch(0, 1, 2))
        made.after_step(scenes.MOMENT)
        state = {name: value.clone() for name, value in made.state_dict().items()}
        generator = torch.get_rng_state()
        expected = terms_of(made, batch(3, 4, 5))
        again = method(negatives=negatives, mode=mode)
        again.load_state_dict(state)
        torch.set_rng_state(generator)
        terms = terms_of(again, batch(3, 4, 5))
        assert torch.equal(terms["crd"], expected["crd"])

    def test_sets_its_constants_again_when_its_state_goes_back_before_them(self) -> None:
        made = method()
        fresh = {name: value.clone() for name, value in made.state_dict().items()}
        terms_of(made, batch(0, 1))
        made.load_state_dict(fresh)
        assert terms_of(made, batch(2, 3))["crd"].isfinite()

    def test_saves_what_it_learned_and_nothing_that_the_split_says(self) -> None:
        state = method().state_dict()
        assert {name.partition(".")[0] for name in state} == {
            "student_head",
            "teacher_head",
            "memory_student",
            "memory_teacher",
            "log_z",
        }
        assert state["memory_student"].shape == (7, 4)
        bound = math.sqrt(3 / 4)
        assert 0.5 * bound < float(state["memory_student"].abs().max()) <= bound

    @pytest.mark.parametrize("count", [1, 2])
    def test_is_finite_for_the_smallest_batches_and_for_zeros(self, count: int) -> None:
        made = method()
        images = batch(*range(count))
        pooled = torch.zeros(count, 8, requires_grad=True)
        terms = made.terms(
            scenes.features(torch.zeros(count, 3), pooled=pooled),
            scenes.features(torch.zeros(count, 3), pooled=torch.zeros(count, 9)),
            images,
            scenes.MOMENT,
        )
        terms["crd"].backward()
        assert terms["crd"].isfinite()
        assert pooled.grad is not None
        assert pooled.grad.isfinite().all()

    def test_refuses_what_has_one_class_only(self) -> None:
        with pytest.raises(errors.IncompatibleNetworks, match="at least 2 classes, got 1"):
            crd.CRD(crd.CRD.Params(), scenes.network(classes=1), scenes.other_network(classes=1))
        with pytest.raises(errors.BadDataset, match="all 7 images of the train split are of one"):
            method(torch.ones(7, dtype=torch.int64))

    def test_says_that_it_was_not_prepared(self) -> None:
        made = crd.CRD(crd.CRD.Params(), scenes.network(), scenes.other_network())
        with pytest.raises(RuntimeError, match="not prepared with the training split"):
            terms_of(made, batch(0, 1))
