"""One network's way through its training: everything that moves, in one place that can be saved."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from workers.distill import optimizers
from workers.distill.data import batches
from workers.distill.loops import tally, teacher
from workers.distill.method import Batch, Method, Moment, Terms
from workers.distill.networks.interface import Features, Network
from workers.distill.recipe import Training

Validate = Callable[[Network], tuple[float, float]]
"""Returns accuracy and loss of a network on the validation split."""


@dataclass
class Best:
    """The weights to deliver so far: highest validation accuracy, the earliest if several."""

    epoch: int = 0
    accuracy: float = -1.0
    student: dict[str, Tensor] = field(default_factory=dict)
    method: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Course:
    """A student, its method and its optimizer on their way through the training split."""

    phase: str
    training: Training
    student: Network
    observe: optimizers.Observe
    method: Method
    view: batches.View
    source: batches.Batches
    precision: optimizers.Precision
    stepper: optimizers.Stepper
    tally: tally.Tally
    validate: Validate
    step: int = 0
    closed_epoch: int = 0
    seconds: float = 0.0
    best: Best = field(default_factory=Best)
    history: list[dict[str, int | float]] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """Return the number of steps from start to end."""
        return self.training.epochs * self.source.steps_per_epoch

    def moment(self, step: int) -> Moment:
        """Return where a step (from 1) stands."""
        per_epoch = self.source.steps_per_epoch
        return Moment(epoch=(step - 1) // per_epoch + 1, step=step, steps_per_epoch=per_epoch)

    def walk(self) -> Iterator[tuple[Moment, Batch]]:
        """Yield the steps that are left, each with its batch."""
        per_epoch = self.source.steps_per_epoch
        for epoch in range(self.step // per_epoch + 1, self.training.epochs + 1):
            for batch in self.source.epoch(epoch, first=self.step % per_epoch):
                yield self.moment(self.step + 1), batch

    def learn(self, batch: Batch) -> Features:
        """Return what the student shows for a batch, ready for a loss."""
        with self.precision.autocast():
            shown = self.observe(self.view(batch.images))
        if self.precision.name == "float32":
            return shown
        return Features(
            logits=teacher.at_least_float(shown.logits),
            pooled=teacher.at_least_float(shown.pooled),
            stem=shown.stem,
            stages=shown.stages,
            pre_activations=shown.pre_activations,
            final=shown.final,
        )

    def advance(
        self, moment: Moment, total: Tensor, terms: Terms, learned: Features, batch: Batch
    ) -> None:
        """Count a finished step."""
        self.tally.add(moment.step, total, terms, learned.logits, batch.labels)
        self.step = moment.step

    @property
    def owes_close(self) -> bool:
        """Whether the last step ended an epoch that was not closed yet."""
        per_epoch = self.source.steps_per_epoch
        return self.step % per_epoch == 0 and self.closed_epoch < self.step // per_epoch

    def close_epoch(self) -> dict[str, float]:
        """Validate if it is time, remember the best weights, and return the epoch's numbers.

        Nothing changes until validation is through, so an interruption inside it loses nothing.
        """
        epoch = self.closed_epoch + 1
        last = epoch == self.training.epochs
        numbers: dict[str, float] = {}
        if last or epoch % self.training.evaluate_every_epochs == 0:
            accuracy, loss = self.validate(self.method.deliver(self.student))
            numbers = {"validation/accuracy": accuracy, "validation/loss": loss}
            if accuracy > self.best.accuracy:
                self._remember(epoch, accuracy)
        numbers["train/accuracy"] = self.tally.close_epoch()
        self.closed_epoch = epoch
        self.history.append({"epoch": epoch, **numbers})
        return numbers

    def use_best(self) -> Network:
        """Return the network to deliver, with the best epoch's weights."""
        self.student.load_state_dict(self.best.student)
        self.method.load_state_dict(self.best.method)
        return self.method.deliver(self.student).eval()

    def state(self) -> dict[str, Any]:
        """Return everything that moves."""
        return {
            "phase": self.phase,
            "step": self.step,
            "closed_epoch": self.closed_epoch,
            "seconds": self.seconds,
            "student": self.student.state_dict(),
            "method": self.method.state_dict(),
            "stepper": self.stepper.state(),
            "tally": self.tally.state(),
            "best": vars(self.best),
            "history": self.history,
            "random": random_state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a state."""
        self.step, self.closed_epoch = state["step"], state["closed_epoch"]
        self.seconds = state["seconds"]
        self.student.load_state_dict(state["student"])
        self.method.load_state_dict(state["method"])
        self.stepper.restore(state["stepper"])
        self.tally.restore(state["tally"])
        self.best = Best(**state["best"])
        self.history = list(state["history"])
        set_random_state(state["random"])

    def outcome(self) -> dict[str, Any]:
        """Return what is left of a phase when it is over."""
        return {
            "step": self.step,
            "seconds": self.seconds,
            "best": vars(self.best),
            "history": self.history,
        }

    def restore_outcome(self, outcome: dict[str, Any]) -> None:
        """Stand at the end of a phase again."""
        self.step, self.seconds = outcome["step"], outcome["seconds"]
        self.best = Best(**outcome["best"])
        self.history = list(outcome["history"])

    def _remember(self, epoch: int, accuracy: float) -> None:
        student = {name: value.clone() for name, value in self.student.state_dict().items()}
        method = {name: value.clone() for name, value in self.method.state_dict().items()}
        self.best = Best(epoch, accuracy, student, method)


def random_state() -> dict[str, Any]:
    """Return the state of torch's global generators."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_random_state(state: dict[str, Any]) -> None:
    """Continue torch's global generators."""
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
