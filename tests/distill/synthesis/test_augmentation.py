from collections import Counter
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows

from workers.distill.synthesis import augmentation


def coded(count: int, channels: int, height: int, width: int) -> torch.Tensor:
    """Images in which every number stands once, and none is the zero of the padding."""
    numbers = torch.arange(1, count * channels * height * width + 1, dtype=torch.float64)
    return numbers.view(count, channels, height, width)


def windows(image: torch.Tensor, pad_y: int, pad_x: int) -> dict[bytes, tuple[int, int, bool]]:
    """Every part of the padded image, mirrored or not, by its content."""
    height, width = image.shape[1:]
    padded = F.pad(image, (pad_x, pad_x, pad_y, pad_y))
    corners = {}
    for top in range(2 * pad_y + 1):
        for left in range(2 * pad_x + 1):
            part = padded[:, top : top + height, left : left + width]
            corners[content(part)] = (top, left, False)
            corners[content(part.flip(2))] = (top, left, True)
    return corners


def content(image: torch.Tensor) -> bytes:
    return image.contiguous().numpy().tobytes()


def seeded(
    change: Callable[[torch.Tensor], torch.Tensor], seed: int = 0
) -> Callable[[torch.Tensor], torch.Tensor]:
    """The change with the same draws in every call, as numeric gradients need it."""

    def same(images: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(seed)
        return change(images)

    return same


def is_too_uneven(counts: list[int], bound: float) -> bool:
    expected = sum(counts) / len(counts)
    return sum((count - expected) ** 2 for count in counts) / expected > bound


class TestCrop:
    def test_every_image_is_a_window_of_itself_with_zeros_around_it(self) -> None:
        torch.manual_seed(0)
        images = coded(40, 3, 5, 7)
        cropped = augmentation.crop(images, pad_y=2, pad_x=3, flip=True)
        places = [
            windows(image, 2, 3)[content(crop)] for image, crop in zip(images, cropped, strict=True)
        ]
        assert len(set(places)) > 20  # each image has its own place

    @pytest.mark.parametrize(("flip", "kinds", "bound"), [(True, 30, 58.3), (False, 15, 36.1)])
    def test_every_window_is_as_likely(self, flip: bool, kinds: int, bound: float) -> None:
        torch.manual_seed(1)
        image = coded(1, 1, 5, 7)
        cropped = augmentation.crop(image.expand(3000, -1, -1, -1), pad_y=1, pad_x=2, flip=flip)
        places = windows(image[0], 1, 2)
        seen = Counter(places[content(crop)] for crop in cropped)
        assert len(seen) == kinds
        assert flip or not any(mirrored for _, _, mirrored in seen)
        # 99.9 % of chi-square with one degree of freedom less than there are kinds.
        assert not is_too_uneven(list(seen.values()), bound)

    def test_without_padding_and_flip_nothing_changes(self) -> None:
        images = coded(4, 2, 3, 5)
        assert torch.equal(augmentation.crop(images, pad_y=0, pad_x=0, flip=False), images)

    def test_the_gradient_of_a_pixel_is_that_of_the_place_where_it_is_shown(self) -> None:
        images = coded(20, 2, 6, 4).requires_grad_()
        cropped = augmentation.crop(images, pad_y=2, pad_x=1, flip=True)
        arriving = torch.randn_like(cropped)
        cropped.backward(arriving)
        expected = torch.zeros(images.numel() + 1, dtype=torch.float64)
        expected[cropped.detach().long().flatten()] = arriving.flatten()
        assert torch.equal(images.grad.flatten(), expected[1:])  # type: ignore[union-attr]  # there is one after a backward pass

    def test_gradients_agree_with_differences(self) -> None:
        images = torch.rand(5, 2, 4, 3, dtype=torch.float64, requires_grad=True)
        change = seeded(lambda images: augmentation.crop(images, pad_y=2, pad_x=1, flip=True))
        assert torch.autograd.gradcheck(change, (images,))
        assert torch.autograd.gradgradcheck(change, (images,))

    @pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
    def test_bytes_and_floats_are_cut_alike_and_come_channels_last(
        self, layout: torch.memory_format
    ) -> None:
        stored = torch.randint(256, (9, 3, 8, 6), dtype=torch.uint8).contiguous(
            memory_format=layout
        )
        change = seeded(lambda images: augmentation.crop(images, pad_y=1, pad_x=2, flip=True))
        from_bytes, from_floats = change(stored), change(stored.float())
        assert from_bytes.dtype == torch.uint8
        assert torch.equal(from_bytes.float(), from_floats)
        assert from_bytes.is_contiguous(memory_format=torch.channels_last)
        assert from_floats.is_contiguous(memory_format=torch.channels_last)

    def test_needs_no_operation_whose_result_varies(self) -> None:
        torch.use_deterministic_algorithms(True)
        images = torch.rand(4, 3, 8, 8, requires_grad=True)
        augmentation.crop(images, pad_y=1, pad_x=1, flip=True).sum().backward()
        augmentation.resized_crop(images, smallest=0.3, flip=True).sum().backward()


class TestRoll:
    def test_the_whole_batch_goes_the_same_way_and_every_way_is_gone(self) -> None:
        torch.manual_seed(0)
        images = coded(3, 2, 4, 5)
        ways = {}
        for down in (-1, 0, 1):
            for across in (-1, 0, 1):
                rolled = images.roll((down, across), (2, 3))
                ways[content(rolled)] = (down, across, False)
                ways[content(rolled.flip(3))] = (down, across, True)
        seen = Counter(
            ways[content(augmentation.roll(images, shift=1, flip=True))] for _ in range(540)
        )
        assert len(seen) == 18
        assert not is_too_uneven(list(seen.values()), 40.8)  # 99.9 % of chi-square, 17 degrees

    def test_without_flip_nothing_is_mirrored(self) -> None:
        images = coded(2, 1, 3, 4)
        for _ in range(20):
            assert torch.equal(augmentation.roll(images, shift=0, flip=False), images)

    def test_gradients_agree_with_differences(self) -> None:
        images = torch.rand(2, 2, 3, 4, dtype=torch.float64, requires_grad=True)
        change = seeded(lambda images: augmentation.roll(images, shift=2, flip=True), seed=1)
        assert torch.autograd.gradcheck(change, (images,))


def places(count: int, height: int, width: int) -> torch.Tensor:
    """Images that say of each pixel in which row and in which column it stands."""
    rows = torch.arange(height, dtype=torch.float64)[:, None].expand(height, width)
    columns = torch.arange(width, dtype=torch.float64).expand(height, width)
    return torch.stack([rows, columns]).expand(count, -1, -1, -1)


def parts(images: torch.Tensor) -> list[tuple[int, int, int, int, bool]]:
    """Top, left, height, width and mirroring of the parts that an image of `places` shows.

    What is enlarged shows its own border pixels at the border.
    """
    boxes = []
    for rows, columns in images.round().long():
        first, last = columns[0, 0].item(), columns[0, -1].item()
        left, right = sorted((first, last))
        top, bottom = rows[0, 0].item(), rows[-1, 0].item()
        boxes.append((top, left, bottom - top + 1, right - left + 1, last < first))
    return boxes


class TestResizedCrop:
    @pytest.mark.parametrize(("height", "width"), [(16, 16), (9, 12)])
    def test_equals_cutting_and_then_resizing(self, height: int, width: int) -> None:
        images = torch.rand(30, 3, height, width, dtype=torch.float64)
        change = seeded(lambda images: augmentation.resized_crop(images, smallest=0.2, flip=True))
        boxes = parts(change(places(30, height, width)))
        assert {mirrored for *_, mirrored in boxes} == {False, True}
        for image, actual, (top, left, tall, wide, mirrored) in zip(
            images, change(images), boxes, strict=True
        ):
            part = image[None, :, top : top + tall, left : left + wide]
            expected = F.interpolate(part, (height, width), mode="bilinear")[0]
            # What is looked up is computed in float32, with coordinates up to 16.
            torch.testing.assert_close(
                actual, expected.flip(2) if mirrored else expected, rtol=0, atol=1e-5
            )

    def test_parts_keep_to_the_area_and_the_aspect_and_reach_both_ends(self) -> None:
        torch.manual_seed(0)
        side = 48
        boxes = parts(augmentation.resized_crop(places(800, side, side), smallest=0.25, flip=False))
        areas = torch.tensor([tall * wide for _, _, tall, wide, _ in boxes]) / side**2
        aspects = torch.tensor([wide / tall for _, _, tall, wide, _ in boxes])
        # Rounding to whole pixels moves a side by at most 1/2 of at least 20.
        assert 0.235 < areas.min() < 0.27
        assert 0.95 < areas.max() <= 1
        assert 0.71 < aspects.min() < 0.77
        assert 1.3 < aspects.max() < 1.4
        assert not any(mirrored for *_, mirrored in boxes)

    def test_every_place_is_as_likely(self) -> None:
        torch.manual_seed(0)
        # Only full height and 11 columns fit the aspect: 30 places are left.
        boxes = parts(augmentation.resized_crop(places(3000, 8, 40), smallest=0.9, flip=False))
        assert {(top, tall, wide) for top, _, tall, wide, _ in boxes} == {(0, 8, 11)}
        seen = Counter(left for _, left, *_ in boxes)
        assert sorted(seen) == list(range(30))
        assert not is_too_uneven(list(seen.values()), 58.3)  # 99.9 % of chi-square, 29 degrees

    def test_the_largest_part_of_a_square_is_the_square(self) -> None:
        images = torch.rand(50, 3, 12, 12, dtype=torch.float64)
        actual = augmentation.resized_crop(images, smallest=1.0, flip=False)
        # Places are computed in float32.
        torch.testing.assert_close(actual, images, rtol=0, atol=1e-5)

    def test_a_constant_stays_and_its_gradient_is_shared_out_in_full(self) -> None:
        images = torch.full((6, 1, 10, 10), 0.5, dtype=torch.float64, requires_grad=True)
        actual = augmentation.resized_crop(images, smallest=0.3, flip=True)
        actual.sum().backward()
        torch.testing.assert_close(actual, images, rtol=0, atol=1e-6)
        assert images.grad is not None
        totals = images.grad.sum((1, 2, 3))
        torch.testing.assert_close(totals, torch.full_like(totals, 100.0), rtol=0, atol=1e-4)

    def test_gradients_agree_with_differences(self) -> None:
        images = torch.rand(3, 2, 5, 4, dtype=torch.float64, requires_grad=True)
        change = seeded(lambda images: augmentation.resized_crop(images, smallest=0.3, flip=True))
        assert torch.autograd.gradcheck(change, (images,))

    @pytest.mark.parametrize("smallest", [0.0, 1.5])
    def test_an_impossible_area_is_refused(self, smallest: float) -> None:
        with pytest.raises(ValueError, match="share of the area"):
            augmentation.resized_crop(torch.rand(1, 1, 4, 4), smallest=smallest, flip=False)
