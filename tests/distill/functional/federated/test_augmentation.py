import pytest
import torch

from tests.distill.golden import FEDERATED
from workers.distill.functional.federated import augmentation
from workers.distill.functional.federated.augmentation import Jitter

STILL = Jitter(shift=0, rotation=0, scale=0, noise=0)


class TestLeakage:
    TARGETS = FEDERATED.case("checks", "faug_privacy", "inputs", "target")
    REDUNDANT = FEDERATED.case("checks", "faug_privacy", "inputs", "redundant")

    def test_equals_the_guide(self) -> None:
        expected = FEDERATED.expected("faug_privacy")
        found = [
            augmentation.device_server_leakage(*each)
            for each in zip(self.TARGETS, self.REDUNDANT, strict=True)
        ]
        assert found == pytest.approx(expected["device_server"], abs=1e-6)
        found = augmentation.inter_device_leakage(self.TARGETS, self.REDUNDANT)
        assert found == pytest.approx(expected["inter_device"])
        assert len(set().union(*self.TARGETS, *self.REDUNDANT)) == expected["union_size"]

    def test_is_zero_where_nothing_is_sent(self) -> None:
        assert augmentation.device_server_leakage([], []) == 0
        assert augmentation.device_server_leakage([], [3]) == 0
        assert augmentation.inter_device_leakage([[], []], [[], []]) == [0, 0]

    def test_to_others_is_least_where_the_union_has_every_label(self) -> None:
        targets, redundant = [[0, 1], [2]], [[3], [4, 5]]
        assert augmentation.inter_device_leakage(targets, redundant)[0] == 2 / 6


class TestLabels:
    def test_that_are_scarce_are_below_a_share_of_the_median(self) -> None:
        assert augmentation.scarce_labels([100, 5, 120, 0, 80], share=0.5) == [1, 3]
        assert augmentation.scarce_labels([10, 10, 10], share=0.5) == []
        assert augmentation.scarce_labels([0, 0, 0, 9], share=0.5) == [0, 1, 2]
        assert augmentation.scarce_labels([0, 0], share=0.5) == [0, 1]

    def test_that_are_rarest_come_in_order(self) -> None:
        assert augmentation.rarest_labels([7, 2, 9, 0, 2], number=3) == [1, 3, 4]

    def test_that_are_redundant_are_no_targets(self) -> None:
        seeded = torch.Generator().manual_seed(0)
        for _ in range(20):
            drawn = augmentation.redundant_labels([1, 3], range(6), number=3, generator=seeded)
            assert len(set(drawn)) == 3
            assert not {1, 3} & set(drawn)
        with pytest.raises(ValueError, match="redundant_labels is 5, but only 4 labels"):
            augmentation.redundant_labels([1, 3], range(6), number=5)

    def test_are_filled_up_to_the_largest_count(self) -> None:
        assert augmentation.missing_samples([7, 2, 9, 0], [3, 1]) == {1: 7, 3: 9}


class TestOversample:
    def test_gives_every_label_as_many_and_its_seeds_in_turn(self) -> None:
        images = torch.arange(3.0)[:, None, None, None].expand(3, 1, 4, 4) / 3
        labels = torch.tensor([5, 2, 5])
        found, made = augmentation.oversample(images, labels, per_label=3, jitter=STILL)
        assert made.tolist() == [2, 2, 2, 5, 5, 5]
        assert torch.allclose(found[:, 0, 0, 0], torch.tensor([1, 1, 1, 0, 2, 0]) / 3)

    def test_moves_by_no_more_than_the_jitter(self) -> None:
        image = torch.zeros(1, 1, 9, 9)
        image[0, 0, 4, 4] = 1
        jitter = STILL._replace(shift=1.0)
        seeded = torch.Generator().manual_seed(0)
        found, _ = augmentation.oversample(
            image, torch.tensor([0]), per_label=200, jitter=jitter, generator=seeded
        )
        assert float(found[:, :, :3].max()) == 0
        assert float(found[:, :, :, 6:].max()) == 0
        assert float(found[:, :, 3, 4].max()) > 0.5
        assert float(found[:, :, 5, 4].max()) > 0.5

    def test_turns_and_scales_around_the_centre(self) -> None:
        line = torch.zeros(1, 1, 11, 21)
        line[0, 0, 5, 5:16] = 1
        turned, _ = augmentation.oversample(
            line,
            torch.tensor([0]),
            per_label=100,
            jitter=STILL._replace(rotation=90.0),
            generator=torch.Generator().manual_seed(0),
        )
        assert torch.allclose(turned[:, 0, 5, 10], torch.ones(100), atol=0.4)
        # Its length is kept though the image is not square: upright it is 11 pixels long too.
        upright = turned[:, 0, :, 10].sum(1).max()
        assert float(upright) == pytest.approx(11, abs=1)
        larger, _ = augmentation.oversample(
            line,
            torch.tensor([0]),
            per_label=100,
            jitter=STILL._replace(scale=0.5),
            generator=torch.Generator().manual_seed(0),
        )
        lengths = (larger[:, 0, 5] > 0.5).sum(1)
        assert 4 <= int(lengths.min()) < 8
        assert 14 < int(lengths.max()) <= 18

    def test_keeps_pixels_in_bounds(self) -> None:
        images = torch.rand(4, 3, 8, 8)
        found, _ = augmentation.oversample(images, torch.arange(4), per_label=20)
        assert 0 <= float(found.min()) <= float(found.max()) <= 1


class TestGaussians:
    def test_have_the_moments_of_each_label(self) -> None:
        images, labels = torch.rand(60, 1, 2, 2).double(), torch.arange(60) % 3
        moments = augmentation.label_gaussians(images, labels, 4)
        for label in range(3):
            own = images[labels == label]
            assert torch.allclose(moments.means[label], own.mean(0), rtol=1e-9)
            assert torch.allclose(moments.stds[label], own.std(0, correction=0), rtol=1e-6)

    def test_refuse_a_label_without_a_seed(self) -> None:
        moments = augmentation.label_gaussians(torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 1]), 4)
        assert augmentation.sample_gaussians(moments, torch.tensor([0, 1, 0])).shape[0] == 3
        with pytest.raises(ValueError, match="no seed of label 2 was sent"):
            augmentation.sample_gaussians(moments, torch.tensor([0, 3, 2]))


class TestAdversarialLosses:
    def test_equal_binary_cross_entropy(self) -> None:
        real, made = torch.randn(5).double(), torch.randn(7).double()
        entropy = torch.nn.functional.binary_cross_entropy_with_logits
        expected = entropy(real, torch.ones_like(real)) + entropy(made, torch.zeros_like(made))
        assert torch.allclose(augmentation.discriminator_loss(real, made), expected)
        expected = entropy(made, torch.ones_like(made))
        assert torch.allclose(augmentation.generator_loss(made), expected)
        for loss, given in (
            (augmentation.generator_loss, (made,)),
            (augmentation.discriminator_loss, (real, made)),
        ):
            assert torch.autograd.gradcheck(loss, [each.requires_grad_() for each in given])
