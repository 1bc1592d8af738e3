"""What is checked and filled in where a model is a graph or a table of predictions."""

import dataclasses
from typing import TYPE_CHECKING

from sqlalchemy.orm import Session

from models_registry import errors
from models_registry.errors import Fault
from workers.distill.config import teachers
from workers.distill.config.descriptions import BACKBONE

if TYPE_CHECKING:
    from models_registry.artifacts.models import NewModelVersion


_OF_GRAPHS = ("classification", BACKBONE)


def of_registration(
    session: Session, *, project_id: str, new: "NewModelVersion"
) -> tuple["NewModelVersion", list[Fault]]:
    """Return what is registered, of predictions bound to their data set, and what is wrong."""
    if new.network not in teachers.ONLY_TEACHERS:
        return new, []
    faults = [
        Fault(
            f"/{name}",
            "no_effect",
            f"{name} says how weights are read, and {new.network} is "
            f"{teachers.KINDS[teachers.kind_of(new.network)]}; leave it out",
        )
        for name in new.reading or {}
    ]
    fitting = ("classification",) if new.network == teachers.PREDICTIONS else _OF_GRAPHS
    if new.task not in fitting:
        faults.append(
            Fault(
                "/task",
                "wrong_task",
                f"{new.network} is for {' and '.join(fitting)}, got task {new.task!r}; upload the "
                "weights of a network instead (retort upload model)",
            )
        )
    if new.network != teachers.PREDICTIONS:
        return new, faults
    bound, wrong = _bound(session, project_id, new)
    return bound, [*faults, *wrong]


def _bound(
    session: Session, project_id: str, new: "NewModelVersion"
) -> tuple["NewModelVersion", list[Fault]]:
    """Return predictions with the digest of the data set whose images they are of."""
    # Here, since data sets are kept in files as models are, and import them.
    from models_registry.artifacts import datasets

    pointer, reference = "/arguments/dataset", new.arguments.get("dataset")
    if not isinstance(reference, str):
        return new, []  # the schema of the arguments says so
    try:
        found = datasets.resolve(session, project_id=project_id, reference=reference)
    except (errors.NotFound, errors.Refused, errors.Malformed) as error:
        return new, [Fault(pointer, error.code, error.message)]
    named = datasets.reference_of(found)
    if found.state != "ready":
        detail = f"{named} is {found.state}: predictions belong to a data set that is ready"
        return new, [Fault(pointer, "not_ready", detail)]
    classes = new.classes if isinstance(new.classes, int) else len(new.classes)
    faults = []
    if found.classes and classes != len(found.classes):  # without labels it has none of its own
        detail = f"there are {classes} classes, and {named} has {len(found.classes)}"
        faults.append(Fault("/classes", "class_count", detail))
    views, seed, augmentation = teachers.arguments_of_views(new.arguments)
    if (views == 1) != (seed is None and augmentation is None):
        detail = (
            f"views is {views}, seed {seed} and augmentation {augmentation}: with more than one "
            "view give both of those of the views, with one view neither"
        )
        faults.append(Fault("/arguments/views", "views", detail))
    bound = {
        **new.arguments,
        "dataset": named,
        "digest": f"sha256:{found.sha256}",
        "rows": dict(found.splits),
    }
    return dataclasses.replace(new, arguments=bound), faults
