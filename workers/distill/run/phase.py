"""One phase of training: build each member's student, train it, finish it."""

import contextlib
from collections.abc import Sequence

from workers.distill import errors
from workers.distill.networks.interface import Network, Observe
from workers.distill.run import build, finish, group, teacher_factory
from workers.distill.run.context import SharedContext
from workers.distill.run.failures import Failures
from workers.distill.run.group import GroupStudent, RandomState
from workers.distill.run.members import GroupMember
from workers.distill.training.progress import ProgressReporter
from workers.distill.training.state import TrainState
from workers.distill.training.throughput import ThroughputMeter


class Phase:
    """One phase (`student` or `baseline`) of all members of a process, to its end."""

    def __init__(
        self,
        name: str,
        members: Sequence[GroupMember],
        shared: SharedContext,
        failures: Failures,
        *,
        began: float,
    ) -> None:
        """Take the members through the phase `name`; `began` is when the process did."""
        self._name = name
        self._members = members
        self._shared = shared
        self._failures = failures
        self._began = began
        self._throughput = ThroughputMeter(shared.device, shared.precision, None, measures=False)
        self._students: list[GroupStudent] = []
        self._members_by_student: dict[GroupStudent, GroupMember] = {}

    def run(self) -> None:
        """Train whoever is not finished; raises `Interrupted` when all of them are saved."""
        for member in self._members:
            member.context.reporter.phase("build", network=self._name)
        for member in self._members:
            with self._isolate_member(member):
                self._build(member)
        self._make_teachers()
        stop = self._shared.stop
        # Set before the report: whoever stops the job after reading it gets a checkpoint.
        stop.can_wait = True
        for student in self._students:  # others have failed, and their last line is written
            self._members_by_student[student].context.reporter.phase("train", network=self._name)
        try:
            self._train()
        except errors.Interrupted:
            for student in self._students:
                with student.random.own():
                    student.trainer.save_checkpoint()
            raise
        stop.can_wait = False

    def _train(self) -> None:
        """Train one student by its own loop, several by the loop of a group."""
        stop, throughput = self._shared.stop, self._throughput
        if len(self._students) != 1:
            group.train(
                self._students,
                stop=stop,
                throughput=throughput,
                isolate_failure=self._isolate,
                on_finished=self._finish,
            )
            return
        (student,) = self._students
        done = False
        with self._isolate(student), student.random.own():
            self._shared.loop.train(student.trainer, stop=stop, throughput=throughput)
            done = True
        self._students.clear()
        if done:
            self._finish([student])

    def _build(self, member: GroupMember) -> None:
        context, ended = member.context, self._name in member.finished
        state, step = build.build(context, self._name, compiles=member.compiles and not ended)
        if ended:
            state.load_final_state_dict(member.finished[self._name])
            member.trained[self._name] = finish.Trained(state.load_best(), state, None)
            return
        if member.saved and member.saved["train_state"]["phase"] == self._name:
            state.load_state_dict(member.saved["train_state"])
        reporter = ProgressReporter(
            context.reporter,
            folder=context.workdir / "checkpoints",
            digest=context.config.digest(),
            steps_before=context.phases.index(self._name) * context.steps,
            steps_overall=len(context.phases) * context.steps,
            finished=dict(member.finished),
            ranks=context.ranks,
        )
        trainer = context.loop.make_trainer(state, step, reporter)
        student = GroupStudent(trainer, RandomState(apart=len(self._members) > 1))
        self._students.append(student)
        self._members_by_student[student] = member

    def _make_teachers(self) -> None:
        compiling = [member for member in self._members if member.compiles]
        preprocessor = self._shared.teacher_preprocessor

        def compiled(network: Network) -> Observe:
            context = compiling[0].context
            return build.try_compile(context, network, preprocessor or context.student_preprocessor)

        teachers = teacher_factory.TeacherFactory(
            self._shared,
            [student.trainer.state.method for student in self._students],
            compiled if compiling else None,
        )

        def make(student: GroupStudent) -> None:
            context = self._members_by_student[student].context
            trainer = student.trainer
            trainer.step.teacher = teachers.make(context, trainer.state.method)

        group.for_each_student(self._students, make, self._isolate)
        reporters = [
            self._members_by_student[student].context.reporter for student in self._students
        ]
        if self._students:
            step, share = self._position(self._students[0])
            teachers.fill_caches(reporters, step=step, share=share)
        self._throughput = ThroughputMeter(
            self._shared.device,
            self._shared.precision,
            teachers.arithmetic(),
            measures=self._shared.ranks.count == 1,
        )

    def _position(self, student: GroupStudent) -> tuple[int, float]:
        """Return the step at which all of them stand, and its share of the whole work."""
        context, step = self._members_by_student[student].context, student.trainer.state.step
        before = context.phases.index(self._name) * context.steps
        return step, round((before + step) / (len(context.phases) * context.steps + 1), 6)

    def _finish(self, students: Sequence[GroupStudent]) -> None:
        """Save those that are finished, then score and write each; `self._students` go on."""
        saved = []
        for student in students:
            with self._isolate(student), student.random.own():
                check_finite(student.trainer.state)
                # Whatever follows can be interrupted without losing this phase.
                student.trainer.save_checkpoint()
                saved.append(student)
        if not self._students:
            self._shared.stop.can_wait = False
            self._shared.stop.check()
        for student in saved:
            with self._isolate(student), student.random.own():
                last = not self._students and student is saved[-1]
                self._finish_one(
                    self._members_by_student[student], student.trainer.state, last=last
                )

    def _finish_one(self, member: GroupMember, state: TrainState, *, last: bool) -> None:
        member.finished[self._name] = state.final_state_dict()
        share = self._throughput.arithmetic_share
        member.trained[self._name] = finish.Trained(state.load_best(), state, share)
        # Each rank has all that was trained; one is enough to score it.
        if self._name == member.context.phases[-1] and member.context.ranks.is_first:
            finish.finish(
                member.context,
                member.trained,
                compiles=member.compiles,
                began=self._began,
                last=last,
            )

    def _isolate(self, student: GroupStudent) -> contextlib.AbstractContextManager[None]:
        return self._isolate_member(self._members_by_student[student])

    def _isolate_member(self, member: GroupMember) -> contextlib.AbstractContextManager[None]:
        return self._failures.isolate(member.context.config, member.context.reporter)


def check_finite(state: TrainState) -> None:
    """Raise `Diverged` if the last step left weights that are not finite."""
    broken = [
        name
        for name, value in state.student.state_dict().items()
        if value.is_floating_point() and not bool(value.isfinite().all())
    ]
    if broken:
        raise errors.Diverged(
            f"weights of the student are not finite after the last step ({broken[0]} and "
            f"{len(broken) - 1} more); lower training.optimizer.learning_rate or set "
            "training.clip_norm",
            step=state.step,
        )
