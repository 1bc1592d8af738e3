import math

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from workers.distill.config.training import RandomResizedCrop
from workers.distill.data.stateless_rng import StatelessRNG
from workers.distill.data.transforms import random_crops
from workers.distill.data.types import ResizedCrops

COUNT = 4000


def drawn(height: int, width: int, *, seed: int = 0, **settings: list[float]) -> ResizedCrops:
    crop = RandomResizedCrop.model_validate(settings)
    stream = StatelessRNG(seed, torch.arange(COUNT))
    heights, widths = torch.full((COUNT,), height), torch.full((COUNT,), width)
    return random_crops.draw(stream, crop, heights=heights, widths=widths, flip=True)


class TestDraw:
    def test_parts_are_spread_as_torchvisions_are(self) -> None:
        torch.manual_seed(0)
        library = v2.RandomResizedCrop(224, antialias=True)
        image = torch.zeros(3, 300, 400, dtype=torch.uint8)
        theirs = [library.make_params([image]) for _ in range(COUNT)]
        ours = drawn(300, 400)
        for column, name in (("top", "top"), ("left", "left"), ("tall", "height")):
            mine = getattr(ours, column).double()
            other = torch.tensor([each[name] for each in theirs], dtype=torch.float64)
            error = math.sqrt((mine.var() + other.var()) / COUNT)
            assert abs(float(mine.mean() - other.mean())) < 4 * error, column
            assert float(mine.std()) == pytest.approx(float(other.std()), rel=0.08), column

    def test_parts_lie_in_the_image_and_have_the_asked_areas_and_ratios(self) -> None:
        ours = drawn(300, 400, scale=[0.2, 0.5], ratio=[0.5, 2.0])
        assert int((ours.top + ours.tall).max()) <= 300
        assert int((ours.left + ours.wide).max()) <= 400
        area = ours.tall * ours.wide / (300 * 400)
        assert 0.19 < float(area.min()) < 0.21
        assert 0.49 < float(area.max()) < 0.51
        ratio = ours.wide / ours.tall
        assert float(ratio.min()) > 0.49
        assert float(ratio.max()) < 2.02
        assert 0.45 < float(ours.mirrored.float().mean()) < 0.55

    @pytest.mark.parametrize(("height", "width"), [(10, 400), (400, 10)])
    def test_an_image_that_no_part_fits_is_cut_at_its_centre(self, height: int, width: int) -> None:
        ours = drawn(height, width, scale=[1.0, 1.0])
        tall, wide = min(height, round(width / 0.75)), min(width, round(height * 4 / 3))
        assert set(ours.tall.tolist()) == {tall}
        assert set(ours.wide.tolist()) == {wide}
        assert set(ours.top.tolist()) == {(height - tall) // 2}
        assert set(ours.left.tolist()) == {(width - wide) // 2}

    def test_an_images_part_depends_on_no_other_image(self) -> None:
        whole = drawn(50, 60)
        crop = RandomResizedCrop()
        some = torch.tensor([7, 3000])
        alone = random_crops.draw(
            StatelessRNG(0, some),
            crop,
            heights=torch.tensor([50, 50]),
            widths=torch.tensor([60, 60]),
            flip=True,
        )
        assert alone.rows() == [whole.rows()[7], whole.rows()[3000]]


class TestResize:
    @pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
    @pytest.mark.parametrize("size", [(24, 20), (7, 9)])
    def test_batches_on_a_device_are_what_single_images_are(
        self, interpolation: str, size: tuple[int, int]
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (5, 3, 21, 17), generator=generator, dtype=torch.uint8)
        crops = ResizedCrops(
            top=torch.tensor([0, 3, 5, 0, 20]),
            left=torch.tensor([0, 2, 0, 8, 16]),
            tall=torch.tensor([21, 11, 16, 5, 1]),
            wide=torch.tensor([17, 15, 3, 9, 1]),
            mirrored=torch.tensor([False, True, False, True, False]),
            interpolation=interpolation,
        )
        # Weights are whole numbers there, and those of a cubic add up to more than one.
        most = 1 if interpolation == "bilinear" else 2
        together = random_crops.resize_parts(images, crops, size)
        assert together.is_contiguous(memory_format=torch.channels_last)
        for image, row, done in zip(images, crops.rows(), together, strict=True):
            part = image[:, row.top : row.top + row.tall, row.left : row.left + row.wide]
            # Pillow's own, which rounds and clips between its two passes too. Those of a cubic
            # overshoot, so there it matters which comes first, and Pillow may take the other one.
            pillow = np.asarray(
                Image.fromarray(part.permute(1, 2, 0).numpy()).resize(
                    size[::-1], Image.Resampling[interpolation.upper()]
                )
            )
            exact = torch.from_numpy(pillow.copy()).permute(2, 0, 1)
            exact = exact.flip(2) if row.mirrored else exact
            if interpolation == "bilinear":
                assert int((done.int() - exact.int()).abs().max()) <= most
            single = random_crops.resize_part(image, row[:4], size, interpolation)
            single = single.flip(2) if row.mirrored else single
            assert int((done.int() - single.int()).abs().max()) <= most

    def test_a_part_of_the_asked_size_is_not_changed(self) -> None:
        image = torch.arange(48, dtype=torch.uint8).view(3, 4, 4)
        part = random_crops.resize_part(image, (1, 0, 2, 3), (2, 3), "bilinear")
        assert torch.equal(part, image[:, 1:3, :3])
