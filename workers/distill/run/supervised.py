"""How methods that learn from a labelled training split are trained."""

import pathlib
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from workers.distill.config.baseline import LABELS_ALONE
from workers.distill.config.job import JobConfig
from workers.distill.data.loader import BatchLoader
from workers.distill.methods.base import Method
from workers.distill.networks.interface import Network
from workers.distill.networks.predictions import PredictionsNetwork
from workers.distill.run import prepare
from workers.distill.run.context import JobContext, LoopEvidence, SharedContext
from workers.distill.runtime import signals
from workers.distill.runtime.ranks import ALONE, Ranks
from workers.distill.training import loop
from workers.distill.training.loop import StudentTrainer
from workers.distill.training.progress import ProgressReporter
from workers.distill.training.state import TrainState
from workers.distill.training.step import DistillationStep
from workers.distill.training.teachers import CACHE_BATCH, at_least_float
from workers.distill.training.throughput import ThroughputMeter


class SupervisedLoop:
    """Batches of the training split, a baseline of cross-entropy, the best epoch delivered."""

    delivers: Literal["best", "last"] = "best"
    train_metric = "accuracy"
    trains_method = True
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
        """Read the data set, load the teacher, and check that they fit."""
        return prepare.prepare(config, workdir, stop, loop=self, strong=strong, ranks=ranks)

    def steps_per_epoch(self, context: JobContext) -> int:
        """Return the number of batches of the training split."""
        return context.train_loader.steps_per_epoch

    def baseline(self, context: JobContext) -> dict[str, Any]:
        """Return cross-entropy with the labels."""
        return dict(LABELS_ALONE)

    def make_source(self, context: JobContext, method: Method, student: Network) -> BatchLoader:
        """Return the training split, which all students of a group share.

        A method without a teacher does not see the teacher's pseudo-labels.
        """
        loader, labels = context.train_loader, context.labelling.train
        if labels is not None and labels.pseudo and "teacher" not in method.needs:
            loader = loader.with_labels(labels.given)
        method.prepare(loader.labels)
        if method.reads_teacher_first:
            method.read_teacher(teacher_outputs(context))
        return loader

    def make_trainer(
        self, state: TrainState, step: DistillationStep, reporter: ProgressReporter
    ) -> StudentTrainer:
        """Return the plain trainer."""
        return StudentTrainer(state, step, reporter)

    def train(
        self, trainer: StudentTrainer, *, stop: signals.Stop, throughput: ThroughputMeter
    ) -> None:
        """Train one student to its end."""
        loop.train(trainer, stop=stop, throughput=throughput)

    def result_fields(self, context: JobContext, state: TrainState) -> dict[str, Any]:
        """Return nothing: the common fields say all."""
        return {}

    def write_files(self, context: JobContext, state: TrainState) -> list[str]:
        """Write nothing beside the student."""
        return []

    def evidence(self, context: JobContext, state: TrainState) -> LoopEvidence:
        """Return nothing: the common topics show all."""
        return LoopEvidence()


def teacher_outputs(context: JobContext) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield labels [n] and the teacher's logits [n, C], float32 at least, of the training split.

    Images are unaugmented; those of a teacher that is a table are not loaded.
    """
    teacher, preprocessor = context.teacher, context.teacher_preprocessor
    if teacher is None or preprocessor is None:
        raise ValueError("there is no teacher whose outputs could be read")
    loader = context.train_loader
    if isinstance(teacher, PredictionsNetwork):
        for first in range(0, loader.count, CACHE_BATCH):
            end = min(first + CACHE_BATCH, loader.count)
            index = torch.arange(first, end, device=context.device)
            # Of the first view where there are several: none is of the image as it is stored.
            yield loader.labels[index], teacher.rows(index)
        return
    for batch in loader.in_order(CACHE_BATCH):
        context.stop.check()
        with torch.no_grad(), context.precision.autocast():
            logits = teacher.observe(preprocessor(batch.images)).logits
        yield batch.labels, at_least_float(logits)


LOOP = SupervisedLoop()
