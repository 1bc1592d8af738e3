"""Distil recipes: build, train the students, train a baseline, score, write.

One recipe is carried out in its folder. The members of a group (see `group`) are carried out side
by side: teacher and data set lie in the group's folder, everything else in `members/<key>`. Alone
or in a group, a student is the same, byte for byte on the CPU.
"""

import contextlib
import json
import logging
import pathlib
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pydantic
import torch
from jaxtyping import Int

from workers.distill import (
    analysis,
    catalog,
    checkpoint,
    errors,
    evaluate,
    group,
    optimizers,
    outputs,
    preparation,
    recipe,
    report,
    speed,
    stopping,
    teaching,
    validation,
)
from workers.distill.data import batches, draws
from workers.distill.loops import course, desk, pace, supervised, tally, teacher
from workers.distill.networks.interface import Network
from workers.distill.preparation import Asked, Ground, Setting

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trained:
    """A phase that is over: the network to deliver, and how it got there."""

    network: Network
    course: course.Course
    floor_share: float | None
    """Which part of a step was arithmetic, where that could be measured while it was trained."""


@dataclass
class Member:
    """One recipe on its way: what is fixed, where it goes on from, and what is done."""

    setting: Setting
    compiles: bool = False
    # Any: what a checkpoint holds.
    saved: dict[str, Any] | None = None
    finished: dict[str, Any] = field(default_factory=dict)
    trained: dict[str, Trained] = field(default_factory=dict)

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
    def of(self, asked: recipe.Recipe, reporter: report.Reporter) -> Iterator[None]:
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
    reporter: report.Reporter,
    stop: stopping.Stop,
) -> int:
    """Distil, turn every way it can end into its last line, and return the exit code."""
    batch_size: int | None = None
    try:
        asked = read(recipe_path, workdir, reporter)
        batch_size = asked[0].recipe.training.batch_size
        return distil(asked, workdir, stop)
    except errors.Interrupted:
        return stopping.EXIT_CODE
    except Exception as error:  # the one door through which failures leave
        LOG.exception("the engine failed")
        tell(reporter, translate(error, batch_size=batch_size))
        return 1


def read(path: pathlib.Path, workdir: pathlib.Path, reporter: report.Reporter) -> list[Asked]:
    """Read and check a recipe, or those of a group."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise errors.BadRecipe(f"the recipe {path.name} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise errors.BadRecipe(f"the recipe {path.name} is no JSON: {error}") from None
    if not isinstance(content, dict) or "members" not in content:
        return [Asked(checked(content, "the recipe"), workdir, reporter)]
    return read_group(content, workdir, reporter)


def read_group(
    content: dict[str, Any], workdir: pathlib.Path, reporter: report.Reporter
) -> list[Asked]:
    """Check a group, and that its members may be trained side by side."""
    members = content["members"]
    well_formed = isinstance(members, list) and all(
        isinstance(member, dict) and set(member) == {"key", "recipe"} for member in members
    )
    if content.get("version") != group.VERSION or set(content) != {"version", "members"}:
        raise errors.BadRecipe(f"a group has version {group.VERSION} and members, nothing else")
    if not well_formed:
        raise errors.BadRecipe("the members of a group are objects of a key and a recipe")
    recipes = {
        str(member["key"]): checked(member["recipe"], f"the recipe of {member['key']}")
        for member in members
    }
    if len(recipes) < len(members):
        raise errors.BadRecipe("two members of the group have the same key")
    plain = {key: asked.model_dump(mode="json") for key, asked in recipes.items()}
    refusal = group.refusal(plain)
    if refusal is not None:
        raise errors.BadRecipe(f"the group is refused: {refusal}")
    return [
        Asked(asked, workdir / "members" / key, reporter.of_member(key), key)
        for key, asked in recipes.items()
    ]


def checked(content: object, what: str) -> recipe.Recipe:
    """Return a recipe if it is one."""
    try:
        return recipe.Recipe.model_validate_json(json.dumps(content))
    except pydantic.ValidationError as error:
        raise errors.BadRecipe(f"{what} is refused: {catalog.first_complaint(error)}") from None


def tell(reporter: report.Reporter, failure: errors.DistillError) -> None:
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


def distil(asked: Sequence[Asked], workdir: pathlib.Path, stop: stopping.Stop) -> int:
    """Carry out recipes side by side from where their checkpoints stand; return the exit code."""
    began = time.monotonic()
    speed.keep_memory()
    failures = Failures(alone=asked[0].key is None)
    fitting, strong = [], False
    for one in asked:
        with failures.of(one.recipe, one.reporter):
            strong |= catalog.find(one.recipe.method)[0].wants_strong
            fitting.append(one)
    ground = preparation.prepare(asked[0].recipe, workdir, stop, strong=strong)
    members = []
    for one in fitting:
        with failures.of(one.recipe, one.reporter):
            members.append(Member(preparation.settle(ground, one)))
    resume(members)
    for member in members:
        start(member)
    # Equal for all: only a recipe alone may have a second phase.
    for name in members[0].setting.phases if members else ():
        Phase(name, members, ground, failures, began=began).carry_out()
    return group.SOME_FAILED if failures.count else 0


def resume(members: Sequence[Member]) -> None:
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


def checkpoints(member: Member) -> Iterator[dict[str, Any]]:
    """Yield what a member's checkpoints hold, the newest first."""
    setting = member.setting
    return checkpoint.readable(
        setting.workdir / "checkpoints", setting.recipe.digest(), setting.reporter
    )


def start(member: Member) -> None:
    """Say from where a member goes on, and how."""
    setting, saved = member.setting, member.saved
    training = setting.recipe.training
    member.compiles = optimizers.choose_compile(training, setting.device, setting.steps)
    phase = saved["course"]["phase"] if saved else "student"
    setting.reporter.started(
        device=setting.device.type,
        device_name=describe(setting.device),
        precision=setting.precision.name,
        compile=member.compiles,
        resumed_from_step=setting.phases.index(phase) * setting.steps + member.step,
        steps=setting.steps,
        epochs=training.epochs,
        phases=setting.phases,
        versions=versions(),
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
        members: Sequence[Member],
        ground: Ground,
        failures: Failures,
        *,
        began: float,
    ) -> None:
        self._name = name
        self._members = members
        self._ground = ground
        self._failures = failures
        self._began = began
        self._pace = pace.Pace(ground.device, ground.precision, None)
        self._pupils: list[supervised.Pupil] = []
        self._owners: dict[supervised.Pupil, Member] = {}

    def carry_out(self) -> None:
        """Train whoever is not through; raises `Interrupted` when all of them are saved."""
        for member in self._members:
            with self._guard(member):
                self._enrol(member)
        self._teach()
        stop = self._ground.stop
        stop.can_wait = True
        try:
            supervised.train(
                self._pupils, stop=stop, pace=self._pace, guard=self._guard_of, ends=self._ends
            )
        except errors.Interrupted:
            for pupil in self._pupils:
                with pupil.randomness.own():
                    pupil.save()
            raise
        stop.can_wait = False

    def _enrol(self, member: Member) -> None:
        setting, ended = member.setting, self._name in member.finished
        moving = plan(setting, self._name, compiles=member.compiles and not ended)
        if ended:
            moving.restore_outcome(member.finished[self._name])
            member.trained[self._name] = Trained(moving.use_best(), moving, None)
            return
        if member.saved and member.saved["course"]["phase"] == self._name:
            moving.restore(member.saved["course"])
        reports = desk.Desk(
            setting.reporter,
            folder=setting.workdir / "checkpoints",
            digest=setting.recipe.digest(),
            steps_before=setting.phases.index(self._name) * setting.steps,
            steps_overall=len(setting.phases) * setting.steps,
            finished=dict(member.finished),
        )
        pupil = supervised.Pupil(
            moving,
            teacher.Absent(setting.device),
            reports,
            supervised.Randomness(apart=len(self._members) > 1),
        )
        self._pupils.append(pupil)
        self._owners[pupil] = member

    def _teach(self) -> None:
        """Give each pupil its teacher."""
        compiling = [member for member in self._members if member.compiles]
        view = self._ground.teacher_view

        def compiled(network: Network) -> optimizers.Observe:
            setting = compiling[0].setting
            return try_compile(setting, network, view or setting.student_view)

        teachers = teaching.Teaching(
            self._ground,
            [pupil.course.method for pupil in self._pupils],
            compiled if compiling else None,
        )

        def give(pupil: supervised.Pupil) -> None:
            setting = self._owners[pupil].setting
            pupil.teacher = teachers.of(setting, pupil.course.method)

        supervised.each(self._pupils, give, self._guard_of)
        reporters = [self._owners[pupil].setting.reporter for pupil in self._pupils]
        if self._pupils:
            teachers.write(reporters, *self._standing(self._pupils[0]))
        self._pace = pace.Pace(self._ground.device, self._ground.precision, teachers.arithmetic())

    def _standing(self, pupil: supervised.Pupil) -> tuple[int, float]:
        """Return the step at which all of them stand, and its share of the whole work."""
        setting, step = self._owners[pupil].setting, pupil.course.step
        before = setting.phases.index(self._name) * setting.steps
        return step, round((before + step) / (len(setting.phases) * setting.steps + 1), 6)

    def _guard_of(self, pupil: supervised.Pupil) -> contextlib.AbstractContextManager[None]:
        return self._guard(self._owners[pupil])

    def _ends(self, through: list[supervised.Pupil]) -> None:
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

    def _finish(self, member: Member, moving: course.Course, *, last: bool) -> None:
        member.finished[self._name] = moving.outcome()
        done = Trained(moving.use_best(), moving, self._pace.share)
        member.trained[self._name] = done
        if self._name == member.setting.phases[-1]:
            conclude(
                member.setting,
                member.trained,
                compiles=member.compiles,
                began=self._began,
                last=last,
            )

    def _guard(self, member: Member) -> contextlib.AbstractContextManager[None]:
        return self._failures.of(member.setting.recipe, member.setting.reporter)


def plan(setting: Setting, phase: str, *, compiles: bool) -> course.Course:
    """Return a phase of training at its start."""
    asked, device = setting.recipe, setting.device
    seed = asked.training.seed
    # Both phases draw the same start weights, whatever their methods draw afterwards.
    torch.manual_seed(seed)
    student = preparation.placed(preparation.build(asked.student), device)
    if asked.initial:
        path = setting.workdir / "initial" / "model.safetensors"
        preparation.load(student, path, asked.student, errors.InitialLoad)
    torch.manual_seed(draws.mix(seed, 1))
    choice = asked.method if phase == "student" else preparation.BASELINE
    method = catalog.build(choice, student, setting.teacher).to(device)
    method.prepare(setting.source.in_order(asked.training.batch_size))
    torch.manual_seed(draws.mix(seed, 2))
    observe: optimizers.Observe = student.observe
    if compiles:
        observe = try_compile(setting, student, setting.student_view)
    return course.Course(
        phase=phase,
        training=asked.training,
        student=student,
        observe=observe,
        method=method,
        view=setting.student_view,
        source=setting.source,
        precision=setting.precision,
        stepper=optimizers.Stepper((student, method), asked.training, setting.precision),
        tally=tally.Tally(device),
        validate=validation.Validator(setting.held, setting.student_view, setting.example),
    )


def try_compile(setting: Setting, network: Network, view: batches.View) -> optimizers.Observe:
    """Return a compiled `observe`, or the plain one with a warning where compiling fails."""
    example = view(next(setting.source.in_order(setting.recipe.training.batch_size)).images)
    try:
        return optimizers.compiled(network, example, setting.precision)
    except Exception as error:  # compilers fail in any way; plain code still works
        LOG.warning("compiling failed", exc_info=True)
        setting.reporter.warning(
            "compile_failed",
            f"compiling {type(network).__name__} failed ({type(error).__name__}); it runs "
            "uncompiled",
        )
        return network.observe


def check_finite(moving: course.Course) -> None:
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


def conclude(
    setting: Setting, trained: dict[str, Trained], *, compiles: bool, began: float, last: bool
) -> None:
    """Score what was trained on the test split, once, and write the outputs.

    `last` says that no other member of the group has anything left to do.
    """
    student = trained["student"]
    mapped = analysis.images_to_map(setting.test.labels.cpu().numpy())
    seen = examine(setting, trained, mapped)
    facts = {
        "scores": score(setting, seen),
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
    if setting.recipe.report:
        explain(setting, trained, seen, mapped, facts)
    if last:
        setting.stop.ignore()
    setting.reporter.result(**facts)


def examine(
    setting: Setting, trained: dict[str, Trained], mapped: Int[np.ndarray, " K"]
) -> dict[str, evaluate.Shown]:
    """Return what each network shows of the test split, which is looked at this once."""
    networks = {phase: (done.network, setting.student_view) for phase, done in trained.items()}
    if setting.teacher is not None and setting.teacher_view is not None:
        networks["teacher"] = (setting.teacher, setting.teacher_view)
    keep = torch.from_numpy(mapped) if setting.recipe.report else None
    say = evaluating(setting)
    return {
        name: evaluate.survey(*networks[name], setting.test.images, keep=keep, between=say)
        for name in ("teacher", "student", "baseline")
        if name in networks
    }


def score(setting: Setting, seen: dict[str, evaluate.Shown]) -> dict[str, Any]:
    """Return the test scores of teacher, student and baseline."""
    labels = setting.test.labels
    scores: dict[str, Any] = {"teacher": None, "student": None, "baseline": None}
    taught = seen["teacher"].logits if "teacher" in seen else None
    for name, shown in seen.items():
        compared = None if name == "teacher" else taught
        scores[name] = evaluate.scores(shown.logits, labels, compared)
    if setting.recipe.baseline and not setting.trains_baseline:
        scores["baseline"] = scores["student"]  # the method is the baseline: the same run
    return scores


def explain(
    setting: Setting,
    trained: dict[str, Trained],
    seen: dict[str, evaluate.Shown],
    mapped: Int[np.ndarray, " K"],
    facts: dict[str, Any],
) -> None:
    """Write the report's folder, and add its files and its time to the facts.

    The student is on the disk by now, and no picture is worth losing it.
    """
    began = time.monotonic()
    # Imported here because drawing takes a second to load, which a start should not pay.
    from workers.distill import report_folder

    evidence = report_folder.Evidence(
        classes=setting.classes,
        labels=setting.test.labels.cpu().numpy(),
        mapped=mapped,
        outputs={
            name: report_folder.Outputs(shown.logits.cpu().numpy(), shown.pooled.cpu().numpy())
            for name, shown in seen.items()
        },
        histories={phase: done.course.history for phase, done in trained.items()},
        best_epochs={phase: done.course.best.epoch for phase, done in trained.items()},
        teacher_accuracy=None if setting.example is None else setting.example.accuracy,
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


def evaluating(setting: Setting) -> Callable[[], None]:
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


def measure(setting: Setting, student: Trained) -> dict[str, Any]:
    """Return sizes and speeds of teacher and student."""
    moving, network = student.course, student.network
    images = next(setting.source.in_order(setting.recipe.training.batch_size)).images
    seen = setting.student_view(images)
    sizes: dict[str, Any] = {
        "parameters": {"teacher": None, "student": count(network)},
        "flops": {"teacher": None, "student": speed.flops(network, seen)},
        "latency_ms": {"teacher": None, "student": round(speed.latency_ms(network, seen), 4)},
    }
    if setting.teacher is not None and setting.teacher_view is not None:
        seen_by_teacher = setting.teacher_view(images)
        sizes["parameters"]["teacher"] = count(setting.teacher)
        sizes["flops"]["teacher"] = speed.flops(setting.teacher, seen_by_teacher)
        latency = speed.latency_ms(setting.teacher, seen_by_teacher)
        sizes["latency_ms"]["teacher"] = round(latency, 4)
    rows = setting.source.rows_per_epoch / setting.source.steps_per_epoch
    rate = moving.step * rows / moving.seconds
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
