"""Reads what the engine is asked to do: one config, or those of a group."""

import json
import pathlib
from typing import Any

import pydantic

from workers.distill import errors
from workers.distill.config import grouping
from workers.distill.config.job import JobConfig
from workers.distill.methods import catalog
from workers.distill.run.context import JobRequest
from workers.distill.runtime import events


def read(path: pathlib.Path, workdir: pathlib.Path, reporter: events.Reporter) -> list[JobRequest]:
    """Read and check a config, or those of a group; raises `BadRecipe`."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise errors.BadRecipe(f"the recipe {path.name} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise errors.BadRecipe(f"the recipe {path.name} is no JSON: {error}") from None
    if not isinstance(content, dict) or "members" not in content:
        return [JobRequest(checked(content, "the recipe"), workdir, reporter)]
    return _read_group(content, workdir, reporter)


def checked(content: object, what: str) -> JobConfig:
    """Return a config; raises `BadRecipe` with the first problem, and `what` it was read from."""
    try:
        return JobConfig.model_validate_json(json.dumps(content))
    except pydantic.ValidationError as error:
        raise errors.BadRecipe(
            f"{what} is refused: {catalog.first_complaint(error)}",
            field=catalog.first_field(error, content),
        ) from None


def _read_group(
    content: dict[str, Any], workdir: pathlib.Path, reporter: events.Reporter
) -> list[JobRequest]:
    """Check a group, and that its members may be trained side by side."""
    members = content["members"]
    well_formed = isinstance(members, list) and all(
        isinstance(member, dict) and set(member) == {"key", "recipe"} for member in members
    )
    if content.get("version") != grouping.VERSION or set(content) != {"version", "members"}:
        raise errors.BadRecipe(f"a group has version {grouping.VERSION} and members, nothing else")
    if not well_formed:
        raise errors.BadRecipe("the members of a group are objects of a key and a recipe")
    configs = {
        str(member["key"]): checked(member["recipe"], f"the recipe of {member['key']}")
        for member in members
    }
    if len(configs) < len(members):
        raise errors.BadRecipe("two members of the group have the same key")
    refusal = grouping.refusal({key: _in_full(config) for key, config in configs.items()})
    if refusal is not None:
        raise errors.BadRecipe(f"the group is refused: {refusal}")
    return [
        JobRequest(config, workdir / "members" / key, reporter.of_member(key), key)
        for key, config in configs.items()
    ]


def _in_full(config: JobConfig) -> dict[str, Any]:
    """Return a config as JSON with the defaults of its method, where it has one."""
    recipe = config.model_dump(mode="json")
    method = catalog.METHODS.get(config.method["name"])
    if method is not None:
        recipe["method"] = {**method.Params().model_dump(mode="json"), **config.method}
    return recipe
