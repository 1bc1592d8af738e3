"""Several methods at once, as papers combine them: CRD + KD, features + logits.

The student learns the labels once, with the combination's own `task_weight`; of each part only
what it learns from the teacher counts, times the part's `weight`. A part brings its own adapters,
memory and schedule, exactly as it would alone.

Source: Tian et al., ICLR 2020, arXiv:1910.10699, section 4.1 (CRD + KD adds 1.0 times KD's loss).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

from jaxtyping import Shaped
from pydantic import Field
from torch import Tensor

from workers.distill.config import descriptions
from workers.distill.config.job import Task
from workers.distill.data.types import Batch
from workers.distill.methods.base import (
    FeatureName,
    Method,
    Moment,
    Need,
    Source,
    SupervisedMethod,
    Terms,
)
from workers.distill.networks.interface import Features, Network

NAME = descriptions.COMBINE
MOST_PARTS = 8


@dataclass(frozen=True)
class Part:
    """One method of a combination, and how much it counts."""

    weight: float
    method: type[Method]
    params: Method.Params


class Combination(SupervisedMethod):
    """Add the distillation terms of several methods to one cross-entropy."""

    name = NAME
    family = "combination"
    title = "Several methods at once"
    source = Source(
        "Contrastive Representation Distillation",
        venue="ICLR 2020",
        arxiv="1910.10699",
        equations="section 4.1",
    )
    tasks: ClassVar[tuple[Task, ...]] = ("classification", "segmentation", "detection", "embedding")

    class Params(SupervisedMethod.Params):
        """The weight of the labels, and the parts."""

        methods: list[dict[str, Any]] = Field(  # Any: checked by each part's own Params
            min_length=2,
            max_length=MOST_PARTS,
            description="Methods with their hyper-parameters, as alone but without `task_weight`, "
            "and each with a `weight` (1 if absent) that multiplies all its terms.",
        )

    params: Params
    part_choices: tuple[Part, ...] = ()
    """Set by `of`, which makes a class of its own for each choice of parts."""

    def __init__(self, params: Params, student: Network, teacher: Network | None) -> None:
        super().__init__(params, student, teacher)
        self._parts = [part.method(part.params, student, teacher) for part in self.part_choices]
        for place, part in enumerate(self._parts):
            self.add_module(f"part_{place}", part)
        self._balanced: set[str] = set()

    @property
    def is_auto_balanced(self) -> bool:
        """Whether `balance: auto` keeps a part within the task's gradient."""
        return any(part.is_auto_balanced for part in self._parts)

    def auto_balanced_terms(self, terms: Terms) -> frozenset[str]:
        """Return the names of the terms of the parts that `balance: auto` is for, all as one."""
        return frozenset(self._balanced)

    @property
    def teacher_trains(self) -> bool:
        """Whether any part observes the teacher with the batch's own statistics."""
        return any(part.teacher_trains for part in self._parts)

    def prepare(self, labels: Shaped[Tensor, "N *T"]) -> None:
        """Let each part look at the labels."""
        for part in self._parts:
            part.prepare(labels)

    @property
    def reads_teacher_first(self) -> bool:
        """Whether any part reads the teacher's outputs before training starts."""
        return any(part.reads_teacher_first for part in self._parts)

    def read_teacher(self, outputs: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Let each part that wants it look at the teacher's outputs."""
        shared_outputs = list(outputs)
        for part in self._parts:
            if part.reads_teacher_first:
                part.read_teacher(shared_outputs)

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the task term, and every part's distillation terms under its own names."""
        terms = self.task(student, batch)
        self._balanced = set()
        for place, (choice, part) in enumerate(zip(self.part_choices, self._parts, strict=True)):
            for name, term in part.terms(student, teacher, batch, moment).items():
                if name != "task":
                    # The same method twice, on different stages: the second one is numbered.
                    unique = name if name not in terms else f"{name}_{place + 1}"
                    terms[unique] = choice.weight * term
                    if part.is_auto_balanced:
                        self._balanced.add(unique)
        return terms

    def facts(self) -> dict[str, Any]:
        """Return the facts of each part that has any, by its name."""
        return {part.name: part.facts() for part in self._parts if part.facts()}

    def after_step(self, moment: Moment) -> None:
        """Let each part follow the step."""
        for part in self._parts:
            part.after_step(moment)


def of(parts: Sequence[Part]) -> type[Combination]:
    """Return the class of these parts together: it needs whatever one of them needs."""
    description = descriptions.combined(
        Combination.describe(), [part.method.describe() for part in parts]
    )

    class Combined(Combination):
        part_choices = tuple(parts)
        tasks: tuple[Task, ...] = cast("tuple[Task, ...]", description.tasks)  # type: ignore[misc]  # filled in once, for this class
        needs: tuple[Need, ...] = description.needs  # type: ignore[misc]  # the same
        required_student_features: tuple[FeatureName, ...] = description.student_shows  # type: ignore[misc]  # the same
        required_teacher_features: tuple[FeatureName, ...] = description.teacher_shows  # type: ignore[misc]  # the same
        task_features: Mapping[Task, tuple[FeatureName, ...]] = cast(  # type: ignore[misc]  # the same
            "Mapping[Task, tuple[FeatureName, ...]]", description.task_shows
        )
        accepts_mixed = description.accepts_mixed
        uses_strong_view = description.wants_strong
        reads_labels = description.reads_labels
        weighs_classes = description.weighs_classes
        across_devices = description.across_devices
        smallest_batch = description.smallest_batch
        smallest_classes = description.smallest_classes

    return Combined
