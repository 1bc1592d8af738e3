"""Bodies of the catalog: methods, networks, recipes."""

import dataclasses
from typing import Any

from pydantic import BaseModel, Field

from models_registry.jobs import measured_methods, ranking
from workers.distill.config import descriptions
from workers.distill.config.devices import AcrossDevices

# Schemas and sources are written by the engine's catalog.
Json = dict[str, Any]


class MethodRead(BaseModel):
    """One distillation method."""

    name: str
    family: str
    title: str
    description: str
    source: Json
    tasks: list[str] = Field(description="Values of a job's `task` that it supports.")
    needs: list[str] = Field(description="What a spec must have for this method.")
    student_shows: list[str] = Field(
        default=[], description="Features that the student's network must have besides logits."
    )
    teacher_shows: list[str] = Field(
        default=[], description="Features that the teacher's network must have besides logits."
    )
    has_task: bool = Field(default=True, description="Whether it has a loss on labels as well.")
    accepts_mixed: bool = Field(default=True, description="Whether it works with mixed images.")
    accepts_bce: bool = Field(
        default=False,
        description="Whether `training.task_loss` decides its loss on labels, in classification.",
    )
    wants_strong: bool = Field(
        default=False, description="Whether it uses a second, strongly augmented view."
    )
    combines: bool = Field(default=True, description="Whether it can be part of `combine`.")
    across_devices: AcrossDevices = Field(
        default="gathers",
        description="What it does on several devices (`resources.devices`). `gathers`: outputs of "
        "all devices are gathered, and the loss is that of the whole batch; `slices`: each device "
        "computes the loss of its slice; `one`: it runs on one device.",
    )
    smallest_batch: int = Field(default=1, description="Smallest batch size, in images.")
    params_schema: Json = Field(description="JSON Schema of its hyper-parameters, with defaults.")
    differs: str | None = Field(default=None, description="How it differs from the paper.")


class MeasuredRead(BaseModel):
    """How far a method ended from the same student without a teacher, on a small set."""

    difference: float = Field(
        description="In points of the task's deciding metric, mean of all pairs and seeds."
    )
    lowest: float = Field(description="The same of the pair of networks where it is lowest.")
    seeds: int = Field(
        description="Seeds of each pair; with 1 or 2, differences of a few points say little."
    )
    pairs: int = Field(description="Pairs of teacher and student.")


class MethodRanked(BaseModel):
    """A method, and whether it fits a job."""

    name: str
    family: str
    title: str
    balance: str | None = Field(
        description="`method.balance` that the recipe takes; null for methods without it."
    )
    measured: MeasuredRead | None = Field(
        description="With that balance; null where it was not measured for the task."
    )
    refusals: list[str] = Field(description="Why it does not fit; empty where it does.")


class MethodsRanked(BaseModel):
    """Methods for a job: those that fit first, and among them the best measured first.

    Of those that fit, methods that were measured below the student alone come last.
    """

    data: list[MethodRanked]
    metric: str = Field(description="The task's deciding metric, of whose points figures tell.")
    measured_on: str | None = Field(
        description="What the figures were measured on; a first guess only. Null where nothing was "
        "measured of the task."
    )

    @classmethod
    def of(cls, ranked: list[ranking.Ranked], task: descriptions.Task) -> "MethodsRanked":
        """Return a ranking for a task as it is answered."""
        rows = [
            MethodRanked.model_validate(
                {
                    **dataclasses.asdict(one),
                    "refusals": [fault.detail for fault in one.refusals],
                }
            )
            for one in ranked
        ]
        return cls(
            data=rows,
            metric=descriptions.PRIMARY_METRICS[task],
            measured_on=measured_methods.measured_on(task),
        )


class NetworkRead(BaseModel):
    """One architecture for a student or a teacher."""

    name: str = Field(description="Reference, such as `retort/resnet8` or `timm/resnet18`.")
    family: str
    task: str = Field(description="What it is for.")
    description: str = ""
    parameters_100: int | None = Field(default=None, description="Parameters with 100 classes.")
    arguments_schema: Json = Field(default={}, description="JSON Schema of keyword arguments.")
    smallest_side: int | None = Field(
        default=None, description="Smallest side of an image, in pixels; null if unknown."
    )
    takes_any_size: bool | None = Field(
        default=None,
        description="Whether its weights fit images of any size, from the smallest on, as "
        "`training.evaluate_sizes` needs; null if unknown.",
    )
    shows: list[str] | None = Field(
        default=None,
        description="Features that it has besides logits; null if only building it tells.",
    )


class RecipeRead(BaseModel):
    """A full set of training settings to start from."""

    name: str
    training: Json


class RecipesRead(BaseModel):
    """Recipes, and the schema that `training` must satisfy."""

    data: list[RecipeRead]
    training_schema: Json
