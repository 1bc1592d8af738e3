"""The end of a recipe: score what was trained, once, and write the outputs."""

import dataclasses
import logging
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Int

from workers.distill.config.result import RunResult
from workers.distill.data.preprocessing import Preprocessor
from workers.distill.evaluation import analysis, evaluate, profiling
from workers.distill.export import outputs
from workers.distill.networks.interface import Network
from workers.distill.run import build
from workers.distill.run.prepare import JobContext
from workers.distill.synthesis import export
from workers.distill.training.state import TrainState

if TYPE_CHECKING:
    from workers.distill.reporting import synthesis_report

LOG = logging.getLogger(__name__)

Networks: TypeAlias = dict[str, tuple[Network, Preprocessor]]
"""Networks by what they are, each with how it sees images."""


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
    verdict = judge(setting, trained)
    result = RunResult(
        scores=verdict.scores,
        training_images_read=images_read(setting),
        evaluated_on=None if setting.test is None else "dataset",
        **synthesized(student.course),
        **measure(setting, student),
        wall_seconds=round(time.monotonic() - began, 3),
        epochs=setting.recipe.training.epochs,
        steps=setting.steps,
        best_epoch=student.course.best.epoch,
        device=setting.device.type,
        device_name=describe(setting.device),
        precision=setting.precision.name,
        compile=compiles,
        versions=versions(),
    )
    facts = {
        # What was not set, such as the synthesis of a method that needs none, is left out.
        **result.model_dump(exclude_unset=True),
        "files": [{"path": name} for name in outputs.FILES],
    }
    histories = {phase: done.course.history for phase, done in trained.items()}
    outputs.write(
        setting.workdir, setting.recipe, setting.classes, student.network, facts, histories
    )
    keep_images(setting, student.course, facts)
    if setting.recipe.report:
        explain(setting, trained, verdict, facts)
    if last:
        setting.stop.ignore()
    setting.reporter.result(**facts)


def synthesized(moving: TrainState) -> dict[str, Any]:
    """Return what the result says of invented images, and of the student's way with them."""
    if moving.studio is None:
        return {}
    seen = {
        int(entry["epoch"]): float(entry["validation/accuracy"])
        for entry in moving.history
        if "validation/accuracy" in entry
    }
    facts: dict[str, Any] = {"synthesis": moving.studio.facts()}
    if seen:
        best = max(seen, key=seen.__getitem__)
        facts["validation"] = {"last": seen[max(seen)], "best": seen[best], "best_epoch": best}
    return facts


@dataclass(frozen=True)
class Verdict:
    """What the test split says of each network; it is looked at this once."""

    scores: dict[str, Any]
    mapped: Int[np.ndarray, " K"]
    """Images whose pooled features are shown."""
    shown: dict[str, evaluate.Predictions]
    """Of networks that tell images apart."""
    confusions: dict[str, Int[np.ndarray, "C C"]]
    """Of dense networks: pixels by true and predicted class."""


def images_read(setting: JobContext) -> int:
    """Return how many images of a training split were looked at."""
    return 0 if setting.source is None else setting.source.count


def judge(setting: JobContext, trained: dict[str, Trained]) -> Verdict:
    """Return the test scores of teacher, student and baseline; each is None without a test split.

    A baseline that is the method itself is not trained twice: it has the student's scores.
    """
    networks = {phase: (done.network, setting.student_view) for phase, done in trained.items()}
    if setting.teacher is not None and setting.teacher_view is not None:
        networks["teacher"] = (setting.teacher, setting.teacher_view)
    ordered: Networks = {
        name: networks[name] for name in ("teacher", "student", "baseline") if name in networks
    }
    if setting.test is None:
        found = Verdict({}, np.zeros(0, dtype=np.int64), {}, {})
    elif setting.recipe.task == "segmentation":
        found = judge_pixels(setting, setting.test, ordered)
    else:
        found = judge_images(setting, setting.test, ordered)
    scores = {name: found.scores.get(name) for name in ("teacher", "student", "baseline")}
    if setting.recipe.baseline and not setting.trains_baseline:
        scores["baseline"] = scores["student"]
    return dataclasses.replace(found, scores=scores)


def judge_images(setting: JobContext, test: evaluate.LabelledImages, networks: Networks) -> Verdict:
    """Score classifiers, and keep what they show."""
    mapped = analysis.images_to_map(test.labels.cpu().numpy())
    keep = torch.from_numpy(mapped) if setting.recipe.report else None
    say = evaluating(setting)
    seen = {
        name: evaluate.survey(network, view, test.images, keep=keep, between=say)
        for name, (network, view) in networks.items()
    }
    taught = seen["teacher"].logits if "teacher" in seen else None
    scores = {
        name: evaluate.scores(shown.logits, test.labels, None if name == "teacher" else taught)
        for name, shown in seen.items()
    }
    return Verdict(scores, mapped, seen, {})


def judge_pixels(setting: JobContext, test: evaluate.LabelledImages, networks: Networks) -> Verdict:
    """Score dense networks, and keep what they take for what."""
    say, classes = evaluating(setting), len(setting.classes)
    teacher = networks.get("teacher")
    scores, confusions = {}, {}
    for name, (network, view) in networks.items():
        counts = evaluate.count_pixels(
            network,
            view,
            test.images,
            test.labels,
            classes=classes,
            teacher=None if name == "teacher" else teacher,
            between=say,
        )
        scores[name] = evaluate.pixel_scores(counts, samples=len(test.images))
        confusions[name] = counts.confusion.cpu().numpy()
    return Verdict(scores, np.zeros(0, dtype=np.int64), {}, confusions)


def keep_images(setting: JobContext, moving: TrainState, facts: dict[str, Any]) -> None:
    """Write invented images as a data set where that is wanted, and add its files to the facts."""
    budget, made = setting.budget, moving.studio
    if budget is None or made is None or not budget.keep_images:
        return
    refusal = export.refusal(setting, made)
    if refusal is not None:
        setting.reporter.warning("images_not_kept", refusal)
        return
    written = export.write(setting, made, flip=setting.mirrors(budget))
    facts["files"] += [{"path": path} for path in written]


def explain(
    setting: JobContext, trained: dict[str, Trained], verdict: Verdict, facts: dict[str, Any]
) -> None:
    """Write the report's folder, and add its files and its time to the facts.

    The student is on the disk by now, and no picture is worth losing it.
    """
    began = time.monotonic()
    # Imported here because drawing takes a second to load, which a start should not pay.
    from workers.distill.reporting import report_folder

    labels = np.zeros(0, dtype=np.int64)
    if setting.test is not None and setting.recipe.task == "classification":
        labels = setting.test.labels.cpu().numpy()
    evidence = report_folder.Evidence(
        classes=setting.classes,
        labels=labels,
        mapped=verdict.mapped,
        outputs={
            name: report_folder.Outputs(shown.logits.cpu().numpy(), shown.pooled.cpu().numpy())
            for name, shown in verdict.shown.items()
        },
        histories={phase: done.course.history for phase, done in trained.items()},
        best_epochs={phase: done.course.best.epoch for phase, done in trained.items()},
        teacher_accuracy=None if setting.example is None else setting.example.accuracy,
        confusions=verdict.confusions,
        invention=invention(setting, trained["student"].course),
        test_images=0 if setting.test is None else len(setting.test.images),
    )
    try:
        written = report_folder.write(setting.workdir, evidence)
    except Exception as error:  # told as a warning; whatever a drawing library may raise
        LOG.exception("the report failed")
        setting.reporter.warning(
            "report_failed", f"the report could not be written ({type(error).__name__}: {error})"
        )
        return
    facts["files"] += [{"path": path} for path in written]
    facts["report_seconds"] = round(time.monotonic() - began, 3)


def invention(
    setting: JobContext, moving: TrainState
) -> "synthesis_report.SynthesisEvidence | None":
    """Return what the report shows of invented images, or None where there are none."""
    # Imported here as above.
    from workers.distill.reporting import synthesis_report

    made = moving.studio
    if made is None:
        return None
    return synthesis_report.SynthesisEvidence(
        method=str(setting.recipe.method["name"]),
        snapshots=made.gallery.snapshots,
        synthesis_seconds=[float(entry["seconds/synthesis"]) for entry in moving.history],
        distillation_seconds=[float(entry["seconds/distillation"]) for entry in moving.history],
        images=made.images,
        calls=made.calls,
        training_images_read=images_read(setting),
    )


def evaluating(setting: JobContext) -> Callable[[], None]:
    """Return what keeps saying that the evaluation goes on."""
    total = len(setting.phases) * setting.steps

    def say() -> None:
        setting.reporter.progress(
            phase="evaluation",
            step=setting.steps,
            epoch=setting.recipe.training.epochs,
            progress=round(total / (total + 1), 6),
            images_per_second=0.0,
            remaining_seconds=None,
        )

    return say


def measure(setting: JobContext, student: Trained) -> dict[str, Any]:
    """Return sizes and speeds of teacher and student."""
    moving, network = student.course, student.network
    images = build.sample(setting)
    seen = setting.student_view(images)
    sizes: dict[str, Any] = {
        "parameters": {"teacher": None, "student": count(network)},
        "flops": {"teacher": None, "student": profiling.flops(network, seen)},
        "latency_ms": {"teacher": None, "student": round(profiling.latency_ms(network, seen), 4)},
    }
    if setting.teacher is not None and setting.teacher_view is not None:
        seen_by_teacher = setting.teacher_view(images)
        sizes["parameters"]["teacher"] = count(setting.teacher)
        sizes["flops"]["teacher"] = profiling.flops(setting.teacher, seen_by_teacher)
        latency = profiling.latency_ms(setting.teacher, seen_by_teacher)
        sizes["latency_ms"]["teacher"] = round(latency, 4)
    source = moving.studio or setting.split_to_learn
    rate = moving.step * source.rows_per_epoch / source.steps_per_epoch / moving.seconds
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
