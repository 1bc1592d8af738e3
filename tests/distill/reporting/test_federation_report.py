import json
from typing import Any

import pytest

from workers.distill.reporting import federation_figures, federation_report
from workers.distill.reporting.federation_report import FederationEvidence

HISTORY = [
    {
        "epoch": number,
        "validation/accuracy": 0.1 * number,
        "federation/client_accuracy_mean": 0.1,
        "federation/client_accuracy_min": 0.0,
        "federation/client_accuracy_max": 0.3,
        "federation/target_entropy": 0.2,
        "federation/mean_entropy": 0.5,
        "federation/bytes_up": 1000.0 * number,
        "federation/bytes_down": 3000.0 * number,
    }
    for number in (1, 2, 3)
]
CLASSES = ["zero", "one", "two"]


def evidence(**changes: Any) -> FederationEvidence:
    facts: dict[str, Any] = {
        "method": "dsfl",
        "label_counts": {"client-000": [3, 0, 1], "client-001": [0, 0, 5]},
        "scores": {"client-000": 0.25, "client-001": 0.75},
        "best_clients": {3: "client-001"},
        "traffic": {"client-000": (10, 20), "client-001": (30, 40)},
        **changes,
    }
    return FederationEvidence(**facts)


class TestNumbers:
    def test_are_json_and_name_every_client(self) -> None:
        found = json.loads(json.dumps(federation_report.numbers(evidence(), CLASSES)))
        assert found["images_by_client_and_class"]["client-000"] == [3, 0, 1]
        assert found["bytes_by_client"]["client-001"] == {"up": 30, "down": 40}
        assert found["best_client_by_round"] == {"3": "client-001"}


class TestPictures:
    def test_show_rounds_partition_entropy_and_clients(self) -> None:
        found = federation_report.pictures(evidence(), CLASSES, HISTORY)
        assert list(found) == ["rounds", "partition", "entropy", "clients"]

    def test_of_what_there_is_nothing_there_is_no_picture(self) -> None:
        bare = evidence(label_counts={}, scores={})
        assert federation_report.pictures(bare, CLASSES, [{"epoch": 1}]) == {}

    def test_accuracy_is_drawn_by_rounds_and_by_bytes(self) -> None:
        left, right = federation_figures.accuracy(HISTORY).axes
        (delivered, mean) = left.lines
        assert delivered.get_ydata().tolist() == pytest.approx([10, 20, 30])  # type: ignore[union-attr]  # an array
        assert mean.get_label() == "mean of the clients"
        # 4,000 bytes each round, in kB.
        assert right.lines[0].get_xdata().tolist() == pytest.approx([4, 8, 12])  # type: ignore[union-attr]  # an array
        assert right.get_xlabel() == "sent and received by all clients (kB)"

    def test_the_best_client_comes_first(self) -> None:
        scores = {f"client-{number:03}": number / 100 for number in range(70)}
        figure = federation_figures.clients(scores, {})
        names = [text.get_text() for text in figure.axes[0].get_yticklabels()]
        assert names[0] == "client-069"
        assert len(names) == federation_figures.MOST_CLIENTS
        assert "the best 60 of 70" in figure.get_suptitle()

    def test_of_many_clients_the_largest_are_shown(self) -> None:
        counts = {f"client-{number:03}": [number, 0, 0] for number in range(70)}
        axes = federation_figures.partition(counts, CLASSES).axes[0]
        assert axes.get_title(loc="left") or axes.get_title()
        assert axes.get_yticklabels()[0].get_text() == "client-010"
