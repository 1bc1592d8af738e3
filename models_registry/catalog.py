"""What can be asked for, from the committed `catalog.json`; checks parts of specs without torch.

The engine declares methods, networks and data sets once; `python -m workers.export_catalog` writes
them here, and a test holds the file equal to the code. How a student is trained is declared in
`workers.distill.config.training`, which needs no torch and is read as it is.

A part is read in two steps. Each value is held against its JSON Schema, and the defaults are filled
in. Which values contradict each other stands in `workers.distill.config.rules`.
"""

import copy
import dataclasses
import functools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models_registry import errors
from models_registry.json_schemas import Schema
from models_registry.json_schemas import nearest as nearest
from workers.distill.config import baseline, chosen, descriptions, rules
from workers.distill.config.descriptions import MethodDescription, NetworkDescription
from workers.distill.config.training import PRESETS, Training, expand, merge_preset

_PATH = Path(__file__).with_name("catalog.json")
DEFAULT_RECIPE: str = Training.model_fields["recipe"].default


@dataclass(frozen=True)
class Catalog:
    """The file's content: plain dictionaries, by name where things have names."""

    methods: dict[str, dict[str, Any]]
    networks: dict[str, dict[str, Any]]
    foreign_networks: dict[str, list[str]]
    foreign_arguments_schema: dict[str, Any]  # of every network of another library
    foreign_tasks: dict[str, str]  # by reference; those that are not named classify images
    datasets: dict[str, dict[str, Any]]
    formats: dict[str, dict[str, Any]]  # of data set uploads
    training_schema: dict[str, Any]
    recipes: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Reading:
    """A part of a spec with its defaults filled in, and what is wrong with it.

    Who reads a field of `document` that is at fault itself gets `rules.FaultyFieldError`.
    """

    document: dict[str, Any]
    faults: tuple[errors.Fault, ...] = ()
    description: MethodDescription | None = None
    """Of a method; None where its name, or that of a part, is unknown."""


@functools.cache
def load() -> Catalog:
    """Return the catalog; read once in a process."""
    content = json.loads(_PATH.read_text())
    return Catalog(
        methods={method["name"]: method for method in content["methods"]},
        networks={network["name"]: network for network in content["networks"]},
        foreign_networks=content["foreign_networks"],
        foreign_arguments_schema=content["foreign_arguments_schema"],
        foreign_tasks=content["foreign_tasks"],
        datasets={dataset["name"]: dataset for dataset in content["datasets"]},
        formats={entry["name"]: entry for entry in content["formats"]},
        training_schema=Training.model_json_schema(),
        recipes=PRESETS,
    )


def translated(faults: Iterable[rules.Violation]) -> Iterator[errors.Fault]:
    """Yield what rules found as faults of a spec."""
    for fault in faults:
        yield errors.Fault(f"/{fault.field}", fault.code, fault.message)


def check_network(reference: str, arguments: dict[str, Any], *, pointer: str) -> None:
    """Raise Refused unless `reference` is a known network that takes `arguments`."""
    catalog = load()
    place = f"{pointer}/arguments"
    asked = [
        errors.Fault(f"{place}/{fault.field}", fault.code, fault.message)
        for fault in rules.of_arguments(reference, arguments)
    ]
    if asked:
        raise errors.Refused(asked[0].detail, code="bad_network", faults=asked)
    if reference in catalog.networks:
        faults = _arguments_schema(reference).faults(arguments, f"{pointer}/arguments")
        if faults:
            raise errors.Refused(
                f"{reference} does not take these arguments: {faults[0].detail}",
                code="bad_network",
                faults=faults,
            )
        part = descriptions.part_of(catalog.networks[reference], arguments)
        if part is not None:
            name = catalog.networks[reference]["composed_of"]
            check_network(*part, pointer=f"{pointer}/arguments/{name}")
        return
    library, _, name = reference.partition("/")
    names = catalog.foreign_networks.get(library, [])
    # timm's names may carry a tag of pretrained weights (`resnet50.a1_in1k`): same network.
    if name in names or (library == "timm" and name.split(".")[0] in names):
        faults = _foreign_arguments_schema().faults(arguments, place)
        if faults:
            raise errors.Refused(
                f"{reference} does not take these arguments: {faults[0].detail}",
                code="bad_network",
                faults=faults,
            )
        return
    candidates = [
        *catalog.networks,
        *(f"{lib}/{n}" for lib, ns in catalog.foreign_networks.items() for n in ns),
    ]
    # Where only the library is missing or wrong, the name itself says what was meant.
    namesakes = [found for found in candidates if found.endswith(f"/{name or library}")]
    hint = nearest(reference, namesakes) or nearest(reference, candidates)
    fault = errors.Fault(
        f"{pointer}/network", "unknown_network", f"no network is called {reference!r}{hint}"
    )
    raise errors.Refused(
        f"Unknown network {reference!r}{hint}", code="unknown_network", faults=[fault]
    )


def task_of_network(reference: str) -> str:
    """Return what a known network is for."""
    catalog = load()
    if reference in catalog.networks:
        task: str = catalog.networks[reference]["task"]
        return task
    return catalog.foreign_tasks.get(reference, "classification")


def describe_network(reference: str, arguments: Mapping[str, Any]) -> NetworkDescription:
    """Return what is known of a network without building it."""
    found = descriptions.network_of(load().networks, reference, arguments)
    if found.task is not None:
        return found
    return dataclasses.replace(found, task=task_of_network(reference))


def describe_method(name: str) -> MethodDescription:
    """Return what the rules read of a known method."""
    return _descriptions()[name]


def read_method(given: dict[str, Any]) -> Reading:
    """Return a method with its defaults filled in; of a combination, each of its parts.

    Of an object among the hyper-parameters, such as `synthesis`, single fields may be given.
    """
    name = given["name"]
    if name not in load().methods:
        detail = f"no method is called {name!r}{nearest(name, load().methods)}"
        return Reading(dict(given), (errors.Fault("/method/name", "unknown_method", detail),))
    reading = _read_params(given, _params_schema(name), "/method")
    if name == descriptions.COMBINE:
        faulty = _faulty(reading.faults, "/method")
        if "methods" in faulty or "methods" not in reading.document:
            return dataclasses.replace(reading, description=None)
        return _with_parts(reading)
    contradictions = rules.of_method(describe_method(name), reading.document)
    return dataclasses.replace(reading, faults=(*reading.faults, *translated(contradictions)))


def _with_parts(whole: Reading) -> Reading:
    """Return a combination with its parts filled in, and described by them."""
    parts = [_read_part(part, place) for place, part in enumerate(whole.document["methods"])]
    found = [part.description for part in parts if part.description is not None]
    return Reading(
        rules.Partial(
            {**whole.document, "methods": [part.document for part in parts]},
            _faulty(whole.faults, "/method"),
        ),
        (*whole.faults, *(fault for part in parts for fault in part.faults)),
        descriptions.combined(describe_method(descriptions.COMBINE), found)
        if len(found) == len(parts)
        else None,
    )


def _read_part(given: dict[str, Any], place: int) -> Reading:
    """Return a method of a combination with its defaults and its weight filled in."""
    pointer = f"/method/methods/{place}"
    known = {name: entry for name, entry in load().methods.items() if entry["combines"]}
    name = given.get("name")
    if not isinstance(name, str) or name not in known:
        # A method that exists is not misspelt: it is of a kind that learns alone.
        hint = "; it learns alone" if name in load().methods else nearest(str(name), known)
        detail = f"{name!r} is no method that combines{hint}"
        return Reading(dict(given), (errors.Fault(f"{pointer}/name", "unknown_method", detail),))
    reading = _read_params(
        {key: value for key, value in given.items() if key not in descriptions.OF_THE_WHOLE},
        _part_schema(name),
        pointer,
    )
    contradictions = rules.of_part(describe_method(name), reading.document, place)
    faults = (*reading.faults, *translated(contradictions))
    for field, why in descriptions.OF_THE_WHOLE.items():
        if field in given:
            detail = f"{why}: set /method/{field} instead"
            faults = (errors.Fault(f"{pointer}/{field}", f"{field}_twice", detail), *faults)
    return dataclasses.replace(reading, faults=faults)


def _read_params(given: dict[str, Any], schema: Schema, pointer: str) -> Reading:
    params = {key: value for key, value in given.items() if key != "name"}
    faults = schema.faults(params, pointer)
    filled = {"name": given["name"], **_filled(params, schema.content)}
    document = rules.Partial(filled, _faulty(faults, pointer)) if faults else filled
    return Reading(document, tuple(faults), describe_method(given["name"]))


def _filled(given: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """Return `given` over the defaults; an object of named fields is filled key by key."""
    properties = schema.get("properties", {})
    defaults = {k: copy.deepcopy(p["default"]) for k, p in properties.items() if "default" in p}
    filled = {**defaults, **given}
    for name, field in properties.items():
        inner = _object_schema(field, schema)
        if inner is not None and isinstance(given.get(name), dict):
            own = defaults.get(name) or {}
            filled[name] = _filled({**own, **given[name]}, inner)
    return filled


def _object_schema(field: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any] | None:
    """Return the schema of a field that is an object of named fields, or null; else None."""
    kinds = [kind for kind in field.get("anyOf", [field]) if kind.get("type") != "null"]
    if len(kinds) != 1 or "$ref" not in kinds[0]:
        return None
    found = schema["$defs"][kinds[0]["$ref"].rpartition("/")[2]]
    return {**found, "$defs": schema["$defs"]}


def with_choices(reading: Reading, *, task: str | None, training: dict[str, Any]) -> Reading:
    """Return a method without faults with what follows from its training (`config.chosen`)."""

    def chosen_in(method: dict[str, Any]) -> dict[str, Any]:
        properties = load().methods[method["name"]]["params_schema"]["properties"]
        return chosen.method_in(method, properties, task=task, training=training)

    document = chosen_in(reading.document)
    if document["name"] == descriptions.COMBINE:
        document["methods"] = [chosen_in(part) for part in document["methods"]]
    return dataclasses.replace(reading, document=document)


def complete_method(given: dict[str, Any]) -> dict[str, Any]:
    """Return a method with its defaults filled in.

    Raises: errors.Refused for an unknown method, and for hyper-parameters that are misspelt, out
    of range or contradict each other.
    """
    reading = read_method(given)
    if reading.faults:
        first = reading.faults[0]
        is_unknown = first == errors.Fault("/method/name", "unknown_method", first.detail)
        raise errors.Refused(
            first.detail if is_unknown else f"{first.detail} (method {given['name']})",
            code="unknown_method" if is_unknown else "invalid_hyperparameters",
            faults=reading.faults,
        )
    return reading.document


def method_of_job(
    given: dict[str, Any], *, task: str | None, training: dict[str, Any]
) -> dict[str, Any]:
    """Return a method as the service writes it into a job with this complete training.

    Raises what `complete_method` does.
    """
    complete = complete_method(chosen.method_with_labels(given, training["recipe"]))
    return with_choices(Reading(complete), task=task, training=training).document


def baseline_of(method: dict[str, Any]) -> dict[str, Any]:
    """Return the method that trains the baseline of a complete method, without its defaults."""
    return baseline.baseline_of(method, describe_method(method["name"]).exchange)


def read_training(given: dict[str, Any]) -> Reading:
    """Return the training with the values of its preset filled in."""
    name = given.get("recipe", DEFAULT_RECIPE)
    if not isinstance(name, str) or name not in PRESETS:
        detail = f"no recipe is called {name!r}{nearest(str(name), PRESETS)}"
        unknown = [errors.Fault("/training/recipe", "unknown_recipe", detail)]
    else:
        unknown = []
    values = {**given, "recipe": DEFAULT_RECIPE} if unknown else given
    faults = _training_schema().faults(merge_preset(values), "/training")
    faulty = _faulty(faults, "/training")
    # What is left is right by itself.
    known = {
        field: value
        for field, value in values.items()
        if field in Training.model_fields and field not in faulty
    }
    document = expand(known).model_dump(mode="json")
    # Nobody knows what an unknown preset would have filled in.
    faulty |= set(document) - set(known) if unknown else set()
    partial = rules.Partial(document, faulty) if faulty else document
    contradictions = translated(rules.of_training(partial))
    return Reading(partial, (*unknown, *faults, *contradictions))


def complete_training(given: dict[str, Any]) -> dict[str, Any]:
    """Return the training with the values of its preset filled in.

    Raises: errors.Refused for an unknown preset, and for fields that are misspelt, out of range or
    contradict each other.
    """
    reading = read_training(given)
    if reading.faults:
        first = reading.faults[0]
        if first.code == "unknown_recipe":
            raise errors.Refused(first.detail, faults=reading.faults)
        raise errors.Refused(first.detail, code="invalid_training", faults=reading.faults)
    return reading.document


def _faulty(faults: Iterable[errors.Fault], pointer: str) -> set[str]:
    """Return which fields of the object at a pointer are at fault.

    A field that the object does not have is beside the others; inside one of them it leaves that
    one in doubt.
    """
    depth = pointer.count("/") + 1
    paths = ((fault.pointer.split("/"), fault.code == "unknown_field") for fault in faults)
    return {path[depth] for path, is_unknown in paths if len(path) > depth + is_unknown}


@functools.cache
def _descriptions() -> dict[str, MethodDescription]:
    fields = MethodDescription.model_fields
    return {
        name: MethodDescription.model_validate({field: entry[field] for field in fields})
        for name, entry in load().methods.items()
    }


@functools.cache
def _training_schema() -> Schema:
    return Schema(load().training_schema)


@functools.cache
def _params_schema(name: str) -> Schema:
    return Schema(load().methods[name]["params_schema"])


@functools.cache
def _part_schema(name: str) -> Schema:
    """Return the schema of a method's hyper-parameters as a part of a combination."""
    own = load().methods[name]["params_schema"]
    properties = {
        key: value
        for key, value in own["properties"].items()
        if key not in descriptions.OF_THE_WHOLE
    }
    weight = {"type": "number", "minimum": 0, "maximum": 1e6, "default": 1.0}
    return Schema({**own, "properties": {"weight": weight, **properties}})


@functools.cache
def _foreign_arguments_schema() -> Schema:
    return Schema(load().foreign_arguments_schema)


@functools.cache
def _arguments_schema(reference: str) -> Schema:
    return Schema(load().networks[reference]["arguments_schema"])
