import torch

from workers.distill.config.training import RandomErasing
from workers.distill.data.stateless_rng import StatelessRNG
from workers.distill.data.transforms import erasing

IMAGES = torch.full((400, 3, 20, 30), 7, dtype=torch.uint8)


def erased(rows: torch.Tensor, **fields: object) -> torch.Tensor:
    settings = RandomErasing.model_validate(fields)
    return erasing.erase(IMAGES[rows], settings, StatelessRNG(0, rows))


class TestErase:
    def test_overwrites_one_rectangle_of_the_asked_share_of_images(self) -> None:
        done = erased(torch.arange(400), probability=0.5)
        changed = (done != 7).any(1)
        is_erased = changed.any((1, 2))
        assert 160 < int(is_erased.sum()) < 240
        for mask in changed[is_erased]:
            rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
            tall = int(rows.max() - rows.min()) + 1
            wide = int(columns.max() - columns.min()) + 1
            # All channels of a pixel are 7 again in one of 16 million pixels.
            assert int(mask.sum()) == tall * wide
            assert 0.01 < tall * wide / 600 < 0.37

    def test_pixels_are_random(self) -> None:
        done = erased(torch.arange(400), probability=1.0, scale=[0.3, 0.3])
        values = done[done != 7].float()
        assert 120 < float(values.mean()) < 135
        assert len(set(values.tolist())) == 255

    def test_an_image_is_erased_alike_in_every_batch(self) -> None:
        whole, some = erased(torch.arange(400)), torch.tensor([390, 2, 57])
        assert torch.equal(erased(some), whole[some])

    def test_without_a_chance_nothing_is_erased(self) -> None:
        assert torch.equal(erased(torch.arange(20), probability=0), IMAGES[:20])
