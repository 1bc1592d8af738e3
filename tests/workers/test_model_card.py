import re
from typing import Any, ClassVar, get_args

import pytest
import yaml

from models_registry.jobs.spec import JobSpec
from tests import factories
from tests.workers.scenes import DESCRIPTION, SCORE
from workers import model_card
from workers.distill.config.descriptions import PRIMARY_METRICS
from workers.distill.config.job import Input, Task
from workers.distill.config.result import RunResult
from workers.distill.export import preprocessing

RESULT: dict[str, Any] = {
    "scores": {"teacher": {**SCORE, "accuracy": 0.97}, "student": SCORE, "baseline": None},
    "parameters": {"teacher": 1_234_567, "student": 78_042},
    "flops": {"teacher": 10_000, "student": 5},
    "latency": {
        "teacher": {
            "one_thread": None,
            "all_threads": {"p50_ms": 2.0, "p99_ms": 9.0, "threads": 2},
        },
        "student": {
            "one_thread": {"p50_ms": 1.5, "p99_ms": 7.0, "threads": 1},
            "all_threads": {"p50_ms": 1.0, "p99_ms": 5.0, "threads": 2},
        },
    },
    "conclusion": "The student beats the same student trained without a teacher.",
    "epochs": 2,
    "steps": 40,
    "best_epoch": 1,
    "device": "cpu",
    "precision": "float32",
    "versions": {"torch": "2.0"},
}
DIGITS = model_card.DataFacts(
    "digits@1",
    "sha256:bb",
    "Handwritten digits",
    {"train": 1257, "validation": 180, "test": 360},
    notes=["the folder 'demo' was left out"],
)
TEACHER = model_card.TeacherFacts("digits-teacher@1", "sha256:aa", "retort/resnet20")


def origin(**changes: Any) -> model_card.JobFacts:
    spec = factories.spec(
        student={"network": "retort/resnet8", "register_as": "digits-student"},
        method={"name": "dkd", "alpha": 1.0, "beta": 8.0},
        training={"recipe": "small", "optimizer": {"name": "sgd", "learning_rate": 0.05}},
    )
    facts: dict[str, Any] = {
        "job_id": "job_1",
        "attempt": 2,
        "spec": JobSpec.model_validate(spec),
        "dataset": DIGITS,
        "teacher": TEACHER,
        **changes,
    }
    return model_card.JobFacts(**facts)


def card(
    *,
    description: dict[str, Any] = DESCRIPTION,
    result: dict[str, Any] = RESULT,
    pictures: tuple[str, ...] = (),
    **changes: Any,
) -> str:
    return model_card.write(
        origin(**changes),
        description=description,
        result=RunResult.model_validate(result),
        pictures=pictures,
    )


def test_has_words_for_every_task() -> None:
    assert set(model_card._TASKS) == set(get_args(Task))


@pytest.mark.parametrize(("task", "metric"), PRIMARY_METRICS.items())
def test_tells_model_hubs_the_metric_that_decides(task: str, metric: str) -> None:
    assert metric in model_card._TASKS[task].hub_metrics


class TestWrite:
    def test_begins_with_what_model_hubs_read(self) -> None:
        _, front, rest = card().split("---\n", 2)
        told = yaml.safe_load(front)
        assert told["license"] == "unknown"
        assert told["pipeline_tag"] == "image-classification"
        assert "dkd" in told["tags"]
        (measured,) = told["model-index"][0]["results"]
        assert measured["metrics"] == [{"type": "accuracy", "value": 0.9}]
        assert measured["dataset"] == {"name": "digits@1", "type": "digits", "split": "test"}
        assert rest.lstrip().startswith("# digits-student\n")

    def test_has_every_section_in_order(self) -> None:
        assert re.findall(r"^## (.*)$", card(pictures=("report/tsne.png",)), re.MULTILINE) == [
            "Scores",
            "Data",
            "Method and training",
            "Size and speed",
            "Limits",
            "How to use it",
            "Lineage",
            "Report",
        ]

    def test_scores_those_that_were_scored(self) -> None:
        text = card()
        assert "| teacher | 97.00% (86.00% to 93.00%) | 95.00% | 0.0321 | 0.4000 |" in text
        assert "| **student (this model)** | 90.00% (86.00% to 93.00%) | 95.00% " in text
        assert "| baseline" not in text
        assert "360 images of the test split" in text

    def test_scores_other_sizes_of_the_images(self) -> None:
        sizes = [
            {"height": side, "width": side, "scores": {"accuracy": score}}
            for side, score in ((160, 0.8), (224, 0.825))
        ]
        text = card(result={**RESULT, "scores_by_size": sizes})
        told = "its accuracy is: 160 x 160 pixels: 80.00%, 224 x 224 pixels: 82.50%."
        assert f"In other sizes of the images, {told}" in text

    def test_tells_of_data_teacher_and_method_with_their_sources(self) -> None:
        text = card()
        assert "- Data set: `digits@1`, `sha256:bb`" in text
        assert "- Images: 1,257 train, 180 validation, 360 test" in text
        assert "- Note: the folder 'demo' was left out" in text
        assert "- Classes: zero, one" in text
        assert "- Teacher: `digits-teacher@1`, `retort/resnet20`, `sha256:aa`" in text
        assert "Decoupled Knowledge Distillation, CVPR 2022, arXiv:2203.08679" in text
        assert "| method.beta | `8.0` |" in text
        assert "| training.optimizer.learning_rate | `0.05` |" in text

    def test_names_the_source_of_every_part_of_a_combination(self) -> None:
        parts = [{"name": "dkd", "weight": 1.0}, {"name": "kd", "weight": 0.5}]
        spec = factories.spec(
            student={"network": "retort/resnet8", "register_as": "digits-student"},
            method={"name": "combine", "methods": parts},
        )
        text = card(spec=JobSpec.model_validate(spec))
        assert "(`combine`)" in text
        assert "arXiv:2203.08679" in text
        assert "arXiv:1503.02531" in text

    def test_can_be_written_of_numbers_that_are_no_numbers(self) -> None:
        """In JSON the engine has to write NaN as a word."""
        scores = {**RESULT["scores"], "student": {**SCORE, "ece": "NaN"}}
        assert "| 95.00% | nan | 0.4000 |" in card(result={**RESULT, "scores": scores})

    def test_of_a_student_without_teacher_names_none(self) -> None:
        text = card(teacher=None)
        assert "trained alone" in text
        assert "- Teacher:" not in text

    def test_ends_the_scores_with_what_the_run_is_worth(self) -> None:
        scores = card().partition("## Scores")[2].partition("\n## ")[0]
        assert scores.rstrip().endswith(f"**In short:** {RESULT['conclusion']}")
        assert "In short" not in card(result={**RESULT, "conclusion": None})

    def test_says_how_fast_it_is_with_one_thread_and_with_all(self) -> None:
        text = card()
        assert "| one image, one thread: median (ms) | – | 1.50 |" in text
        assert "| one image, all threads (2): median (ms) | 2.00 | 1.00 |" in text
        assert "| one image, all threads (2): 99th percentile (ms) | 9.00 | 5.00 |" in text

    @pytest.mark.parametrize(("flip", "said"), [(True, "with"), (False, "without")])
    def test_says_whether_images_were_mirrored(self, flip: bool, said: str) -> None:
        text = card(description={**DESCRIPTION, "training": {"flip": flip}})
        assert f"- Trained {said} horizontal mirroring" in text

    def test_says_what_is_done_to_pictures(self) -> None:
        assert "8 x 8 (height x width): scaled until they cover it and cut at their" in card()
        expected = Input.model_validate({**factories.DIGITS_INPUT, "height": 32, "width": 16})
        given = preprocessing.describe("detection", expected, (1, 8, 8))
        text = card(description={**DESCRIPTION, "preprocessing": given})
        assert "scaled until they fit into it and padded with 114 (bilinear interpolation)" in text
        assert "- Then resized to 32 x 16 (bilinear interpolation)" in text

    def test_says_what_the_program_needs(self) -> None:
        text = card()
        assert "It needs no Retort." in text
        assert "`pip install torch safetensors pillow`" in text
        assert "`retort download job_1 --all`" in text

    def test_without_a_way_around_it_names_the_package_that_is_retort(self) -> None:
        text = card(
            description={**DESCRIPTION, "needs": None, "needs_retort": "its backbone is foreign"}
        )
        assert "It needs Retort itself: its backbone is foreign." in text
        assert "`pip install 'retort-distill[worker]'`" in text
        assert "`model.py`" not in text

    def test_shows_the_pictures_that_there_are(self) -> None:
        text = card(pictures=("report/accuracy.png", "report/accuracy.svg", "report/index.json"))
        assert "![Accuracy while training](report/accuracy.png)" in text
        assert text.count("![") == 1
        assert "## Report" not in card()

    def test_of_synthetic_images_shows_the_newest_sheet_first(self) -> None:
        names = ("sheet-epoch-9999.png", "sheet-epoch-10000.png", "time-split.png", "losses.png")
        text = card(pictures=tuple(f"report/{name}" for name in names))
        assert re.findall(r"!\[.*\]\(report/(.*)\)", text) == [names[1], names[3], names[2]]

    @pytest.mark.parametrize(
        "stem", ["agreement", "ap", "class-histogram", "difficulty", "miou", "overlap", "priority"]
    )
    def test_shows_what_the_report_of_a_data_free_or_dense_job_draws(self, stem: str) -> None:
        assert re.search(rf"!\[.+\]\(report/{stem}\.png\)", card(pictures=(f"report/{stem}.png",)))

    def test_lets_no_name_of_a_class_become_markdown(self) -> None:
        names = ["a|b", "<img src=x>", "[x](y)", "two\nlines"]
        text = card(description={**DESCRIPTION, "classes": names})
        assert r"- Classes: a\|b, \<img src=x\>, \[x\](y), two lines" in text

    def test_does_not_list_a_thousand_classes(self) -> None:
        names = [f"class {number}" for number in range(1000)]
        text = card(description={**DESCRIPTION, "classes": names})
        assert "class 19 and 980 more" in text
        assert "class 20," not in text


SYNTHESIS: dict[str, Any] = {
    "calls": 30,
    "steps": 300,
    "images": 7680,
    "synthesis_seconds": 12.34,
    "distillation_seconds": 60.0,
    "buffer": {"images": 1024, "classes": [1000, 24]},
}
DATA_FREE: dict[str, Any] = {
    **RESULT,
    "training_images_read": 0,
    "evaluated_on": "dataset",
    "synthesis": SYNTHESIS,
    "validation": {"last": 0.88, "best": 0.91, "best_epoch": 1},
}
UNMEASURED: dict[str, Any] = {
    **DATA_FREE,
    "scores": {"teacher": None, "student": None, "baseline": None},
    "evaluated_on": None,
    "validation": {},
}


class TestDataFree:
    def test_says_where_the_images_come_from(self) -> None:
        text = card(result=DATA_FREE)
        assert "on synthetic images, without a training image" in text
        assert "- Training images read: 0" in text
        assert "7,680 images in 30 calls of 300 optimizer steps altogether" in text
        assert "1,024 images, which the teacher assigns to 2 of 2 classes" in text
        assert "12.3 s of synthesis, 60.0 s of training on its images" in text
        assert "- For evaluation only: `digits@1`, `sha256:bb`" in text
        assert "1,257 train" not in text

    def test_says_that_no_epoch_was_chosen(self) -> None:
        text = card(result=DATA_FREE)
        assert "The student is that of the last epoch" in text
        assert "validation accuracy is 88.00%, the best was 91.00% after epoch 1" in text
        assert "The epoch was chosen" not in text
        scores = {**RESULT["scores"], "baseline": SCORE}
        assert "| baseline (same student, on noise) |" in card(
            result={**DATA_FREE, "scores": scores}
        )

    def test_of_an_unmeasured_student_claims_nothing(self) -> None:
        spec = JobSpec.model_validate(
            factories.data_free_spec(
                student={"network": "retort/resnet8", "register_as": "digits-student"}
            )
        )
        text = card(result=UNMEASURED, dataset=None, spec=spec)
        _, front, _ = text.split("---\n", 2)
        assert "model-index" not in yaml.safe_load(front)
        assert "Not measured: the job had no data set to evaluate on." in text
        assert "Never measured on a real image" in text
        assert "None" not in text.replace("`null`", "")
        assert "- Classes: zero, one" in text


class TestSegmentation:
    def test_tells_of_pixels(self) -> None:
        score = {
            "accuracy": 0.9,
            "miou": 0.75,
            "miou_interval": [0.7, 0.79],
            "iou": [0.7, 0.8],
            "samples": 12,
            "pixels": 768,
        }
        # As versions without intervals of segmenters stored it.
        former = {name: value for name, value in score.items() if name != "miou_interval"}
        result = {
            **RESULT,
            "scores": {"teacher": former, "student": {**score, "agreement": 0.8}, "baseline": None},
            "class_weights": {"ground": 1.43, "cat_": 9.2, "dog": 5.0},
        }
        text = card(result=result, description={**DESCRIPTION, "task": "segmentation"})
        assert "| **student (this model)** | 90.00% | 75.00% (70.00% to 79.00%) | 80.00% |" in text
        assert "| teacher | 90.00% | 75.00% | – |" in text
        assert "A segmentation network" in text
        assert "- Pixels counted by their class: from 1.43 (ground) to 9.2 (cat\\_)" in text
        assert "chosen by validation mean IoU: 1 of 2." in text
        assert "pixels of no class are still given one" in text
        _, front, _ = text.split("---\n", 2)
        told = yaml.safe_load(front)
        assert told["pipeline_tag"] == "image-segmentation"
        (measured,) = told["model-index"][0]["results"]
        assert [metric["type"] for metric in measured["metrics"]] == ["accuracy", "mean_iou"]
        assert "the class of each pixel" in text


class TestDetection:
    SCORES: ClassVar[dict[str, Any]] = {
        "ap": 0.3712,
        "ap50": 0.6,
        "ap75": 0.4,
        "ap_interval": [0.35, 0.39],
        "voc_ap50": 0.61,
        "boxes": 30,
        "samples": 12,
    }
    DESCRIPTION: ClassVar[dict[str, Any]] = {**DESCRIPTION, "task": "detection"}

    def card(self, **student: Any) -> str:
        scores = {"teacher": self.SCORES, "student": {**self.SCORES, **student}, "baseline": None}
        return card(result={**RESULT, "scores": scores}, description=self.DESCRIPTION)

    def test_tells_of_boxes(self) -> None:
        text = self.card(agreement=0.8)
        assert "A detector" in text
        assert "finds objects of 2 classes" in text
        assert "chosen by validation AP: 1 of 2." in text
        row = "| **student (this model)** | 37.12% (35.00% to 39.00%) | 60.00% | 40.00% | 80.00% |"
        assert row in text
        _, front, _ = text.split("---\n", 2)
        told = yaml.safe_load(front)
        assert told["pipeline_tag"] == "object-detection"
        (measured,) = told["model-index"][0]["results"]
        assert measured["metrics"] == [
            {"type": "map", "value": 0.3712},
            {"type": "map_50", "value": 0.6},
            {"type": "map_75", "value": 0.4},
        ]

    def test_of_a_split_without_boxes_claims_nothing(self) -> None:
        text = self.card(ap=None, ap50=None, ap75=None, ap_interval=None)
        assert "| **student (this model)** | – | – | – | – |" in text
        _, front, _ = text.split("---\n", 2)
        (measured,) = yaml.safe_load(front)["model-index"][0]["results"]
        assert measured["metrics"] == []


FEDERATION: dict[str, Any] = {
    "clients": 10,
    "rounds": 30,
    "skipped_rounds": 1,
    "delivered": "client-003",
    "engines": {"loop": 10},
    "not_vectorised": ["retort/resnet8 has batch norms (bn1)"],
    "partition_sha256": "ab12",
    "open_images": 300,
    "labels_without_holder": ["one"],
    "client_accuracy": {"mean": 0.5, "min": 0.25, "max": 0.75},
    "ensemble_accuracy": 0.8,
    "bytes_up": 12_000,
    "bytes_down": 34_000,
    "epsilon": 3.14159,
}


class TestFederated:
    def test_says_who_held_the_images_and_whose_model_this_is(self) -> None:
        text = card(result={**RESULT, "federation": FEDERATION}, teacher=None)
        assert "in a federation of 10 clients" in text
        assert "The round was chosen by validation accuracy: 1 of 2." in text
        for line in (
            "- Federation: 10 clients, trained by 10 (loop), `sha256:ab12`",
            "- Open images, without labels, that no client trained on: 300",
            "- This model is that of `client-003`, after up to 30 rounds, 1 of them without effect",
            "- The clients' own models on the test split: 50.00% on average (25.00% to 75.00%)",
            "- All clients together: 80.00%",
            "- Sent by all clients: 12,000 bytes; received: 34,000",
            "- No client had images of one: this model could not learn them",
            "epsilon 3.14 at the delta of the settings; label counts were sent as they are",
            "- Clients were trained one after the other: retort/resnet8 has batch norms (bn1)",
        ):
            assert line in text.replace("\\_", "_"), line

    def test_a_servers_model_is_called_so(self) -> None:
        result = {**RESULT, "federation": {**FEDERATION, "delivered": "server"}}
        assert "- This model is the server's, after up to 30 rounds" in card(result=result)
