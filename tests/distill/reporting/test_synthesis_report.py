from typing import Any

import torch

from workers.distill.reporting import synthesis_report
from workers.distill.synthesis import snapshots

HISTORY = [{"epoch": 1, "synthesis/total": 1.0, "synthesis/bn": 2.0, "buffer/images": 4.0}]


def a_snapshot(epoch: int = 1, **changes: Any) -> snapshots.Snapshot:
    """Return a snapshot of four images, of which two are shown."""
    facts: dict[str, Any] = {
        "epoch": epoch,
        "call": 2 * epoch,
        "images": torch.zeros(2, 1, 8, 8, dtype=torch.uint8),
        "classes": torch.tensor([0, 2]),
        "targets": torch.tensor([0, 1]),
        "class_counts": torch.tensor([3.0, 0.0, 1.0], dtype=torch.float64),
        "difficulty": torch.tensor([4] + [0] * (snapshots.BINS - 1)),
        "kl": torch.linspace(0, 2, snapshots.QUANTILES, dtype=torch.float64),
        "shares": torch.ones(snapshots.QUANTILES, dtype=torch.float64),
        "effective": 1.0,
    }
    return snapshots.Snapshot(**{**facts, **changes})


def some_evidence(
    *snapshots: snapshots.Snapshot, **changes: Any
) -> synthesis_report.SynthesisEvidence:
    facts: dict[str, Any] = {
        "method": "fast",
        "snapshots": list(snapshots),
        "synthesis_seconds": [3.0],
        "distillation_seconds": [1.0],
        "images": 8,
        "calls": 2,
        "training_images_read": 0,
    }
    return synthesis_report.SynthesisEvidence(**{**facts, **changes})


class TestNumbers:
    def test_hold_what_the_pictures_show(self) -> None:
        uneven = torch.linspace(0.5, 1.5, snapshots.QUANTILES, dtype=torch.float64)
        numbers = synthesis_report.numbers(
            some_evidence(a_snapshot(), a_snapshot(7, shares=uneven, effective=0.9)), list("abc")
        )
        assert (numbers["images_invented"], numbers["training_images_read"]) == (8, 0)
        assert len(numbers["difficulty_edges"]) == snapshots.BINS + 1
        first, last = numbers["snapshots"]
        assert (first["images"], first["class_counts"]) == (4, [3.0, 0.0, 1.0])
        assert first["sheet"] == {
            "stem": "sheet-epoch-0001",
            "taken_for": [0, 2],
            "meant_to_show": [0, 1],
        }
        assert (first["drawn_evenly"], last["drawn_evenly"]) == (True, False)
        assert (last["draws_against_even"][0], last["draws_against_even"][-1]) == (0.5, 1.5)
        assert last["kl"][-1] == 2.0
        assert last["effective_share"] == 0.9


class TestPictures:
    def test_are_one_sheet_for_each_snapshot_and_one_of_each_question(self) -> None:
        pictures = synthesis_report.pictures(
            some_evidence(a_snapshot(1), a_snapshot(20)), list("abc"), HISTORY
        )
        assert list(pictures) == [
            *("sheet-epoch-0001", "sheet-epoch-0020", "class-histogram", "difficulty"),
            *("priority", "synthesis-losses", "buffer", "time-split"),
        ]
        assert all(about.endswith(".") for _, about in pictures.values())

    def test_of_a_sheet_name_classes_and_their_images(self) -> None:
        pictures = synthesis_report.pictures(some_evidence(a_snapshot()), ["cat", "dog", "ape"], [])
        labels = pictures["sheet-epoch-0001"][0].axes[0].get_yticklabels()
        assert [label.get_text() for label in labels] == ["cat\n3 of 4", "ape\n1 of 4"]

    def test_compare_first_middle_and_last_snapshot(self) -> None:
        shots = [a_snapshot(epoch) for epoch in (1, 2, 4, 8, 16)]
        pictures = synthesis_report.pictures(some_evidence(*shots), list("abc"), [])
        titles = [axes.get_title(loc="left") for axes in pictures["difficulty"][0].axes]
        assert [title.splitlines()[0] for title in titles] == [
            f"after epoch {epoch}" for epoch in (1, 4, 16)
        ]

    def test_begin_with_the_total_of_the_losses(self) -> None:
        pictures = synthesis_report.pictures(some_evidence(), list("abc"), HISTORY)
        titles = [axes.get_title(loc="left") for axes in pictures["synthesis-losses"][0].axes]
        assert titles == ["total", "bn"]

    def test_say_how_the_time_was_split(self) -> None:
        (axes,) = synthesis_report.pictures(some_evidence(), [], [])["time-split"][0].axes
        assert axes.get_title(loc="left") == (
            "Where the time went: 75% synthesis, 25% distillation"
        )

    def test_leave_out_what_nobody_knows(self) -> None:
        unknown = some_evidence(synthesis_seconds=[], distillation_seconds=[])
        assert synthesis_report.pictures(unknown, [], [{"epoch": 1, "loss/total": 1.0}]) == {}
