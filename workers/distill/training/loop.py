"""The training loop of one student over labelled images."""

from dataclasses import dataclass

from torch import Tensor

from workers.distill.data.types import Batch
from workers.distill.methods.base import Moment
from workers.distill.runtime.signals import Stop
from workers.distill.training.progress import ProgressReporter
from workers.distill.training.state import TrainState, larger_share_labels
from workers.distill.training.step import DistillationStep, StepOutput
from workers.distill.training.throughput import ThroughputMeter


@dataclass(eq=False)
class StudentTrainer:
    """One student being trained: its state, its step, and whom it reports to."""

    state: TrainState
    step: DistillationStep
    reporter: ProgressReporter

    def start(self) -> None:
        """Get ready for the first step."""
        self.step.train()
        self.finish_epoch()  # if the last attempt was interrupted inside this validation

    def train_step(self, batch: Batch, moment: Moment) -> StepOutput:
        """Make one step: forward, backward, update, meters, report."""
        state = self.state
        output = self.step(batch, moment)
        terms = output.terms
        if state.balance is not None:
            terms = state.balance(terms, moment, state.optimizer.scaled)
        total = state.optimizer.step(terms, moment)
        if state.norms is not None:
            state.norms.average()
        state.method.after_step(moment)
        labels = self.correct_labels(output.batch, output)
        state.record_step(moment, total, terms, output.student, labels)
        self.reporter.after_step(state, moment, batch.rows)
        return output

    def correct_labels(self, batch: Batch, output: StepOutput) -> Tensor:
        """Return the labels by which the training accuracy counts."""
        return larger_share_labels(batch)

    def finish_epoch(self) -> None:
        """Validate and report if the last step ended an epoch, or the training."""
        if self.state.epoch_is_over:
            self.reporter.finish_epoch(self.state)

    def checkpoint_is_due(self) -> bool:
        """Whether it is time for a checkpoint."""
        return self.reporter.checkpoint_is_due(self.state)

    def save_checkpoint(self) -> None:
        """Write a checkpoint."""
        self.reporter.save_checkpoint(self.state)


def train(trainer: StudentTrainer, *, stop: Stop, throughput: ThroughputMeter) -> None:
    """Train one student to its end, from the step at which its state stands.

    Raises `Interrupted` after a step, with a state that can be saved.
    """
    trainer.start()
    throughput.before_step(interrupted=True)
    for moment, batch in trainer.state.iter_steps():
        trainer.train_step(batch, moment)
        throughput.after_step(batch, [trainer.step], last=trainer.state.epoch_is_over)
        trainer.finish_epoch()
        saves = trainer.checkpoint_is_due() and not trainer.state.finished
        if saves:
            trainer.save_checkpoint()
        stop.check()
        throughput.before_step(interrupted=saves)
