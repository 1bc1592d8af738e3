import pytest
import torch
from torchvision.transforms import v2

from workers.distill.data import stateless_rng
from workers.distill.data.transforms import policies
from workers.distill.data.transforms.operations import Operation

NAMES = {
    "ShearX": Operation.SHEAR_X,
    "ShearY": Operation.SHEAR_Y,
    "TranslateX": Operation.TRANSLATE_X,
    "TranslateY": Operation.TRANSLATE_Y,
    "Rotate": Operation.ROTATE,
    "Brightness": Operation.BRIGHTNESS,
    "Color": Operation.COLOR,
    "Contrast": Operation.CONTRAST,
    "Sharpness": Operation.SHARPNESS,
    "Posterize": Operation.POSTERIZE,
    "Solarize": Operation.SOLARIZE,
    "AutoContrast": Operation.AUTOCONTRAST,
    "Equalize": Operation.EQUALIZE,
    "Invert": Operation.INVERT,
    "Identity": Operation.IDENTITY,
}


class TestAutoAugment:
    def test_policy_and_strengths_are_torchvisions(self) -> None:
        library = v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)
        for ours, theirs in zip(policies.POLICY, library._policies, strict=True):
            for (operation, likely, bin_), (name, probability, magnitude) in zip(
                ours, theirs, strict=True
            ):
                assert (operation, likely) == (NAMES[name], probability)
                assert bin_ == (magnitude or 0)
                space, signed = library._AUGMENTATION_SPACE[name]
                assert signed == (0 < operation < policies.SIGNED)
                strengths = space(10, 64, 64)
                if strengths is not None:
                    expected = float(strengths[bin_])
                    factor = {"TranslateX": 64, "TranslateY": 64, "Solarize": 1 / 255}.get(name, 1)
                    amount = policies.amount(operation, bin_ / 9) * factor
                    assert amount == pytest.approx(expected, abs=1e-5)

    def test_draws_pairs_as_often_as_the_policy_says(self) -> None:
        drawn = policies.draw_autoaugment(stateless_rng.StatelessRNG(0, torch.arange(50_000)))
        for slot in range(2):
            expected = torch.zeros(len(Operation), dtype=torch.float64)
            for pair in policies.POLICY:
                expected[pair[slot][0]] += pair[slot][1] / 25
                expected[0] += (1 - pair[slot][1]) / 25
            shares = drawn.operations[slot].bincount(minlength=len(Operation)) / 50_000
            assert torch.allclose(shares.double(), expected, atol=0.01)

    def test_goes_both_ways_where_an_operation_has_two(self) -> None:
        drawn = policies.draw_autoaugment(stateless_rng.StatelessRNG(0, torch.arange(5_000)))
        turned = drawn.amounts[drawn.operations == Operation.ROTATE]
        assert sorted(set(turned.tolist())) == pytest.approx([-20 / 3, 20 / 3])
        kept = drawn.amounts[drawn.operations == Operation.SOLARIZE]
        assert float(kept.min()) > 0


class TestRandAugment:
    def test_draws_every_operation_but_invert(self) -> None:
        drawn = policies.draw_randaugment(stateless_rng.StatelessRNG(0, torch.arange(5_000)), 3, 9)
        assert drawn.operations.shape == (3, 5_000)
        assert set(drawn.operations.flatten().tolist()) == set(range(14))

    @pytest.mark.parametrize("magnitude", [0, 9, 30])
    def test_strengths_are_torchvisions(self, magnitude: int) -> None:
        for name, (space, _) in v2.RandAugment._AUGMENTATION_SPACE.items():
            strengths = space(31, 64, 64)
            if strengths is not None:
                factor = {"TranslateX": 64, "TranslateY": 64, "Solarize": 1 / 255}.get(name, 1)
                amount = policies.amount(NAMES[name], magnitude / 30) * factor
                assert amount == pytest.approx(float(strengths[magnitude]), abs=1e-5), name


class TestTrivialAugment:
    def test_strengths_are_torchvisions(self) -> None:
        for name, (space, _) in v2.TrivialAugmentWide._AUGMENTATION_SPACE.items():
            strengths = space(31, 64, 48)
            if strengths is None:
                continue
            side = {"TranslateX": 48, "TranslateY": 64}.get(name, 1)
            for level in range(31):
                amount = policies.wide_amount(NAMES[name], level, side)
                expected = float(strengths[level])
                if name.startswith("Translate"):
                    assert int(amount * side) == int(expected + 1e-4)
                else:
                    factor = 1 / 255 if name == "Solarize" else 1
                    assert amount * factor == pytest.approx(expected, abs=1e-5), (name, level)

    def test_draws_one_operation_of_every_strength(self) -> None:
        stream = stateless_rng.StatelessRNG(0, torch.arange(20_000))
        drawn = policies.draw_trivialaugment(stream, 64, 64)
        assert drawn.operations.shape == (1, 20_000)
        counts = drawn.operations[0].bincount(minlength=15)
        assert counts[14] == 0
        assert int(counts[:14].min()) > 1250
        turned = drawn.amounts[drawn.operations == Operation.ROTATE]
        assert len(set(turned.tolist())) == 61


class TestStrong:
    def test_strengths_spread_over_the_published_ranges(self) -> None:
        drawn = policies.draw_strong(stateless_rng.StatelessRNG(0, torch.arange(20_000)))
        codes, amounts = drawn.operations.flatten(), drawn.amounts.flatten()
        turned = amounts[codes == Operation.ROTATE]
        assert (float(turned.min()), float(turned.max())) == pytest.approx((-30, 30), abs=0.1)
        factors = 1 + amounts[codes == Operation.COLOR]
        assert (float(factors.min()), float(factors.max())) == pytest.approx((0.05, 0.95), abs=0.01)
        bits = amounts[codes == Operation.POSTERIZE]
        assert set(bits.tolist()) == {4, 5, 6, 7}

    def test_cuts_out_grey_boxes_of_at_most_half_the_side(self) -> None:
        images = torch.zeros(500, 3, 16, 16, dtype=torch.uint8)
        cut = policies.cut_out(images, stateless_rng.StatelessRNG(0, torch.arange(500)))
        assert set(cut[:, 0].flatten().tolist()) == {0, 125}
        assert set(cut[:, 2].flatten().tolist()) == {0, 114}
        grey = cut[:, 0] > 0
        assert 6 <= int(grey.any(1).sum(1).max()) <= 9  # half of 16, cut at whole pixels
        areas = grey.sum((1, 2))
        assert torch.equal(areas, grey.any(1).sum(1) * grey.any(2).sum(1))
        assert bool(grey.any(0).all())  # anywhere

    def test_grey_fits_any_number_of_channels(self) -> None:
        images = torch.zeros(50, 1, 8, 8, dtype=torch.uint8)
        cut = policies.cut_out(images, stateless_rng.StatelessRNG(0, torch.arange(50)))
        assert set(cut.flatten().tolist()) == {0, 121}
