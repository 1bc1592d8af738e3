"""The training loop of one student without data: synthesis calls and training steps in turns.

Both parts use one replay buffer (`data_source`). A run that was saved anywhere, inside a synthesis
call too, continues exactly: generator, latent vectors, buffer, priorities, random numbers.
"""

from dataclasses import dataclass

from torch import Tensor

from workers.distill.data.types import Batch
from workers.distill.methods.base import Moment
from workers.distill.runtime.signals import Stop
from workers.distill.synthesis.data_source import SyntheticDataSource
from workers.distill.training.loop import StudentTrainer
from workers.distill.training.step import StepOutput


@dataclass(eq=False)
class DataFreeTrainer(StudentTrainer):
    """A student that is trained on synthetic images; a correct answer is the teacher's."""

    source: SyntheticDataSource

    def train_step(self, batch: Batch, moment: Moment) -> StepOutput:
        """Make one step, and update the priorities of the images that it used."""
        output = super().train_step(batch, moment)
        self.source.update_priorities(batch, output.student.logits.detach(), output.teacher.logits)
        return output

    def correct_labels(self, batch: Batch, output: StepOutput) -> Tensor:
        """Return the teacher's answers."""
        return output.teacher.logits.argmax(1)

    def synthesis_step(self) -> None:
        """Make one step of the synthesis call that is due."""
        self.source.synthesis_step()
        state = self.state
        epoch = state.moment(state.step + 1).epoch if state.step else 0
        self.reporter.after_other_work(state, epoch)


def train(trainer: DataFreeTrainer, *, stop: Stop) -> None:
    """Train one student to its end, from the step or the synthesis step at which it stands.

    Raises `Interrupted` between two steps of either kind, with a state that can be saved.
    """
    trainer.start()
    steps = trainer.state.iter_steps()
    while not trainer.state.finished:
        if trainer.source.needs_synthesis(trainer.state.step + 1):
            trainer.synthesis_step()
        else:
            moment, batch = next(steps)
            trainer.train_step(batch, moment)
            trainer.finish_epoch()
        if trainer.checkpoint_is_due() and not trainer.state.finished:
            trainer.save_checkpoint()
        stop.check()
