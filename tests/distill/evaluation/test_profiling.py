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


class TestLatency:
    def test_is_measured_with_one_thread_and_with_all(self) -> None:
        seen = []

        class Counting(Network):
            def forward(self, images: torch.Tensor) -> torch.Tensor:
                seen.append((torch.get_num_threads(), len(images)))
                return images

        threads = torch.get_num_threads()
        try:
            torch.set_num_threads(2)
            found = profiling.latency(Counting(), torch.zeros(3, 1, 8, 8))
            assert torch.get_num_threads() == 2
        finally:
            torch.set_num_threads(threads)
        assert found.one_thread is not None
        assert found.all_threads is not None
        for one in (found.one_thread, found.all_threads):
            assert seen.count((one.threads, 1)) == one.calls + 2, "two calls warm up"
            assert 0 < one.p50_ms <= one.p99_ms
        assert (found.one_thread.threads, found.all_threads.threads) == (1, 2)
