"""Values held against a JSON Schema by a compiled validator, and what is wrong in plain words."""

import difflib
import json
from collections.abc import Iterable, Iterator
from typing import Any

import jsonschema_rs

from models_registry.errors import Fault

# JSON Schemas and the values they describe are the caller's JSON.
Json = Any

_LIMITS = {
    "minimum": "must be at least {}",
    "exclusiveMinimum": "must be greater than {}",
    "maximum": "must be at most {}",
    "exclusiveMaximum": "must be less than {}",
    "type": "must be of type {}",
    "enum": "must be one of {}",
    "minItems": "needs at least {} entries",
    "maxItems": "takes at most {} entries",
}


class Schema:
    """A JSON Schema that was compiled once."""

    def __init__(self, schema: dict[str, Json]) -> None:
        self.content = schema
        self._validator = jsonschema_rs.Draft202012Validator(schema)

    def faults(self, value: Json, pointer: str) -> list[Fault]:
        """Return what is wrong with `value`, each as field, given value and way out."""
        if self._validator.is_valid(value):
            return []
        found = sorted(self._validator.iter_errors(value), key=_place)
        return [fault for error in found for fault in self._described(error, pointer)]

    def _described(self, error: jsonschema_rs.ValidationError, pointer: str) -> Iterator[Fault]:
        at = pointer + "".join(step(part) for part in error.instance_path)
        field = _field(pointer, error)
        keyword = error.kind.name
        if keyword == "additionalProperties":
            known = self._schema_of(error).get("properties", {})
            for name in sorted(error.kind.value):
                hint = nearest(name, known) or f"; known: {', '.join(sorted(known)) or 'none'}"
                yield Fault(at + step(name), "unknown_field", f"unknown field {name!r}{hint}")
        elif keyword in {"anyOf", "oneOf"}:
            yield from self._described_choice(error, pointer)
        else:
            yield Fault(at, f"invalid_{keyword}", self._sentence(error, field))

    def _described_choice(
        self, error: jsonschema_rs.ValidationError, pointer: str
    ) -> Iterator[Fault]:
        """Yield what is wrong with a value of which there are several kinds.

        Where the value tells by its `name` or type which kind it wants to be, only that one is
        spoken of.
        """
        at = pointer + "".join(step(part) for part in error.instance_path)
        field = _field(pointer, error)
        likely = [
            causes
            for causes in error.kind.value
            if not any(_is_other_kind(cause, error) for cause in causes)
        ]
        if len(likely) == 1:
            for cause in sorted(likely[0], key=_place):
                yield from self._described(cause, pointer)
            return
        schema = self._schema_of(error)
        names = schema.get("discriminator", {}).get("mapping", {})
        if names and isinstance(error.instance, dict):
            name = str(error.instance.get("name"))
            hint = nearest(name, names) or f"; known: {', '.join(names)}"
            yield Fault(f"{at}/name", "unknown_name", f"no {field} is called {name!r}{hint}")
            return
        choices = ({"type": "object"},) if names else schema[error.kind.name]
        # Kinds that are spelt out elsewhere are objects.
        types = " or ".join(str(kind.get("type", "object")) for kind in choices)
        detail = f"{field} must be of type {types}, got {_shown(error.instance)}"
        yield Fault(at, "invalid_type", detail)

    def _sentence(self, error: jsonschema_rs.ValidationError, field: str) -> str:
        keyword = error.kind.name
        form = _LIMITS.get(keyword)
        if form is None:
            return f"{field}: {error.message}"
        limit = self._schema_of(error)[keyword]
        return f"{field} {form.format(limit)}, got {_shown(error.instance)}"

    def _schema_of(self, error: jsonschema_rs.ValidationError) -> dict[str, Json]:
        """Return the part of the schema whose keyword was not met."""
        schema: Json = self.content
        for part in error.schema_path[:-1]:
            schema = schema[part]
        found: dict[str, Json] = schema
        return found


def nearest(name: str, names: Iterable[str]) -> str:
    """Return `; did you mean 'x'?`, or nothing where no name is close."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def step(part: str | int) -> str:
    """Return one step of a JSON Pointer."""
    return f"/{str(part).replace('~', '~0').replace('/', '~1')}"


def _place(error: jsonschema_rs.ValidationError) -> list[str]:
    return [str(part) for part in error.instance_path]


def _is_other_kind(
    cause: jsonschema_rs.ValidationError, choice: jsonschema_rs.ValidationError
) -> bool:
    keyword = cause.kind.name
    return keyword == "const" or (
        keyword == "type" and len(cause.instance_path) == len(choice.instance_path)
    )


def _field(pointer: str, error: jsonschema_rs.ValidationError) -> str:
    """Return the name of a field; entries of a list follow the list's."""
    path = [*pointer.split("/"), *error.instance_path]
    return f"{path[-2]}/{path[-1]}" if isinstance(path[-1], int) else str(path[-1])


def _shown(value: Json) -> str:
    text = json.dumps(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
