"""Which methods exist: one explicit table, one line each."""

from typing import Any

import pydantic

from workers.distill import errors
from workers.distill.method import Method
from workers.distill.methods.logit.ce import CE
from workers.distill.methods.logit.dkd import DKD
from workers.distill.methods.logit.kd import KD
from workers.distill.networks.interface import Network

METHODS: dict[str, type[Method]] = {
    "ce": CE,
    "dkd": DKD,
    "kd": KD,
}


def find(choice: dict[str, Any]) -> tuple[type[Method], Method.Params]:
    """Return the method that a recipe names, and its checked hyper-parameters."""
    name = choice.get("name")
    if name not in METHODS:
        known = ", ".join(sorted(METHODS))
        raise errors.BadRecipe(f"no method {name!r} exists; choose one of {known}", method=name)
    given = {key: value for key, value in choice.items() if key != "name"}
    try:
        return METHODS[name], METHODS[name].Params.model_validate(given)
    except pydantic.ValidationError as error:
        raise errors.BadRecipe(f"method {name}: {first_complaint(error)}") from None


def build(choice: dict[str, Any], student: Network, teacher: Network | None) -> Method:
    """Build the method that a recipe names for these two networks."""
    method, params = find(choice)
    return method(params, student, teacher)


def first_complaint(error: pydantic.ValidationError) -> str:
    """Return the first problem as one sentence that names field and value."""
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"]) or "the whole"
    value = "" if problem["type"] == "missing" else f", got {problem['input']!r}"[:200]
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{where}: {problem['msg']}{value}{more}"
