"""The fields of a result are declared once: described, and free of any library."""

import math

from workers.distill.config.result import RunResult


class TestRunResult:
    def test_describes_every_field(self) -> None:
        for name, field in RunResult.model_fields.items():
            assert field.description, name
            assert field.description.endswith("."), name

    def test_leaves_out_what_is_not_declared(self) -> None:
        report = {"type": "result", "files": [{"path": "student.safetensors"}], "epochs": 2}
        result = RunResult.model_validate(report)
        assert result.model_dump(mode="json", exclude_unset=True) == {"epochs": 2}

    def test_keeps_what_was_null_apart_from_what_was_not_said(self) -> None:
        report = {
            "evaluated_on": None,
            "scores": {"teacher": None, "student": {"iou": [None, 1.0]}},
        }
        assert RunResult.model_validate(report).model_dump(exclude_unset=True) == report

    def test_keeps_scores_that_are_not_finite(self) -> None:
        within = RunResult(scores={"student": {"loss": math.inf}}).model_dump()
        assert within["scores"]["student"]["loss"] == math.inf
        portable = RunResult(scores={"student": {"loss": "NaN"}}).model_dump(mode="json")
        assert portable["scores"]["student"]["loss"] == "NaN"

    def test_reads_results_of_earlier_versions(self) -> None:
        result = RunResult.model_validate(
            {"synthesis": {"images": 8, "hours": 2}, "validation": {}}
        )
        assert result.synthesis is not None
        assert result.synthesis.buffer is None
        assert result.model_dump(exclude_unset=True)["synthesis"] == {"images": 8, "hours": 2}
