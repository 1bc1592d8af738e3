"""Jobs without data, over HTTP: a teacher in, a student and its images out."""

from pathlib import Path
from typing import Any

import pytest
import torch

from retort import errors, types
from retort.client import Client
from tests.journeys.stacks import ON_EMBEDDED, PATIENCE_SECONDS, Stack
from workers.distill.networks import weights

pytestmark = [pytest.mark.journey, pytest.mark.slow, pytest.mark.timeout(1800)]

TINY = {"network": "retort/convnet", "arguments": {"widths": [8, 16]}}
BUDGET: dict[str, Any] = {
    "steps": 3,
    "batch_size": 32,
    "warmup_calls": 1,
    "student_steps": 4,
    "data_scale": None,
    "width": 8,
    "latent_size": 16,
}
EPOCHS = 2


def without_data(teacher: str, **changes: Any) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "name": "dreamer",
        "teacher": teacher,
        "student": TINY,
        "method": {"name": "ssdkd", "synthesis": BUDGET},
        "training": {"epochs": EPOCHS, "batch_size": 32},
    }
    return {**spec, **changes}


@pytest.fixture(scope="session")
def dreamer(stack: Stack, teacher: str) -> types.Job:
    """A data-free job that has ended."""
    with stack.client() as retort:
        job = retort.jobs.submit(without_data(teacher))
        ended = retort.jobs.wait(job.id, timeout=PATIENCE_SECONDS)
    assert ended.state == "succeeded", ended
    return ended


@ON_EMBEDDED
class TestAJobWithoutData:
    def test_gives_a_student_that_loads_and_says_what_it_has_seen(
        self, retort: Client, dreamer: types.Job, tmp_path: Path
    ):
        result = dreamer.result
        assert result is not None
        assert result.training_images_read == 0
        assert result.evaluated_on is None
        assert not any(result.scores.values())
        assert result.synthesis is not None
        assert result.synthesis["images"] == (1 + EPOCHS) * BUDGET["batch_size"]
        series = {one.key: one.points for one in retort.jobs.metrics(dreamer.id)}
        expected = {"synthesis/total", "synthesis/bn", "seconds/synthesis", "seconds/distillation"}
        assert expected | {"loss/kd", "buffer/images"} <= series.keys()
        assert [point.epoch for point in series["seconds/synthesis"]] == [1, 2]
        assert not [key for key in series if "validation" in key]

        path = retort.jobs.download_student(dreamer.id, tmp_path / "student.safetensors")
        student, told = weights.rebuild(path)
        assert student.eval()(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
        assert told["method"]["name"] == "ssdkd"
        pictures = {file.path for file in retort.jobs.report(dreamer.id)}
        assert {"sheet-epoch-0002.png", "class-histogram.svg", "time-split.png"} <= pictures

    def test_leaves_images_that_another_job_learns_from(
        self, stack: Stack, retort: Client, dreamer: types.Job, teacher: str
    ):
        made = stack.run("dataset", "from-job", dreamer.id, "--name", "dreams")
        assert made.returncode == 0, made.stderr
        reference = made.stdout.strip()
        assert reference == "dreams@1"
        splits = retort.datasets.version("dreams", 1).splits
        assert sum(splits.values()) == (1 + EPOCHS) * BUDGET["batch_size"]
        job = retort.jobs.submit(
            {
                "name": "heir",
                "teacher": teacher,
                "student": TINY,
                "dataset": reference,
                "method": {"name": "kd"},
                "training": {"epochs": 2},
                "report": False,
            }
        )
        ended = retort.jobs.wait(job.id, timeout=PATIENCE_SECONDS)
        assert ended.state == "succeeded", ended
        assert ended.result is not None
        heir = retort.models.resolve(ended.result.student or "")
        backward = retort.models.lineage(heir.name, heir.version)["backward"]
        assert backward["dataset"] == reference
        assert backward["dataset_lineage"]["job"] == dreamer.id
        assert backward["dataset_lineage"]["teacher"] == teacher

    def test_is_refused_with_each_field_that_cannot_be_so(self, retort: Client, teacher: str):
        budget = {**BUDGET, "student_steps": None, "stepz": 3}
        wrong = without_data(teacher, method={"name": "ssdkd", "synthesis": budget})
        with pytest.raises(errors.ProblemError) as caught:
            retort.jobs.submit(wrong)
        assert caught.value.status == 422
        assert "did you mean 'steps'" in str(caught.value)
        training = {"epochs": 2, "patience_epochs": 1, "mixing": {"name": "mixup"}}
        with pytest.raises(errors.ProblemError) as caught:
            retort.jobs.submit(without_data(teacher, training=training))
        for field in ("/training/patience_epochs", "/training/mixing"):
            assert field in str(caught.value)
