"""What one run is asked to do: networks, method, training, as plain, frozen, bounded values."""

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from workers.distill.config import chosen, class_names, descriptions, rules
from workers.distill.config.devices import MOST_DEVICES
from workers.distill.config.federation import rounds_as_epochs
from workers.distill.config.teachers import MOST_TEACHERS, Weighting
from workers.distill.config.training import Training, Values, expand, merge_preset

Task: TypeAlias = descriptions.Task


class Input(Values):
    """Images a network expects: size, and the normalisation of pixels in 0..1."""

    channels: int = Field(ge=1, le=64)
    height: int = Field(ge=1, le=4096)
    width: int = Field(ge=1, le=4096)
    mean: list[float]
    std: list[Annotated[float, Field(gt=0)]]

    @model_validator(mode="after")
    def _one_moment_per_channel(self) -> "Input":
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise ValueError(
                f"mean and std need one number per channel ({self.channels}), "
                f"got {len(self.mean)} and {len(self.std)}"
            )
        return self


class NetworkChoice(Values):
    """Which network plays a role, and what it expects."""

    network: str = Field(min_length=1, max_length=200)
    arguments: dict[str, Any] = Field(
        default_factory=dict
    )  # Any: JSON, checked by the network's own schema
    classes: int = Field(ge=0)
    """0: it has no classifier, and answers with its embedding."""
    input: Input
    class_names: list[str] | None = None
    """In the order of the logits of its weights; None where they have none, or are its own."""


class JobConfig(Values):
    """One student to be made: the whole request, as the engine reads it."""

    version: Literal[1] = 1
    task: Task = "classification"
    teacher: NetworkChoice | None = None
    teachers: list[NetworkChoice] = Field(
        default=[], max_length=MOST_TEACHERS, description="Several, in place of `teacher`."
    )
    teacher_weighting: Weighting | None = None
    student: NetworkChoice
    initial: bool = False
    method: dict[str, Any]  # Any: checked by the method's own Params
    training: Training = Field(default_factory=lambda: expand({}))
    baseline: bool = False
    report: bool = True
    accelerator: Literal["any", "cpu", "cuda"] = "any"
    devices: int = Field(1, ge=1, le=MOST_DEVICES)
    class_names: list[str] = Field(default_factory=list)
    """What the teacher's classes are called; for a job that has no data set to name them."""
    provenance: dict[str, str | int | None] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _with_choices(cls, given: object) -> object:
        if not isinstance(given, Mapping):
            return given
        training = given.get("training", {})
        if not isinstance(training, Mapping):
            return given
        method, student = given.get("method"), given.get("student")
        training = rounds_as_epochs(method, training)
        if isinstance(method, Mapping) and isinstance(student, Mapping):
            training = chosen.training_with_rate(
                training, student.get("network"), method.get("name")
            )
        return {**given, "training": training}

    @field_validator("training", mode="before")
    @classmethod
    def _expanded(cls, value: object) -> object:
        return merge_preset(value) if isinstance(value, Mapping) else value

    @field_validator("training")
    @classmethod
    def _without_contradiction(cls, value: Training) -> Training:
        for fault in rules.of_training(value.model_dump()):
            raise PydanticCustomError(
                "contradiction",
                "{message}",
                {"message": fault.message, "field": fault.field, "code": fault.code},
            )
        return value

    @field_validator("method")
    @classmethod
    def _named(cls, value: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(value.get("name"), str):
            raise ValueError('a method needs a name, such as {"name": "kd"}')
        return value

    @model_validator(mode="after")
    def _one_kind_of_teachers(self) -> "JobConfig":
        for fault in rules.of_teachers(
            has_teacher=self.teacher is not None,
            count=len(self.teachers),
            has_weighting=self.teacher_weighting is not None,
        ):
            raise PydanticCustomError(
                "contradiction",
                "{message}",
                {"message": fault.message, "field": fault.field, "code": fault.code},
            )
        return self

    @property
    def all_teachers(self) -> list[NetworkChoice]:
        """Return the teacher, or the several teachers, or nothing."""
        return [self.teacher] if self.teacher is not None else list(self.teachers)

    def lineage(self) -> dict[str, str | int | None]:
        """Return the provenance without what differs from one attempt to the next."""
        return {key: value for key, value in self.provenance.items() if key != "attempt"}

    def digest(self) -> str:
        """Return a digest that two attempts at the same work share."""
        content = self.model_dump(mode="json")
        if self.training.augmentation != "scale_jitter":
            # Without effect; left out, so that checkpoints outlive the version that added it.
            del content["training"]["scale_jitter"]
        if self.training.flip is None:
            # As before there was a choice.
            del content["training"]["flip"]
        if self.training.pseudo_labels is None:
            # As before there were any.
            del content["training"]["pseudo_labels"]
        if not self.training.sync_batch_norm:
            # As before there was a choice.
            del content["training"]["sync_batch_norm"]
        if self.devices == 1:
            # As before there could be several.
            del content["devices"]
        if self.training.keep_best_epochs == 1:
            # As before there was a choice.
            del content["training"]["keep_best_epochs"]
        for added in ("random_resized_crop", "random_erasing", "crop_ratio"):
            if content["training"][added] is None:
                # As before there was a choice.
                del content["training"][added]
        if self.training.task_loss.name == "cross_entropy":
            # As before there was a choice.
            del content["training"]["task_loss"]
        if not self.training.evaluate_sizes:
            # As before there were any.
            del content["training"]["evaluate_sizes"]
        if self.training.class_weights == "none":
            # As before there were any.
            del content["training"]["class_weights"]
        for role, choice in (("teacher", self.teacher), ("student", self.student)):
            if (
                choice is not None
                and class_names.order(choice.class_names, self.class_names) is None
            ):
                # Without effect, and in no checkpoint of the versions before.
                del content[role]["class_names"]
        if self.method.get("balance") in (None, "published"):
            # Without effect on the student, and in no config of the versions before.
            content["method"].pop("balance", None)
        if not self.teachers:
            # As before there could be several.
            del content["teachers"], content["teacher_weighting"]
        content["provenance"] = self.lineage()
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()
