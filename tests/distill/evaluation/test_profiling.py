import torch
from torch import nn

from workers.distill.evaluation import profiling
from workers.distill.networks.interface import Network


class TestFlops:
    def test_counts_multiplications_and_additions_of_one_image(self) -> None:
        class Linear(Network):
            def __init__(self) -> None:
                super().__init__()
                self.fc = nn.Linear(64, 10)

            def forward(self, images: torch.Tensor) -> torch.Tensor:
                return self.fc(images.flatten(1))

        assert profiling.flops(Linear(), torch.randn(5, 1, 8, 8)) == 2 * 64 * 10
