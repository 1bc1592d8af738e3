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
    needs: list[str] = Field(description="What a spec must have for this method to work.")
    params_schema: Json = Field(description="JSON Schema of its hyper-parameters, with defaults.")
    differs: str | None = Field(default=None, description="Where it departs from the paper.")


class NetworkRead(BaseModel):
    """One architecture that a student or a teacher can have."""

    name: str = Field(description="Reference, such as `retort/resnet8` or `timm/resnet18`.")
    family: str
    description: str = ""
    parameters_100: int | None = Field(default=None, description="Parameters with 100 classes.")
    arguments_schema: Json = Field(default={}, description="JSON Schema of keyword arguments.")


class RecipeRead(BaseModel):
    """A full set of training settings to start from."""

    name: str
    training: Json


class RecipesRead(BaseModel):
    """Recipes, and the schema that `training` must satisfy."""

    data: list[RecipeRead]
    training_schema: Json
