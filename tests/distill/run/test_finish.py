"""What the end of a run leaves where something about it goes wrong."""

import dataclasses
import json
from pathlib import Path

import pytest

from tests.distill import folders
from workers.distill.networks import catalog
from workers.distill.networks.zoo import convnet


class TestStandaloneFile:
    def test_that_cannot_be_written_costs_no_student(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The code of a network that is defined here is none of the engine's, and not copied."""
        entry = catalog.NETWORKS["retort/convnet"]
        foreign = dataclasses.replace(entry, make=lambda *given: convnet.build(*given))
        monkeypatch.setitem(catalog.NETWORKS, "retort/convnet", foreign)
        student = folders.network(network="retort/convnet", arguments={"widths": [4, 8]})
        recipe = folders.prepare(
            tmp_path, teacher=None, student=student, method={"name": "ce"}, training={"epochs": 1}
        )
        code, lines = folders.run_here(recipe)
        assert code == 0
        warned = {line["code"]: line["message"] for line in folders.of_type(lines, "warning")}
        assert "model.py could not be written" in warned["no_model_file"]
        assert (tmp_path / "student.safetensors").is_file()
        assert not (tmp_path / "model.py").exists()
        described = json.loads((tmp_path / "model.json").read_text())
        assert described["needs"] is None
        assert described["needs_retort"].startswith("model.py could not be written")
