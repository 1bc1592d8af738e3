"""The end of a job: score what was trained, once, and write the outputs."""

import dataclasses
import logging
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Int

from workers.distill.config import teachers
from workers.distill.config.result import (
    KeptEpoch,
    Latency,
    ParallelSummary,
    RunResult,
    SizeScores,
    TeacherResult,
)
from workers.distill.data import encoded_images
from workers.distill.data.lazy_images import resized
from workers.distill.evaluation import embedding, evaluate, examples, profiling
from workers.distill.export import outputs, preprocessing, standalone
from workers.distill.methods import catalog
from workers.distill.networks.ensemble import Ensemble
from workers.distill.networks.interface import Network
from workers.distill.networks.predictions import PredictionsNetwork
from workers.distill.run import build, conclusion, outcome
from workers.distill.run.context import JobContext
from workers.distill.training.state import TrainState

LOG = logging.getLogger(__name__)

ROLES = ("teacher", "student", "baseline")


@dataclass(frozen=True)
class Trained:
    """A phase that is over: the network to deliver, and how it got there."""

    network: Network
    state: TrainState
    floor_share: float | None
    """Which part of a step was arithmetic, where that could be measured while it was trained."""


def finish(
    context: JobContext, trained: dict[str, Trained], *, compiles: bool, began: float, last: bool
) -> None:
    """Score what was trained on the test split, once, and write the outputs.

    `last` says that no other member of the group has anything left to do.
    """
    context.reporter.phase("evaluate")
    student = trained["student"]
    balance, method = outcome.balance_summary(student.state), context.config.method
    test = evaluate_test(context, trained)
    for told in outcome.warnings(
        context.task.primary_metric,
        student=test.scores["student"],
        baseline=test.scores["baseline"] if context.trains_baseline else None,
        history=student.state.history,
        method={**catalog.find(method)[1].model_dump(), **method},
        balance=balance,
    ):
        context.reporter.warning(told.code, told.message)
    if "student" in test.evaluations:
        confusion = test.evaluations["student"].metrics.confusion()
        for told in outcome.one_class("student", context.task.unit, context.classes, confusion):
            context.reporter.warning(told.code, told.message)
    result = RunResult(
        scores=test.scores,
        training_images_read=images_read(context),
        evaluated_on=None if context.test is None else "dataset",
        **context.loop.result_fields(context, student.state),
        **measure(context, student),
        **method_facts(student),
        **teacher_results(context, test),
        **({} if balance is None else {"balance": balance}),
        **class_weights(context),
        **labels(context),
        **parallel(context, student.state),
        **decoding(context),
        **scores_by_size(context, student.network),
        **kept_epochs(student.state),
        wall_seconds=round(time.monotonic() - began, 3),
        epochs=context.config.training.epochs,
        steps=context.steps,
        best_epoch=student.state.best.epoch,
        device=context.device.type,
        device_name=describe(context.device),
        precision=context.precision.name,
        compile=compiles,
        versions=versions(),
    )
    sentence = conclusion.sentence(context.task.primary_metric, result)
    result = result.model_copy(update={"conclusion": sentence})
    facts = {
        # What was not set, such as the synthesis of a method that needs none, is left out.
        **result.model_dump(exclude_unset=True),
        "files": [{"path": name} for name in outputs.FILES],
    }
    context.reporter.phase("report")
    histories = {phase: done.state.history for phase, done in trained.items()}
    made = standalone_file(context, student.network)
    outputs.write(
        context.workdir,
        context.config,
        context.task.delivered_classes(context.classes),
        student.network,
        facts,
        histories,
        preprocessing=preprocessing.describe(
            context.config.task,
            context.config.student.input,
            evaluated_shape(context),
            context.config.training.crop_ratio,
        ),
        mirrored=mirrors(context),
        standalone=made,
    )
    facts["files"] += [{"path": path} for path in write_epochs(context, student.state)]
    if isinstance(made, standalone.Standalone):
        facts["files"].append({"path": standalone.FILE})
    facts["files"] += [{"path": path} for path in context.loop.write_files(context, student.state)]
    if context.config.report:
        write_report(context, trained, test, facts)
    if context.reporter.warnings:
        facts["warnings"] = context.reporter.warnings
    if last:
        context.stop.ignore()
    context.reporter.result(**facts)


def parallel(context: JobContext, state: TrainState) -> dict[str, Any]:
    """Return how several devices shared the work, or nothing where one did it all."""
    ranks, training = context.ranks, context.config.training
    if ranks.count == 1:
        return {}
    gathers = build.share_step(context, state.method).gathers
    return {
        "parallel": ParallelSummary(
            devices=ranks.count,
            batch_size=training.batch_size,
            loss="whole_batch" if gathers else "slices",
            batch_norm="synchronised" if training.sync_batch_norm else "per_device",
        )
    }


def decoding(context: JobContext) -> dict[str, Any]:
    """Return by how many threads pictures were decoded; nothing where they are stored decoded."""
    record = context.labelling.record
    if record is None or record.encoded is None:
        return {}
    return {"decode_threads": encoded_images.threads()}


def kept_epochs(state: TrainState) -> dict[str, Any]:
    """Return the epochs that are kept, the best first; nothing where only the student's is."""
    if state.training.keep_best_epochs == 1:
        return {}
    beside = [
        KeptEpoch(epoch=one.epoch, score=one.score, path=outputs.epoch_path(one.epoch))
        for one in state.next_best
    ]
    best = KeptEpoch(epoch=state.best.epoch, score=state.best.score, path=None)
    return {"kept_epochs": [best, *beside]}


def write_epochs(context: JobContext, state: TrainState) -> list[str]:
    """Write the students of the epochs that are kept beside the best; return their paths."""
    classes = context.task.delivered_classes(context.classes)
    for kept in state.next_best:
        network = state.load_kept(kept)
        outputs.write_epoch(context.workdir, context.config, classes, network, kept.epoch)
    if state.next_best:
        state.load_best()
    return [outputs.epoch_path(kept.epoch) for kept in state.next_best]


def standalone_file(context: JobContext, network: Network) -> standalone.Standalone | str:
    """Return the student's own source file, or why there is none."""
    reason = standalone.why_not(network.reference, network.arguments)
    if reason is not None:
        return reason
    try:
        return standalone.write(network)
    except Exception as error:  # reported as a warning; no file is worth losing the student
        LOG.exception("%s could not be written", standalone.FILE)
        told = f"{standalone.FILE} could not be written ({type(error).__name__}: {error})"
        context.reporter.warning("no_model_file", f"{told}: the student needs Retort to be loaded")
        return told


def evaluated_shape(context: JobContext) -> tuple[int, int, int]:
    """Return channels, height and width of the images that a student is evaluated on."""
    if context.test is not None:
        _, channels, height, width = context.test.images.shape
        return channels, height, width
    return context.size.channels, context.size.height, context.size.width


def mirrors(context: JobContext) -> bool:
    """Return whether the student's training images are mirrored at random."""
    asked = context.config.method.get("synthesis", {}).get("flip")
    flip = context.flip if asked is None else asked
    return bool(flip) and context.config.training.augmentation != "none"


@dataclass(frozen=True)
class TestScores:
    """What the test split says of each network; it is read once."""

    __test__: ClassVar[bool] = False  # no class of tests, whatever its name says to pytest

    scores: dict[str, Any]
    """By role; None for a network that was not evaluated."""
    evaluations: dict[str, evaluate.Evaluation]
    labels: Int[np.ndarray, " N"]
    """The class of each image; empty for tasks whose images have no single class."""
    mapped: Int[np.ndarray, " K"]
    """Images whose pooled features were kept."""


def images_read(context: JobContext) -> int:
    """Return how many images of a training split were read."""
    return 0 if context.train_data is None else context.train_data.count


def evaluate_test(context: JobContext, trained: dict[str, Trained]) -> TestScores:
    """Return the test scores of teacher, student and baseline; each is None without a test split.

    A baseline that is the method itself is not trained twice: it has the student's scores. In a
    task that learns no targets it is the student before training.
    """
    ordered = evaluated_networks(context, trained)
    labels = mapped = np.zeros(0, dtype=np.int64)
    feature_rows = None
    evaluations: dict[str, evaluate.Evaluation] = {}
    if context.test is not None:
        image_classes = context.task.image_classes(context.test.labels)
        if image_classes is not None:
            labels = image_classes.cpu().numpy()
            mapped = embedding.images_to_map(labels)
            feature_rows = torch.from_numpy(mapped) if context.config.report else None
        evaluations = evaluate.evaluate_split(
            context.task,
            ordered,
            context.test,
            classes=len(context.classes),
            feature_rows=feature_rows,
            on_batch=evaluation_progress(context),
        )
    scores = {
        role: evaluations[role].metrics.test_scores() if role in evaluations else None
        for role in ROLES
    }
    is_own_baseline = (
        context.task.learns_targets
        and context.labelling.has_training_labels
        and not context.trains_baseline
    )
    if context.config.baseline and is_own_baseline:
        scores["baseline"] = scores["student"]
    return TestScores(scores, evaluations, labels, mapped)


def scores_by_size(context: JobContext, network: Network) -> dict[str, Any]:
    """Return the student's test scores in each size that was asked for, or nothing without any."""
    sizes, test = context.config.training.evaluate_sizes, context.test
    if not sizes or test is None:
        return {}
    found = []
    for side in sizes:
        images = resized(test.images, side, side)
        preprocessor = context.student_preprocessor.at_size(side, side)
        scored = evaluate.evaluate_split(
            context.task,
            {"student": (network, preprocessor)},
            dataclasses.replace(test, images=images),
            classes=len(context.classes),
            on_batch=evaluation_progress(context),
        )
        scores = scored["student"].metrics.test_scores()
        found.append(SizeScores(height=side, width=side, scores=scores))
    return {"scores_by_size": found}


def teacher_results(context: JobContext, test: TestScores) -> dict[str, Any]:
    """Return what kind of teacher each was and what it scores alone; nothing without a teacher."""
    choices = context.config.all_teachers
    alone = [test.scores["teacher"]]
    if isinstance(context.teacher, Ensemble):
        alone = _scores_alone(context, context.teacher)
    if not choices:
        return {}
    return {
        "teachers": [
            TeacherResult(
                network=choice.network, kind=teachers.kind_of(choice.network), scores=scores
            )
            for choice, scores in zip(choices, alone, strict=True)
        ]
    }


def _scores_alone(context: JobContext, together: Ensemble) -> list[dict[str, Any] | None]:
    """Return what each of several teachers scores alone, in one pass over the test split."""
    each = {teachers.role_of(place, 2): one for place, one in enumerate(together.each())}
    if context.test is None:
        return [None] * len(each)
    found = evaluate.evaluate_split(
        context.task,
        each,
        context.test,
        classes=len(context.classes),
        on_batch=evaluation_progress(context),
    )
    return [found[role].metrics.test_scores() for role in each]


def evaluated_networks(context: JobContext, trained: dict[str, Trained]) -> evaluate.Networks:
    """Return teacher, student and baseline, those that there are, each with its preprocessor."""
    networks = {
        phase: (done.network, context.student_preprocessor) for phase, done in trained.items()
    }
    if context.config.baseline and not context.task.learns_targets:
        networks["baseline"] = (build.start_network(context), context.student_preprocessor)
    if context.teacher is not None and context.teacher_preprocessor is not None:
        is_table = isinstance(context.teacher, PredictionsNetwork)
        if not is_table or (context.test is not None and context.test.predicted is not None):
            networks["teacher"] = (context.teacher, context.teacher_preprocessor)
    return {name: networks[name] for name in ROLES if name in networks}


def chosen_examples(context: JobContext, trained: dict[str, Trained]) -> examples.Examples | None:
    """Return test images with the answers of teacher and student, if the task's report has any."""
    if context.test is None:
        return None
    networks = evaluated_networks(context, trained)
    shown = {
        role: networks[role]
        for role in ("teacher", "student")
        if role in networks and not isinstance(networks[role][0], PredictionsNetwork)
    }
    return examples.collect(context.task, shown, context.test, classes=len(context.classes))


def write_report(
    context: JobContext, trained: dict[str, Trained], test: TestScores, facts: dict[str, Any]
) -> None:
    """Write the report's folder, and add its files and its time to the facts.

    The student is on the disk by now, and no picture is worth losing it.
    """
    began = time.monotonic()
    # Imported here because drawing takes a second to load, which a start should not pay.
    from workers.distill.reporting import report_folder

    outputs, confusions, detections = {}, {}, {}
    for role, evaluation in test.evaluations.items():
        logits, confusion = evaluation.metrics.logits(), evaluation.metrics.confusion()
        detected = evaluation.metrics.detections()
        if detected is not None:
            detections[role] = detected
        pooled = evaluation.pooled.cpu().numpy()
        if logits is not None or pooled.size:
            rows = np.zeros((0, 0), np.float32) if logits is None else logits.cpu().numpy()
            outputs[role] = report_folder.Outputs(rows, pooled)
        if confusion is not None:
            confusions[role] = confusion.numpy()
    own = context.loop.evidence(context, trained["student"].state)
    evidence = report_folder.Evidence(
        topics=context.task.report_topics,
        unit=context.task.unit,
        primary_metric=context.task.primary_metric,
        classes=context.classes,
        networks=list(test.evaluations),
        test_images=0 if context.test is None else len(context.test.images),
        labels=test.labels,
        mapped=test.mapped,
        outputs=outputs,
        confusions=confusions,
        histories={phase: done.state.history for phase, done in trained.items()},
        best_epochs={phase: done.state.best.epoch for phase, done in trained.items()},
        teacher_score=None if context.teacher_scores is None else context.teacher_scores.primary,
        synthesis=own.synthesis,
        federation=own.federation,
        detections=detections,
    )
    try:
        shown = chosen_examples(context, trained)
        evidence = dataclasses.replace(evidence, examples=shown)
        written = report_folder.write(context.workdir, evidence)
    except Exception as error:  # reported as a warning; whatever a drawing library may raise
        LOG.exception("the report failed")
        context.reporter.warning(
            "report_failed", f"the report could not be written ({type(error).__name__}: {error})"
        )
        return
    facts["files"] += [{"path": path} for path in written]
    facts["report_seconds"] = round(time.monotonic() - began, 3)


def evaluation_progress(context: JobContext) -> Callable[[], None]:
    """Return a function that reports progress during the evaluation."""
    total = len(context.phases) * context.steps

    def report_progress() -> None:
        context.reporter.progress(
            phase="evaluation",
            step=context.steps,
            epoch=context.config.training.epochs,
            progress=round(total / (total + 1), 6),
            images_per_second=0.0,
            remaining_seconds=None,
        )

    return report_progress


def measure(context: JobContext, student: Trained) -> dict[str, Any]:
    """Return sizes and speeds of teacher and student."""
    state, network = student.state, student.network
    images = build.sample(context)
    inputs = context.student_preprocessor(images)
    latency = {"teacher": None, "student": profiling.latency(network, inputs)}
    sizes: dict[str, Any] = {
        "parameters": {"teacher": None, "student": count(network)},
        "flops": {"teacher": None, "student": profiling.flops(network, inputs)},
    }
    is_run = not isinstance(context.teacher, PredictionsNetwork)
    if is_run and context.teacher is not None and context.teacher_preprocessor is not None:
        teacher_inputs = context.teacher_preprocessor(images)
        sizes["parameters"]["teacher"] = count(context.teacher)
        sizes["flops"]["teacher"] = profiling.flops(context.teacher, teacher_inputs)
        latency["teacher"] = profiling.latency(context.teacher, teacher_inputs)
    source = state.source
    rate = state.step * source.rows_per_epoch / source.steps_per_epoch / state.seconds
    share = student.floor_share
    return {
        **sizes,
        "latency_ms": {role: _median(one) for role, one in latency.items()},
        "latency": latency,
        "images_per_second": round(rate, 2),
        "floor_share": None if share is None else round(share, 4),
    }


def _median(latency: Latency | None) -> float | None:
    return latency.all_threads.p50_ms if latency and latency.all_threads else None


def method_facts(student: Trained) -> dict[str, Any]:
    """Return what the method tells of itself, or nothing."""
    facts = student.state.method.facts()
    return {"method": facts} if facts else {}


def class_weights(context: JobContext) -> dict[str, Any]:
    """Return what the targets of each class counted, or nothing where all counted alike."""
    weights = None if context.train_data is None else context.train_data.class_weights
    if weights is None:
        return {}
    named = zip(context.classes, weights.tolist(), strict=True)
    return {"class_weights": {name: round(weight, 4) for name, weight in named}}


def labels(context: JobContext) -> dict[str, Any]:
    """Return which images had labels, or nothing where all had one."""
    summary = context.labelling.summary()
    return {} if summary is None else {"labels": summary}


def count(network: Network) -> int:
    """Return the number of parameters, of a graph those in its file."""
    if network.parameter_count is not None:
        return network.parameter_count
    return sum(parameter.numel() for parameter in network.parameters())


def describe(device: torch.device) -> str:
    """Return the device in words."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    return {"python": platform.python_version(), "torch": str(torch.__version__)}
