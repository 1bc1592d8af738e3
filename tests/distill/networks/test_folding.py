import torch
from torch import nn

from tests.distill import folders
from workers.distill.networks import catalog, folding
from workers.distill.networks.interface import Features, Network


class Twice(Network):
    """A network that shows a convolution's output before its norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.norm = nn.BatchNorm2d(2)

    def observe(self, images: torch.Tensor) -> Features:
        maps = self.conv(images)
        pooled = self.norm(maps).mean((2, 3))
        return Features(logits=pooled, pooled=pooled, stages=(maps,))


class TestFolded:
    def test_shows_the_same_with_fewer_modules(self) -> None:
        torch.manual_seed(0)
        network = catalog.build(
            folders.NETWORK, classes=3, channels=1, height=8, width=8, arguments={}
        )
        network.train()
        for _ in range(3):  # statistics other than 0 and 1
            network(torch.randn(8, 1, 8, 8))
        network.eval()
        images = torch.randn(4, 1, 8, 8)
        folded = folding.folded(network, images)
        norms = [m for m in folded.modules() if isinstance(m, nn.BatchNorm2d)]
        assert len(norms) == 0
        assert any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
        # Weights are multiplied in another order.
        assert torch.allclose(folded(images), network(images), rtol=1e-3, atol=1e-5)

    def test_leaves_a_network_alone_that_shows_what_lies_between(self) -> None:
        torch.manual_seed(0)
        network = Twice()
        network.observe(torch.randn(8, 1, 8, 8))
        network.eval()
        folded = folding.folded(network, torch.randn(4, 1, 8, 8))
        assert isinstance(folded.get_submodule("norm"), nn.BatchNorm2d)
