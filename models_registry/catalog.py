"""What can be asked for, from the committed `catalog.json`; checks specs without torch.

The engine declares methods, networks, data sets and recipes once; `python -m
workers.export_catalog` writes them here, and a test holds the file equal to the code.
"""

import copy
import difflib
import functools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema

from models_registry import errors
from models_registry.jobs import training_rules

_PATH = Path(__file__).with_name("catalog.json")


@dataclass(frozen=True)
class Catalog:
    """The file's content: plain dictionaries, by name where things have names."""

    methods: dict[str, dict[str, Any]]
    networks: dict[str, dict[str, Any]]
    foreign_networks: dict[str, list[str]]
    foreign_tasks: dict[str, str]  # by reference; those that are not named classify images
    datasets: dict[str, dict[str, Any]]
    formats: dict[str, dict[str, Any]]  # of data set uploads
    training_schema: dict[str, Any]
    recipes: dict[str, dict[str, Any]]
    milestone_shares: dict[str, list[float]]


@functools.cache
def load() -> Catalog:
    """Return the catalog; read once in a process."""
    content = json.loads(_PATH.read_text())
    return Catalog(
        methods={method["name"]: method for method in content["methods"]},
        networks={network["name"]: network for network in content["networks"]},
        foreign_networks=content["foreign_networks"],
        foreign_tasks=content["foreign_tasks"],
        datasets={dataset["name"]: dataset for dataset in content["datasets"]},
        formats={entry["name"]: entry for entry in content["formats"]},
        training_schema=content["training_schema"],
        recipes=content["recipes"],
        milestone_shares=content["milestone_shares"],
    )


def nearest(name: str, names: Iterable[str]) -> str:
    """Return `; did you mean 'x'?`, or nothing where no name is close."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def method(name: str) -> dict[str, Any]:
    """Return the entry of a method; raise Refused, naming the nearest, when there is none."""
    methods = load().methods
    if name not in methods:
        hint = nearest(name, methods)
        fault = errors.Fault(
            "/method/name", "unknown_method", f"no method is called {name!r}{hint}"
        )
        raise errors.Refused(
            f"Unknown method {name!r}{hint}", code="unknown_method", faults=[fault]
        )
    return methods[name]


def check_network(reference: str, arguments: dict[str, Any], *, pointer: str) -> None:
    """Raise Refused unless `reference` is a known network that takes `arguments`."""
    catalog = load()
    if reference in catalog.networks:
        schema = catalog.networks[reference]["arguments_schema"]
        faults = list(faults_of(arguments, schema, f"{pointer}/arguments"))
        if faults:
            raise errors.Refused(
                f"{reference} does not take these arguments: {faults[0].detail}",
                code="bad_network",
                faults=faults,
            )
        return
    library, _, name = reference.partition("/")
    names = catalog.foreign_networks.get(library, [])
    # timm's names may carry a tag of pretrained weights (`resnet50.a1_in1k`): same network.
    if name in names or (library == "timm" and name.split(".")[0] in names):
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


def complete_method(given: dict[str, Any]) -> dict[str, Any]:
    """Return the method with its defaults filled in; of a combination, each of its parts.

    Of an object among the hyper-parameters, such as `synthesis`, single fields may be given.

    Raises: errors.Refused for an unknown method, or hyper-parameters misspelt or out of range.
    """
    entry = method(given["name"])
    faults = list(_faults_of_params(given, entry["params_schema"], "/method"))
    completed = _filled(given, entry["params_schema"])
    if given["name"] == "combine" and not faults:
        completed["methods"] = []
        for place, part in enumerate(given["methods"]):
            try:
                completed["methods"].append(_complete_part(part, f"/method/methods/{place}"))
            except errors.Refused as error:
                faults += error.faults
    if faults:
        raise errors.Refused(
            f"{faults[0].detail} (method {given['name']})",
            code="invalid_hyperparameters",
            faults=faults,
        )
    return completed


def _complete_part(part: dict[str, Any], pointer: str) -> dict[str, Any]:
    """Return a method of a combination with its defaults and its weight filled in."""
    known = {name: entry for name, entry in load().methods.items() if entry["combines"]}
    name = part.get("name")
    if not isinstance(name, str) or name not in known:
        # A method that exists is not misspelt: it is of a kind that learns alone.
        hint = "; it learns alone" if name in load().methods else nearest(str(name), known)
        fault = errors.Fault(
            f"{pointer}/name", "unknown_method", f"{name!r} is no method that combines{hint}"
        )
        raise errors.Refused(fault.detail, faults=[fault])
    if "task_weight" in part:
        fault = errors.Fault(
            f"{pointer}/task_weight",
            "task_weight_twice",
            "the labels are learned once: set /method/task_weight instead",
        )
        raise errors.Refused(fault.detail, faults=[fault])
    own = known[name]["params_schema"]
    properties = {key: value for key, value in own["properties"].items() if key != "task_weight"}
    weight = {"type": "number", "minimum": 0, "maximum": 1e6, "default": 1.0}
    schema = {**own, "properties": {"weight": weight, **properties}}
    faults = list(_faults_of_params(part, schema, pointer))
    if faults:
        raise errors.Refused(faults[0].detail, faults=faults)
    return _filled(part, schema)


def _faults_of_params(
    given: dict[str, Any], schema: dict[str, Any], pointer: str
) -> Iterator[errors.Fault]:
    params = {key: value for key, value in given.items() if key != "name"}
    return faults_of(params, schema, pointer)


def _filled(given: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    params = {key: value for key, value in given.items() if key != "name"}
    return {"name": given["name"], **_filled_deep(params, schema)}


def _filled_deep(given: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """Return `given` over the defaults; an object of named fields is filled key by key."""
    filled = fill(given, schema)
    for name, field in schema.get("properties", {}).items():
        if "$ref" in field and isinstance(given.get(name), dict):
            filled[name] = merge(field.get("default", {}), given[name])
    return filled


def complete_training(given: dict[str, Any]) -> dict[str, Any]:
    """Return the training with its recipe's values filled in.

    Raises: errors.Refused for an unknown recipe or a field misspelt or out of range.
    """
    catalog = load()
    recipe = given.get("recipe", "small")
    if not isinstance(recipe, str) or recipe not in catalog.recipes:
        hint = nearest(str(recipe), catalog.recipes)
        fault = errors.Fault(
            "/training/recipe", "unknown_recipe", f"no recipe is called {recipe!r}{hint}"
        )
        raise errors.Refused(f"Unknown recipe {recipe!r}{hint}", faults=[fault])
    merged = merge(catalog.recipes[recipe], given)
    faults = list(faults_of(merged, catalog.training_schema, "/training"))
    if faults:
        raise errors.Refused(faults[0].detail, code="invalid_training", faults=faults)
    for field, schema in catalog.training_schema["properties"].items():
        if isinstance(merged.get(field), dict):
            kind = _kind(schema, catalog.training_schema["$defs"], merged[field])
            merged[field] = fill(merged[field], kind)
    _place_milestones(merged, given, catalog.milestone_shares[recipe])
    contradictions = list(training_rules.faults(merged))
    if contradictions:
        raise errors.Refused(
            contradictions[0].detail, code="invalid_training", faults=contradictions
        )
    return merged


def _kind(
    schema: dict[str, Any], definitions: dict[str, Any], value: dict[str, Any]
) -> dict[str, Any]:
    """Return the schema of the kind of object that `value`, which is valid, says that it is."""
    choices = [*schema.get("anyOf", []), *schema.get("oneOf", [])] or [schema]
    for choice in choices:
        if "oneOf" in choice and choice is not schema:
            return _kind(choice, definitions, value)
        found: dict[str, Any] = definitions.get(choice.get("$ref", "").rpartition("/")[2], choice)
        name = found.get("properties", {}).get("name", {}).get("const")
        if found.get("type") == "object" and name in (None, value.get("name", name)):
            return found
    raise LookupError(f"no kind of object for {value} in {schema}")


def _place_milestones(merged: dict[str, Any], given: dict[str, Any], at: list[float]) -> None:
    """Put the recipe's milestones at the same shares of `epochs`, unless the caller placed them."""
    placed = given.get("schedule", {}).get("milestones") is not None
    if merged["schedule"]["name"] == "step" and not placed:
        # As the engine places them: rounded first, since 0.7 * 10 may be 6.999..., and never at 0.
        epochs = merged["epochs"]
        merged["schedule"]["milestones"] = [max(1, int(round(share * epochs, 6))) for share in at]


def merge(default: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Return `default` overridden by `given`.

    Objects merge key by key, unless `name` says that they are of another kind.
    """
    merged = copy.deepcopy(default)
    for key, value in given.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            same_kind = value.get("name", old.get("name")) == old.get("name")
            merged[key] = merge(old, value) if same_kind else copy.deepcopy(value)
        else:
            merged[key] = copy.deepcopy(value)
    return merged


def fill(given: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """Return `given` with the defaults of the schema's properties filled in."""
    properties = schema.get("properties", {})
    defaults = {k: copy.deepcopy(p["default"]) for k, p in properties.items() if "default" in p}
    return {**defaults, **given}


def faults_of(value: Any, schema: dict[str, Any], pointer: str) -> Iterator[errors.Fault]:
    """Yield what is wrong with `value`, each as field, given value and way out."""
    validator = jsonschema.Draft202012Validator(schema)
    for error in sorted(validator.iter_errors(value), key=lambda e: [str(p) for p in e.path]):
        yield from _faults(error, pointer)


def _faults(error: jsonschema.ValidationError, pointer: str) -> Iterator[errors.Fault]:
    at = pointer + "".join(_step(part) for part in error.absolute_path)
    field = _field(pointer, error)
    if error.validator == "additionalProperties" and isinstance(error.instance, dict):
        known = error.schema.get("properties", {}) if isinstance(error.schema, dict) else {}
        for name in sorted(error.instance.keys() - known.keys()):
            hint = nearest(name, known) or f"; known: {', '.join(sorted(known)) or 'none'}"
            yield errors.Fault(at + _step(name), "unknown_field", f"unknown field {name!r}{hint}")
        return
    if error.validator in {"anyOf", "oneOf"} and error.context:
        yield from _faults_of_choice(error, pointer)
        return
    yield errors.Fault(at, f"invalid_{error.validator}", _sentence(error, field))


def _faults_of_choice(error: jsonschema.ValidationError, pointer: str) -> Iterator[errors.Fault]:
    """Yield what is wrong with a value of which there are several kinds.

    Where the value tells by its `name` or type which kind it wants to be, only that one is spoken
    of.
    """
    at = pointer + "".join(_step(part) for part in error.absolute_path)
    field = _field(pointer, error)
    kinds: dict[Any, list[jsonschema.ValidationError]] = {}
    for cause in error.context or []:
        kinds.setdefault(cause.relative_schema_path[0], []).append(cause)
    likely = [causes for causes in kinds.values() if not any(map(_is_other_kind, causes))]
    if len(likely) == 1:
        for cause in likely[0]:
            yield from _faults(cause, pointer)
        return
    schema: Any = error.schema  # of a choice, it is always an object
    names = schema.get("discriminator", {}).get("mapping", {})
    if names and isinstance(error.instance, dict):
        name = str(error.instance.get("name"))
        hint = nearest(name, names) or f"; known: {', '.join(names)}"
        yield errors.Fault(f"{at}/name", "unknown_name", f"no {field} is called {name!r}{hint}")
        return
    choices = ({"type": "object"},) if names else schema[str(error.validator)]
    # Kinds that are spelt out elsewhere are objects.
    types = " or ".join(str(kind.get("type", "object")) for kind in choices)
    detail = f"{field} must be of type {types}, got {_shown(error.instance)}"
    yield errors.Fault(at, "invalid_type", detail)


def _is_other_kind(cause: jsonschema.ValidationError) -> bool:
    return cause.validator == "const" or (cause.validator == "type" and not cause.relative_path)


def _field(pointer: str, error: jsonschema.ValidationError) -> str:
    """Return the name of a field; entries of a list follow the list's."""
    path = [*pointer.split("/"), *error.absolute_path]
    return f"{path[-2]}/{path[-1]}" if isinstance(path[-1], int) else str(path[-1])


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _step(part: str | int) -> str:
    """Return one step of a JSON Pointer."""
    return f"/{str(part).replace('~', '~0').replace('/', '~1')}"


def _sentence(error: jsonschema.ValidationError, field: str) -> str:
    limits = {
        "minimum": "must be at least {}",
        "exclusiveMinimum": "must be greater than {}",
        "maximum": "must be at most {}",
        "exclusiveMaximum": "must be less than {}",
        "type": "must be of type {}",
        "enum": "must be one of {}",
        "minItems": "needs at least {} entries",
        "maxItems": "takes at most {} entries",
    }
    form = limits.get(str(error.validator))
    if form is None:
        return f"{field}: {error.message}"
    return f"{field} {form.format(error.validator_value)}, got {_shown(error.instance)}"
