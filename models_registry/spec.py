"""JobSpec: what a caller asks for. Immutable once a job is submitted.

What depends on the engine (hyper-parameters of a method, fields of `training`) is checked by
`catalog.py` against JSON Schemas that the engine exports; this file holds the rest.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

VERSION = 1
NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,95}$"


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


class JobSpec(_Part):
    """One request to distil a teacher into a student."""

    name: str = Field(min_length=1, max_length=200, description="For people; need not be unique.")
    task: Literal["classification"] = Field("classification", description="What is learned.")
    teacher: str | None = Field(
        None, max_length=300, description="`name@version`, `name@alias` or `name@sha256:...`."
    )
    student: StudentSpec
    dataset: str | None = Field(None, max_length=300, description="Reference, as for `teacher`.")
    method: dict[str, Any] = Field(
        description="`name` of the method and its hyper-parameters, flat in one object."
    )
    training: dict[str, Any] = Field(
        {}, description="`recipe` to start from, and the fields that differ from it."
    )
    baseline: bool = Field(
        False, description="Also train the same student without the teacher, for comparison."
    )
    resources: ResourcesSpec = ResourcesSpec()
    max_attempts: int = Field(3, ge=1, le=10, description="Attempts before the job fails.")
    priority: int = Field(0, ge=0, le=9, description="Higher goes first.")
    labels: dict[str, str] = Field({}, max_length=32, description="For filters; at most 32.")

    @field_validator("method")
    @classmethod
    def _method_has_a_name(cls, method: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(method.get("name"), str):
            raise ValueError('needs a "name", such as {"name": "kd"}')
        return method

    @field_validator("labels")
    @classmethod
    def _labels_are_short(cls, labels: dict[str, str]) -> dict[str, str]:
        for key, value in labels.items():
            if not 0 < len(key) <= 63 or len(value) > 255:
                raise ValueError(f"label {key!r}: keys have 1 to 63 characters, values up to 255")
        return labels
