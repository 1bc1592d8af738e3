"""What a search may try: its spaces, their corners, the default settings, and what is wrong.

Pure functions of plain JSON and the catalog; nothing is looked up in the database. A space is
checked at its bounds: each value that is chosen later lies between those.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from models_registry import catalog, errors
from models_registry.federations import federations
from models_registry.jobs import validation
from models_registry.studies import spaces, variants
from models_registry.studies.search_spec import SearchSpec
from models_registry.studies.spaces import Axis, CategoricalSpace, IntSpace
from models_registry.studies.variants import MAX_JOBS, VariantSource
from workers.distill.config.descriptions import VALIDATION_METRICS

METHODS = "/methods"
"""Under which a trial keeps which of several methods it has."""


@dataclass(frozen=True)
class SearchDraft:
    """One choice of values before validation, and where in the study each of them is given."""

    pointer: str  # of the method, in the study
    method: dict[str, Any]
    training: dict[str, Any]
    fields: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """By the pointer of a space, which of its fields the value is: `low`, `choices/1`."""
    is_default: bool = False


def objective_of(search: SearchSpec, task: str) -> str:
    """Return the metric by which trials are compared."""
    return search.objective or VALIDATION_METRICS[task][0]  # type: ignore[index]  # checked names


def axes(source: VariantSource, place: int) -> list[Axis]:
    """Return the spaces of one method, and those of the training."""
    own = spaces.axes_of(source.methods[place], f"{METHODS}/{place}")
    return [*own, *spaces.axes_of(source.training or {}, "/training", prefix="training.")]


def draft_of(source: VariantSource, place: int, values: Mapping[str, Any]) -> SearchDraft:
    """Return a method and a training with the values of their spaces, by their pointers."""
    found = axes(source, place)
    of_method = {a.path: values[a.pointer] for a in found if not a.pointer.startswith("/training/")}
    of_training = {a.path: values[a.pointer] for a in found if a.pointer.startswith("/training/")}
    return SearchDraft(
        f"{METHODS}/{place}",
        spaces.fill(source.methods[place], of_method),
        spaces.fill(source.training or {}, of_training),
    )


def default_of(source: VariantSource, place: int) -> SearchDraft:
    """Return one method with the defaults of all values that the search chooses."""
    method = spaces.fill(source.methods[place], {})
    training = spaces.fill(source.training or {}, {})
    return SearchDraft(f"{METHODS}/{place}", method, training, is_default=True)


def baseline_of(draft: SearchDraft) -> SearchDraft:
    """Return what a draft's student is without its teacher."""
    method = catalog.baseline_of(catalog.complete_method(draft.method))
    training = variants.without_teacher(draft.training)
    return SearchDraft("/baseline", method, training, is_default=True)


def corners(source: VariantSource) -> Iterator[SearchDraft]:
    """Yield drafts at the bounds of the spaces: all of them, or all of each pair."""
    for place in source.methods:
        found = axes(source, place)
        by_pointer = {axis.pointer: axis.space.corners() for axis in found}
        for fields in spaces.corners(found):
            values = {pointer: by_pointer[pointer][field] for pointer, field in fields.items()}
            yield dataclasses.replace(draft_of(source, place, values), fields=fields)


def drafts(source: VariantSource) -> Iterator[SearchDraft]:
    """Yield all that is validated of a search: default settings, baselines and corners."""
    for place in source.methods:
        default = default_of(source, place)
        yield default
        if source.has_baseline:
            # What is refused here is reported with the faults of the default settings.
            with contextlib.suppress(errors.Refused):
                yield baseline_of(default)
    yield from corners(source)


def combinations(source: VariantSource) -> float:
    """Return how many different trials there can be; infinite with a float."""
    return sum(math.prod(_count(axis) for axis in axes(source, place)) for place in source.methods)


def _count(axis: Axis) -> float:
    if isinstance(axis.space, CategoricalSpace):
        return len(axis.space.choices)
    if isinstance(axis.space, IntSpace):
        return axis.space.high - axis.space.low + 1
    return math.inf


def faults_of_spaces(source: VariantSource) -> list[errors.Fault]:
    """Return why no draft can be made; all other functions need a source without such faults."""
    found: list[errors.Fault] = []
    for place, method in source.methods.items():
        found += spaces.faults_of(method, f"{METHODS}/{place}")
    if source.training is not None:
        found += spaces.faults_of(source.training, "/training")
        found += variants.faults_of_seed(source.training)
    return found


def faults(
    source: VariantSource, shared: validation.SpecParts, search: SearchSpec | None
) -> list[errors.Fault]:
    """Return all that is wrong with a search, whatever its references lead to.

    `search` is None where it is at fault by itself. Documents whose spaces are at fault are left
    out of what is validated.
    """
    right = {
        place: method
        for place, method in source.methods.items()
        if not list(spaces.faults_of(method, ""))
    }
    training = source.training
    if training is not None and list(spaces.faults_of(training, "")):
        training = None
    usable = dataclasses.replace(source, methods=right, training=training)
    found = faults_of_spaces(source)
    too_many = list(_faults_of_count(usable))
    found += too_many
    epochs: list[int] = []
    if not too_many:
        for draft in drafts(usable):
            document = validation.read(parts_of(draft, shared, has_training=training is not None))
            found += [relocated(fault, draft) for fault in document.faults]
            if training is not None and not document.training.faults:
                epochs.append(document.training.document["epochs"])
    if not shared.has_dataset:
        detail = "trials are compared on a validation split; give a data set"
        found.append(errors.Fault("/dataset", "search_needs_dataset", detail))
    if search is not None:
        found += _faults_of_search(source, search, shared, epochs)
        if not found:
            found += _faults_of_size(source, search)
    return list(dict.fromkeys(found))


def parts_of(
    draft: SearchDraft, shared: validation.SpecParts, *, has_training: bool = True
) -> validation.SpecParts:
    """Return the parts of the spec that a draft makes."""
    # The seed is the study's: it is checked there.
    training = {**draft.training, "seed": 0} if has_training else None
    return dataclasses.replace(shared, method=draft.method, training=training)


def _faults_of_count(source: VariantSource) -> Iterator[errors.Fault]:
    for place in source.methods:
        found = axes(source, place)
        if len(found) > spaces.MAX_SPACES:
            detail = (
                f"{len(found)} spaces are searched at once, with those of the training; give at "
                f"most {spaces.MAX_SPACES}"
            )
            yield errors.Fault(f"{METHODS}/{place}", "too_many_spaces", detail)


def _faults_of_search(
    source: VariantSource,
    search: SearchSpec,
    shared: validation.SpecParts,
    epochs: Sequence[int],
) -> Iterator[errors.Fault]:
    known = VALIDATION_METRICS.get(shared.task, ())  # type: ignore[call-overload]  # may be None
    if known and search.objective is not None and search.objective not in known:
        detail = (
            f"objective must be one of {', '.join(known)} in {shared.task}, got "
            f"{search.objective!r}"
        )
        yield errors.Fault("/search/objective", "bad_objective", detail)
    if search.pruning is not None and epochs and search.pruning.min_epochs >= min(epochs):
        detail = (
            f"min_epochs is {search.pruning.min_epochs}, and a trial may have {min(epochs)} "
            f"epoch{'s' * (min(epochs) > 1)}: it would not be compared before its end; give fewer, "
            "or null for pruning"
        )
        yield errors.Fault("/search/pruning/min_epochs", "min_epochs_too_large", detail)
    for place, method in source.methods.items():
        if federations.is_remote(method):
            detail = "remote clients join one job; a search needs clients that are simulated"
            pointer = f"{METHODS}/{place}/federation/clients"
            yield errors.Fault(pointer, "remote_in_search", detail)


def _faults_of_size(source: VariantSource, search: SearchSpec) -> Iterator[errors.Fault]:
    different = combinations(source)
    if different <= 1:
        detail = (
            "there is nothing to search: write a space in the place of a value, such as "
            '{"temperature": {"space": {"type": "float", "low": 1, "high": 10, "log": true}}}'
        )
        yield errors.Fault("/search", "no_spaces", detail)
    elif different < search.trials:
        detail = (
            f"trials is {search.trials}, and the spaces have only {different:.0f} combinations; "
            f"give at most {different:.0f}, or grids without a search"
        )
        yield errors.Fault("/search/trials", "too_few_combinations", detail)
    jobs = job_count(source, search)
    if jobs > MAX_JOBS:
        detail = (
            f"{search.trials} trials x {source.seed_count} seeds, and {search.confirm_seeds} more "
            f"seeds at the end, make {jobs:,} jobs; a study has at most {MAX_JOBS:,}"
        )
        yield errors.Fault("/search/trials", "too_many_jobs", detail)


def job_count(source: VariantSource, search: SearchSpec) -> int:
    """Return how many jobs there will be at most."""
    compared = 2 + source.has_baseline  # the best, the default settings, the baseline
    return search.trials * source.seed_count + compared * search.confirm_seeds


def relocated(fault: errors.Fault, draft: SearchDraft) -> errors.Fault:
    """Return a fault of a draft's spec with a pointer into the study's spec."""
    _, first, *rest = fault.pointer.split("/")
    below = "".join(f"/{step}" for step in rest)
    pointer, detail = fault.pointer, fault.detail
    if first == "method":
        pointer = "/baseline" if draft.pointer == "/baseline" else draft.pointer + below
    elif first == "training":
        pointer = f"/training{below}"
    for space, field in draft.fields.items():
        if pointer == space and fault.code == "unknown_field":
            break  # whatever its value
        if pointer == space or pointer.startswith(f"{space}/"):
            pointer = f"{space}/{spaces.SPACE}/{field}{pointer[len(space) :]}"
            break
    if draft.is_default and first in ("method", "training"):
        detail = f"with the default in place of each space: {detail}"
    return errors.Fault(pointer, fault.code, detail)
