"""What stays fixed during a run: shared by all students of a process, and of one job."""

import pathlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from jaxtyping import UInt8
from torch import Tensor

from workers.distill.config.job import Input, JobConfig
from workers.distill.data.loader import BatchLoader
from workers.distill.data.preprocessing import Preprocessor
from workers.distill.evaluation.evaluate import LabelledImages
from workers.distill.evaluation.validation import TeacherScores, ValidationSplit
from workers.distill.methods import catalog
from workers.distill.methods.base import Method
from workers.distill.networks.interface import Network
from workers.distill.run.labelling import Labelling
from workers.distill.runtime import events, signals
from workers.distill.runtime.precision import Precision
from workers.distill.runtime.ranks import ALONE, Ranks
from workers.distill.tasks.base import BaseTask
from workers.distill.training.loop import StudentTrainer
from workers.distill.training.progress import ProgressReporter
from workers.distill.training.state import DataSource, TrainState
from workers.distill.training.step import DistillationStep
from workers.distill.training.throughput import ThroughputMeter

if TYPE_CHECKING:
    from workers.distill.reporting.federation_report import FederationEvidence
    from workers.distill.reporting.synthesis_report import SynthesisEvidence

SAMPLE_SEED = 0


@dataclass(frozen=True)
class LoopEvidence:
    """What the report shows of the work that only one loop does; None where there is none."""

    synthesis: "SynthesisEvidence | None" = None
    federation: "FederationEvidence | None" = None


class Loop(Protocol):
    """What a family of methods needs for its training: data, trainer, loop, baseline, results."""

    delivers: Literal["best", "last"]
    """Which weights are delivered (`training.state.TrainState.delivers`)."""
    train_metric: str
    """What the share of correct answers in training is called."""
    trains_method: bool
    """Whether the student's optimizer trains the parameters of the method too."""
    compiles: bool
    """Whether networks may be compiled."""

    def prepare(
        self,
        config: JobConfig,
        workdir: pathlib.Path,
        stop: signals.Stop,
        *,
        strong: bool,
        ranks: Ranks = ALONE,
    ) -> "SharedContext":
        """Return what all students share; `strong` asks for a second, strongly augmented view.

        `ranks` are the processes that train together; only a config of several devices has some.
        """
        ...

    def steps_per_epoch(self, context: "JobContext") -> int:
        """Return the student's steps in an epoch."""
        ...

    def baseline(self, context: "JobContext") -> dict[str, Any]:
        """Return the method that the baseline is trained by."""
        ...

    def make_source(self, context: "JobContext", method: Method, student: Network) -> DataSource:
        """Return where a student's batches come from, after the method has prepared on them."""
        ...

    def make_trainer(
        self, state: TrainState, step: DistillationStep, reporter: ProgressReporter
    ) -> StudentTrainer:
        """Return the trainer of a student."""
        ...

    def train(
        self, trainer: StudentTrainer, *, stop: signals.Stop, throughput: ThroughputMeter
    ) -> None:
        """Train one student to its end; raises `Interrupted` with a state that can be saved."""
        ...

    def result_fields(self, context: "JobContext", state: TrainState) -> dict[str, Any]:
        """Return the fields that this loop adds to the result."""
        ...

    def write_files(self, context: "JobContext", state: TrainState) -> list[str]:
        """Write the files that this loop adds to the outputs, and return their paths."""
        ...

    def evidence(self, context: "JobContext", state: TrainState) -> "LoopEvidence":
        """Return what the report shows of this loop's own work."""
        ...


@dataclass(frozen=True)
class JobRequest:
    """A config, where its files are, and to whom to report; `key` names a member of a group."""

    config: JobConfig
    workdir: pathlib.Path
    reporter: events.Reporter
    key: str | None = None


@dataclass(frozen=True)
class SharedContext:
    """What all students of a process share."""

    loop: Loop
    stop: signals.Stop
    task: BaseTask
    device: torch.device
    precision: Precision
    classes: list[str]
    size: Input
    """The images as stored, or as synthesized."""
    flip: bool
    train_data: BatchLoader | None
    """The training split; None for data-free methods, which read no image of it."""
    known_images: int | None
    """How many training images the record states, where there is one."""
    labelling: Labelling
    validation: ValidationSplit | None
    test: LabelledImages | None
    """Both None where a data-free job came without a data set."""
    teacher_preprocessor: Preprocessor | None
    teacher: Network | None
    """As loaded; what runs beside the student is a folded copy."""
    teacher_scores: TeacherScores | None
    ranks: Ranks
    """The processes that train this job together."""

    @property
    def train_loader(self) -> BatchLoader:
        """Return the training split; raises ValueError where there is none."""
        if self.train_data is None:
            raise ValueError("a data-free job has no training split")
        return self.train_data

    def sample(self, count: int) -> UInt8[Tensor, "N c h w"]:
        """Return images to try networks on: real ones, or random ones without a training split."""
        if self.test is not None and self.train_data is not None:
            return self.test.some_images(slice(count))
        shape = (count, self.size.channels, self.size.height, self.size.width)
        generator = torch.Generator().manual_seed(SAMPLE_SEED)
        return torch.randint(256, shape, generator=generator, dtype=torch.uint8).to(self.device)


@dataclass(frozen=True)
class JobContext(SharedContext):
    """What stays fixed during one job."""

    config: JobConfig
    workdir: pathlib.Path
    reporter: events.Reporter
    student_preprocessor: Preprocessor

    @property
    def phases(self) -> list[str]:
        """Return the phases of training, in order."""
        return ["student", "baseline"] if self.trains_baseline else ["student"]

    @property
    def trains_baseline(self) -> bool:
        """Whether a baseline is wanted that is not the student itself, and can be trained."""
        return (
            self.config.baseline
            and self.task.learns_targets
            and self.labelling.has_training_labels
            and catalog.find(self.config.method) != catalog.find(self.loop.baseline(self))
        )

    @property
    def steps(self) -> int:
        """Return the steps of one phase."""
        return self.config.training.steps(self.loop.steps_per_epoch(self))

    def method_of(self, phase: str) -> dict[str, Any]:
        """Return the method of a phase: the one of the config, or the baseline's."""
        return self.config.method if phase == "student" else self.loop.baseline(self)
