from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows

from tests.distill.functional.federated import probabilities
from tests.distill.golden import FEDERATED
from workers.distill.functional.federated import label_means
from workers.distill.functional.federated.label_means import LabelMeans, LabelSums

CLIENTS = ("A", "B", "C")
SCORES = {name: FEDERATED.inputs("fd", name, "logits") for name in CLIENTS}
LABELS = {name: FEDERATED.inputs("fd", name, "labels").long() for name in CLIENTS}


def sums_of(values: torch.Tensor, labels: torch.Tensor, **options: Any) -> LabelSums:
    start = label_means.empty_sums(3, values.shape[1], like=values)
    return label_means.add_batch(start, values, labels, **options)


def means_of(name: str) -> LabelMeans:
    return label_means.means(sums_of(SCORES[name].softmax(1), LABELS[name]))


def uploads() -> LabelMeans:
    rows, held = zip(*(means_of(name) for name in CLIENTS), strict=True)
    return LabelMeans(torch.stack(rows), torch.stack(held))


def drawn(clients: int, classes: int, *, seed: int = 0) -> LabelMeans:
    """Return random means, of which clients lack some labels and nobody holds label 0."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.rand(clients, classes, classes, generator=generator, dtype=torch.float64)
    held = torch.rand(clients, classes, generator=generator) < 0.6
    held[:, 0] = False
    return LabelMeans(rows.softmax(-1), held)


class TestMeans:
    @pytest.mark.parametrize("name", CLIENTS)
    def test_equal_the_guide(self, name: str) -> None:
        found = means_of(name)
        for label, row in enumerate(FEDERATED.expected("fd", "local_means", name)):
            assert bool(found.held[label]) == (row is not None)
            assert FEDERATED.close(found.rows[label], row or [0.0] * 3)

    @pytest.mark.parametrize("name", CLIENTS)
    def test_count_as_the_guide(self, name: str) -> None:
        counts = sums_of(SCORES[name].softmax(1), LABELS[name]).counts
        assert counts.tolist() == FEDERATED.expected("fd", "counts", name)

    def test_of_batches_are_those_of_the_whole(self) -> None:
        values, labels = torch.rand(20, 3, dtype=torch.float64), torch.randint(3, (20,))
        for decay in (1.0, 0.9):
            state = label_means.empty_sums(3, 3, like=values)
            for part in torch.arange(20).split(7):
                state = label_means.add_batch(state, values[part], labels[part], decay=decay)
            whole = sums_of(values, labels, decay=decay)
            assert torch.allclose(state.sums, whole.sums, rtol=1e-12)
            assert torch.allclose(state.counts, whole.counts, rtol=1e-12)

    def test_with_decay_follow_the_recursion_sample_by_sample(self) -> None:
        values, labels = torch.rand(20, 3, dtype=torch.float64), torch.randint(3, (20,))
        sums, counts = torch.zeros(3, 3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
        for value, label in zip(values, labels, strict=True):
            sums[label] = 0.8 * sums[label] + value
            counts[label] = 0.8 * counts[label] + 1
        found = label_means.means(sums_of(values, labels, decay=0.8))
        assert torch.allclose(found.rows, sums / counts[:, None], rtol=1e-12)

    def test_leave_padding_out_and_run_over_many_clients_at_once(self) -> None:
        values, labels = torch.rand(4, 6, 3, dtype=torch.float64), torch.randint(3, (4, 6))
        counted = torch.tensor([[True] * size + [False] * (6 - size) for size in (6, 3, 1, 0)])

        def of_one(values: torch.Tensor, labels: torch.Tensor, counted: torch.Tensor) -> Any:
            return label_means.means(sums_of(values, labels, decay=0.9, counted=counted))

        together = torch.vmap(of_one)(values, labels, counted)
        for client, size in enumerate((6, 3, 1, 0)):
            alone = label_means.means(
                sums_of(values[client, :size], labels[client, :size], decay=0.9)
            )
            assert torch.equal(together.held[client], alone.held)
            assert torch.allclose(together.rows[client], alone.rows, rtol=1e-12)

    def test_give_no_gradient(self) -> None:
        values = SCORES["A"].clone().requires_grad_()
        assert not label_means.means(sums_of(values, LABELS["A"])).rows.requires_grad


class TestTracker:
    """Counts that start at 1, as FedGen's code of FedDistill has them."""

    @staticmethod
    def tracked() -> LabelMeans:
        scores = SCORES["A"]
        start = label_means.empty_sums(3, 3, count=1.0, like=scores)
        return label_means.means(label_means.add_batch(start, scores, LABELS["A"]))

    def test_equals_the_guide(self) -> None:
        found = self.tracked()
        assert FEDERATED.close(found.rows, FEDERATED.expected("feddistill_tracker", "avg"))
        expected = FEDERATED.expected("feddistill_tracker", "softmax_of_avg")
        assert FEDERATED.close(found.rows.softmax(1), expected)
        assert bool(found.held.all())

    def test_teaches_as_the_guide(self) -> None:
        divergences, has_teacher = label_means.kl_divergences(
            SCORES["A"], LABELS["A"], self.tracked()
        )
        expected = FEDERATED.expected("feddistill_tracker", "kl_teacher")
        assert float(divergences[0]) == pytest.approx(expected, abs=1e-6)
        whole = F.cross_entropy(SCORES["A"][:1], LABELS["A"][:1]) + divergences[0]
        expected = FEDERATED.expected("feddistill_tracker", "loss_sample0")
        assert float(whole) == pytest.approx(expected, abs=1e-6)
        assert bool(has_teacher.all())


class TestLeaveOneOut:
    def test_equals_the_guide(self) -> None:
        found = label_means.leave_one_out(uploads())
        expected = FEDERATED.expected("fd", "loo_holders_only")
        assert FEDERATED.close(found.rows, [expected[name] for name in CLIENTS])
        assert bool(found.held.all())
        assert bool(probabilities.are_probabilities(found.rows).all())

    def test_over_all_others_equals_the_guide_and_is_no_row_of_probabilities(self) -> None:
        found = label_means.leave_one_out_all(uploads())
        expected = FEDERATED.expected("fd", "loo_paper_Mminus1")
        assert FEDERATED.close(found.rows, [expected[name] for name in CLIENTS])
        assert float(found.rows[0, 0].sum()) == pytest.approx(0.5)
        assert not bool(probabilities.are_probabilities(found.rows[0, 0]))

    def test_over_all_others_is_the_same_where_every_client_holds_every_label(self) -> None:
        given = drawn(4, 5)
        given = LabelMeans(given.rows, torch.ones_like(given.held))
        some, every = label_means.leave_one_out(given), label_means.leave_one_out_all(given)
        assert torch.allclose(some.rows, every.rows, rtol=1e-12)

    @pytest.mark.parametrize("seed", range(4))
    def test_is_the_plain_mean_over_the_other_holders(self, seed: int) -> None:
        given = drawn(6, 5, seed=seed)
        found = label_means.leave_one_out(given)
        for client in range(6):
            for label in range(5):
                others = [k for k in range(6) if k != client and given.held[k, label]]
                assert bool(found.held[client, label]) == bool(others)
                row = found.rows[client, label]
                expected = given.rows[others, label].mean(0) if others else torch.zeros_like(row)
                assert torch.allclose(row, expected, rtol=1e-12)

    def test_by_one_client_from_the_totals_is_the_same(self) -> None:
        given = drawn(6, 5)
        found, totals = label_means.leave_one_out(given), label_means.total(given)
        for client in range(6):
            own = LabelMeans(given.rows[client], given.held[client])
            alone = label_means.without_own(own, totals)
            assert torch.equal(alone.rows, found.rows[client])
            assert torch.equal(alone.held, found.held[client])

    def test_of_one_client_teaches_nothing(self) -> None:
        for rule in (label_means.leave_one_out, label_means.leave_one_out_all):
            found = rule(drawn(1, 4))
            assert not bool(found.held.any())
            assert not bool(found.rows.any())

    def test_follows_the_order_of_clients(self) -> None:
        given, order = drawn(6, 5), torch.randperm(6)
        moved = label_means.leave_one_out(LabelMeans(given.rows[order], given.held[order]))
        assert torch.allclose(moved.rows, label_means.leave_one_out(given).rows[order], rtol=1e-12)

    def test_of_equal_clients_is_their_row(self) -> None:
        one = drawn(1, 5)
        rows, held = one.rows.expand(4, -1, -1), one.held.expand(4, -1)
        found = label_means.leave_one_out(LabelMeans(rows, held))
        assert torch.allclose(found.rows[held], rows[held], rtol=1e-12)

    def test_never_reads_rows_of_labels_that_are_not_held(self) -> None:
        given = drawn(6, 5)
        spoiled = torch.where(given.held[..., None], given.rows, torch.nan)
        found = label_means.leave_one_out(LabelMeans(spoiled, given.held))
        assert torch.equal(found.rows, label_means.leave_one_out(given).rows)


class TestMeanOfHolders:
    def test_equals_the_guide(self) -> None:
        given = uploads()
        counts = torch.tensor(
            [FEDERATED.expected("fd", "counts", name) for name in CLIENTS], dtype=torch.float64
        )
        found = label_means.mean_of_holders(given)
        assert FEDERATED.close(found.rows, FEDERATED.expected("fd", "global_mean_all_holders"))
        found = label_means.mean_of_holders(given, counts)
        assert FEDERATED.close(found.rows, FEDERATED.expected("fd", "global_mean_sample_weighted"))

    def test_has_no_row_where_nobody_holds_the_label(self) -> None:
        found = label_means.mean_of_holders(drawn(6, 5))
        assert not bool(found.held[0])
        assert not bool(found.rows[0].any())
        assert bool(probabilities.are_probabilities(found.rows[1:]).all())


class TestMeanOfAll:
    def test_counts_clients_without_the_label_as_zeros(self) -> None:
        given = drawn(6, 5)
        found = label_means.mean_of_all(given)
        assert bool(found.held.all())
        assert torch.allclose(
            found.rows, (given.rows * given.held[..., None]).sum(0) / 6, rtol=1e-12
        )


class TestCrossEntropies:
    @pytest.mark.parametrize("place", range(3))
    def test_make_the_losses_of_the_guide(self, place: int) -> None:
        name = CLIENTS[place]
        teachers = label_means.leave_one_out(uploads())
        teacher = LabelMeans(teachers.rows[place], teachers.held[place])
        apart, has_teacher = label_means.cross_entropies(SCORES[name], LABELS[name], teacher)
        task = F.cross_entropy(SCORES[name], LABELS[name])
        expected = FEDERATED.expected("fd", f"loss_{name}")
        assert bool(has_teacher.all())
        assert FEDERATED.close(task, expected["ce"])
        assert FEDERATED.close(apart.mean(), expected["kd_ce_to_teacher"])
        assert FEDERATED.close(task + 0.5 * apart.mean(), expected["total_paper_gamma0.5"])
        assert FEDERATED.close(0.5 * (task + apart.mean()), expected["total_convex_a0.5"])

    def test_are_zero_without_a_row_and_have_the_gradient_of_their_value(self) -> None:
        rows = drawn(1, 3).rows[0]
        teacher = LabelMeans(rows, torch.tensor([True, False, True]))
        labels = torch.tensor([0, 1, 2])
        given = SCORES["A"].clone().requires_grad_()
        for loss in (label_means.cross_entropies, label_means.kl_divergences):
            apart, has_teacher = loss(given, labels, teacher)
            assert has_teacher.tolist() == [True, False, True]
            assert float(apart[1].detach()) == 0
            assert torch.autograd.gradcheck(
                lambda scores, loss=loss: loss(scores, labels, teacher)[0], given
            )
