"""A client reads every field of a job's result, without a list of its own."""

import pydantic

from api.schemas.jobs import JobResult
from retort import types
from workers.distill.config.result import (
    BalanceSummary,
    KeptEpoch,
    LabelSummary,
    ParallelSummary,
    RunResult,
    RunWarning,
    SizeScores,
    TeacherResult,
)

ROLES = ("teacher", "student", "baseline")
WHOLE = RunResult(
    scores={"teacher": {"accuracy": 0.9}, "student": {"loss": "NaN"}, "baseline": None},
    parameters=dict.fromkeys(ROLES, 3),
    flops=dict.fromkeys(ROLES, 5),
    latency_ms=dict.fromkeys(ROLES, 0.5),
    latency={"student": {"one_thread": None, "all_threads": {"p50_ms": 0.5, "threads": 2}}},
    conclusion="The student matches the baseline.",
    images_per_second=812.0,
    floor_share=0.6,
    wall_seconds=12.0,
    report_seconds=3.5,
    epochs=2,
    steps=40,
    best_epoch=2,
    kept_epochs=[KeptEpoch(epoch=2, score=0.9), KeptEpoch(epoch=1, score=0.8, path="epochs/1")],
    device="cuda",
    device_name="a card",
    precision="float32",
    compile=False,
    versions={"torch": "2.0"},
    shared_with=2,
    warnings=[RunWarning(code="teacher_weak", message="it knows nothing")],
    training_images_read=0,
    evaluated_on="dataset",
    synthesis={"calls": 1, "buffer": {"images": 8, "classes": [3, 5]}},
    method={"densepcka": {"patches": [16, 16]}},
    balance=BalanceSummary(limit=1.0, ratio=20.0, factor=0.05, dominated_share=0.8),
    teachers=[TeacherResult(network="retort/onnx", kind="graph", scores={"accuracy": 0.9})],
    class_weights={"background": 1.4, "0": 9.0},
    labels=LabelSummary(labelled=9, unlabelled=32, scored_by={"test": "labels"}),
    parallel=ParallelSummary(devices=2, batch_size=64),
    decode_threads=8,
    scores_by_size=[SizeScores(height=224, width=224, scores={"accuracy": 0.91})],
    validation={"last": 0.8, "best": 0.9, "best_epoch": 1},
    federation={"clients": 2, "rounds": 3, "delivered": "server", "by_client": [{"name": "a"}]},
)


class TestJobResult:
    def test_has_every_field_that_the_engine_reports(self) -> None:
        assert WHOLE.model_fields_set == RunResult.model_fields.keys()
        told = WHOLE.model_dump(mode="json")
        sent = JobResult(student="digits-student@1", digest="sha256:aa", **told)
        body = sent.model_dump_json()
        read = types.JobResult.model_validate_json(body)
        for name, value in sent.model_dump(mode="json").items():
            assert getattr(read, name) == value, name
        # As `retort job --json` prints it.
        assert read.model_dump(mode="json") == sent.model_dump(mode="json")

    def test_declares_nothing_that_the_server_does_not_send(self) -> None:
        assert set(types.JobResult.model_fields) <= set(JobResult.model_fields)

    def test_of_an_older_server_has_none_where_the_command_line_looks(self) -> None:
        read = types.JobResult.model_validate({"student": "digits-student@1"})
        assert (read.wall_seconds, read.synthesis, read.scores) == (None, None, {})

    def test_of_a_newer_server_keeps_what_is_not_known(self) -> None:
        read: pydantic.BaseModel = types.JobResult.model_validate({"carbon_grams": 3})
        assert read.model_extra == {"carbon_grams": 3}
