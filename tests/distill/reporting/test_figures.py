import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import PIL.Image
import pytest
from matplotlib.figure import Figure

from workers.distill.functional import calibration, similarity
from workers.distill.reporting import figures

HISTORY = [
    {
        "epoch": epoch,
        "validation/accuracy": 1 - 1 / epoch,
        "validation/cka": 1 - 0.5 / epoch,
        "train/accuracy": 0.8 - 0.5 / epoch,
        "loss/total": 40.0 / epoch**3,
        "loss/task": 10.0 / epoch**3,
    }
    for epoch in range(1, 5)
]
HISTORIES = {"student": HISTORY, "baseline": HISTORY}
NAMES = ["plain", "_hidden", "costs $5 or $6", "very long name of a class\n", "漢字"]
RANDOM = np.random.default_rng(0)
LOGITS = RANDOM.normal(size=(40, 5)).astype(np.float32)
LABELS = np.arange(40) % 5


def an_embedding() -> Figure:
    names = dict.fromkeys(("teacher", "student"), ("first", "second"))
    planes = {name: RANDOM.normal(size=(40, 2)) for name in names}
    return figures.embedding(planes, LABELS, NAMES, title="Features", axis_names=names)


DRAWINGS: dict[str, Callable[[], Figure]] = {
    "losses": lambda: figures.losses(HISTORY, HISTORY),
    "accuracy": lambda: figures.metric_curve(
        HISTORIES, "accuracy", teacher=0.9, best_epochs={"student": 4, "baseline": 3}
    ),
    "likeness": lambda: figures.likeness(HISTORIES),
    "confusion": lambda: figures.confusion(
        np.eye(5, dtype=np.int64) * 8, NAMES, title="Answers", kept=range(5)
    ),
    "correlation": lambda: figures.correlation_difference(
        {"student": similarity.correlation(LOGITS) - 0.5}, NAMES
    ),
    "calibration": lambda: figures.calibration(
        {"student": calibration.reliability(LOGITS, LABELS)}
    ),
    "embedding": an_embedding,
    "overlap": lambda: figures.overlap({"student": np.array([0.5, 0.2, 0.9, 0.1, 0.3])}, NAMES),
}


class TestSave:
    @pytest.mark.parametrize("name", DRAWINGS)
    @pytest.mark.slow
    def test_writes_a_picture_twice(self, name: str, tmp_path: Path) -> None:
        picture, drawing = figures.save(DRAWINGS[name](), tmp_path, name)
        with PIL.Image.open(picture) as opened:
            assert min(opened.size) > 300
            shades = np.asarray(opened.convert("L"))
        assert shades.min() < 100 < 200 < shades.max()
        text = drawing.read_text()
        assert text.count("<text") > 5
        assert "<dc:date>" not in text

    @pytest.mark.slow
    def test_gives_the_same_bytes_for_the_same_numbers(self, tmp_path: Path) -> None:
        contents = []
        for place in ("one", "two"):
            (tmp_path / place).mkdir()
            files = figures.save(DRAWINGS["confusion"](), tmp_path / place, "picture")
            contents.append([path.read_bytes() for path in files])
        assert contents[0] == contents[1]


def words_of(figure: Figure) -> list[str]:
    """Return every text of a figure as it is drawn."""
    stream = io.StringIO()
    with mpl.rc_context(figures.STYLE):
        figure.savefig(stream, format="svg")
    words = re.findall(r"<text[^>]*>([^<]*)</text>", stream.getvalue())
    return [word.replace("&#8217;", "'") for word in words]


class TestWords:
    def test_name_axes_units_and_lines(self) -> None:
        words = words_of(DRAWINGS["accuracy"]())
        assert {"epoch", "accuracy (%)", "Accuracy while training"} <= set(words)
        assert "student, delivered (epoch 4)" in words
        assert "teacher, validation (90.0 %)" in words

    def test_of_classes_are_shown_as_they_are_but_short(self) -> None:
        words = words_of(
            figures.confusion(np.eye(4, dtype=np.int64), NAMES[:4], title="t", kept=range(4))
        )
        assert {"plain", "costs $5 or $6", "very long name …"} <= {word.strip() for word in words}

    def test_of_classes_that_overlap_best_come_first(self) -> None:
        shares = np.array([0.25, np.nan, 0.75])
        words = words_of(figures.overlap({"student": shares}, ["low", "nowhere", "high"]))
        classes = [word for word in words if word in ("low", "nowhere", "high")]
        assert classes == ["high", "low", "nowhere"]
        assert "student (mean 50.0 %)" in words

    def test_of_many_classes_that_overlap_are_the_worst(self) -> None:
        shares = np.linspace(0, 1, 50)
        words = words_of(figures.overlap({"student": shares}, [f"c{n}" for n in range(50)]))
        assert [word for word in words if word.startswith("c")] == [
            f"c{n}" for n in range(39, -1, -1)
        ]

    @pytest.mark.parametrize(("classes", "every"), [(26, "2nd"), (100, "4th"), (550, "22nd")])
    def test_of_many_classes_are_thinned_out(self, classes: int, every: str) -> None:
        counts = np.eye(classes, dtype=np.int64)
        names = [f"c{number}" for number in range(classes)]
        words = words_of(figures.confusion(counts, names, title="t", kept=range(classes)))
        named = [word for word in words if re.fullmatch(r"c\d+", word)]
        assert len(named) <= 2 * figures.MOST_LABELS
        assert f"predicted class (every {every} of {classes} is named)" in words


class TestExtremes:
    def test_a_network_may_never_have_been_validated(self) -> None:
        history = [{"epoch": 1, "train/accuracy": 0.5}]
        histories = {"student": HISTORY, "baseline": history}
        words = words_of(
            figures.metric_curve(
                histories, "accuracy", teacher=None, best_epochs={"student": 4, "baseline": 1}
            )
        )
        assert "baseline, train" in words
        assert not {"baseline, validation", "baseline, delivered (epoch 1)"} & set(words)

    @pytest.mark.parametrize(
        "value", [0.0, -1.0, float("nan"), float("inf")], ids=["zero", "below", "nan", "infinite"]
    )
    def test_a_loss_may_be_any_number(self, value: float) -> None:
        history: list[dict[str, Any]] = [{"epoch": 1, "loss/total": value, "loss/task": 1.0}]
        assert words_of(figures.losses(history, None))

    def test_logits_may_never_change(self) -> None:
        unknown = np.full((3, 3), np.nan)
        words = words_of(figures.correlation_difference({"student": unknown}, ["a", "b", "c"]))
        assert "student − teacher (mean size unknown)" in words
