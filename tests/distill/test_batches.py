import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.distill import folders
from workers.distill import errors, recipe
from workers.distill.data import batches

CPU = torch.device("cpu")


def source(
    count: int = 10, *, augment: bool = False, flip: bool = False, seed: int = 0, side: int = 8
) -> batches.Batches:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(1, 256, (count, 2, side, side), generator=generator, dtype=torch.uint8)
    return batches.Batches(
        images,
        torch.arange(count),
        batch_size=4,
        seed=seed,
        augment=augment,
        flip=flip,
        device=CPU,
    )


def an_input(channels: int = 1, side: int = 8, mean: float = 0.0, std: float = 1.0) -> recipe.Input:
    return recipe.Input(
        channels=channels,
        height=side,
        width=side,
        mean=[mean] * channels,
        std=[std] * channels,
    )


class TestBounds:
    @given(count=st.integers(1, 200), size=st.integers(2, 50))
    def test_every_image_is_in_one_batch(self, count: int, size: int) -> None:
        parts = batches.bounds(count, size)
        assert [place for start, end in parts for place in range(start, end)] == list(range(count))

    @given(count=st.integers(2, 200), size=st.integers(2, 50))
    def test_no_batch_holds_a_single_image(self, count: int, size: int) -> None:
        sizes = [end - start for start, end in batches.bounds(count, size)]
        assert min(sizes) >= 2
        assert max(sizes) <= size + 1


class TestEpoch:
    def test_shows_each_image_once(self) -> None:
        shown = torch.cat([batch.index for batch in source().epoch(1)])
        assert sorted(shown.tolist()) == list(range(10))

    def test_labels_stay_with_their_images(self) -> None:
        kept = source()
        whole = next(kept.in_order(10)).images
        for batch in kept.epoch(3):
            assert torch.equal(batch.labels, batch.index)
            assert torch.equal(batch.images, whole[batch.index])

    def test_is_the_same_again_for_the_same_seed_and_epoch(self) -> None:
        one = list(source(augment=True, flip=True).epoch(2))
        other = list(source(augment=True, flip=True).epoch(2))
        for first, second in zip(one, other, strict=True):
            assert torch.equal(first.images, second.images)

    def test_differs_between_epochs_and_seeds(self) -> None:
        orders = {
            tuple(torch.cat([batch.index for batch in source(seed=seed).epoch(epoch)]).tolist())
            for seed, epoch in [(0, 1), (0, 2), (1, 1)]
        }
        assert len(orders) == 3

    def test_can_be_entered_in_the_middle(self) -> None:
        whole = list(source(augment=True).epoch(1))
        rest = list(source(augment=True).epoch(1, first=1))
        assert len(rest) == len(whole) - 1
        assert torch.equal(rest[0].images, whole[1].images)

    def test_batches_are_channels_last(self) -> None:
        images = next(source(augment=True).epoch(1)).images
        assert images.is_contiguous(memory_format=torch.channels_last)


class TestAugmentation:
    @pytest.mark.parametrize(("side", "margin"), [(8, 1), (32, 4), (28, 4), (4, 1)])
    def test_crops_are_shifted_copies_padded_with_zeros(self, side: int, margin: int) -> None:
        kept = source(40, augment=True, side=side)
        whole = next(kept.in_order(40)).images
        padded = torch.nn.functional.pad(whole, (margin,) * 4)
        windows = [(top, left) for top in range(2 * margin + 1) for left in range(2 * margin + 1)]
        seen = set()
        for batch in kept.epoch(1):
            for image, place in zip(batch.images, batch.index.tolist(), strict=True):
                fits = [
                    (top, left)
                    for top, left in windows
                    if torch.equal(image, padded[place, :, top : top + side, left : left + side])
                ]
                assert len(fits) == 1
                seen.update(fits)
        assert len(seen) > 1

    @pytest.mark.parametrize("allowed", [True, False])
    def test_images_are_mirrored_only_where_the_set_allows_it(self, allowed: bool) -> None:
        kept = source(60, augment=True, flip=allowed)
        whole = next(kept.in_order(60)).images
        sides = torch.nn.functional.pad(whole.flip(3), (1,) * 4)
        mirrored = 0
        for batch in kept.epoch(1):
            for image, place in zip(batch.images, batch.index.tolist(), strict=True):
                mirrored += any(
                    torch.equal(image, sides[place, :, top : top + 8, left : left + 8])
                    for top in range(3)
                    for left in range(3)
                )
        assert (15 < mirrored < 45) if allowed else mirrored == 0


class TestView:
    def test_normalises_pixels_of_zero_to_one(self) -> None:
        view = batches.View("student", an_input(mean=0.25, std=0.5), an_input(), CPU)
        images = torch.full((2, 1, 8, 8), 255, dtype=torch.uint8)
        # float32: a product and a sum instead of the textbook's order.
        assert torch.allclose(view(images), torch.full((2, 1, 8, 8), 1.5), rtol=1e-6)

    def test_resizes_to_the_networks_own_size(self) -> None:
        view = batches.View("teacher", an_input(side=16), an_input(), CPU)
        images = torch.full((2, 1, 8, 8), 51, dtype=torch.uint8)
        assert torch.allclose(view(images), torch.full((2, 1, 16, 16), 0.2), rtol=1e-6)

    def test_repeats_grey_for_a_network_of_three_channels(self) -> None:
        view = batches.View("teacher", an_input(channels=3), an_input(), CPU)
        shown = view(torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8))
        assert shown.shape == (1, 3, 8, 8)
        assert torch.equal(shown[:, 0], shown[:, 2])

    def test_refuses_other_channels_and_names_both(self) -> None:
        with pytest.raises(errors.IncompatibleNetworks, match=r"expects 1 channels .* has 3"):
            batches.View("student", an_input(), an_input(channels=3), CPU)


class TestMix:
    def test_neighbours_get_far_seeds(self) -> None:
        seeds = {batches.mix(seed, epoch) for seed in range(30) for epoch in range(30)}
        assert len(seeds) == 900
        assert all(0 <= seed < 2**63 for seed in seeds)


def test_the_synthetic_set_is_what_the_engine_reads() -> None:
    images, labels = folders.images(6, 3, 0)
    assert images.dtype == torch.uint8
    assert labels.tolist() == [0, 1, 2, 0, 1, 2]
