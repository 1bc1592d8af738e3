"""The training loop of a federation: rounds instead of steps, each made of clients' work.

A round is one step of the delivered model's state, and an epoch: it is validated, counted by the
schedule and by patience, and saved as any other.
"""

from dataclasses import dataclass

import torch

from workers.distill.federated.rounds import Rounds
from workers.distill.runtime.signals import Stop
from workers.distill.training.loop import StudentTrainer


@dataclass(eq=False)
class FederatedTrainer(StudentTrainer):
    """The delivered model of a federation, while clients train."""

    rounds: Rounds

    def work(self) -> None:
        """Let the next client or group work; after the last one of a round, record the round."""
        state, rounds = self.state, self.rounds
        if not rounds.work():
            self.reporter.after_other_work(state, max(rounds.round, 1))
            return
        moment = state.moment(state.step + 1)
        terms = rounds.losses()
        state.meter.update(moment.step, torch.stack(list(terms.values())).sum(), terms)
        state.step = moment.step
        self.reporter.after_step(state, moment, rounds.images_per_round)


def train(trainer: FederatedTrainer, *, stop: Stop) -> None:
    """Train to the end, from the unit of a round at which the state stands.

    Raises `Interrupted` between two units, with a state that can be saved.
    """
    trainer.start()
    while not trainer.state.finished:
        trainer.work()
        trainer.finish_epoch()
        if trainer.checkpoint_is_due() and not trainer.state.finished:
            trainer.save_checkpoint()
        stop.check()
