"""Which variants a study has: grids expanded, baselines added, and what is wrong with them.

Pure functions of plain JSON and the catalog; nothing is looked up in the database.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from models_registry import catalog, errors
from models_registry.jobs import validation
from models_registry.studies import grids, spaces

MAX_JOBS = 1000


@dataclass(frozen=True)
class VariantSource:
    """What of a study's spec its variants are made of; without what is at fault by itself."""

    methods: Mapping[int, dict[str, Any]]
    """With their grids, by their place in the spec."""
    training: dict[str, Any] | None
    """With its grids; None if it is at fault."""
    seed_count: int
    has_baseline: bool


@dataclass(frozen=True)
class VariantDraft:
    """One variant before validation, and its place in the study."""

    pointer: str  # of the method, in the study
    document: dict[str, Any]  # the method with its grids
    method: grids.GridPoint
    training: grids.GridPoint


def faults(source: VariantSource, shared: validation.SpecParts) -> list[errors.Fault]:
    """Return all that is wrong with the variants, whatever references lead to.

    `shared` is what all of them have in common. A document whose grids are at fault is left out,
    and so are all if they would be too many.
    """
    expandable = dataclasses.replace(
        source,
        methods={
            place: method
            for place, method in source.methods.items()
            if not list(_faults_of_grids(method, f"/methods/{place}"))
        },
        training=None
        if source.training is None or list(_faults_of_grids(source.training, "/training"))
        else source.training,
    )
    too_many = list(_faults_of_size(expandable))
    found = [*too_many, *_faults_of_all_grids(source)]
    if not too_many:
        found += _faults_of_variants(expandable, shared)
    return list(dict.fromkeys(found))  # variants share most of their faults


def faults_of_expansion(source: VariantSource) -> list[errors.Fault]:
    """Return why a study cannot be expanded; `expand` needs a source without such faults."""
    return list(_faults_of_all_grids(source)) or list(_faults_of_size(source))


def _faults_of_variants(
    source: VariantSource, shared: validation.SpecParts
) -> Iterator[errors.Fault]:
    if not source.methods:
        for training in grids.expand(source.training or {}):
            alone = VariantDraft("/methods", {}, grids.GridPoint({}, {}), training)
            parts = _with_training(shared, source, training)
            for fault in validation.read(dataclasses.replace(parts, method=None)).faults:
                yield relocated(fault, source, alone)
    for draft in expand(source):
        parts = _with_training(shared, source, draft.training)
        method = draft.method.document
        for fault in validation.read(dataclasses.replace(parts, method=method)).faults:
            yield relocated(fault, source, draft)


def _with_training(
    shared: validation.SpecParts, source: VariantSource, training: grids.GridPoint
) -> validation.SpecParts:
    # The seed is the study's: it is checked there.
    document = None if source.training is None else {**training.document, "seed": 0}
    return dataclasses.replace(shared, training=document)


def _faults_of_all_grids(source: VariantSource) -> Iterator[errors.Fault]:
    for place, method in source.methods.items():
        yield from _faults_of_grids(method, f"/methods/{place}")
    if source.training is None:
        return
    yield from _faults_of_grids(source.training, "/training")
    yield from faults_of_seed(source.training)


def faults_of_seed(training: dict[str, Any]) -> Iterator[errors.Fault]:
    """Yield that a training has a seed of its own, if so."""
    if "seed" in training:
        yield errors.Fault("/training/seed", "seed_of_study", "in a study, give `seeds` instead")


def _faults_of_grids(document: dict[str, Any], pointer: str) -> Iterator[errors.Fault]:
    if grids.is_grid(document):
        detail = 'a grid takes the place of one value: {"temperature": {"grid": [2, 4]}}'
        yield errors.Fault(f"{pointer}/{grids.GRID}", "grid_misplaced", detail)
    else:
        yield from grids.faults_of(document, pointer)
        for at, _ in spaces.find(document):
            detail = "a space needs a `search` in the study, which says how many trials there are"
            place = f"{pointer}{spaces.written(at)}/{spaces.SPACE}"
            yield errors.Fault(place, "space_without_search", detail)


def _faults_of_size(source: VariantSource) -> Iterator[errors.Fault]:
    of_methods = sum(grids.count(method) for method in source.methods.values())
    of_training = grids.count(source.training or {})
    # Skipped if the methods alone are too many.
    baselines = int(source.has_baseline) if of_methods > MAX_JOBS else len(_added_baselines(source))
    count = (of_methods + baselines) * of_training * source.seed_count
    if count > MAX_JOBS:
        factors = [f"{of_methods} variants of the methods"]
        if baselines:
            factors = [f"({factors[0]} + {baselines} baseline{'s' * (baselines > 1)})"]
        if of_training > 1:
            factors.append(f"{of_training} of the training")
        factors.append(f"{source.seed_count} seeds")
        detail = f"{' x '.join(factors)} make {count:,} jobs; a study has at most {MAX_JOBS:,}"
        yield errors.Fault("/methods", "too_many_jobs", detail)


def _added_baselines(source: VariantSource) -> list[dict[str, Any]]:
    """Return the baselines of a study that are none of its methods."""
    if not source.has_baseline:
        return []
    listed: dict[str, dict[str, Any]] = {}
    for method in source.methods.values():
        for point in grids.expand(method):
            try:
                completed = catalog.complete_method(point.document)
            except errors.Refused:
                continue  # reported with all other faults when the variants are validated
            listed[key_of(completed)] = completed
    wanted = (catalog.baseline_of(method) for method in listed.values())
    distinct = {key_of(catalog.complete_method(baseline)): baseline for baseline in wanted}
    return [baseline for key, baseline in distinct.items() if key not in listed]


def expand(source: VariantSource) -> Iterator[VariantDraft]:
    """Yield all variants: for each training, the baselines and then the methods as listed."""
    baselines = _added_baselines(source)
    has_baseline: set[str] = set()
    for training in grids.expand(source.training or {}):
        alone = grids.GridPoint(without_teacher(training.document), training.chosen)
        if key_of(alone.document) not in has_baseline:
            has_baseline.add(key_of(alone.document))
            for baseline in baselines:
                yield VariantDraft("/baseline", baseline, grids.GridPoint(baseline, {}), alone)
        for place, method in source.methods.items():
            for point in grids.expand(method):
                yield VariantDraft(f"/methods/{place}", method, point, training)


def without_teacher(training: dict[str, Any]) -> dict[str, Any]:
    """Return the training of a job without a teacher."""
    return {**training, "teacher_cache": None} if "teacher_cache" in training else training


def relocated(fault: errors.Fault, source: VariantSource, draft: VariantDraft) -> errors.Fault:
    """Return a fault of a job's spec with a pointer into the study's spec."""
    _, first, *rest = fault.pointer.split("/")
    below = "".join(f"/{step}" for step in rest)
    if first == "method":
        pointer = draft.pointer
        if draft.pointer != "/baseline":
            pointer += grids.pointer_into(draft.document, draft.method, below)
    elif first == "training":
        pointer = "/training" + grids.pointer_into(source.training or {}, draft.training, below)
    else:
        pointer = fault.pointer
    return errors.Fault(pointer, fault.code, fault.detail)


def key_of(document: Any) -> str:  # Any: JSON
    """Return a text that equal documents share."""
    return json.dumps(_canonical(document), sort_keys=True)


def _canonical(value: Any) -> Any:  # Any: JSON
    """Return JSON in which equal numbers are written alike."""
    if isinstance(value, dict):
        return {key: _canonical(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_canonical(entry) for entry in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
