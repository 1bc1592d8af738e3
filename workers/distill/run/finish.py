"""The end of a recipe: score what was trained, once, and write the outputs."""

import logging
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from jaxtyping import Int

from workers.distill.evaluation import embedding, evaluate, profiling
from workers.distill.export import outputs
from workers.distill.networks.interface import Network
from workers.distill.run import build
from workers.distill.run.prepare import JobContext
from workers.distill.synthesis import export
from workers.distill.training.state import TrainState

if TYPE_CHECKING:
    from workers.distill.reporting import synthesis_report

LOG = logging.getLogger(__name__)

ROLES = ("teacher", "student", "baseline")


@dataclass(frozen=True)
class Trained:
    """A phase that is over: the network to deliver, and how it got there."""

    network: Network
    course: TrainState
    floor_share: float | None
    """Which part of a step was arithmetic, where that could be measured while it was trained."""


def conclude(
    setting: JobContext, trained: dict[str, Trained], *, compiles: bool, began: float, last: bool
) -> None:
    """Score what was trained on the test split, once, and write the outputs.

    `last` says that no other member of the group has anything left to do.
    """
    student = trained["student"]
    test = evaluate_test(setting, trained)
    facts = {
        "scores": test.scores,
        "training_images_read": images_read(setting),
        "evaluated_on": None if setting.test is None else "dataset",
        **synthesis_facts(student.course, setting.task.primary_metric),
        **measure(setting, student),
        "wall_seconds": round(time.monotonic() - began, 3),
        "epochs": setting.recipe.training.epochs,
        "steps": setting.steps,
        "best_epoch": student.course.best.epoch,
        "device": setting.device.type,
        "device_name": describe(setting.device),
        "precision": setting.precision.name,
        "compile": compiles,
        "versions": versions(),
        "files": [{"path": name} for name in outputs.FILES],
    }
    histories = {phase: done.course.history for phase, done in trained.items()}
    outputs.write(
        setting.workdir, setting.recipe, setting.classes, student.network, facts, histories
    )
    export_images(setting, student.course, facts)
    if setting.recipe.report:
        write_report(setting, trained, test, facts)
    if last:
        setting.stop.ignore()
    setting.reporter.result(**facts)


def synthesis_facts(state: TrainState, primary_metric: str) -> dict[str, Any]:
    """Return what the result says of synthetic images, and of the student's way with them."""
    if state.studio is None:
        return {}
    key = f"validation/{primary_metric}"
    values = {int(entry["epoch"]): float(entry[key]) for entry in state.history if key in entry}
    facts: dict[str, Any] = {"synthesis": state.studio.facts()}
    if values:
        best = max(values, key=values.__getitem__)
        facts["validation"] = {
            "last": values[max(values)],
            "best": values[best],
            "best_epoch": best,
        }
    return facts


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


def images_read(setting: JobContext) -> int:
    """Return how many images of a training split were read."""
    return 0 if setting.source is None else setting.source.count


def evaluate_test(setting: JobContext, trained: dict[str, Trained]) -> TestScores:
    """Return the test scores of teacher, student and baseline; each is None without a test split.

    A baseline that is the method itself is not trained twice: it has the student's scores.
    """
    networks = {phase: (done.network, setting.student_view) for phase, done in trained.items()}
    if setting.teacher is not None and setting.teacher_view is not None:
        networks["teacher"] = (setting.teacher, setting.teacher_view)
    ordered = {name: networks[name] for name in ROLES if name in networks}
    labels = mapped = np.zeros(0, dtype=np.int64)
    feature_rows = None
    evaluations: dict[str, evaluate.Evaluation] = {}
    if setting.test is not None:
        image_classes = setting.task.image_classes(setting.test.labels)
        if image_classes is not None:
            labels = image_classes.cpu().numpy()
            mapped = embedding.images_to_map(labels)
            feature_rows = torch.from_numpy(mapped) if setting.recipe.report else None
        evaluations = evaluate.evaluate_split(
            setting.task,
            ordered,
            setting.test,
            classes=len(setting.classes),
            feature_rows=feature_rows,
            on_batch=evaluation_progress(setting),
        )
    scores = {
        role: evaluations[role].metrics.test_scores() if role in evaluations else None
        for role in ROLES
    }
    if setting.recipe.baseline and not setting.trains_baseline:
        scores["baseline"] = scores["student"]
    return TestScores(scores, evaluations, labels, mapped)


def export_images(setting: JobContext, state: TrainState, facts: dict[str, Any]) -> None:
    """Write synthetic images as a data set where that is wanted, and add its files to the facts."""
    budget, source = setting.budget, state.studio
    if budget is None or source is None or not budget.keep_images:
        return
    if setting.teacher is None or setting.teacher_view is None:
        raise ValueError("synthetic images have a teacher")
    context = export.ExportContext(
        workdir=setting.workdir,
        task=setting.task,
        classes=setting.classes,
        size=setting.size,
        flip=setting.mirrors(budget),
        teacher=setting.teacher,
        teacher_view=setting.teacher_view,
    )
    refusal = export.refusal(context, source.replay)
    if refusal is not None:
        setting.reporter.warning("images_not_kept", refusal)
        return
    facts["files"] += [{"path": path} for path in export.write(context, source.replay)]


def write_report(
    setting: JobContext, trained: dict[str, Trained], test: TestScores, facts: dict[str, Any]
) -> None:
    """Write the report's folder, and add its files and its time to the facts.

    The student is on the disk by now, and no picture is worth losing it.
    """
    began = time.monotonic()
    # Imported here because drawing takes a second to load, which a start should not pay.
    from workers.distill.reporting import report_folder

    outputs, confusions = {}, {}
    for role, evaluation in test.evaluations.items():
        logits, confusion = evaluation.metrics.logits(), evaluation.metrics.confusion()
        if logits is not None:
            outputs[role] = report_folder.Outputs(
                logits.cpu().numpy(), evaluation.pooled.cpu().numpy()
            )
        if confusion is not None:
            confusions[role] = confusion.numpy()
    evidence = report_folder.Evidence(
        topics=setting.task.report_topics,
        unit=setting.task.unit,
        primary_metric=setting.task.primary_metric,
        classes=setting.classes,
        networks=list(test.evaluations),
        test_images=0 if setting.test is None else len(setting.test.images),
        labels=test.labels,
        mapped=test.mapped,
        outputs=outputs,
        confusions=confusions,
        histories={phase: done.course.history for phase, done in trained.items()},
        best_epochs={phase: done.course.best.epoch for phase, done in trained.items()},
        teacher_score=None if setting.example is None else setting.example.primary,
        synthesis=synthesis_evidence(setting, trained["student"].course),
    )
    try:
        written = report_folder.write(setting.workdir, evidence)
    except Exception as error:  # reported as a warning; whatever a drawing library may raise
        LOG.exception("the report failed")
        setting.reporter.warning(
            "report_failed", f"the report could not be written ({type(error).__name__}: {error})"
        )
        return
    facts["files"] += [{"path": path} for path in written]
    facts["report_seconds"] = round(time.monotonic() - began, 3)


def synthesis_evidence(
    setting: JobContext, state: TrainState
) -> "synthesis_report.SynthesisEvidence | None":
    """Return what the report shows of synthetic images, or None where there are none."""
    # Imported here as above.
    from workers.distill.reporting import synthesis_report

    source = state.studio
    if source is None:
        return None
    return synthesis_report.SynthesisEvidence(
        method=str(setting.recipe.method["name"]),
        snapshots=source.gallery.snapshots,
        synthesis_seconds=[float(entry["seconds/synthesis"]) for entry in state.history],
        distillation_seconds=[float(entry["seconds/distillation"]) for entry in state.history],
        images=source.images,
        calls=source.calls,
        training_images_read=images_read(setting),
    )


def evaluation_progress(setting: JobContext) -> Callable[[], None]:
    """Return a function that reports progress during the evaluation."""
    total = len(setting.phases) * setting.steps

    def report_progress() -> None:
        setting.reporter.progress(
            phase="evaluation",
            step=setting.steps,
            epoch=setting.recipe.training.epochs,
            progress=round(total / (total + 1), 6),
            images_per_second=0.0,
            remaining_seconds=None,
        )

    return report_progress


def measure(setting: JobContext, student: Trained) -> dict[str, Any]:
    """Return sizes and speeds of teacher and student."""
    state, network = student.course, student.network
    images = build.sample(setting)
    inputs = setting.student_view(images)
    sizes: dict[str, Any] = {
        "parameters": {"teacher": None, "student": count(network)},
        "flops": {"teacher": None, "student": profiling.flops(network, inputs)},
        "latency_ms": {"teacher": None, "student": round(profiling.latency_ms(network, inputs), 4)},
    }
    if setting.teacher is not None and setting.teacher_view is not None:
        teacher_inputs = setting.teacher_view(images)
        sizes["parameters"]["teacher"] = count(setting.teacher)
        sizes["flops"]["teacher"] = profiling.flops(setting.teacher, teacher_inputs)
        latency = profiling.latency_ms(setting.teacher, teacher_inputs)
        sizes["latency_ms"]["teacher"] = round(latency, 4)
    source = state.studio or setting.split_to_learn
    rate = state.step * source.rows_per_epoch / source.steps_per_epoch / state.seconds
    share = student.floor_share
    return {
        **sizes,
        "images_per_second": round(rate, 2),
        "floor_share": None if share is None else round(share, 4),
    }


def count(network: Network) -> int:
    """Return the number of parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def describe(device: torch.device) -> str:
    """Return the device in words."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    return {"python": platform.python_version(), "torch": str(torch.__version__)}
