import pytest
import torch

from workers.distill.config.training import CutMix, Mixup, MixupOrCutMix
from workers.distill.data.transforms import mixing
from workers.distill.data.types import Batch


def plain(count: int = 12, side: int = 16) -> Batch:
    """Return images each of whose pixels is ten times the image's number."""
    index = torch.arange(count)
    images = (10 * index).to(torch.uint8)[:, None, None, None].expand(count, 3, side, side)
    return Batch(images.contiguous(memory_format=torch.channels_last), index, index)


class TestDraw:
    def test_a_seed_draws_the_same_again_and_another_does_not(self) -> None:
        one, again, other = (mixing.draw(Mixup(), 50, seed) for seed in (1, 1, 2))
        assert torch.equal(one.share, again.share)
        assert torch.equal(one.place, again.place)
        assert not torch.equal(one.share, other.share)

    @pytest.mark.parametrize("alpha", [0.01, 0.2, 1.0, 100.0])
    def test_shares_follow_the_beta_distribution(self, alpha: float) -> None:
        share = mixing.draw(Mixup(alpha=alpha), 20_000, 0).share
        assert bool(share.isfinite().all())
        assert float(share.mean()) == pytest.approx(0.5, abs=0.02)
        # Variance of Beta(a, a): 1 / (4 (2 a + 1)).
        assert float(share.var()) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)


class TestMixupOrCutMix:
    def test_each_image_is_mixed_as_one_of_both_would(self) -> None:
        batch = plain()
        drawn = mixing.draw(MixupOrCutMix(cutmix_share=0.5), 12, 0)
        assert drawn.is_cut is not None
        assert 0 < int(drawn.is_cut.sum()) < 12
        both = drawn.mix(batch)
        columns = (drawn.share, drawn.place, drawn.down, drawn.across)
        for kind, rows in ((CutMix(), drawn.is_cut), (Mixup(), ~drawn.is_cut)):
            alone = mixing.Mixture(kind, *columns).mix(batch)
            assert torch.equal(both.images[rows], alone.images[rows])
            assert both.mixed is not None
            assert alone.mixed is not None
            assert torch.equal(both.mixed.labels, alone.mixed.labels)
            assert torch.equal(both.mixed.share[rows], alone.mixed.share[rows])

    def test_shares_follow_the_alpha_of_their_kind(self) -> None:
        mixing_of_both = MixupOrCutMix(mixup_alpha=0.1, cutmix_alpha=1.0, cutmix_share=0.25)
        drawn = mixing.draw(mixing_of_both, 20_000, 0)
        assert drawn.is_cut is not None
        assert float(drawn.is_cut.float().mean()) == pytest.approx(0.25, abs=0.01)
        for rows, alpha in ((drawn.is_cut, 1.0), (~drawn.is_cut, 0.1)):
            expected = 1 / (4 * (2 * alpha + 1))
            assert float(drawn.share[rows].var()) == pytest.approx(expected, rel=0.05)


class TestMixup:
    def test_blends_pixels_by_the_share_that_labels_get(self) -> None:
        batch = plain()
        mixed = mixing.draw(Mixup(), 12, 0).mix(batch)
        assert mixed.mixed is not None
        share = mixed.mixed.share
        wanted = 10 * (share * batch.labels + (1 - share) * mixed.mixed.labels)
        # Whole pixel values.
        assert float((mixed.images[:, 0, 0, 0] - wanted).abs().max()) <= 0.5 + 1e-4
        assert torch.equal(mixed.labels, batch.labels)
        assert sorted(mixed.mixed.labels.tolist()) == list(range(12))

    def test_stays_uint8_and_channels_last(self) -> None:
        images = mixing.draw(Mixup(), 12, 0).mix(plain()).images
        assert images.dtype == torch.uint8
        assert images.is_contiguous(memory_format=torch.channels_last)


class TestCutMix:
    def test_labels_get_the_share_of_the_pixels(self) -> None:
        batch = plain()
        mixed = mixing.draw(CutMix(), 12, 0).mix(batch)
        assert mixed.mixed is not None
        own = mixed.images[:, 0] == batch.images[:, 0]
        partners = 10 * mixed.mixed.labels[:, None, None]
        assert bool((own | (mixed.images[:, 0] == partners)).all())
        for place in range(12):
            if mixed.mixed.labels[place] != place:
                kept = float(own[place].float().mean())
                assert kept == pytest.approx(float(mixed.mixed.share[place]), abs=1e-6)

    def test_pastes_boxes_of_the_drawn_size(self) -> None:
        drawn = mixing.draw(CutMix(), 400, 0)
        inside = mixing._boxes(drawn.share, drawn.down, drawn.across, torch.Size((32, 32)))
        rows, columns = inside.any(2).sum(1), inside.any(1).sum(1)
        assert torch.equal(inside.sum((1, 2)), rows * columns)
        side = 32 * (1 - drawn.share).sqrt()
        assert bool((rows <= side + 1e-9).all())
        assert bool((columns <= side + 1e-9).all())
        whole = (rows > side - 2) & (columns > side - 2)
        assert 0.1 < float(whole.float().mean()) < 0.9  # the others reach over the border
        assert bool(inside.any(0).all())


class TestPart:
    def test_belongs_to_its_batch(self) -> None:
        drawn = mixing.draw(Mixup(), 12, 0)
        batch = plain(4)
        mixed = drawn.part(4, 8).mix(batch)
        assert mixed.mixed is not None
        assert torch.equal(mixed.mixed.share, drawn.share[4:8].float())
        assert sorted(mixed.mixed.labels.tolist()) == [0, 1, 2, 3]
