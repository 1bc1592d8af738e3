from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.distill import folders
from workers.distill import errors
from workers.distill.config.job import Input
from workers.distill.config.training import expand
from workers.distill.data.loader import BatchLoader, bounds
from workers.distill.data.preprocessing import Preprocessor
from workers.distill.data.transforms import random_crops
from workers.distill.data.types import Batch, ResizedCrops

CPU = torch.device("cpu")
Fields = dict[str, Any]
"""Fields of a recipe's training; Any: JSON values."""


def source(
    count: int = 10,
    *,
    augment: bool = False,
    flip: bool = False,
    seed: int = 0,
    side: int = 8,
    channels: int = 2,
    strong: bool = False,
    **fields: Any,  # JSON values
) -> BatchLoader:
    generator = torch.Generator().manual_seed(1)
    shape = (count, channels, side, side)
    images = torch.randint(1, 256, shape, generator=generator, dtype=torch.uint8)
    training = {
        "batch_size": 4,
        "seed": seed,
        "augmentation": "standard" if augment else "none",
        **fields,
    }
    return BatchLoader(
        images,
        torch.arange(count),
        training=expand(training),
        flip=flip,
        device=CPU,
        strong=strong,
    )


def an_input(channels: int = 1, side: int = 8, mean: float = 0.0, std: float = 1.0) -> Input:
    return Input(
        channels=channels,
        height=side,
        width=side,
        mean=[mean] * channels,
        std=[std] * channels,
    )


class TestBounds:
    @given(count=st.integers(1, 200), size=st.integers(2, 50))
    def test_every_image_is_in_one_batch(self, count: int, size: int) -> None:
        parts = bounds(count, size)
        assert [place for start, end in parts for place in range(start, end)] == list(range(count))

    @given(count=st.integers(2, 200), size=st.integers(2, 50))
    def test_no_batch_holds_a_single_image(self, count: int, size: int) -> None:
        sizes = [end - start for start, end in bounds(count, size)]
        assert min(sizes) >= 2
        assert max(sizes) <= size + 1


class TestEpoch:
    def test_shows_each_image_once(self) -> None:
        indices = torch.cat([batch.index for batch in source().epoch(1)])
        assert sorted(indices.tolist()) == list(range(10))

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

    def test_shows_what_is_stored_in_its_order_where_nothing_is_augmented(self) -> None:
        plain = source()
        stored = plain.stored()
        assert plain.shows_stored
        assert not source(augment=True).shows_stored
        seen = plain.whole_epoch(2)
        order = plain.order(2)
        assert torch.equal(stored.images[order], seen.images)
        assert torch.equal(stored.labels[order], seen.labels)
        assert torch.equal(stored.index[order], seen.index)


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
        view = Preprocessor("student", an_input(mean=0.25, std=0.5), an_input(), CPU)
        images = torch.full((2, 1, 8, 8), 255, dtype=torch.uint8)
        # float32: a product and a sum instead of the textbook's order.
        assert torch.allclose(view(images), torch.full((2, 1, 8, 8), 1.5), rtol=1e-6)

    def test_resizes_to_the_networks_own_size(self) -> None:
        view = Preprocessor("teacher", an_input(side=16), an_input(), CPU)
        images = torch.full((2, 1, 8, 8), 51, dtype=torch.uint8)
        assert torch.allclose(view(images), torch.full((2, 1, 16, 16), 0.2), rtol=1e-6)

    def test_repeats_grey_for_a_network_of_three_channels(self) -> None:
        view = Preprocessor("teacher", an_input(channels=3), an_input(), CPU)
        pixels = view(torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8))
        assert pixels.shape == (1, 3, 8, 8)
        assert torch.equal(pixels[:, 0], pixels[:, 2])

    def test_refuses_other_channels_and_names_both(self) -> None:
        with pytest.raises(errors.IncompatibleNetworks, match=r"expects 1 channels .* has 3"):
            Preprocessor("student", an_input(), an_input(channels=3), CPU)


KINDS: list[Fields] = [
    {"augmentation": "none"},
    {"augmentation": "standard"},
    {"augmentation": "autoaugment"},
    {"augmentation": "randaugment", "randaugment_operations": 3, "randaugment_magnitude": 20},
    {"augmentation": "trivialaugment", "random_erasing": {"probability": 0.5}},
    {"augmentation": "standard", "random_resized_crop": {}},
    {"augmentation": "randaugment", "random_resized_crop": {"interpolation": "bicubic"}},
    {"mixing": {"name": "mixup"}},
    {"mixing": {"name": "mixup_or_cutmix", "mixup_alpha": 0.1}, "random_erasing": {}},
    {"mixing": {"name": "cutmix", "alpha": 0.5}, "augmentation": "autoaugment"},
    {"augmentation": "none", "teacher_cache": {"views": 1}},
    {"augmentation": "randaugment", "teacher_cache": {"views": 5, "per_visit": 2}},
    {
        "augmentation": "standard",
        "random_resized_crop": {},
        "random_erasing": {},
        "teacher_cache": {"views": 3},
    },
]


def same(one: Batch, other: Batch) -> bool:
    """Whether two batches agree in everything."""
    pairs = [(one.images, other.images), (one.labels, other.labels), (one.index, other.index)]
    for first, second in ((one.view, other.view), (one.strong, other.strong)):
        if first is not None and second is not None:
            pairs.append((first, second))
        elif first is not second:
            return False
    if one.mixed is not None and other.mixed is not None:
        pairs.append((one.mixed.labels, other.mixed.labels))
        pairs.append((one.mixed.share, other.mixed.share))
    return all(torch.equal(first, second) for first, second in pairs)


class TestEveryKindOfEpoch:
    @pytest.mark.parametrize("fields", KINDS)
    def test_can_be_entered_in_the_middle_by_another_process(self, fields: Fields) -> None:
        one, other = (source(9, flip=True, augment=True, **fields) for _ in range(2))
        whole = list(one.epoch(2))
        rest = list(other.epoch(2, first=1))
        assert len(whole) == len(rest) + 1
        assert all(same(*pair) for pair in zip(whole[1:], rest, strict=True))

    @pytest.mark.parametrize("fields", KINDS)
    def test_epochs_differ_in_order(self, fields: Fields) -> None:
        kept = source(9, augment=True, **fields)
        orders = {tuple(torch.cat([b.index for b in kept.epoch(e)]).tolist()) for e in (1, 2, 3)}
        assert len(orders) == 3

    @pytest.mark.parametrize("fields", KINDS)
    def test_batches_are_channels_last_and_uint8(self, fields: Fields) -> None:
        images = next(source(9, augment=True, **fields).epoch(1)).images
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert images.dtype == torch.uint8

    @pytest.mark.parametrize(
        "fields", [{"mixing": {"name": "mixup"}}, {"label_noise": 0.5}, {"max_steps": 3}]
    )
    def test_what_is_not_used_changes_no_draw(self, fields: Fields) -> None:
        plain, other = source(augment=True, flip=True), source(augment=True, flip=True, **fields)
        for one, two in zip(plain.epoch(1), other.epoch(1), strict=True):
            assert torch.equal(one.index, two.index)
            if two.mixed is None:
                assert torch.equal(one.images, two.images)

    def test_policies_come_after_the_same_crops(self) -> None:
        # RandAugment of magnitude 0 changes contrast in few of its operations.
        plain = source(40, augment=True, flip=True)
        other = source(40, augmentation="randaugment", randaugment_magnitude=0, flip=True)
        pairs = zip(plain.epoch(1), other.epoch(1), strict=True)
        equal = [(a.images == b.images).all((1, 2, 3)).sum() for a, b in pairs]
        assert int(torch.stack(equal).sum()) > 20


class TestRandomResizedCrop:
    def test_crops_differ_between_images_epochs_and_seeds(self) -> None:
        def seen(seed: int, epoch: int) -> dict[int, torch.Tensor]:
            kept = source(6, seed=seed, augment=True, random_resized_crop={})
            batches = list(kept.epoch(epoch))
            return {
                int(place): image
                for batch in batches
                for place, image in zip(batch.index, batch.images, strict=True)
            }

        first = seen(0, 1)
        for other in (seen(0, 2), seen(1, 1)):
            assert not any(torch.equal(first[place], other[place]) for place in first)

    def test_is_what_the_plan_says_of_the_stored_image(self) -> None:
        kept = source(6, augment=True, flip=True, random_resized_crop={"scale": [0.3, 0.6]})
        stored = kept.stored().images
        for plan, batch in zip(kept.plans(3), kept.epoch(3), strict=True):
            assert isinstance(plan.crops, ResizedCrops)
            assert torch.equal(plan.index, batch.index)
            for place, row, image in zip(plan.index, plan.crops.rows(), batch.images, strict=True):
                part = (row.top, row.left, row.tall, row.wide)
                resized = random_crops.resize_part(stored[place], part, (8, 8), "bilinear")
                expected = resized.flip(2) if row.mirrored else resized
                assert torch.equal(image, expected)


class TestTeacherCache:
    def test_a_view_looks_the_same_in_every_epoch(self) -> None:
        kept = source(9, flip=True, augmentation="randaugment", teacher_cache={"views": 3})
        known: dict[tuple[int, int], torch.Tensor] = {}
        met = 0
        for epoch in range(1, 9):
            for batch in kept.epoch(epoch):
                assert batch.view is not None
                keys = zip(batch.index.tolist(), batch.view.tolist(), strict=True)
                for key, image in zip(keys, batch.images, strict=True):
                    met += key in known
                    assert torch.equal(known.setdefault(key, image), image)
        assert met > 40
        assert len(known) > 20

    def test_views_in_order_are_what_epochs_show(self) -> None:
        kept = source(9, flip=True, augmentation="autoaugment", teacher_cache={"views": 3})
        stored = list(kept.views_in_order(5))
        images = torch.cat([batch.images for batch in stored])
        index = torch.cat([batch.index for batch in stored])
        views = torch.cat([b.view for b in stored if b.view is not None])
        assert torch.equal(index * 3 + views, torch.arange(27))
        for batch in kept.epoch(4):
            assert batch.view is not None
            assert torch.equal(images[batch.index * 3 + batch.view], batch.images)

    @pytest.mark.parametrize(("count", "per_visit"), [(12, 2), (9, 2), (10, 4), (3, 4)])
    def test_a_visit_shows_several_views_and_every_image_has_its_turn(
        self, count: int, per_visit: int
    ) -> None:
        cache = {"views": 6, "per_visit": per_visit}
        kept = source(count, augment=True, teacher_cache=cache)
        seen: list[int] = []
        steps = set()
        for epoch in range(1, per_visit + 1):
            batches = list(kept.epoch(epoch))
            steps.add(len(batches))
            assert sum(len(batch.index) for batch in batches) == kept.rows_per_epoch
            for batch in batches:
                assert batch.view is not None
                groups = batch.index.view(-1, per_visit)
                assert bool((groups == groups[:, :1]).all())
                assert all(
                    len(set(views)) == per_visit
                    for views in batch.view.view(-1, per_visit).tolist()
                )
                seen.extend(groups[:, 0].tolist())
        assert set(seen) == set(range(count))
        assert steps == {kept.steps_per_epoch}
        assert count <= kept.rows_per_epoch < count + per_visit

    def test_without_one_there_is_no_view(self) -> None:
        assert next(source().epoch(1)).view is None


class TestStrong:
    def test_is_another_look_at_the_same_images(self) -> None:
        kept = source(20, augment=True, flip=True, channels=3, strong=True)
        one, again = list(kept.epoch(1)), list(kept.epoch(1))
        assert all(same(*pair) for pair in zip(one, again, strict=True))
        for batch in one:
            assert batch.strong is not None
            assert batch.strong.shape == batch.images.shape
            assert batch.strong.is_contiguous(memory_format=torch.channels_last)
            assert not torch.equal(batch.strong, batch.images)
        later = next(kept.epoch(2)).strong
        assert later is not None

    def test_leaves_the_first_view_as_it_is_without(self) -> None:
        for augment in (True, False):
            plain = source(12, augment=augment, channels=3)
            other = source(12, augment=augment, channels=3, strong=True)
            for one, two in zip(plain.epoch(1), other.epoch(1), strict=True):
                assert torch.equal(one.images, two.images)


def test_the_synthetic_set_is_what_the_engine_reads() -> None:
    images, labels = folders.images(6, 3, 0)
    assert images.dtype == torch.uint8
    assert labels.tolist() == [0, 1, 2, 0, 1, 2]
