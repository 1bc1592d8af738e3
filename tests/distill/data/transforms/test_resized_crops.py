import torch
import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows

from workers.distill.data import stateless_rng
from workers.distill.data.transforms import resized_crops
from workers.distill.data.types import Crops


def crops(top: int, left: int, scale: float, *, mirrored: bool = False) -> Crops:
    return Crops(
        torch.tensor([top]),
        torch.tensor([left]),
        torch.tensor([mirrored]),
        6,
        8,
        torch.tensor([scale]),
    )


def picture() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (1, 3, 6, 8), generator=generator).to(torch.uint8)


class TestCutImages:
    def test_of_factor_one_is_the_image(self) -> None:
        assert torch.equal(resized_crops.cut_images(picture(), crops(0, 0, 1.0)), picture())

    def test_mirrors(self) -> None:
        cut = resized_crops.cut_images(picture(), crops(0, 0, 1.0, mirrored=True))
        assert torch.equal(cut, picture().flip(3))

    def test_of_factor_two_is_a_part_of_the_resized_image(self) -> None:
        resized = F.interpolate(
            picture().float(), scale_factor=2, mode="bilinear", align_corners=False
        )
        cut = resized_crops.cut_images(picture(), crops(3, 5, 2.0))
        expected = resized[:, :, 3:9, 5:13].round()
        assert (cut.float() - expected).abs().max() <= 1

    def test_of_half_the_size_is_padded_with_black(self) -> None:
        cut = resized_crops.cut_images(torch.full((1, 1, 6, 8), 200).byte(), crops(-1, -2, 0.5))
        assert (cut[0, 0, 1:4, 2:6] == 200).all()
        assert cut.sum() == 200 * 12


class TestCutMasks:
    def test_takes_the_nearest_pixel_and_says_what_is_outside(self) -> None:
        masks = torch.arange(48).reshape(1, 6, 8).to(torch.uint8)
        assert torch.equal(resized_crops.cut_masks(masks, crops(0, 0, 1.0), 255), masks)
        doubled = masks.repeat_interleave(2, 1).repeat_interleave(2, 2)
        cut = resized_crops.cut_masks(masks, crops(3, 5, 2.0), 255)
        assert torch.equal(cut, doubled[:, 3:9, 5:13])
        half = resized_crops.cut_masks(masks, crops(-1, -2, 0.5), 255)
        assert (half != 255).sum() == 12
        assert half.dtype == torch.uint8


class TestDraw:
    def test_stays_within_the_factors_and_covers_both_sides(self) -> None:
        stream = stateless_rng.StatelessRNG(1, torch.arange(500))
        drawn = resized_crops.draw(stream, (0.5, 2.0), height=6, width=8, flip=True)
        assert drawn.scale is not None
        assert 0.5 <= float(drawn.scale.min()) < 0.6
        assert 1.9 < float(drawn.scale.max()) <= 2.0
        # A crop lies within a larger image, and a smaller image within its crop.
        room = (drawn.scale * 8 - 8).round()
        assert bool((drawn.left.sign() * room.sign() >= 0).all())
        assert bool((drawn.left.abs() <= room.abs()).all())
        assert 0.4 < float(drawn.mirrored.float().mean()) < 0.6
