"""Two ranks train as one process does with the same batch."""

import json
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

from tests import waiting
from tests.distill import folders
from tests.distill.training import rank_scenes
from workers.distill.config.devices import Share
from workers.distill.data.types import Batch, Mixed
from workers.distill.networks.interface import Features
from workers.distill.training.parallel import Parallel, SharedNorms

RAN = [(name, way) for name in rank_scenes.names() for way in rank_scenes.ways(name)]
LOSS_ROUNDING, ROUNDING = 1e-6, 1e-9


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Run every method on two ranks: one pair of processes for all of them."""
    folder = tmp_path_factory.mktemp("ranks")
    finished = subprocess.run(
        [sys.executable, "-m", "tests.distill.training.rank_scenes", folder],
        env=folders.ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=4 * waiting.PATIENCE_SECONDS,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    written: dict[str, Any] = json.loads((folder / rank_scenes.DIFFERENCES).read_text())
    return written


@pytest.mark.slow
class TestTwoRanks:
    @pytest.mark.parametrize(
        ("name", "way"), [one for one in RAN if one != (rank_scenes.COUNTEREXAMPLE, "slices")]
    )
    def test_end_where_one_process_ends(self, found: dict[str, Any], name: str, way: str) -> None:
        losses, parameters = (found[f"{name} {way}"][kind] for kind in ("losses", "parameters"))
        assert losses[0] < LOSS_ROUNDING, losses
        assert parameters[0] < ROUNDING, parameters

    def test_that_compare_within_slices_end_elsewhere(self, found: dict[str, Any]) -> None:
        sliced = found[f"{rank_scenes.COUNTEREXAMPLE} slices"]
        assert sliced["losses"][0] > 1000 * LOSS_ROUNDING
        assert sliced["parameters"][0] > 1000 * ROUNDING


class TestBatch:
    def test_a_part_has_the_same_rows_of_everything_and_knows_the_whole(self) -> None:
        rows = torch.arange(5)
        whole = Batch(
            images=torch.rand(5, 1, 2, 2),
            labels=rows,
            index=rows + 10,
            view=rows,
            mixed=Mixed(rows + 1, torch.rand(5)),
            strong=torch.zeros(5, 1, 2, 2, dtype=torch.uint8),
            weights=torch.rand(5),
        )
        part = whole.part(*Share(1, 2).bounds(0, 5))
        assert (len(part.labels), part.rows, whole.rows) == (3, 5, 5)
        assert part.index.tolist() == [12, 13, 14]
        assert part.mixed is not None
        assert part.mixed.labels.tolist() == [3, 4, 5]
        assert part.strong is not None
        assert part.weights is not None
        assert whole.weights is not None
        assert part.weights.tolist() == whole.weights[2:].tolist()


class TestParallel:
    def test_of_one_process_draws_what_it_always_drew(self) -> None:
        torch.manual_seed(1)
        with Parallel().own_draws(3, torch.device("cpu")):
            inside = torch.rand(2)
        torch.manual_seed(1)
        assert torch.equal(inside, torch.rand(2))

    def test_features_without_rows_stay_so(self) -> None:
        nothing = Features(torch.empty(0, 0), torch.empty(0, 0))
        assert Parallel().gather_features(nothing, 8) is nothing


class TestSharedNorms:
    def test_leave_a_network_of_one_process_alone(self) -> None:
        network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
        SharedNorms([network], Parallel().ranks, synchronise=True)
        assert "forward" not in vars(network[1])
