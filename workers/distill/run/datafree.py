"""How methods that synthesize their training images are trained."""

import pathlib
from typing import Any, Literal

from workers.distill.config.baseline import baseline_of
from workers.distill.config.job import JobConfig
from workers.distill.config.synthesis import Synthesis, resolve_budget
from workers.distill.methods import catalog
from workers.distill.methods.base import Method
from workers.distill.methods.datafree.base import DataFreeMethod
from workers.distill.networks.interface import Network
from workers.distill.run import prepare
from workers.distill.run.context import JobContext, LoopEvidence, SharedContext
from workers.distill.runtime import signals
from workers.distill.runtime.ranks import ALONE, Ranks
from workers.distill.synthesis import data_source, export, loop
from workers.distill.synthesis.data_source import SyntheticDataSource
from workers.distill.synthesis.loop import DataFreeTrainer
from workers.distill.synthesis.synthesizers.base import SynthesisContext
from workers.distill.training.loop import StudentTrainer
from workers.distill.training.progress import ProgressReporter
from workers.distill.training.state import TrainState
from workers.distill.training.step import DistillationStep
from workers.distill.training.throughput import ThroughputMeter


class DataFreeLoop:
    """Synthesis and training in turns, a baseline on noise, the last epoch delivered.

    No image may choose between epochs, so the last one's weights are delivered. What synthesis
    trains is updated by its calls alone, and is no part of what is delivered.
    """

    delivers: Literal["best", "last"] = "last"
    train_metric = "agreement"
    trains_method = False
    compiles = True

    def prepare(
        self,
        config: JobConfig,
        workdir: pathlib.Path,
        stop: signals.Stop,
        *,
        strong: bool,
        ranks: Ranks = ALONE,
    ) -> SharedContext:
        """Load the teacher; of a data set, read only what is evaluated on."""
        return prepare.prepare_without_data(config, workdir, stop, loop=self, ranks=ranks)

    def steps_per_epoch(self, context: JobContext) -> int:
        """Return the student's steps of all calls of an epoch."""
        budget = budget_of(context)
        return (budget.student_steps or 0) * budget.calls_per_epoch

    def baseline(self, context: JobContext) -> dict[str, Any]:
        """Return distillation on noise, with as many steps and at the same temperature."""
        _, params = catalog.find(context.config.method)
        budget = {**budget_of(context).model_dump(), "data_scale": None}
        return baseline_of({**params.model_dump(), "synthesis": budget})

    def make_source(
        self, context: JobContext, method: Method, student: Network
    ) -> SyntheticDataSource:
        """Return a data source with an empty replay buffer."""
        teacher, preprocessor = context.teacher, context.teacher_preprocessor
        if not isinstance(method, DataFreeMethod) or teacher is None or preprocessor is None:
            raise TypeError(f"method {method.name} synthesizes no images")
        training = context.config.training
        budget = resolve_budget(
            method.params.synthesis,
            batch_size=training.batch_size,
            known_images=context.known_images,
        )
        synthesis = SynthesisContext(
            method=method,
            teacher=teacher,
            student=student,
            teacher_preprocessor=preprocessor,
            student_preprocessor=context.student_preprocessor,
            precision=context.precision,
            device=context.device,
            mean=tuple(context.size.mean),
            std=tuple(context.size.std),
            flip=may_flip(context, budget),
        )
        return SyntheticDataSource(
            synthesis,
            budget,
            training,
            capacity=data_source.capacity(budget, training, method.image_shape),
            caches_logits=context.task.caches_logits,
        )

    def make_trainer(
        self, state: TrainState, step: DistillationStep, reporter: ProgressReporter
    ) -> DataFreeTrainer:
        """Return a trainer that synthesizes between its steps."""
        return DataFreeTrainer(state, step, reporter, source=source_of(state))

    def train(
        self, trainer: StudentTrainer, *, stop: signals.Stop, throughput: ThroughputMeter
    ) -> None:
        """Train one student to its end; the share of arithmetic is not measured."""
        if not isinstance(trainer, DataFreeTrainer):
            raise TypeError("a student without synthetic images is trained by another loop")
        loop.train(trainer, stop=stop)

    def result_fields(self, context: JobContext, state: TrainState) -> dict[str, Any]:
        """Return the summary of synthesis, and the validation scores of last and best epoch."""
        scores = {
            int(entry["epoch"]): float(entry[f"validation/{state.primary_metric}"])
            for entry in state.history
            if f"validation/{state.primary_metric}" in entry
        }
        fields: dict[str, Any] = {"synthesis": source_of(state).summary()}
        if scores:
            best = max(scores, key=scores.__getitem__)
            fields["validation"] = {
                "last": scores[max(scores)],
                "best": scores[best],
                "best_epoch": best,
            }
        return fields

    def write_files(self, context: JobContext, state: TrainState) -> list[str]:
        """Write the replay buffer as a data set where that is wanted; warn where it cannot be."""
        budget, source = budget_of(context), source_of(state)
        if not budget.keep_images:
            return []
        if context.teacher is None or context.teacher_preprocessor is None:
            raise ValueError("synthetic images have a teacher")
        exported = export.ExportContext(
            workdir=context.workdir,
            task=context.task,
            classes=context.classes,
            size=context.size,
            flip=may_flip(context, budget),
            teacher=context.teacher,
            teacher_preprocessor=context.teacher_preprocessor,
        )
        refusal = export.refusal(exported, source.buffer)
        if refusal is not None:
            context.reporter.warning("images_not_kept", refusal)
            return []
        return export.write(exported, source.buffer)

    def evidence(self, context: JobContext, state: TrainState) -> LoopEvidence:
        """Return snapshots of the buffer, and where the time went."""
        # Imported here because drawing takes a second to load, which a start should not pay.
        from workers.distill.reporting import synthesis_report

        source = source_of(state)
        shown = synthesis_report.SynthesisEvidence(
            method=str(context.config.method["name"]),
            snapshots=source.snapshot_keeper.snapshots,
            synthesis_seconds=[float(entry["seconds/synthesis"]) for entry in state.history],
            distillation_seconds=[float(entry["seconds/distillation"]) for entry in state.history],
            images=source.images,
            calls=source.calls,
            training_images_read=0,
        )
        return LoopEvidence(synthesis=shown)


def source_of(state: TrainState) -> SyntheticDataSource:
    """Return the data source of a data-free student."""
    if not isinstance(state.source, SyntheticDataSource):
        raise TypeError("the student has no synthetic images")
    return state.source


def budget_of(context: JobContext) -> Synthesis:
    """Return the budget of synthesis, with the student's steps after a call."""
    _, params = catalog.find(context.config.method)
    if not isinstance(params, DataFreeMethod.Params):
        raise TypeError(f"method {context.config.method['name']} synthesizes no images")
    return resolve_budget(
        params.synthesis,
        batch_size=context.config.training.batch_size,
        known_images=context.known_images,
    )


def may_flip(context: JobContext, budget: Synthesis) -> bool:
    """Whether mirrored images mean the same: as the budget says, else as the data set does."""
    return context.flip if budget.flip is None else budget.flip


LOOP = DataFreeLoop()
