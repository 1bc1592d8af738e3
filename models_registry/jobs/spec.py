"""JobSpec and StudySpec: what a caller asks for. Immutable once submitted.

What depends on the engine (hyper-parameters of a method, fields of `training`) is checked by
`validation.py`; this file holds the rest. Where something of the rest is at fault, both are told
together.
"""

from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
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
from workers.distill.config.job import Task

VERSION = 1
NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,95}$"
MAX_SEEDS = 100
MAX_SEED = 2**31 - 1


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StudentSpec(_Part):
    """The network to train, and the registry name that it is kept under."""

    network: str = Field(
        max_length=160, description="Reference such as `retort/resnet8` or `timm/resnet18`."
    )
    arguments: dict[str, Any] = Field({}, description="Keyword arguments of the network.")
    initial: str | None = Field(
        None, max_length=300, description="Model version whose weights the student starts from."
    )
    register_as: str | None = Field(
        None,
        pattern=NAME_PATTERN,
        description="Model name for the student; by default made from the job's name.",
    )


class ResourcesSpec(_Part):
    """What the job may use."""

    accelerator: Literal["any", "cpu", "cuda"] = Field("any", description="Kind of device.")
    devices: int = Field(1, ge=1, le=1, description="Number of devices; one for now.")
    max_runtime_seconds: float | None = Field(
        None, gt=0, le=30 * 86_400, description="Active time after which the job fails."
    )
    queue_deadline_seconds: float | None = Field(
        None, gt=0, le=30 * 86_400, description="Waiting time after which the job fails."
    )


def _named(method: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(method.get("name"), str):
        raise ValueError('needs a "name", such as {"name": "kd"}')
    return method


class Request(_Part):
    """What a job and a study have in common."""

    name: str = Field(min_length=1, max_length=200, description="For people; need not be unique.")
    task: Task = Field(
        "classification",
        description="What is learned: a class for each image, for each of its pixels, or boxes "
        "with classes.",
    )
    teacher: str | None = Field(
        None, max_length=300, description="`name@version`, `name@alias` or `name@sha256:...`."
    )
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
    priority: int = Field(0, ge=0, le=9, description="Higher goes first.")
    labels: dict[str, str] = Field({}, max_length=32, description="For filters; at most 32.")
    report: bool = Field(
        True, description="Explain each finished job with numbers and pictures; takes seconds."
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

    method: Annotated[dict[str, Any], AfterValidator(_named)] = Field(
        description="`name` of the method and its hyper-parameters, flat in one object."
    )
    baseline: bool = Field(
        False,
        description="Also train the same student without the teacher, for comparison; of a "
        "data-free method, the same student on noise.",
    )

    @property
    def parts(self) -> validation.SpecParts:
        """Return what is checked against the catalog and the rules."""
        return validation.SpecParts(
            task=self.task,
            method=self.method,
            training=self.training,
            network=self.student.network,
            arguments=self.student.arguments,
            initial=self.student.initial,
            has_teacher=self.teacher is not None,
            has_dataset=self.dataset is not None,
            accelerator=self.resources.accelerator,
        )

    @model_validator(mode="wrap")
    @classmethod
    def _all_faults(cls, value: object, validate: ModelWrapValidatorHandler[Self]) -> Self:
        """Beside what pydantic finds, name what else is wrong: nothing hides anything."""
        try:
            return validate(value)
        except ValidationError as error:
            if not isinstance(value, dict):
                raise
            faulty = {fault["loc"][0] for fault in error.errors() if fault["loc"]}
            found = validation.read(_right_parts(value, faulty)).faults
            raise ValidationError.from_exception_data(
                error.title, [*_told_before(error), *_told_now(found)]
            ) from None


# Any: the caller's JSON.
def _right_parts(value: dict[str, Any], faulty: Iterable[Any]) -> validation.SpecParts:
    """Return the parts of a spec some of whose fields are at fault."""
    right = {name: field for name, field in value.items() if name not in set(faulty)}
    student = StudentSpec.model_validate(right["student"]) if "student" in right else None
    resources = ResourcesSpec.model_validate(right.get("resources", {}))
    return validation.SpecParts(
        task=None if "task" in faulty else right.get("task", "classification"),
        method=right.get("method"),
        training=None if "training" in faulty else right.get("training", {}),
        network=student.network if student else None,
        arguments=student.arguments if student else {},
        initial=student.initial if student else None,
        has_teacher=value.get("teacher") is not None,
        has_dataset=value.get("dataset") is not None,
        accelerator=resources.accelerator,
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


class StudySpec(Request):
    """One request for many jobs that differ in method, hyper-parameters and seed.

    A value inside `methods` and `training` may be given as `{"grid": [...]}`: then there is one
    variant for each combination of the grids' values, and one job for each variant and seed.
    """

    methods: list[Annotated[dict[str, Any], AfterValidator(_named)]] = Field(
        min_length=1,
        max_length=100,
        description='Methods as in a job; any value may be a grid: `{"grid": [1, 2, 4]}`.',
    )
    training: dict[str, Any] = Field(
        {}, description="As in a job, without `seed`; any value may be a grid."
    )
    seeds: list[Annotated[int, Field(ge=0, le=MAX_SEED)]] = Field(
        min_length=1,
        max_length=MAX_SEEDS,
        description="One job of every variant for each; a spread needs two, a test more.",
        json_schema_extra={"uniqueItems": True},
    )
    baseline: bool = Field(
        True,
        description="Also train the same student on the labels alone (`ce`), by jobs of its own: "
        "what the others are compared with, seed by seed. Data-free methods are compared with the "
        "same student on images of noise (`noise`).",
    )

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: list[int]) -> list[int]:
        twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
        if twice:
            raise ValueError(f"seeds must differ; twice: {', '.join(map(str, twice))}")
        return seeds
