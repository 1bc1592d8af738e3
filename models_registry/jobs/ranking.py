"""Which methods fit a job, best first by what was measured here; without torch.

Whether a method fits is what submission would say of it with default hyper-parameters; how good it
was is what `measured_methods` has of the task.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from models_registry import catalog, errors
from models_registry.jobs import measured_methods, submission, validation
from models_registry.jobs.spec import Request, right_parts
from workers.distill.config import chosen, descriptions


class MethodsRequest(Request):
    """A job without its method: what a method must fit."""

    @classmethod
    def other_faults(cls, value: dict[str, Any], faulty: Any) -> Any:  # Any: as the parent's
        """Return what the catalog and the rules find beside the places at fault."""
        return validation.read(right_parts(value, {place[0] for place in faulty})).faults


@dataclass(frozen=True)
class Ranked:
    """A method, whether it fits, and what is known of it."""

    name: str
    family: str
    title: str
    balance: str | None
    """What the recipe takes; None for methods without it."""
    measured: measured_methods.Measured | None
    refusals: tuple[errors.Fault, ...] = ()
    """Why it does not fit; empty where it does."""


def rank(session: Session, *, project_id: str, request: MethodsRequest) -> list[Ranked]:
    """Return every method: those that fit, measured ones first by their difference, then the rest.

    Those that ended below the student alone are the last that fit.

    Raises: errors.Refused where the request itself is at fault, whatever the method.
    """
    inputs, unresolved = submission.find_inputs(session, project_id=project_id, spec=request)
    shared = dataclasses.replace(request.parts, training=dict(request.training))
    wrong = [*validation.read(shared).faults, *unresolved]
    if wrong:
        raise errors.Refused(submission.summary(wrong), code="invalid_spec", faults=wrong)
    # Only whether the trial is of a data-free method's images depends on the method.
    tried = submission.with_trial(
        session, dataclasses.replace(shared, method={"name": "kd"}), inputs
    )
    names = sorted(set(catalog.load().methods) - {descriptions.COMBINE})
    ranked = [_judged(name, shared, tried, request) for name in names]
    return sorted(ranked, key=_place)


def _judged(
    name: str, shared: validation.SpecParts, inputs: validation.JobInputs, request: MethodsRequest
) -> Ranked:
    document = validation.read(dataclasses.replace(shared, method={"name": name}))
    faults = [*document.faults]
    if not faults:
        faults += validation.faults_of_inputs(document, inputs)
    entry = catalog.load().methods[name]
    balance = None
    if "balance" in entry["params_schema"]["properties"]:
        balance = chosen.balance_of(request.training.get("recipe", catalog.DEFAULT_RECIPE))
    return Ranked(
        name=name,
        family=entry["family"],
        title=entry["title"],
        balance=balance,
        measured=measured_methods.of(name, balance=balance, task=request.task),
        refusals=tuple(faults),
    )


def _place(one: Ranked) -> tuple[bool, int, float, str]:
    difference = one.measured.difference if one.measured else 0.0
    order = 1 if one.measured is None else 0 if difference >= 0 else 2
    return bool(one.refusals), order, -difference, one.name
