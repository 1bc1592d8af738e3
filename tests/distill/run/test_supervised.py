"""What methods read before the first step of a supervised training."""

from pathlib import Path
from typing import Any

import pytest

from tests.distill import folders
from workers.distill.methods.logit import dkd
from workers.distill.run import supervised


class TestReadingTheTeacherFirst:
    def test_gives_dkd_the_unaugmented_training_split_in_order(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[tuple[list[int], tuple[int, ...]]] = []
        read = dkd.DKD.read_teacher

        def watched(method: dkd.DKD, outputs: Any) -> None:
            kept = list(outputs)
            seen.extend((labels.tolist(), tuple(logits.shape)) for labels, logits in kept)
            read(method, kept)

        monkeypatch.setattr(supervised, "CACHE_BATCH", 30)
        monkeypatch.setattr(dkd.DKD, "read_teacher", watched)
        parts = [
            {"name": "dkd", "beta": "auto", "samples": "least_confident", "share": 0.25},
            {"name": "kd"},
        ]
        recipe = folders.prepare(
            tmp_path, method={"name": "combine", "methods": parts}, training={"epochs": 1}
        )
        code, lines = folders.run_here(recipe)
        assert code == 0, lines[-1]
        labels = folders.images(41, 3, 0)[1].tolist()
        assert seen == [(labels[:30], (30, 3)), (labels[30:], (11, 3))]
        (result,) = folders.of_type(lines, "result")
        # An untrained teacher is sure of nothing.
        assert result["method"] == {"dkd": {"beta": 1.0, "least_confident": 10}}
