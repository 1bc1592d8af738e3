"""Bodies of what the catalog offers."""

from typing import Any

from pydantic import BaseModel, Field

# Schemas and sources are written by the engine's catalog.
Json = dict[str, Any]


class MethodRead(BaseModel):
    """One published way to distil."""

    name: str
    family: str
    title: str
    description: str
    source: Json
    tasks: list[str] = Field(description="What can be learned with it: `task` of a job.")
    needs: list[str] = Field(description="What a spec must have for this method to work.")
    student_shows: list[str] = Field(
        default=[], description="What the student's network must show besides logits."
    )
    teacher_shows: list[str] = Field(
        default=[], description="What the teacher's network must show besides logits."
    )
    has_task: bool = Field(default=True, description="Whether it learns from labels as well.")
    accepts_mixed: bool = Field(default=True, description="Whether it works with mixed images.")
    wants_strong: bool = Field(
        default=False, description="Whether it looks at a second, strongly augmented view."
    )
    combines: bool = Field(default=True, description="Whether it can be part of `combine`.")
    smallest_batch: int = Field(default=1, description="Fewest images of a batch.")
    params_schema: Json = Field(description="JSON Schema of its hyper-parameters, with defaults.")
    differs: str | None = Field(default=None, description="Where it departs from the paper.")


class NetworkRead(BaseModel):
    """One architecture that a student or a teacher can have."""

    name: str = Field(description="Reference, such as `retort/resnet8` or `timm/resnet18`.")
    family: str
    task: str = Field(description="What it is for.")
    description: str = ""
    parameters_100: int | None = Field(default=None, description="Parameters with 100 classes.")
    arguments_schema: Json = Field(default={}, description="JSON Schema of keyword arguments.")
    smallest_side: int | None = Field(
        default=None, description="Smallest images it takes, in pixels; null where not known."
    )
    shows: list[str] | None = Field(
        default=None,
        description="What it shows to methods besides logits; null where only a trial tells.",
    )


class RecipeRead(BaseModel):
    """A full set of training settings to start from."""

    name: str
    training: Json


class RecipesRead(BaseModel):
    """Recipes, and the schema that `training` must satisfy."""

    data: list[RecipeRead]
    training_schema: Json
