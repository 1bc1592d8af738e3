"""Distil recipes: build, train the students, train a baseline, score, write.

One recipe is carried out in its folder. The members of a group (see `group`) are carried out side
by side: teacher and data set lie in the group's folder, everything else in `members/<key>`. Alone
or in a group, a student is the same, byte for byte on the CPU.
"""

import contextlib
import json
import logging
import pathlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pydantic
import torch

from workers.distill import errors
from workers.distill.config import grouping
from workers.distill.config.job import JobConfig
from workers.distill.data.loader import BatchLoader
from workers.distill.evaluation import profiling
from workers.distill.methods import catalog
from workers.distill.methods.datafree.base import DataFreeMethod
from workers.distill.networks.interface import Network
from workers.distill.run import build, finish, prepare, teacher_factory
from workers.distill.run.prepare import JobContext, JobRequest, SharedContext
from workers.distill.runtime import events, signals
from workers.distill.synthesis.loop import DataFreeTrainer, train_data_free
from workers.distill.training import checkpoint, loop, optimizers
from workers.distill.training.progress import ProgressReporter
from workers.distill.training.state import TrainState
from workers.distill.training.teachers import NoTeacher
from workers.distill.training.throughput import ThroughputMeter

LOG = logging.getLogger(__name__)


@dataclass
class GroupMember:
    """One recipe on its way: what is fixed, where it goes on from, and what is done."""

    setting: JobContext
    compiles: bool = False
    # Any: what a checkpoint holds.
    saved: dict[str, Any] | None = None
    finished: dict[str, Any] = field(default_factory=dict)
    trained: dict[str, finish.Trained] = field(default_factory=dict)

    @property
    def step(self) -> int:
        """Return the step of its phase that it goes on from."""
        return int(self.saved["course"]["step"]) if self.saved else 0


class Failures:
    """Tells what members fail of, each on its own line; a failure that is everybody's goes on."""

    def __init__(self, *, alone: bool) -> None:
        self._alone = alone
        self.count = 0

    @contextlib.contextmanager
    def of(self, asked: JobConfig, reporter: events.Reporter) -> Iterator[None]:
        """Tell of what a member's part of the work raises; let through what concerns all."""
        try:
            yield
        except errors.Interrupted:
            raise
        except Exception as error:  # what one member meets must not reach the others
            failure = translate(error, batch_size=asked.training.batch_size)
            short = failure.code in (errors.OutOfMemory.code, errors.HostOutOfMemory.code)
            if self._alone or short:
                raise
            LOG.exception("a member of the group failed")
            self.count += 1
            tell(reporter, failure)


def execute(
    recipe_path: pathlib.Path,
    workdir: pathlib.Path,
    reporter: events.Reporter,
    stop: signals.Stop,
) -> int:
    """Distil, turn every way it can end into its last line, and return the exit code."""
    batch_size: int | None = None
    try:
        asked = read(recipe_path, workdir, reporter)
        batch_size = asked[0].recipe.training.batch_size
        return distil(asked, workdir, stop)
    except errors.Interrupted:
        return signals.EXIT_CODE
    except Exception as error:  # the one door through which failures leave
        LOG.exception("the engine failed")
        tell(reporter, translate(error, batch_size=batch_size))
        return 1


def read(path: pathlib.Path, workdir: pathlib.Path, reporter: events.Reporter) -> list[JobRequest]:
    """Read and check a recipe, or those of a group."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise errors.BadRecipe(f"the recipe {path.name} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise errors.BadRecipe(f"the recipe {path.name} is no JSON: {error}") from None
    if not isinstance(content, dict) or "members" not in content:
        return [JobRequest(checked(content, "the recipe"), workdir, reporter)]
    return read_group(content, workdir, reporter)


def read_group(
    content: dict[str, Any], workdir: pathlib.Path, reporter: events.Reporter
) -> list[JobRequest]:
    """Check a group, and that its members may be trained side by side."""
    members = content["members"]
    well_formed = isinstance(members, list) and all(
        isinstance(member, dict) and set(member) == {"key", "recipe"} for member in members
    )
    if content.get("version") != grouping.VERSION or set(content) != {"version", "members"}:
        raise errors.BadRecipe(f"a group has version {grouping.VERSION} and members, nothing else")
    if not well_formed:
        raise errors.BadRecipe("the members of a group are objects of a key and a recipe")
    recipes = {
        str(member["key"]): checked(member["recipe"], f"the recipe of {member['key']}")
        for member in members
    }
    if len(recipes) < len(members):
        raise errors.BadRecipe("two members of the group have the same key")
    plain = {key: asked.model_dump(mode="json") for key, asked in recipes.items()}
    refusal = grouping.refusal(plain)
    if refusal is None and len(recipes) > 1 and any(map(is_data_free, recipes.values())):
        refusal = "a data-free method invents its own images, so it shares nothing; run it alone"
    if refusal is not None:
        raise errors.BadRecipe(f"the group is refused: {refusal}")
    return [
        JobRequest(asked, workdir / "members" / key, reporter.of_member(key), key)
        for key, asked in recipes.items()
    ]


def checked(content: object, what: str) -> JobConfig:
    """Return a recipe if it is one."""
    try:
        return JobConfig.model_validate_json(json.dumps(content))
    except pydantic.ValidationError as error:
        raise errors.BadRecipe(f"{what} is refused: {catalog.first_complaint(error)}") from None


def is_data_free(asked: JobConfig) -> bool:
    """Whether a recipe names a method that invents its images."""
    method = catalog.METHODS.get(asked.method["name"])
    return method is not None and issubclass(method, DataFreeMethod)


def tell(reporter: events.Reporter, failure: errors.DistillError) -> None:
    """Write the last line of what failed."""
    reporter.failure(
        failure.code, failure.message, retryable=failure.retryable, details=failure.details
    )


def translate(error: Exception, *, batch_size: int | None = None) -> errors.DistillError:
    """Return the failure that a caller should see for an exception."""
    if isinstance(error, errors.UnknownNetwork):
        return errors.IncompatibleNetworks(error.message, **error.details)
    if isinstance(error, errors.DistillError) and error.code in errors.RUN_CODES:
        return error
    words = str(error)
    size = f" with batch_size {batch_size}" if batch_size else ""
    if isinstance(error, torch.OutOfMemoryError) or "CUBLAS_STATUS_ALLOC_FAILED" in words:
        return errors.OutOfMemory(
            f"the device ran out of memory{size}; lower training.batch_size, choose precision "
            "bfloat16, or use a smaller network",
            batch_size=batch_size,
        )
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in words:
        return errors.HostOutOfMemory(
            f"the machine ran out of memory{size}; lower training.batch_size, or use a machine "
            "with more memory",
            batch_size=batch_size,
        )
    return errors.DistillError(f"an unexpected {type(error).__name__} ended the job: {words[:500]}")


def distil(asked: Sequence[JobRequest], workdir: pathlib.Path, stop: signals.Stop) -> int:
    """Carry out recipes side by side from where their checkpoints stand; return the exit code."""
    began = time.monotonic()
    profiling.keep_memory()
    failures = Failures(alone=asked[0].key is None)
    fitting, strong = [], False
    for one in asked:
        with failures.of(one.recipe, one.reporter):
            method, _ = catalog.find(one.recipe.method)
            catalog.check_task(method, one.recipe.task)
            strong |= method.uses_strong_view
            fitting.append(one)
    if not fitting:
        return grouping.SOME_FAILED
    ground = prepare.prepare(fitting[0].recipe, workdir, stop, strong=strong)
    members = []
    for one in fitting:
        with failures.of(one.recipe, one.reporter):
            members.append(GroupMember(prepare.settle(ground, one)))
    resume(members)
    for member in members:
        start(member)
    # Equal for all: only a recipe alone may have a second phase.
    for name in members[0].setting.phases if members else ():
        Phase(name, members, ground, failures, began=began).carry_out()
    return grouping.SOME_FAILED if failures.count else 0


def resume(members: Sequence[GroupMember]) -> None:
    """Find the newest step from which all can go on, and go on as it was reached."""
    for member in members:
        member.saved = next(checkpoints(member), None)
    least = min((member.step for member in members), default=0)
    reached = ", ".join(f"{member.setting.workdir.name}: {member.step}" for member in members)
    for member in members:
        if member.step != least:
            older = (state for state in checkpoints(member) if state["course"]["step"] == least)
            member.saved = next(older, None)
            if member.saved is None:
                raise errors.BadRecipe(
                    f"the members of the group stand at different steps ({reached}), and kept no "
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


def checkpoints(member: GroupMember) -> Iterator[dict[str, Any]]:
    """Yield what a member's checkpoints hold, the newest first."""
    setting = member.setting
    return checkpoint.readable(
        setting.workdir / "checkpoints", setting.recipe.digest(), setting.reporter
    )


def start(member: GroupMember) -> None:
    """Say from where a member goes on, and how."""
    setting, saved = member.setting, member.saved
    training = setting.recipe.training
    member.compiles = optimizers.choose_compile(training, setting.device, setting.steps)
    phase = saved["course"]["phase"] if saved else "student"
    setting.reporter.started(
        device=setting.device.type,
        device_name=finish.describe(setting.device),
        precision=setting.precision.name,
        compile=member.compiles,
        resumed_from_step=setting.phases.index(phase) * setting.steps + member.step,
        steps=setting.steps,
        epochs=training.epochs,
        phases=setting.phases,
        versions=finish.versions(),
        threads=torch.get_num_threads(),
    )
    if setting.example is not None and not saved:
        setting.reporter.metric(
            "teacher/validation/accuracy", setting.example.accuracy, step=0, epoch=0
        )


class Phase:
    """One phase of training, of all members side by side, to its end."""

    def __init__(
        self,
        name: str,
        members: Sequence[GroupMember],
        ground: SharedContext,
        failures: Failures,
        *,
        began: float,
    ) -> None:
        self._name = name
        self._members = members
        self._ground = ground
        self._failures = failures
        self._began = began
        self._pace = ThroughputMeter(ground.device, ground.precision, None)
        self._pupils: list[loop.StudentTrainer] = []
        self._owners: dict[loop.StudentTrainer, GroupMember] = {}

    def carry_out(self) -> None:
        """Train whoever is not through; raises `Interrupted` when all of them are saved."""
        for member in self._members:
            with self._guard(member):
                self._enrol(member)
        self._teach()
        stop = self._ground.stop
        stop.can_wait = True
        try:
            self._train(stop)
        except errors.Interrupted:
            for pupil in self._pupils:
                with pupil.randomness.own():
                    pupil.save()
            raise
        stop.can_wait = False

    def _train(self, stop: signals.Stop) -> None:
        guard, ends = self._guard_of, self._ends
        if isinstance(self._ground.source, BatchLoader):
            loop.train(self._pupils, stop=stop, pace=self._pace, guard=guard, ends=ends)
        elif self._pupils:
            # Without a training split, all were enrolled with a studio.
            apprentices = cast("list[DataFreeTrainer]", self._pupils)
            train_data_free(apprentices, stop=stop, guard=guard, ends=ends)

    def _enrol(self, member: GroupMember) -> None:
        setting, ended = member.setting, self._name in member.finished
        moving = build.plan(setting, self._name, compiles=member.compiles and not ended)
        if ended:
            moving.restore_outcome(member.finished[self._name])
            member.trained[self._name] = finish.Trained(moving.use_best(), moving, None)
            return
        if member.saved and member.saved["course"]["phase"] == self._name:
            moving.restore(member.saved["course"])
        reports = ProgressReporter(
            setting.reporter,
            folder=setting.workdir / "checkpoints",
            digest=setting.recipe.digest(),
            steps_before=setting.phases.index(self._name) * setting.steps,
            steps_overall=len(setting.phases) * setting.steps,
            finished=dict(member.finished),
        )
        kind = loop.StudentTrainer if moving.studio is None else DataFreeTrainer
        pupil = kind(
            moving,
            NoTeacher(setting.device),
            reports,
            loop.RandomState(apart=len(self._members) > 1),
        )
        self._pupils.append(pupil)
        self._owners[pupil] = member

    def _teach(self) -> None:
        """Give each pupil its teacher."""
        compiling = [member for member in self._members if member.compiles]
        view = self._ground.teacher_view

        def compiled(network: Network) -> optimizers.Observe:
            setting = compiling[0].setting
            return build.try_compile(setting, network, view or setting.student_view)

        teachers = teacher_factory.TeacherFactory(
            self._ground,
            [pupil.course.method for pupil in self._pupils],
            compiled if compiling else None,
        )

        def give(pupil: loop.StudentTrainer) -> None:
            setting = self._owners[pupil].setting
            pupil.teacher = teachers.of(setting, pupil.course.method)

        loop.for_each_student(self._pupils, give, self._guard_of)
        reporters = [self._owners[pupil].setting.reporter for pupil in self._pupils]
        if self._pupils:
            teachers.write(reporters, *self._standing(self._pupils[0]))
        self._pace = ThroughputMeter(
            self._ground.device, self._ground.precision, teachers.arithmetic()
        )

    def _standing(self, pupil: loop.StudentTrainer) -> tuple[int, float]:
        """Return the step at which all of them stand, and its share of the whole work."""
        setting, step = self._owners[pupil].setting, pupil.course.step
        before = setting.phases.index(self._name) * setting.steps
        return step, round((before + step) / (len(setting.phases) * setting.steps + 1), 6)

    def _guard_of(self, pupil: loop.StudentTrainer) -> contextlib.AbstractContextManager[None]:
        return self._guard(self._owners[pupil])

    def _ends(self, through: Sequence[loop.StudentTrainer]) -> None:
        saved = []
        for pupil in through:
            with self._guard_of(pupil), pupil.randomness.own():
                check_finite(pupil.course)
                pupil.save()  # whatever follows can be interrupted without losing this phase
                saved.append(pupil)
        if not self._pupils:
            self._ground.stop.can_wait = False
            self._ground.stop.check()
        for pupil in saved:
            with self._guard_of(pupil), pupil.randomness.own():
                last = not self._pupils and pupil is saved[-1]
                self._finish(self._owners[pupil], pupil.course, last=last)

    def _finish(self, member: GroupMember, moving: TrainState, *, last: bool) -> None:
        member.finished[self._name] = moving.outcome()
        done = finish.Trained(moving.use_best(), moving, self._pace.share)
        member.trained[self._name] = done
        if self._name == member.setting.phases[-1]:
            finish.conclude(
                member.setting,
                member.trained,
                compiles=member.compiles,
                began=self._began,
                last=last,
            )

    def _guard(self, member: GroupMember) -> contextlib.AbstractContextManager[None]:
        return self._failures.of(member.setting.recipe, member.setting.reporter)


def check_finite(moving: TrainState) -> None:
    """Raise `Diverged` if the last step left weights that are not finite."""
    broken = [
        name
        for name, value in moving.student.state_dict().items()
        if value.is_floating_point() and not bool(value.isfinite().all())
    ]
    if broken:
        raise errors.Diverged(
            f"weights of the student are not finite after the last step ({broken[0]} and "
            f"{len(broken) - 1} more); lower training.optimizer.learning_rate or set "
            "training.clip_norm",
            step=moving.step,
        )
