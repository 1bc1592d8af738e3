import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torchvision.transforms.v2 import functional as reference

from workers.distill.data import stateless_rng
from workers.distill.data.transforms import operations, policies
from workers.distill.data.transforms.operations import DrawnOperations, Operation


def pictures(count: int = 8, channels: int = 3, height: int = 12, width: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = 255 * torch.rand(count, channels, 4, 4, generator=generator)
    size = (height, width)
    return torch.nn.functional.interpolate(coarse, size, mode="bilinear").to(torch.uint8)


def done(images: torch.Tensor, operation: Operation, amounts: list[float]) -> torch.Tensor:
    codes = torch.full((1, len(images)), int(operation))
    return operations.apply(
        images, DrawnOperations(codes, torch.tensor([amounts], dtype=torch.float64))
    )


def shear_x(image: torch.Tensor, slope: float) -> torch.Tensor:
    angle = math.degrees(math.atan(slope))
    return reference.affine(image, 0.0, [0, 0], 1.0, [angle, 0.0], center=[0, 0])


def shear_y(image: torch.Tensor, slope: float) -> torch.Tensor:
    angle = math.degrees(math.atan(slope))
    return reference.affine(image, 0.0, [0, 0], 1.0, [0.0, angle], center=[0, 0])


def shift_x(image: torch.Tensor, share: float) -> torch.Tensor:
    return reference.affine(image, 0.0, [int(share * image.shape[-1]), 0], 1.0, [0.0, 0.0])


def shift_y(image: torch.Tensor, share: float) -> torch.Tensor:
    return reference.affine(image, 0.0, [0, int(share * image.shape[-2])], 1.0, [0.0, 0.0])


EXACT: list[tuple[Operation, Callable[[torch.Tensor, float], Any], list[float]]] = [
    (Operation.IDENTITY, lambda image, _: image, [0.0]),
    (Operation.TRANSLATE_X, shift_x, [0.4, -0.3, 0.0, 0.13]),
    (Operation.TRANSLATE_Y, shift_y, [0.4, -0.3, 0.0, 0.13]),
    (Operation.POSTERIZE, lambda image, bits: reference.posterize(image, int(bits)), [4, 5, 8, 0]),
    (Operation.SOLARIZE, reference.solarize, [0.0, 255.0, 100.5]),
    (Operation.AUTOCONTRAST, lambda image, _: reference.autocontrast(image), [0.0]),
    (Operation.EQUALIZE, lambda image, _: reference.equalize(image), [0.0]),
    (Operation.INVERT, lambda image, _: reference.invert(image), [0.0]),
]
ROUNDED: list[tuple[Operation, Callable[[torch.Tensor, float], Any], list[float]]] = [
    (Operation.SHEAR_X, shear_x, [0.3, -0.2, 0.11]),
    (Operation.SHEAR_Y, shear_y, [0.3, -0.2, 0.11]),
    (Operation.ROTATE, reference.rotate, [30.0, -17.0, 3.3]),
    (Operation.BRIGHTNESS, lambda i, a: reference.adjust_brightness(i, 1 + a), [0.9, -0.9, 0.1]),
    (Operation.COLOR, lambda i, a: reference.adjust_saturation(i, 1 + a), [0.9, -0.9, 0.1]),
    (Operation.CONTRAST, lambda i, a: reference.adjust_contrast(i, 1 + a), [0.9, -0.9, 0.1]),
    (Operation.SHARPNESS, lambda i, a: reference.adjust_sharpness(i, 1 + a), [0.9, -0.9, 0.1]),
]


class TestApply:
    @pytest.mark.parametrize("channels", [1, 3])
    @pytest.mark.parametrize(("operation", "wanted", "amounts"), [*EXACT, *ROUNDED])
    def test_equals_torchvision(
        self,
        operation: Operation,
        wanted: Callable[[torch.Tensor, float], Any],
        amounts: list[float],
        channels: int,
    ) -> None:
        is_exact = operation in {one for one, *_ in EXACT}
        images = pictures(channels=channels)
        if is_exact:
            images[0] = 7  # without any contrast
        each = [amounts[place % len(amounts)] for place in range(len(images))]
        transformed = done(images, operation, each)
        for image, strength, actual in zip(images, each, transformed, strict=True):
            other = wanted(image, strength)
            if is_exact:
                assert torch.equal(actual, other), strength
                continue
            # Arithmetic in another order: a value at the edge of two whole ones, or a place
            # halfway between two pixels, may fall to the other side.
            assert float((actual != other).float().mean()) < 0.05, strength
            if operation > Operation.ROTATE:
                assert int((actual.int() - other.int()).abs().max()) <= 1, strength

    def test_each_image_meets_its_own_operation(self) -> None:
        images = pictures(15)
        codes = torch.randperm(15, generator=torch.Generator().manual_seed(1))
        amounts = torch.tensor(
            [policies.amount(Operation(int(code)), 0.5) for code in codes], dtype=torch.float64
        )
        transformed = operations.apply(images, DrawnOperations(codes[None], amounts[None]))
        for place, code in enumerate(codes.tolist()):
            alone = done(images[place : place + 1], Operation(code), [float(amounts[place])])
            assert torch.equal(transformed[place], alone[0]), Operation(code)

    @pytest.mark.parametrize("shape", [(1, 8, 8), (2, 5, 7), (3, 2, 2), (64, 4, 4)])
    def test_takes_images_of_any_shape(self, shape: tuple[int, int, int]) -> None:
        images = torch.randint(0, 256, (30, *shape), dtype=torch.uint8)
        stream = stateless_rng.StatelessRNG(0, torch.arange(30))
        transformed = operations.apply(images, policies.draw_randaugment(stream, 3, 20))
        assert transformed.shape == images.shape
        assert transformed.dtype == torch.uint8

    def test_leaves_its_input_alone(self) -> None:
        images = pictures(40)
        before = images.clone()
        stream = stateless_rng.StatelessRNG(0, torch.arange(40))
        operations.apply(images, policies.draw_autoaugment(stream))
        assert torch.equal(images, before)
