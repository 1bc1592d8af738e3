"""The jobs of one engine process on their way: where each continues, and what is done."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from workers.distill import errors
from workers.distill.config import class_names, rules
from workers.distill.config.descriptions import BACKBONE, NetworkDescription
from workers.distill.evaluation.validation import TeacherScores
from workers.distill.methods import catalog
from workers.distill.run import finish, outcome, prepare
from workers.distill.run.context import JobContext
from workers.distill.runtime.ranks import Ranks
from workers.distill.training import checkpoint
from workers.distill.training.compilation import choose_compile


@dataclass
class GroupMember:
    """One job of the process: its context, its checkpoint, and the phases that are finished."""

    context: JobContext
    compiles: bool = False
    # Any: what a checkpoint holds.
    saved: dict[str, Any] | None = None
    finished: dict[str, Any] = field(default_factory=dict)
    trained: dict[str, finish.Trained] = field(default_factory=dict)

    @property
    def step(self) -> int:
        """Return the step of its phase from which it continues."""
        return int(self.saved["train_state"]["step"]) if self.saved else 0


def resume(members: Sequence[GroupMember]) -> None:
    """Find the newest step from which all can continue, and continue as it was reached."""
    for member in members:
        member.saved = next(checkpoints(member), None)
    common_step = min((member.step for member in members), default=0)
    steps = ", ".join(f"{member.context.workdir.name}: {member.step}" for member in members)
    for member in members:
        if member.step != common_step:
            older = (
                state
                for state in checkpoints(member)
                if state["train_state"]["step"] == common_step
            )
            member.saved = next(older, None)
            if member.saved is None:
                raise errors.BadRecipe(
                    f"the members of the group stand at different steps ({steps}), and kept no "
                    "checkpoint of the same step; run them apart"
                )
    threads = {member.saved["threads"] for member in members if member.saved}
    if len(threads) > 1:
        raise errors.BadRecipe(
            f"the members of the group were trained with different numbers of threads "
            f"({sorted(threads)}); run them apart"
        )
    for number in threads:
        # Sums split over another number of threads round differently: a job that moves to a
        # machine with more cores must still end with the bytes it was heading for.
        torch.set_num_threads(number)
    for member in members:
        member.finished = dict(member.saved["finished"]) if member.saved else {}


def check_ranks(members: Sequence[GroupMember], ranks: Ranks) -> None:
    """Raise `BadRecipe` unless all ranks go on from the same step; waits for all of them.

    So none writes a checkpoint while another one still looks for the newest.
    """
    own = [member.step for member in members]
    first = ranks.from_first(own)
    if ranks.from_all(own == first) is False:
        raise errors.BadRecipe(
            f"the processes of the job read checkpoints of different steps ({own} and {first})"
        )


def checkpoints(member: GroupMember) -> Iterator[dict[str, Any]]:
    """Yield what a member's checkpoints hold, the newest first."""
    context = member.context
    return checkpoint.readable(
        context.workdir / "checkpoints", context.config.digest(), context.reporter
    )


def report_start(member: GroupMember) -> None:
    """Choose whether a member's networks are compiled, and report how and from where it starts."""
    context, saved = member.context, member.saved
    training = context.config.training
    may_compile = context.loop.compiles and not training.sync_batch_norm
    member.compiles = may_compile and choose_compile(training, context.device, context.steps)
    phase = saved["train_state"]["phase"] if saved else "student"
    context.reporter.started(
        device=context.device.type,
        device_name=finish.describe(context.device),
        precision=context.precision.name,
        compile=member.compiles,
        resumed_from_step=context.phases.index(phase) * context.steps + member.step,
        steps=context.steps,
        epochs=training.epochs,
        phases=context.phases,
        versions=finish.versions(),
        threads=torch.get_num_threads(),
    )
    wants_baseline = context.config.baseline
    for told in context.labelling.warnings(context.task, wants_baseline=wants_baseline):
        context.reporter.warning(told.code, told.message)
    _warn_of_classifiers(context)
    _warn_of_classes(context)
    _warn_of_slow_teacher(context)
    if context.teacher_scores is not None and not saved:
        key = f"teacher/validation/{context.task.primary_metric}"
        context.reporter.metric(key, context.teacher_scores.primary, step=0, epoch=0)
    if context.teacher_scores is not None:
        _warn_of_weak_teacher(context, context.teacher_scores)


def _warn_of_classifiers(context: JobContext) -> None:
    """Say that the classifier of a teacher or of start weights is not used, or not there."""
    config, network_task = context.config, context.task.network_task
    models = [
        (role, choice.network, choice.classes) for role, choice in prepare.teachers_of(config)
    ]
    if prepare.differs_in_classifier(config):
        started = len(config.student.class_names or ())
        models.append((rules.START_MODEL, config.student.network, started))
    for role, reference, classes in models:
        own = network_task if classes else BACKBONE
        for told in rules.of_unused_classifier(
            role, NetworkDescription(reference, task=own), config.task
        ):
            context.reporter.warning(told.code, told.message)


def _warn_of_classes(context: JobContext) -> None:
    """Say what the names of classes tell of teacher, start weights and data set."""
    config = context.config
    if not context.task.learns_targets:
        return  # the order of classes does not matter where nothing tells them apart
    models = prepare.teachers_of(config)
    if config.initial and not catalog.find(config.method)[0].describe().replaces_classifier:
        models += [(rules.START_MODEL, config.student)]
    for role, choice in models:
        told = class_names.remark(role, choice.class_names, context.classes)
        if told is not None:
            context.reporter.warning(told.code, told.message)


def _warn_of_slow_teacher(context: JobContext) -> None:
    """Say that the teacher does not run where the student does, and why."""
    teacher = context.teacher
    if teacher is None or not teacher.can_run or context.device.type == "cpu":
        return
    if teacher.torch_form() is None:
        context.reporter.warning(
            "teacher_on_processor",
            f"the teacher {teacher.reference} runs on the processor, not on {context.device.type} "
            f"({teacher.limits}); training may wait for it",
        )


def _warn_of_weak_teacher(context: JobContext, scores: TeacherScores) -> None:
    """Say that a teacher knows no more than an answer that never changes, or knows no other.

    Where its own answers are the labels, it cannot be weak.
    """
    scored = context.labelling.validation
    if scored is not None and scored.by_teacher:
        return
    metric = context.task.primary_metric
    chance = context.task.constant_score(scores.split.samples.labels, len(context.classes))
    if scores.primary <= chance:
        suspects = (
            "classes, their order, its normalisation and its weights"
            if context.task.learns_targets
            else "normalisation, its weights and which of its outputs was chosen"
        )
        context.reporter.warning(
            "teacher_weak",
            f"the teacher's {metric} on the validation split is {scores.primary:.1%}, no more than "
            f"the {chance:.1%} of always giving the commonest answer; check its {suspects}, since "
            "a student learns what it says",
        )
    confusion = scores.evaluation.metrics.confusion()
    for told in outcome.one_class("teacher", context.task.unit, context.classes, confusion):
        context.reporter.warning(told.code, told.message)
