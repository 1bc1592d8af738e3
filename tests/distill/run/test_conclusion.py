from typing import Any

import pytest

from workers.distill.config.result import RunResult
from workers.distill.run import conclusion


def score(accuracy: float, half: float = 0.02) -> dict[str, Any]:
    return {"accuracy": accuracy, "accuracy_interval": [accuracy - half, accuracy + half]}


def said(metric: str = "accuracy", **scores: Any) -> str:
    return conclusion.sentence(metric, RunResult(scores=scores))


class TestSentence:
    @pytest.mark.parametrize(
        ("baseline", "words"),
        [
            (0.85, "it beats the same student trained without a teacher by 5.0 points"),
            (0.95, "it misses the same student trained without a teacher by 5.0 points"),
            (0.88, "it matches the same student trained without a teacher: +2.0 points"),
        ],
    )
    def test_beats_or_misses_only_where_the_interval_leaves_out_0(
        self, baseline: float, words: str
    ) -> None:
        text = said(teacher=score(0.97), student=score(0.9), baseline=score(baseline))
        assert text.startswith("The student reaches 90.0% accuracy on the test split (its teacher")
        assert words in text

    def test_gives_the_interval_of_the_difference(self) -> None:
        text = said(student=score(0.9, 0.03), baseline=score(0.8, 0.04))
        assert "(95 % interval +5.0 to +15.0)" in text

    def test_decides_nothing_where_there_is_no_interval(self) -> None:
        text = said("miou", student={"miou": 0.5}, baseline={"miou": 0.4})
        assert "reaches 40.0%, and one run does not tell whether +10.0 points are chance" in text

    def test_says_what_was_not_measured(self) -> None:
        assert "what it would reach alone was not measured" in said(student=score(0.9))
        assert "there was no data set" in said(student=None)
        assert "nothing to measure the student's AP by" in said("ap", student={"ap": None})

    def test_names_what_the_baseline_is(self) -> None:
        scores = {"student": score(0.9), "baseline": score(0.9)}
        datafree = RunResult(scores=scores, synthesis={"calls": 1})
        assert "the same student trained on noise" in conclusion.sentence("accuracy", datafree)
        divided = RunResult(scores=scores, federation={"clients": 2})
        assert "the best of the clients" in conclusion.sentence("accuracy", divided)
