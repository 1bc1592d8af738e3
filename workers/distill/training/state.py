"""One network's way through its training: everything that moves, in one place that can be saved."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from workers.distill import errors
from workers.distill.config.training import Training
from workers.distill.data.preprocessing import Preprocessor
from workers.distill.data.types import Batch
from workers.distill.methods.base import Method, Moment, Terms
from workers.distill.networks.interface import Features, Network
from workers.distill.synthesis.data_source import SyntheticDataSource
from workers.distill.training import optimizers
from workers.distill.training.ema import EMA
from workers.distill.training.meters import LossMeter
from workers.distill.training.teachers import at_least_float

Validate = Callable[[Network], Mapping[str, float]]
"""Returns `accuracy`, `loss` and more of a network on the validation split, by name."""

Ending = Literal["epochs", "max_steps", "max_seconds", "patience_epochs"]
"""The field of the recipe that ended a training."""


UNKNOWN = -1.0
"""An accuracy that nobody has measured; below every other."""


class BatchSource(Protocol):
    """Where the batches of an epoch come from."""

    @property
    def steps_per_epoch(self) -> int:
        """Return the number of batches in an epoch."""
        ...

    def epoch(self, epoch: int, *, first: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch (from 1), leaving out those before `first`."""
        ...


@dataclass
class BestWeights:
    """The weights to deliver so far: highest validation accuracy, the earliest if several.

    Without data they are those of the last epoch: no image may choose between epochs.
    """

    epoch: int = 0
    accuracy: float = UNKNOWN
    student: dict[str, Tensor] = field(default_factory=dict)
    method: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class TrainState:
    """A student, its method and its optimizer on their way through the training split.

    An epoch is closed after its last step, or after the step at which a limit of steps or seconds
    is reached; the way is over when that was the last.
    """

    phase: str
    training: Training
    student: Network
    observe: optimizers.Observe
    method: Method
    view: Preprocessor
    source: BatchSource
    precision: optimizers.Precision
    stepper: optimizers.Stepper
    tally: LossMeter
    validate: Validate | None
    """None where there is nothing to validate on."""
    studio: SyntheticDataSource | None = None
    """Where the images are invented, if they are."""
    step: int = 0
    closed_epoch: int = 0
    validated_epoch: int = 0
    seconds: float = 0.0
    time_is_up: bool = False
    """Set after a step by whoever looks at the clock."""
    best: BestWeights = field(default_factory=BestWeights)
    history: list[dict[str, int | float]] = field(default_factory=list)

    ema: EMA | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        """Begin the average of the weights, where one is wanted."""
        if self.training.ema_decay is not None:
            learners: dict[str, nn.Module] = {"student": self.student}
            if self.studio is None:  # what synthesis learns is no part of what is delivered
                learners["method"] = self.method
            self.ema = EMA(learners, self.training.ema_decay)

    @property
    def steps(self) -> int:
        """Return the number of steps from start to end, if nothing ends it early."""
        return self.training.steps(self.source.steps_per_epoch)

    @property
    def ended_by(self) -> Ending | None:
        """Return what has ended the training, or None while it goes on."""
        training = self.training
        if self.step >= self.steps:
            whole = training.epochs * self.source.steps_per_epoch
            return "epochs" if self.step >= whole else "max_steps"
        if self.time_is_up:
            return "max_seconds"
        waited = self.validated_epoch - self.best.epoch
        if training.patience_epochs is not None and waited >= training.patience_epochs:
            return "patience_epochs"
        return None

    @property
    def over(self) -> bool:
        """Whether no step is left."""
        return self.ended_by is not None

    def moment(self, step: int) -> Moment:
        """Return where a step (from 1) stands."""
        per_epoch = self.source.steps_per_epoch
        return Moment(epoch=(step - 1) // per_epoch + 1, step=step, steps_per_epoch=per_epoch)

    def walk(self) -> Iterator[tuple[Moment, Batch]]:
        """Yield the steps that are left, each with its batch."""
        per_epoch = self.source.steps_per_epoch
        while not self.over:
            epoch, first = self.step // per_epoch + 1, self.step % per_epoch
            for batch in self.source.epoch(epoch, first=first):
                yield self.moment(self.step + 1), batch
                if self.over:
                    break

    def learn(self, batch: Batch) -> Features:
        """Return what the student shows for a batch, ready for a loss."""
        shown = self._look(batch.images)
        if batch.strong is None or not self.method.uses_strong_view:
            return shown
        return dataclasses.replace(shown, strong=self._look(batch.strong))

    def advance(
        self,
        moment: Moment,
        total: Tensor,
        terms: Terms,
        learned: Features,
        batch: Batch,
        *,
        right: Tensor | None = None,
    ) -> None:
        """Count a finished step; right answers are the batch's labels unless they are given."""
        labels = seen_labels(batch) if right is None else right
        self.tally.add(moment.step, total, terms, learned.logits, labels)
        if self.ema is not None:
            self.ema.follow(moment.step)
        self.step = moment.step

    @property
    def owes_close(self) -> bool:
        """Whether the last step ended an epoch, or the training, and it was not closed yet."""
        if self.step == 0 or self.closed_epoch == self.moment(self.step).epoch:
            return False
        return self.moment(self.step).closes_epoch or self.over

    def close_epoch(self) -> dict[str, float]:
        """Validate if it is time, remember the best weights, and return the epoch's numbers.

        Nothing changes until validation is through, so an interruption inside it loses nothing.
        """
        epoch = self.closed_epoch + 1
        numbers: dict[str, float] = {}
        if self.over or epoch % self.training.evaluate_every_epochs == 0:
            numbers = self._validate(epoch)
        closed = self.tally.close_epoch()
        if self.studio is None:
            numbers["train/accuracy"] = closed.accuracy
        else:
            numbers["train/agreement"] = closed.accuracy
            numbers |= self.studio.close_epoch(epoch, last=self.over)
        self.closed_epoch = epoch
        losses = {f"loss/{name}": value for name, value in closed.losses.items()}
        self.history.append({"epoch": epoch, **numbers, **losses})
        return numbers

    def use_best(self) -> Network:
        """Return the network to deliver, with the best epoch's weights."""
        if self.best.epoch == 0:
            raise errors.DistillError("no epoch was validated, so there is nothing to deliver")
        self.student.load_state_dict(self.best.student)
        if self.best.method:
            self.method.load_state_dict(self.best.method)
        return self.method.deliver(self.student).eval()

    def state(self) -> dict[str, Any]:
        """Return everything that moves."""
        return {
            "phase": self.phase,
            "step": self.step,
            "closed_epoch": self.closed_epoch,
            "validated_epoch": self.validated_epoch,
            "seconds": self.seconds,
            "time_is_up": self.time_is_up,
            "ema": None if self.ema is None else self.ema.state(),
            "student": self.student.state_dict(),
            "method": self.method.state_dict(),
            "stepper": self.stepper.state(),
            "tally": self.tally.state(),
            "best": vars(self.best),
            "history": self.history,
            "studio": None if self.studio is None else self.studio.state(),
            "random": random_state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a state."""
        self.step, self.closed_epoch = state["step"], state["closed_epoch"]
        self.validated_epoch = state["validated_epoch"]
        self.seconds, self.time_is_up = state["seconds"], state["time_is_up"]
        if self.ema is not None:
            self.ema.restore(state["ema"])
        self.student.load_state_dict(state["student"])
        self.method.load_state_dict(state["method"])
        self.stepper.restore(state["stepper"])
        self.tally.restore(state["tally"])
        self.best = BestWeights(**state["best"])
        self.history = list(state["history"])
        if self.studio is not None:
            self.studio.restore(state["studio"])
        set_random_state(state["random"])

    def outcome(self) -> dict[str, Any]:
        """Return what is left of a phase when it is over."""
        return {
            "step": self.step,
            "validated_epoch": self.validated_epoch,
            "seconds": self.seconds,
            "time_is_up": self.time_is_up,
            "best": vars(self.best),
            "history": self.history,
            "studio": None if self.studio is None else self.studio.state(),
        }

    def restore_outcome(self, outcome: dict[str, Any]) -> None:
        """Stand at the end of a phase again."""
        self.step, self.seconds = outcome["step"], outcome["seconds"]
        self.validated_epoch = outcome["validated_epoch"]
        self.time_is_up = outcome["time_is_up"]
        self.best = BestWeights(**outcome["best"])
        self.history = list(outcome["history"])
        if self.studio is not None:
            self.studio.restore(outcome["studio"])

    def _look(self, images: Tensor) -> Features:
        with self.precision.autocast():
            shown = self.observe(self.view(images))
        if self.precision.name == "float32":
            return shown
        return dataclasses.replace(
            shown,
            logits=at_least_float(shown.logits),
            pooled=at_least_float(shown.pooled),
        )

    def _validate(self, epoch: int) -> dict[str, float]:
        with self.ema.in_place() if self.ema else contextlib.nullcontext():
            found = self.validate(self.method.deliver(self.student)) if self.validate else {}
            self.validated_epoch = epoch
            accuracy = found.get("accuracy", UNKNOWN)
            delivers = accuracy > self.best.accuracy if self.studio is None else self.over
            if delivers:
                self._remember(epoch, accuracy)
        return {f"validation/{name}": value for name, value in found.items()}

    def _remember(self, epoch: int, accuracy: float) -> None:
        student = {name: value.clone() for name, value in self.student.state_dict().items()}
        # Memories can be larger than any student; they are kept where something is made of them.
        learned = self.method.state_dict() if delivers_more(self.method) else {}
        method = {name: value.clone() for name, value in learned.items()}
        self.best = BestWeights(epoch, accuracy, student, method)


def delivers_more(method: Method) -> bool:
    """Whether what is delivered depends on what the method itself has learned."""
    return type(method).deliver is not Method.deliver


def seen_labels(batch: Batch) -> Tensor:
    """Return the labels that count as right: of a mixed image, those of its larger share."""
    if batch.mixed is None:
        return batch.labels
    return torch.where(batch.mixed.share >= 0.5, batch.labels, batch.mixed.labels)


def random_state() -> dict[str, Any]:
    """Return the state of torch's global generators."""
    # A run on the CPU leaves the cards alone: asking them would take memory on each.
    initialized = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # torch's stub
    cuda = torch.cuda.get_rng_state_all() if initialized else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_random_state(state: dict[str, Any]) -> None:
    """Continue torch's global generators."""
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
