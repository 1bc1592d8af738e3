import math

import pytest
import torch

from tests.distill.functional.federated import probabilities
from tests.distill.golden import FEDERATED
from workers.distill.functional.federated import consensus, poisoning, soft_targets

PROBS = FEDERATED.inputs("sa_era", "client_probs_one_open_sample")[:, None]


def drawn(clients: int, samples: int, classes: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(clients, samples, classes, generator=generator, dtype=torch.float64)
    return (2 * scores).softmax(-1)


def some_sent(clients: int, samples: int) -> torch.Tensor:
    """Return which samples each client sent; the first client sent all."""
    sent = torch.rand(clients, samples, generator=torch.Generator().manual_seed(1)) < 0.6
    sent[0] = True
    return sent


class TestMean:
    def test_equals_the_guide(self) -> None:
        found = consensus.mean(PROBS)
        assert FEDERATED.close(found[0], FEDERATED.expected("sa_era", "sa"))
        expected = FEDERATED.expected("sa_era", "sa_entropy")
        assert FEDERATED.close(soft_targets.entropies(found), [expected])

    def test_leaves_out_who_did_not_send_a_sample(self) -> None:
        probs, sent = drawn(5, 8, 4), some_sent(5, 8)
        spoiled = torch.where(sent[..., None], probs, torch.nan)
        found = consensus.mean(spoiled, sent)
        for sample in range(8):
            assert torch.allclose(found[sample], probs[sent[:, sample], sample].mean(0), rtol=1e-12)
        assert bool(probabilities.are_probabilities(found).all())

    def test_names_a_sample_that_nobody_sent(self) -> None:
        sent = some_sent(5, 8)
        sent[:, 3] = sent[:, 5] = False
        with pytest.raises(ValueError, match=r"nobody sent sample 3 \(2 of 8 samples"):
            consensus.mean(drawn(5, 8, 4), sent)

    def test_of_equal_clients_is_their_row(self) -> None:
        one = drawn(1, 8, 4)
        assert torch.allclose(consensus.mean(one.expand(4, -1, -1)), one[0], rtol=1e-12)

    def test_moves_by_no_more_than_one_share_whatever_a_client_sends(self) -> None:
        probs = drawn(5, 8, 4)
        before = consensus.mean(probs)
        probs[2] = torch.eye(4, dtype=torch.float64)[0]
        apart = (consensus.mean(probs) - before).abs().sum(1) / 2
        assert float(apart.max()) <= 1 / 5


class TestSharpened:
    @pytest.mark.parametrize("temperature", ["0.1", "0.5", "1.0"])
    def test_equals_the_guide(self, temperature: str) -> None:
        found = consensus.sharpened(consensus.mean(PROBS), temperature=float(temperature))
        name = f"era_T{temperature}"
        assert FEDERATED.close(found[0], FEDERATED.expected("sa_era")[name])
        expected = FEDERATED.expected("sa_era")[f"{name}_entropy"]
        assert FEDERATED.close(soft_targets.entropies(found), [expected])

    def test_of_many_classes_is_flatter_as_the_guide_says(self) -> None:
        before = torch.full((1, 100), 0.9 / 99, dtype=torch.float64)
        before[0, 0] = 0.1
        after = consensus.sharpened(before)
        expected = FEDERATED.expected("era_many_classes")
        assert FEDERATED.close(soft_targets.entropies(before), [expected["entropy_before"]])
        assert FEDERATED.close(soft_targets.entropies(after), [expected["entropy_after"]])
        assert FEDERATED.close(after[0, 0], expected["first_after"])

    def test_of_certainty_equals_the_guide(self) -> None:
        after = consensus.sharpened(torch.eye(10, dtype=torch.float64)[:1])
        expected = FEDERATED.expected("era_onehot_10")
        assert FEDERATED.close(after[0], [expected["first"], *[expected["others"]] * 9])
        assert FEDERATED.close(soft_targets.entropies(after), [expected["entropy"]])

    def test_amplifies_a_poisoned_minority_as_the_guide_says(self) -> None:
        probs = FEDERATED.inputs("poisoned_third_client", "client_probs")[:, None]
        average = consensus.mean(probs)
        found = consensus.sharpened(average)
        expected = FEDERATED.expected("poisoned_third_client")
        assert FEDERATED.close(average[0], expected["sa"])
        assert FEDERATED.close(soft_targets.entropies(average), [expected["sa_entropy"]])
        assert FEDERATED.close(found[0], expected["era"])
        assert FEDERATED.close(soft_targets.entropies(found), [expected["era_entropy"]])

    def test_keeps_the_order_of_classes_and_ties(self) -> None:
        probs = consensus.mean(drawn(5, 8, 4))
        assert torch.equal(consensus.sharpened(probs).argsort(1), probs.argsort(1))
        even = torch.full((1, 4), 0.25)
        assert torch.equal(consensus.sharpened(even), even)


class TestPower:
    @pytest.mark.parametrize("exponent", ["1.5", "2.0"])
    def test_equals_the_guide(self, exponent: str) -> None:
        found = consensus.power(consensus.mean(PROBS), exponent=float(exponent))
        name = f"power_beta{exponent}"
        assert FEDERATED.close(found[0], FEDERATED.expected("sa_era")[name])
        expected = FEDERATED.expected("sa_era")[f"{name}_entropy"]
        assert FEDERATED.close(soft_targets.entropies(found), [expected])

    def test_at_exponent_one_is_the_mean(self) -> None:
        probs = consensus.mean(drawn(5, 8, 4))
        assert torch.allclose(consensus.power(probs, exponent=1.0), probs, rtol=1e-9)

    def test_never_raises_the_entropy_however_many_the_classes(self) -> None:
        probs = consensus.mean(drawn(5, 50, 200))
        before = soft_targets.entropies(probs)
        assert bool((soft_targets.entropies(consensus.power(probs)) < before).all())

    def test_of_an_impossible_class_is_finite(self) -> None:
        found = consensus.power(torch.tensor([[1.0, 0.0, 0.0]]))
        assert bool(probabilities.are_probabilities(found).all())


class TestVote:
    def test_counts_each_clients_first_choice(self) -> None:
        found = consensus.vote(PROBS)
        assert torch.allclose(found, torch.tensor([[2 / 3, 1 / 3, 0.0]], dtype=torch.float64))

    def test_is_the_limit_of_sharpening_before_the_mean(self) -> None:
        probs, sent = drawn(5, 8, 4), some_sent(5, 8)
        limit = consensus.mean((probs / 1e-4).softmax(-1), sent)
        assert torch.allclose(consensus.vote(probs, sent), limit, atol=1e-6)

    def test_never_reads_what_was_not_sent(self) -> None:
        probs, sent = drawn(5, 8, 4), some_sent(5, 8)
        spoiled = torch.where(sent[..., None], probs, torch.nan)
        assert torch.equal(consensus.vote(spoiled, sent), consensus.vote(probs, sent))


class TestMedian:
    def test_is_that_of_each_class_normalised(self) -> None:
        probs, sent = drawn(6, 8, 4), some_sent(6, 8)
        found = consensus.median(torch.where(sent[..., None], probs, torch.nan), sent)
        assert bool(found.decided.all())
        for sample in range(8):
            row = torch.quantile(probs[sent[:, sample], sample], 0.5, dim=0)
            assert torch.allclose(found.probs[sample], row / row.sum(), rtol=1e-12)

    def test_says_where_it_decides_nothing(self) -> None:
        found = consensus.median(torch.eye(3)[:, None])
        assert found.decided.tolist() == [False]
        assert torch.equal(found.probs, torch.full((1, 3), 1 / 3))

    def test_resists_a_minority_that_turns_the_mean(self) -> None:
        honest = torch.tensor([0.6, 0.3, 0.1])
        probs = torch.stack([honest, honest, honest, torch.eye(3)[2], torch.eye(3)[2]])[:, None]
        assert int(consensus.mean(probs).argmax()) == 2
        assert int(consensus.median(probs).probs.argmax()) == 0


class TestTrimmedMean:
    def test_without_trimming_is_the_mean(self) -> None:
        probs, sent = drawn(6, 8, 4), some_sent(6, 8)
        found = consensus.trimmed_mean(probs, sent, share=0.0)
        assert torch.allclose(found.probs, consensus.mean(probs, sent), rtol=1e-12)

    def test_leaves_out_the_same_share_at_both_ends(self) -> None:
        probs, sent = drawn(9, 8, 4), some_sent(9, 8)
        found = consensus.trimmed_mean(probs, sent, share=0.25)
        for sample in range(8):
            ordered = probs[sent[:, sample], sample].sort(0).values
            cut = math.floor(0.25 * len(ordered))
            row = ordered[cut : len(ordered) - cut].mean(0)
            assert torch.allclose(found.probs[sample], row / row.sum(), rtol=1e-12)

    def test_refuses_to_leave_out_all(self) -> None:
        with pytest.raises(ValueError, match=r"below 0\.5, got 0\.5"):
            consensus.trimmed_mean(PROBS, share=0.5)


class TestEveryRule:
    @pytest.mark.parametrize(
        "rule",
        [
            consensus.mean,
            consensus.vote,
            lambda probs: consensus.median(probs).probs,
            lambda probs: consensus.trimmed_mean(probs, share=0.2).probs,
        ],
    )
    def test_gives_probabilities_whatever_the_order_of_clients(self, rule) -> None:
        probs = drawn(7, 8, 4)
        found = rule(probs)
        assert bool(probabilities.are_probabilities(found).all())
        assert torch.allclose(rule(probs[torch.randperm(7)]), found, rtol=1e-12)


class TestDistancesFromOthers:
    def test_are_total_variations_from_the_mean_of_the_others(self) -> None:
        probs, sent = drawn(4, 8, 3), some_sent(4, 8)
        found = consensus.distances_from_others(probs, sent)
        for client in range(4):
            apart = []
            for sample in range(8):
                others = [k for k in range(4) if k != client and sent[k, sample]]
                if sent[client, sample] and others:
                    mean = probs[others, sample].mean(0)
                    apart.append(float((probs[client, sample] - mean).abs().sum() / 2))
            assert float(found[client]) == pytest.approx(sum(apart) / len(apart))

    def test_are_largest_for_one_that_poisons(self) -> None:
        probs = drawn(1, 50, 4).expand(6, -1, -1).clone()
        probs[4] = poisoning.shift_classes(probs[4])
        assert int(consensus.distances_from_others(probs).argmax()) == 4

    def test_of_one_client_is_zero(self) -> None:
        assert consensus.distances_from_others(drawn(1, 8, 4)).tolist() == [0.0]
