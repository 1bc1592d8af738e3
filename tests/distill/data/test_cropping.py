"""Both sources of crops give the same bytes, in the same order."""

import torch
from hypothesis import example, given
from hypothesis import strategies as st

from workers.distill.data import cropping
from workers.distill.data.types import Crops

CPU = torch.device("cpu")
PAD_Y, PAD_X = 2, 3


def some_images(channels: int = 2) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randint(1, 256, (5, channels, 6, 7), generator=draw, dtype=torch.uint8)


class TestCropSource:
    @given(
        st.lists(
            st.tuples(
                st.integers(0, 4),
                st.integers(-PAD_Y, PAD_Y),
                st.integers(-PAD_X, PAD_X),
                st.booleans(),
            ),
            min_size=1,
            max_size=6,
        ),
        st.sampled_from([1, 2]),
    )
    @example([(3, 0, 0, False), (1, 0, 0, False)], 2)  # whole images, which take a shorter way
    def test_both_give_the_same(
        self, rows: list[tuple[int, int, int, bool]], channels: int
    ) -> None:
        index, top, left, mirrored = (torch.tensor(column) for column in zip(*rows, strict=True))
        crops = Crops(top, left, mirrored, 6, 7)
        images = some_images(channels)
        mapped, held = (
            source.cut(index, crops)
            for source in (
                cropping.MappedImages(images),
                cropping.DeviceImages(images, pad_y=PAD_Y, pad_x=PAD_X, device=CPU),
            )
        )
        assert torch.equal(mapped, held)
        assert mapped.stride() == held.stride()
        for crop, (place, y, x, is_mirrored) in zip(mapped, rows, strict=True):
            wide = torch.nn.functional.pad(images[place], (PAD_X, PAD_X, PAD_Y, PAD_Y))
            wanted = wide[:, PAD_Y + y : PAD_Y + y + 6, PAD_X + x : PAD_X + x + 7]
            assert torch.equal(crop, wanted.flip(2) if is_mirrored else wanted)

    def test_the_cpu_copies_no_image_but_those_it_cuts(self) -> None:
        images = some_images()
        source = cropping.crop_source(images, pad_y=PAD_Y, pad_x=PAD_X, device=CPU)
        images[3] = 9
        zeros = torch.zeros(1, dtype=torch.int64)
        crops = Crops(zeros, zeros, zeros.bool(), 6, 7)
        crop = source.begin(torch.tensor([3]), crops).result()
        assert crop.unique().tolist() == [9]
