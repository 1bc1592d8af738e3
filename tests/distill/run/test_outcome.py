"""What a run warns of once its scores are known."""

from typing import Any, ClassVar

import pytest
import torch

from workers.distill.config.result import BalanceSummary, RunWarning
from workers.distill.run import outcome

AT: dict[str, Any] = {"name": "at", "task_weight": 1.0, "balance": "published"}


def codes(**changes: Any) -> list[str]:
    return [told.code for told in told_of(**changes)]


def told_of(**changes: Any) -> list[RunWarning]:
    nothing: dict[str, Any] = {"student": None, "baseline": None, "history": [], "method": AT}
    return list(outcome.warnings("accuracy", **{**nothing, **changes}))


def history(*scores: float) -> list[dict[str, float]]:
    return [{"epoch": n, "validation/accuracy": score} for n, score in enumerate(scores, start=1)]


class TestBelowBaseline:
    STUDENT: ClassVar = {"accuracy": 0.90, "accuracy_interval": [0.87, 0.92]}

    @pytest.mark.parametrize(("baseline", "warned"), [(0.93, True), (0.92, False), (0.5, False)])
    def test_is_told_beyond_the_students_interval(self, baseline: float, warned: bool) -> None:
        assert codes(student=self.STUDENT, baseline={"accuracy": baseline}) == (
            ["below_baseline"] * warned
        )

    def test_names_both_scores_and_what_to_try(self) -> None:
        message = told_of(student=self.STUDENT, baseline={"accuracy": 0.95})[0].message
        assert "90.0%" in message
        assert "95.0%" in message
        assert "first try method.balance: 1 (now published)" in message

    @pytest.mark.parametrize(
        ("method", "balance", "advice"),
        [
            (AT, BalanceSummary(), "method.balance: auto (now published)"),
            (
                {**AT, "balance": "auto"},
                BalanceSummary(limit=1.0),
                "method.balance: 0.33 (now auto",
            ),
            (
                {**AT, "task_weight": 0.1, "balance": "auto"},
                BalanceSummary(limit=1.0),
                "method.task_weight: 1 (now 0.1)",
            ),
            ({"name": "kd", "balance": "auto"}, None, "method.balance: 1 (now auto)"),
            ({"name": "simkd"}, None, "method kd"),
            ({"name": "ssdkd", "synthesis": {}}, None, "method.synthesis.steps"),
            ({"name": "fd", "federation": {}}, None, "training.epochs"),
        ],
    )
    def test_names_what_to_try_first_with_its_present_value(
        self, method: dict[str, Any], balance: BalanceSummary | None, advice: str
    ) -> None:
        assert advice in outcome.first_to_try(method, balance)

    def test_takes_a_point_for_noise_where_there_is_no_interval(self) -> None:
        assert codes(student={"accuracy": 0.5}, baseline={"accuracy": 0.505}) == []
        assert codes(student={"accuracy": 0.5}, baseline={"accuracy": 0.52}) == ["below_baseline"]

    def test_needs_a_baseline(self) -> None:
        assert codes(student=self.STUDENT) == []


class TestTermDominates:
    @pytest.mark.parametrize(
        ("limit", "share", "warned"), [(None, 0.9, True), (None, 0.5, False), (1.0, 0.9, False)]
    )
    def test_is_told_of_published_weights_that_did_so_for_most_of_the_run(
        self, limit: float | None, share: float, warned: bool
    ) -> None:
        balance = BalanceSummary(limit=limit, ratio=40.0, dominated_share=share)
        assert codes(balance=balance) == ["term_dominates"] * warned

    def test_names_how_many_times_and_what_to_set(self) -> None:
        balance = BalanceSummary(ratio=40.0, dominated_share=0.9)
        message = told_of(balance=balance)[0].message
        assert "in 90% of the measurements, 40 times it" in message
        assert "set method.balance: auto (now published)" in message


class TestStillImproving:
    @pytest.mark.parametrize(
        ("scores", "warned"),
        [
            ((0.5, 0.6, 0.7, 0.8, 0.85), True),
            ((0.5, 0.6, 0.7, 0.8, 0.805), False),  # less than a point
            ((0.5, 0.6, 0.9, 0.8, 0.85), False),  # the best is not the last
            ((0.5, 0.6, 0.7, 0.8), False),  # too few to show a trend
        ],
    )
    def test_is_told_when_the_last_fifth_gained_a_point(
        self, scores: tuple[float, ...], warned: bool
    ) -> None:
        assert codes(history=history(*scores)) == ["still_improving"] * warned

    def test_counts_only_epochs_that_were_evaluated(self) -> None:
        course = [*history(0.5, 0.6, 0.7, 0.8, 0.85), {"epoch": 6}]
        assert codes(history=course) == ["still_improving"]


class TestOneClass:
    @pytest.mark.parametrize(
        ("confusion", "warned"),
        [
            ([[900, 0], [100, 0]], True),
            ([[900, 0], [90, 10]], True),  # 1 % of the answers, and a tenth of the truth
            ([[900, 0], [89, 11]], False),
            ([[995, 0], [0, 5]], False),  # nearly all pixels are truly of one class
            ([[995, 0], [4, 1]], True),
            ([[900, 100], [0, 0]], False),
            ([[0, 0], [0, 0]], False),
        ],
    )
    def test_is_told_of_answers_that_are_nearly_always_the_same(
        self, confusion: list[list[int]], warned: bool
    ) -> None:
        told = outcome.one_class("student", "pixels", ["ground", "cat"], torch.tensor(confusion))
        assert [one.code for one in told] == ["one_class_predicted"] * warned

    def test_names_the_class_both_shares_and_a_way_out(self) -> None:
        confusion = torch.tensor([[900, 0], [100, 0]])
        (told,) = outcome.one_class("teacher", "pixels", ["ground", "cat"], confusion)
        assert told.message.startswith(
            "the teacher takes 100.0% of the pixels for 'ground', which is the class of 90.0%"
        )
        assert "training.class_weights auto" in told.message

    def test_of_a_task_without_pixels_or_a_confusion_is_nothing(self) -> None:
        confusion = torch.tensor([[900, 0], [100, 0]])
        assert not list(outcome.one_class("student", "images", ["ground", "cat"], confusion))
        assert not list(outcome.one_class("student", "boxes", ["cat"], None))
