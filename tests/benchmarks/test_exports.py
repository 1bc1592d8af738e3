import pytest

from benchmarks import exports
from workers.distill.config import exports as choices


class TestExports:
    @pytest.mark.parametrize("row", exports.ROWS)
    def test_measure_every_form_that_a_network_may_have(self, row: str) -> None:
        """And none that the service refuses."""
        chosen = exports.ROWS[row]
        task = {"detector": "detection", "segmenter": "segmentation"}.get(row, "classification")
        assert set(exports.PRECISIONS) == set(choices.FORMATS)
        for form, precisions in exports.PRECISIONS.items():
            assert "float32" in precisions
            for precision in precisions:
                choice = choices.ExportChoice(format=form, precision=precision)
                assert not list(choices.faults(choice, network=chosen.network, task=task))
