"""The state of one student's training: everything that a checkpoint holds, and nothing else."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from workers.distill import errors
from workers.distill.config.training import Training
from workers.distill.data.types import Batch
from workers.distill.methods.base import Method, Moment, Terms
from workers.distill.networks.interface import Features, Network
from workers.distill.training.balance import GradientBalance
from workers.distill.training.ema import EMA
from workers.distill.training.meters import LossMeter
from workers.distill.training.optimizers import TrainOptimizer
from workers.distill.training.parallel import SharedNorms

Validate = Callable[[Network], Mapping[str, float]]
"""Returns the primary metric, `loss` and more of a network on the validation split, by name."""

EndReason = Literal["epochs", "max_steps", "max_seconds", "patience_epochs"]
"""The field of the config that ended a training."""

UNKNOWN = -1.0
"""A score that nobody has measured; below every other."""


class DataSource(Protocol):
    """Where the batches of an epoch come from."""

    @property
    def steps_per_epoch(self) -> int:
        """Return the number of batches in an epoch."""
        ...

    @property
    def rows_per_epoch(self) -> int:
        """Return the number of images in an epoch."""
        ...

    def epoch(self, epoch: int, *, first: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch (from 1), leaving out those before `first`."""
        ...

    def share_done(self, step: int, steps: int) -> float:
        """Return which share (0..1) of all work is done after a step of so many."""
        ...

    def finish_epoch(self, epoch: int, *, last: bool) -> dict[str, float]:
        """Return the metrics of an epoch (from 1) that are the source's own, by name."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint; empty where epochs depend on the seed alone."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        ...


@dataclass
class BestWeights:
    """The weights to deliver so far, and the epoch and the validation score that they had."""

    epoch: int = 0
    score: float = UNKNOWN
    student: dict[str, Tensor] = field(default_factory=dict)
    method: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class TrainState:
    """A student, its method, its optimizer and counters, on their way through an epoch.

    An epoch is finished after its last step, or after the step at which a limit of steps or seconds
    is reached; the training is finished when that was the last.
    """

    phase: str
    training: Training
    student: Network
    method: Method
    source: DataSource
    optimizer: TrainOptimizer
    meter: LossMeter
    validate: Validate | None
    """None where there is nothing to validate on."""
    ema: EMA | None = None
    balance: GradientBalance | None = None
    """None where the method's terms are neither measured nor weighed."""
    norms: SharedNorms | None = None
    """The batch norms of a student that several ranks train."""
    primary_metric: str = "accuracy"
    """The validation metric that decides which weights are best."""
    train_metric: str = "accuracy"
    """What the share of correct answers in training is called: `accuracy`, or `agreement`."""
    delivers: Literal["best", "last"] = "best"
    """`best`: highest primary metric, the earliest if several; `last`: the last epoch's weights."""
    step: int = 0
    finished_epoch: int = 0
    validated_epoch: int = 0
    seconds: float = 0.0
    time_is_up: bool = False
    """Set after a step by the progress reporter, which reads the clock."""
    best: BestWeights = field(default_factory=BestWeights)
    next_best: list[BestWeights] = field(default_factory=list)
    """Of the epochs that `keep_best_epochs` keeps beside the best, the better first."""
    history: list[dict[str, int | float]] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """Return the number of steps from start to end, if nothing ends it early."""
        return self.training.steps(self.source.steps_per_epoch)

    @property
    def end_reason(self) -> EndReason | None:
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
    def finished(self) -> bool:
        """Whether no step is left."""
        return self.end_reason is not None

    @property
    def epoch_is_over(self) -> bool:
        """Whether the last step ended an epoch or the training, and `finish_epoch` is due."""
        if self.step == 0 or self.finished_epoch == self.moment(self.step).epoch:
            return False
        return self.moment(self.step).closes_epoch or self.finished

    def moment(self, step: int) -> Moment:
        """Return epoch and step of a step (from 1)."""
        per_epoch = self.source.steps_per_epoch
        return Moment(
            epoch=(step - 1) // per_epoch + 1,
            step=step,
            steps_per_epoch=per_epoch,
            epochs=self.training.epochs,
        )

    def iter_steps(self) -> Iterator[tuple[Moment, Batch]]:
        """Yield the steps that are left, each with its batch."""
        per_epoch = self.source.steps_per_epoch
        while not self.finished:
            epoch, first = self.step // per_epoch + 1, self.step % per_epoch
            for batch in self.source.epoch(epoch, first=first):
                yield self.moment(self.step + 1), batch
                if self.finished:
                    break

    def record_step(
        self, moment: Moment, total: Tensor, terms: Terms, output: Features, labels: Tensor
    ) -> None:
        """Count a step that was made; answers equal to `labels` count as correct."""
        self.meter.update(moment.step, total, terms, output, labels)
        if self.ema is not None:
            self.ema.update(moment.step)
        self.step = moment.step

    def finish_epoch(self) -> dict[str, float]:
        """Validate if it is time, keep the weights to deliver, and return the epoch's metrics.

        Nothing changes until validation is through, so an interruption inside it loses nothing.
        """
        epoch = self.finished_epoch + 1
        metrics: dict[str, float] = {}
        if self.finished or epoch % self.training.evaluate_every_epochs == 0:
            metrics = self._validate(epoch)
        averages = self.meter.compute_and_reset_epoch()
        if averages.accuracy is not None:
            metrics[f"train/{self.train_metric}"] = averages.accuracy
        metrics |= self.source.finish_epoch(epoch, last=self.finished)
        self.finished_epoch = epoch
        losses = {f"loss/{name}": value for name, value in averages.losses.items()}
        balance = {} if self.balance is None else self.balance.metrics()
        self.history.append({"epoch": epoch, **metrics, **losses, **balance})
        return metrics

    def load_best(self) -> Network:
        """Return the network to deliver, in evaluation mode, with the best epoch's weights."""
        if self.best.epoch == 0:
            raise errors.DistillError("no epoch was validated, so there is nothing to deliver")
        return self.load_kept(self.best)

    def load_kept(self, kept: BestWeights) -> Network:
        """Return the network to deliver, in evaluation mode, with the weights of a kept epoch."""
        if self.norms is not None:
            self.norms.release()
        self.student.load_state_dict(kept.student)
        if kept.method:
            self.method.load_state_dict(kept.method)
        return self.method.deliver(self.student).eval()

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint, random numbers included."""
        return {
            **self.final_state_dict(),
            "phase": self.phase,
            "finished_epoch": self.finished_epoch,
            "ema": None if self.ema is None else self.ema.state_dict(),
            "balance": None if self.balance is None else self.balance.state_dict(),
            "student": self.student.state_dict(),
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "meter": self.meter.state_dict(),
            "random": random_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self.load_final_state_dict(state)
        self.finished_epoch = state["finished_epoch"]
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        # Checkpoints of earlier versions have none; those were trained as published.
        if self.balance is not None and state.get("balance") is not None:
            self.balance.load_state_dict(state["balance"])
        self.student.load_state_dict(state["student"])
        self.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.meter.load_state_dict(state["meter"])
        set_random_state(state["random"])

    def final_state_dict(self) -> dict[str, Any]:
        """Return what is needed of a training that is finished: no optimizer, no meter."""
        return {
            "step": self.step,
            "validated_epoch": self.validated_epoch,
            "seconds": self.seconds,
            "time_is_up": self.time_is_up,
            "best": vars(self.best),
            "next_best": [vars(one) for one in self.next_best],
            "history": self.history,
            "source": self.source.state_dict(),
        }

    def load_final_state_dict(self, state: dict[str, Any]) -> None:
        """Stand at the end of a training again."""
        self.step, self.seconds = state["step"], state["seconds"]
        self.validated_epoch = state["validated_epoch"]
        self.time_is_up = state["time_is_up"]
        self.best = BestWeights(**state["best"])
        # Checkpoints of earlier versions have none.
        self.next_best = [BestWeights(**one) for one in state.get("next_best", ())]
        self.history = list(state["history"])
        self.source.load_state_dict(state["source"])

    def _validate(self, epoch: int) -> dict[str, float]:
        with self.ema.swapped_in() if self.ema else contextlib.nullcontext():
            metrics = self.validate(self.method.deliver(self.student)) if self.validate else {}
            self.validated_epoch = epoch
            score = metrics.get(self.primary_metric, UNKNOWN)
            self._keep_weights(epoch, score)
        return {f"validation/{name}": value for name, value in metrics.items()}

    def _keep_weights(self, epoch: int, score: float) -> None:
        """Keep the student's weights if they are to be delivered, or are among the best."""
        if score > self.best.score if self.delivers == "best" else self.finished:
            former, self.best = self.best, self._weights(epoch, score)
            self._keep_beside(former)
        elif self._is_among_best(score):
            self._keep_beside(self._weights(epoch, score))

    @property
    def _kept_beside(self) -> int:
        """How many epochs are kept beside the best: of a baseline none, which is no student."""
        return self.training.keep_best_epochs - 1 if self.phase == "student" else 0

    def _is_among_best(self, score: float) -> bool:
        if len(self.next_best) < self._kept_beside:
            return score > UNKNOWN
        return bool(self.next_best) and score > self.next_best[-1].score

    def _keep_beside(self, kept: BestWeights) -> None:
        # Of equal scores the earlier is the better one, as with the best itself.
        every = [*self.next_best, *([kept] if kept.epoch else [])]
        every.sort(key=lambda one: (-one.score, one.epoch))
        self.next_best = every[: self._kept_beside]

    def _weights(self, epoch: int, score: float) -> BestWeights:
        student = {name: value.clone() for name, value in self.student.state_dict().items()}
        # Memory banks can be larger than any student; they are kept where they are delivered.
        own_parts = self.method.state_dict() if delivers_own_parts(self.method) else {}
        method = {name: value.clone() for name, value in own_parts.items()}
        return BestWeights(epoch, score, student, method)


def delivers_own_parts(method: Method) -> bool:
    """Whether the delivered network contains weights of the method."""
    return type(method).deliver is not Method.deliver


def larger_share_labels(batch: Batch) -> Tensor:
    """Return the labels that count as correct: of a mixed image, those of its larger share."""
    if batch.mixed is None:
        return batch.labels
    return torch.where(batch.mixed.share >= 0.5, batch.labels, batch.mixed.labels)


def random_state() -> dict[str, Any]:
    """Return the state of torch's global generators."""
    # A run on the CPU leaves the cards alone: asking one would take memory on it. Of several, that
    # of this process counts: the ranks of a job draw the same.
    initialized = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # torch's stub
    cuda = [torch.cuda.get_rng_state()] if initialized else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_random_state(state: dict[str, Any]) -> None:
    """Restore torch's global generators."""
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and state["cuda"]:
        torch.cuda.set_rng_state(state["cuda"][0])
