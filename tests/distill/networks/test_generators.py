import itertools
import math

import pytest
import torch
from torch import nn

from tests.distill.golden import CASES
from workers.distill import errors
from workers.distill.config.synthesis import GeneratorName
from workers.distill.networks import generators

NAMES: list[GeneratorName] = ["small", "large", "dcgan", "deep"]
COUNTS = "generator_parameter_counts"
BLANK = torch.zeros(3, dtype=torch.long)


def generator(
    name: GeneratorName, image_shape: tuple[int, int, int] = (2, 16, 32), *, seed: int = 0
) -> generators.Generator:
    torch.manual_seed(seed)
    return generators.build(name, image_shape=image_shape, latent_size=6, width=4)


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


class TestBuild:
    @pytest.mark.parametrize(
        ("name", "image_shape", "key"),
        [
            ("small", (1, 8, 8), "G-small nz256 ngf64 S8 c1"),
            ("small", (1, 28, 28), "G-small nz256 ngf64 S28 c1"),
            ("small", (3, 32, 32), "G-small nz256 ngf64 S32 c3"),
            ("small", (3, 64, 64), "G-small nz256 ngf64 S64 c3"),
            ("dcgan", (3, 64, 64), "G-dcgan nz256 ngf64 S64 c3"),
            ("dcgan", (3, 128, 128), "G-dcgan nz256 ngf64 S128 c3"),
            ("deep", (3, 224, 224), "G-deep nz256 ngf64 S224 c3"),
        ],
    )
    def test_has_the_published_number_of_parameters(
        self, name: GeneratorName, image_shape: tuple[int, int, int], key: str
    ) -> None:
        with torch.device("meta"):
            built = generators.build(name, image_shape=image_shape, latent_size=256, width=64)
        assert parameters(built) == CASES.case(COUNTS, key)

    def test_of_large_counts_as_its_table_of_layers(self) -> None:
        latent, width, places = 256, 64, 8 * 8
        wanted = (latent + 1) * 4 * width * places + 2 * 4 * width  # linear, norm
        wanted += 9 * 4 * width * 2 * width + 2 * 2 * width
        wanted += 9 * 2 * width * width + 2 * width
        wanted += (9 * width + 1) * 3
        with torch.device("meta"):
            built = generators.build("large", image_shape=(3, 32, 32), latent_size=256, width=64)
        assert parameters(built) == wanted

    @pytest.mark.parametrize("name", NAMES)
    def test_makes_pixels_of_0_to_1_for_images_that_are_not_square(
        self, name: GeneratorName
    ) -> None:
        built = generator(name)
        latent = built.sample_latent(BLANK)
        images = built(latent)
        assert latent.shape[1:] == built.latent_shape
        assert images.shape == (3, 2, 16, 32)
        assert float(images.detach().min()) > 0
        assert float(images.detach().max()) < 1

    def test_has_a_map_of_latent_values_only_where_it_is_deep(self) -> None:
        assert generator("deep").latent_shape == (6, 1, 2)
        assert {generator(name).latent_shape for name in NAMES if name != "deep"} == {(6,)}

    @pytest.mark.parametrize("name", NAMES)
    def test_follows_its_latent_values_everywhere(self, name: GeneratorName) -> None:
        built = generator(name)
        latent = built.sample_latent(BLANK).requires_grad_()
        (gradient,) = torch.autograd.grad(built(latent)[0].sum(), latent)
        assert bool((gradient[0] != 0).all())

    def test_begins_dcgan_with_small_weights_and_others_with_those_of_pytorch(self) -> None:
        deviations = {name: _spread(generator(name, (3, 64, 64))) for name in NAMES}
        assert deviations["dcgan"] == pytest.approx(0.02, rel=0.15)
        assert min(deviations[name] for name in ("small", "large", "deep")) > 0.04

    @pytest.mark.parametrize(
        ("name", "image_shape", "side", "divisor", "fitting"),
        [
            ("small", (1, 30, 32), 30, 4, []),
            ("dcgan", (3, 32, 28), 28, 16, ["small", "large"]),
            ("deep", (3, 8, 16), 8, 16, ["small", "large"]),
        ],
    )
    def test_refuses_sides_that_do_not_divide(
        self,
        name: GeneratorName,
        image_shape: tuple[int, int, int],
        side: int,
        divisor: int,
        fitting: list[str],
    ) -> None:
        with pytest.raises(errors.BadRecipe) as refused:
            generator(name, image_shape)
        advice = ", ".join(fitting) or "deepinversion"
        assert f"{divisor} does not divide {side}" in refused.value.message
        assert refused.value.message.endswith(advice)


def _spread(network: nn.Module) -> float:
    """Return the least standard deviation of a convolution between two blocks."""
    kinds = (nn.Conv2d, nn.ConvTranspose2d)
    inner = [part.weight for part in network.modules() if isinstance(part, kinds)][:-1]
    return min(float(weight.detach().std()) for weight in inner)


class TestDraw:
    @pytest.mark.parametrize("name", NAMES)
    def test_repeats_by_torchs_seed_and_differs_by_image(self, name: GeneratorName) -> None:
        built = generator(name)
        torch.manual_seed(5)
        one = built.sample_latent(BLANK)
        torch.manual_seed(5)
        assert torch.equal(one, built.sample_latent(BLANK))
        assert not torch.equal(one[0], one[1])

    def test_is_of_the_precision_of_the_weights(self) -> None:
        assert generator("small").double().sample_latent(BLANK).dtype == torch.float64

    def test_is_standard_normal(self) -> None:
        drawn = generator("small").sample_latent(torch.zeros(4000, dtype=torch.long))
        # 24 000 values: three standard errors of mean and deviation.
        assert abs(float(drawn.mean())) < 3 / math.sqrt(drawn.numel())
        assert abs(float(drawn.std()) - 1) < 3 / math.sqrt(2 * drawn.numel())


class TestRestart:
    @pytest.mark.parametrize("name", NAMES)
    def test_draws_every_weight_anew(self, name: GeneratorName) -> None:
        built = generator(name, (3, 32, 32))
        built(built.sample_latent(BLANK))
        before = {path: value.clone() for path, value in built.state_dict().items()}
        torch.manual_seed(1)
        built.reset_parameters()
        after = built.state_dict()
        fresh = generator(name, (3, 32, 32)).state_dict()
        for path, value in after.items():
            if "running" in path or "tracked" in path:
                assert torch.equal(value, fresh[path]), path
            elif path.endswith("bias"):
                assert not value.any(), path
            else:
                assert not torch.equal(value, before[path]), path

    def test_has_the_published_deviations(self) -> None:
        torch.manual_seed(0)
        built = generators.build("small", image_shape=(3, 32, 32), latent_size=64, width=64)
        built.reset_parameters()
        for path, part in built.named_modules():
            if not isinstance(part, nn.Linear | nn.Conv2d | nn.BatchNorm2d):
                continue
            weight = part.weight.detach()
            center = 1.0 if isinstance(part, nn.BatchNorm2d) else 0.0
            # Four standard errors each; a norm has 64 or 128 values.
            error = 0.02 / math.sqrt(weight.numel())
            assert abs(float(weight.mean()) - center) < 4 * error, path
            assert abs(float(weight.std()) - 0.02) < 4 * error, path

    @pytest.mark.parametrize("name", NAMES)
    def test_of_the_start_moves_the_first_layer_and_norm_alone(self, name: GeneratorName) -> None:
        built = generator(name, (3, 32, 32))
        built.reset_parameters()
        with torch.no_grad():
            for parameter in built.parameters():
                parameter.add_(1)
        before = {path: value.clone() for path, value in built.named_parameters()}
        built.reset_first_layer()
        kinds = nn.Linear | nn.Conv2d
        first_layer = next(part for part in built.modules() if isinstance(part, kinds))
        first_norm = next(part for part in built.modules() if isinstance(part, nn.BatchNorm2d))
        moved = {id(p) for p in itertools.chain(first_layer.parameters(), first_norm.parameters())}
        for path, parameter in built.named_parameters():
            same = torch.equal(parameter, before[path])
            assert same is (id(parameter) not in moved), path
        # Around 0, also the norm's: six deviations are far below the 2 that stood there.
        assert float(first_norm.weight.detach().abs().max()) < 0.12
        assert float(first_layer.weight.detach().abs().max()) < 0.12
        assert not first_norm.bias.any()

    def test_repeats_by_torchs_seed(self) -> None:
        one, other = generator("small", seed=1), generator("small", seed=2)
        for built in (one, other):
            torch.manual_seed(3)
            built.reset_parameters()
        latent = one.sample_latent(BLANK)
        assert torch.equal(one(latent), other(latent))


class TestConvolutional:
    def test_passes_the_maps_of_its_start_and_of_every_block_between(self) -> None:
        seen: list[tuple[int, tuple[int, ...]]] = []

        class Watched(generators.Convolutional):
            def between(self, grown: torch.Tensor, place: int) -> torch.Tensor:
                seen.append((place, tuple(grown.shape[1:])))
                return torch.zeros_like(grown)

        made_of = generators.parts("small", image_shape=(1, 8, 16), latent_size=6, width=4)
        built = Watched(made_of)
        images = built(built.sample_latent(BLANK))
        assert seen == [(0, (8, 2, 4)), (1, (8, 4, 8)), (2, (4, 8, 16))]
        bias = built.pixels.bias
        assert bias is not None
        # Vectors and single numbers may round differently.
        assert torch.allclose(images, bias.sigmoid().expand(3, 1, 8, 16), rtol=1e-6, atol=0)
