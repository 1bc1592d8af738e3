import torch

from tests.distill.functional.federated import probabilities
from workers.distill.functional.federated import poisoning

PROBS = torch.rand(2000, 3, generator=torch.Generator().manual_seed(0)).softmax(1)


class TestNoiseRows:
    def test_pass_every_check_and_are_even_over_all_rows(self) -> None:
        seeded = torch.Generator().manual_seed(0)
        found = poisoning.noise_rows(PROBS, generator=seeded)
        assert bool(probabilities.are_probabilities(found).all())
        # A coordinate of an even draw from the simplex: mean 1/3, variance 1/18.
        assert torch.allclose(found.mean(0), torch.full((3,), 1 / 3), atol=0.02)
        assert torch.allclose(found.var(0), torch.full((3,), 1 / 18), rtol=0.1)


class TestShiftClasses:
    def test_gives_each_class_the_probability_of_the_one_before(self) -> None:
        found = poisoning.shift_classes(torch.tensor([[0.7, 0.2, 0.1]]))
        assert torch.equal(found, torch.tensor([[0.1, 0.7, 0.2]]))


class TestFlipLabels:
    def test_twice_is_nothing(self) -> None:
        labels = torch.arange(10)
        assert poisoning.flip_labels(labels, 10).tolist() == list(range(9, -1, -1))
        assert torch.equal(poisoning.flip_labels(poisoning.flip_labels(labels, 10), 10), labels)
