import pytest
import torch

from workers.distill.functional import adapters

SHAPES = [
    ((3, 8, 8), (5, 8, 8)),
    ((3, 8, 8), (5, 4, 4)),
    ((3, 4, 4), (5, 8, 8)),
    ((3, 8, 8), (5, 5, 5)),
    ((3, 8, 6), (5, 4, 3)),
    ((3, 4, 3), (5, 8, 6)),
    ((3, 8, 6), (5, 8, 3)),
    ((3, 2, 2), (5, 1, 1)),
]


class TestRegressor:
    @pytest.mark.parametrize(("given", "wanted"), SHAPES)
    def test_leads_from_shape_to_shape(self, given: adapters.Shape, wanted: adapters.Shape) -> None:
        assert adapters.regressor(given, wanted)(torch.ones(2, *given)).shape == (2, *wanted)

    @pytest.mark.parametrize(
        ("wanted", "kernel", "stride"),
        [((5, 4, 4), (3, 3), (2, 2)), ((5, 16, 16), (4, 4), (2, 2)), ((5, 5, 8), (4, 1), (1, 1))],
    )
    def test_chooses_the_convolution_from_both_sizes(
        self, wanted: adapters.Shape, kernel: tuple[int, int], stride: tuple[int, int]
    ) -> None:
        convolution = adapters.regressor((3, 8, 8), wanted)[0]
        assert isinstance(convolution, (torch.nn.Conv2d, torch.nn.ConvTranspose2d))
        assert convolution.kernel_size == kernel
        assert convolution.stride == stride
        assert convolution.bias is not None

    @pytest.mark.parametrize("wanted", [(5, 9, 9), (5, 32, 32), (5, 16, 8), (5, 4, 9)])
    def test_refuses_larger_maps_but_twice_the_size(self, wanted: adapters.Shape) -> None:
        with pytest.raises(ValueError, match="no convolution leads from maps of 8x8"):
            adapters.regressor((3, 8, 8), wanted)


class TestProjection:
    def test_has_no_bias_of_its_own(self) -> None:
        names = [name for name, _ in adapters.projection(3, 5).named_parameters()]
        assert names == ["0.weight", "1.weight", "1.bias"]
