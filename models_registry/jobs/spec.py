"""JobSpec, and what a study's spec has in common with it. Immutable once submitted.

What depends on the engine (hyper-parameters of a method, fields of `training`) is checked by
`validation.py`; this file holds the rest. Where something of the rest is at fault, both are told
together.
"""

import dataclasses
from collections.abc import Container, Iterable
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from models_registry.errors import Fault
from models_registry.jobs import validation
from workers.distill.config.devices import MOST_DEVICES
from workers.distill.config.exports import ExportChoice
from workers.distill.config.job import Task
from workers.distill.config.teachers import MOST_TEACHERS, WEIGHTING, Weighting

VERSION = 1
NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,95}$"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class JobReference(_Part):
    """The student of another job of the project, which may not have been made yet."""

    job: str = Field(
        pattern=r"^job_[0-9a-z]{1,36}$", description="Id of the job, which is waited for."
    )

    def __str__(self) -> str:
        """Return what it is called in sentences."""
        return f"the student of {self.job}"


_LONGEST_REFERENCE = 300


# Any: the caller's JSON; the faults of one form hide no faults of the other.
def _in_one_form(value: Any) -> Any:
    if isinstance(value, dict):
        return JobReference.model_validate(value)
    if value is None or isinstance(value, JobReference):
        return value
    if not isinstance(value, str):
        raise ValueError('is a reference, such as `name@version`, or {"job": "job_..."}')
    if len(value) > _LONGEST_REFERENCE:
        raise ValueError(f"has {len(value)} characters, at most {_LONGEST_REFERENCE}")
    return value


ModelReference = Annotated[
    Annotated[str, Field(max_length=_LONGEST_REFERENCE)] | JobReference | None,
    BeforeValidator(_in_one_form),
]


class StudentSpec(_Part):
    """The network to train, and the registry name that it is kept under."""

    network: str = Field(
        max_length=160, description="Reference such as `retort/resnet8` or `timm/resnet18`."
    )
    arguments: dict[str, Any] = Field({}, description="Keyword arguments of the network.")
    initial: ModelReference = Field(
        None,
        description="Model version whose weights the student starts from; a job's, as `teacher`.",
    )
    register_as: str | None = Field(
        None,
        pattern=NAME_PATTERN,
        description="Model name for the student; by default made from the job's name.",
    )


class ResourcesSpec(_Part):
    """What the job may use."""

    accelerator: Literal["any", "cpu", "cuda"] = Field("any", description="Kind of device.")
    devices: int = Field(
        1,
        ge=1,
        le=MOST_DEVICES,
        description="Devices of one machine, on each of which a process trains with its slice of "
        "every batch.",
    )
    max_runtime_seconds: float | None = Field(
        None, gt=0, le=30 * 86_400, description="Active time after which the job fails."
    )
    queue_deadline_seconds: float | None = Field(
        None, gt=0, le=30 * 86_400, description="Waiting time after which the job fails."
    )


def name_of(reference: str | JobReference | None) -> str | None:
    """Return what a reference to a model is called in sentences."""
    return None if reference is None else str(reference)


# Any: JSON of a stored spec.
def reference_in(stored: Any) -> str | None:
    """Return what a reference in a stored spec is called in sentences."""
    return name_of(JobReference(**stored) if isinstance(stored, dict) else stored)


def named(method: dict[str, Any]) -> dict[str, Any]:
    """Return a method; raises ValueError for one without a name."""
    if not isinstance(method.get("name"), str):
        raise ValueError('needs a "name", such as {"name": "kd"}')
    return method


class Request(_Part):
    """What a job and a study have in common."""

    name: str = Field(min_length=1, max_length=200, description="For people; need not be unique.")
    task: Task = Field(
        "classification",
        description="What is learned: a class for each image, for each of its pixels, boxes with "
        "classes, or (`embedding`) a backbone without a classifier, from the teacher alone.",
    )
    teacher: ModelReference = Field(
        None,
        description='`name@version`, `name@alias` or `name@sha256:...`; or `{"job": "job_..."}`: '
        "the student of that job, for which this one waits.",
    )
    teachers: list[Annotated[str, Field(max_length=300)]] = Field(
        [],
        max_length=MOST_TEACHERS,
        description="Several in place of `teacher`: references of models of the same classes, "
        "which teach together.",
    )
    teacher_weighting: Weighting | None = Field(None, description=WEIGHTING)
    student: StudentSpec
    dataset: str | None = Field(
        None,
        max_length=300,
        description="Reference, as for `teacher`. For a data-free method it is optional, and used "
        "for evaluation only: no training image is read.",
    )
    training: dict[str, Any] = Field(
        {}, description="`recipe` to start from, and the fields that differ from it."
    )
    resources: ResourcesSpec = ResourcesSpec()
    max_attempts: int = Field(3, ge=1, le=10, description="Attempts before a job fails.")
    checkpoints_last: int | None = Field(
        None,
        ge=1,
        le=100,
        description="How many checkpoints are kept while it goes on, the newest; null: as many as "
        "the project's retention policy says.",
    )
    priority: int = Field(0, ge=0, le=9, description="Higher goes first.")
    labels: dict[str, str] = Field({}, max_length=32, description="For filters; at most 32.")
    report: bool = Field(
        True, description="Explain each finished job with numbers and pictures; takes seconds."
    )

    @model_validator(mode="wrap")
    @classmethod
    def _all_faults(cls, value: object, validate: ModelWrapValidatorHandler[Self]) -> Self:
        """Beside what pydantic finds, name what else is wrong: nothing hides anything."""
        if isinstance(value, dict):
            # A spec that was validated comes back as it was answered, with what was told of it.
            value = {name: field for name, field in value.items() if name != "warnings"}
        try:
            return validate(value)
        except ValidationError as error:
            if not isinstance(value, dict):
                raise
            places = [fault["loc"] for fault in error.errors() if fault["loc"]]
            found = cls.other_faults(value, places)
            raise ValidationError.from_exception_data(
                error.title, [*_told_before(error), *_told_now(found)]
            ) from None

    @classmethod
    def other_faults(
        cls, value: dict[str, Any], faulty: Iterable[tuple[int | str, ...]]
    ) -> Iterable[Fault]:
        """Return what is wrong beside the places that are known to be at fault."""
        raise NotImplementedError

    @property
    def all_teachers(self) -> list[str]:
        """Return the references of the teacher, or of several, or nothing."""
        return [str(self.teacher)] if self.teacher is not None else list(self.teachers)

    @property
    def parts(self) -> validation.SpecParts:
        """Return what is checked against the catalog and the rules."""
        return validation.SpecParts(
            task=self.task,
            method=None,
            training=None,
            network=self.student.network,
            arguments=self.student.arguments,
            initial=name_of(self.student.initial),
            has_teacher=self.teacher is not None,
            has_dataset=self.dataset is not None,
            accelerator=self.resources.accelerator,
            devices=self.resources.devices,
            several=len(self.teachers),
            has_weighting=self.teacher_weighting is not None,
        )

    @field_validator("labels")
    @classmethod
    def _labels_are_short(cls, labels: dict[str, str]) -> dict[str, str]:
        for key, value in labels.items():
            if not 0 < len(key) <= 63 or len(value) > 255:
                raise ValueError(f"label {key!r}: keys have 1 to 63 characters, values up to 255")
        return labels


class JobSpec(Request):
    """One request to distil a teacher into a student."""

    method: Annotated[dict[str, Any], AfterValidator(named)] = Field(
        description="`name` of the method and its hyper-parameters, flat in one object."
    )
    baseline: bool = Field(
        False,
        description="Also train the same student without the teacher, for comparison; of a "
        "data-free method, the same student on noise.",
    )
    exports: list[ExportChoice] = Field(
        [],
        max_length=16,
        description="Forms in which the student is written once it is registered.",
    )

    @property
    def parts(self) -> validation.SpecParts:
        """Return what is checked against the catalog and the rules."""
        return dataclasses.replace(
            super().parts,
            method=self.method,
            training=self.training,
            has_baseline=self.baseline,
            exports=tuple(self.exports),
        )

    @classmethod
    def other_faults(
        cls, value: dict[str, Any], faulty: Iterable[tuple[int | str, ...]]
    ) -> Iterable[Fault]:
        """Return what the catalog and the rules find beside the places at fault."""
        fields = {place[0] for place in faulty}
        right = right_parts(value, fields)
        method = None if "method" in fields else value.get("method")
        has_baseline = value.get("baseline") is True
        return validation.read(
            dataclasses.replace(right, method=method, has_baseline=has_baseline)
        ).faults


# Any: the caller's JSON.
def right_parts(value: dict[str, Any], faulty: Container[Any]) -> validation.SpecParts:
    """Return the parts of a request some of whose fields are at fault, without its method."""
    right = {name: field for name, field in value.items() if name not in faulty}
    student = StudentSpec.model_validate(right["student"]) if "student" in right else None
    resources = ResourcesSpec.model_validate(right.get("resources", {}))
    return validation.SpecParts(
        task=None if "task" in faulty else right.get("task", "classification"),
        method=None,
        training=None if "training" in faulty else right.get("training", {}),
        network=student.network if student else None,
        arguments=student.arguments if student else {},
        initial=name_of(student.initial) if student else None,
        has_teacher=value.get("teacher") is not None,
        has_dataset=value.get("dataset") is not None,
        accelerator=resources.accelerator,
        devices=resources.devices,
        several=0 if "teachers" in faulty else len(value.get("teachers") or []),
        has_weighting=value.get("teacher_weighting") is not None,
    )


def _told_before(error: ValidationError) -> list[InitErrorDetails]:
    return [
        InitErrorDetails(
            type=fault["type"], loc=fault["loc"], input=fault["input"], ctx=fault.get("ctx", {})
        )
        for fault in error.errors()
    ]


def _told_now(faults: Iterable[Fault]) -> list[InitErrorDetails]:
    return [
        InitErrorDetails(
            type=PydanticCustomError(
                fault.code,
                "{detail}",
                {"detail": fault.detail},
            ),
            loc=tuple(
                step.replace("~1", "/").replace("~0", "~") for step in fault.pointer.split("/")[1:]
            ),
            input=None,
        )
        for fault in faults
    ]
