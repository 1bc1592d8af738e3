"""The OpenAPI document of FastAPI, with problems, schemas of the catalog and examples added."""

import copy
import re
import threading
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI

from api import archives, errors, media_types
from api.schemas import problems
from models_registry import catalog

# An OpenAPI document and its parts are free-form JSON.
Json = dict[str, Any]

EXAMPLE_JOB: Json = {
    "name": "digits-dkd",
    "teacher": "digits-teacher@1",
    "student": {"network": "retort/resnet8", "register_as": "digits-student"},
    "dataset": "digits@1",
    "method": {"name": "dkd", "alpha": 1.0, "beta": 8.0, "temperature": 4.0},
    "training": {"recipe": "small", "epochs": 10},
    "baseline": True,
    "labels": {"team": "vision"},
}
EXAMPLE_STUDY: Json = {
    "name": "digits-methods",
    "teacher": "digits-teacher@1",
    "student": {"network": "retort/resnet8"},
    "dataset": "digits@1",
    "methods": [
        {"name": "kd", "temperature": {"grid": [2.0, 4.0]}},
        {"name": "dkd", "beta": 2.0, "warmup_epochs": 5},
    ],
    "training": {"recipe": "small", "epochs": 10},
    "seeds": [0, 1, 2, 3, 4],
    "baseline": True,
    "labels": {"team": "vision"},
}
_EXAMPLES = {
    "/v1/jobs": {"digits": {"summary": "Digits by DKD", "value": EXAMPLE_JOB}},
    "/v1/studies": {"digits": {"summary": "KD and DKD on digits", "value": EXAMPLE_STUDY}},
}
DESCRIPTION = """\
Distils a trained **teacher** network into a smaller **student**. Upload a teacher, submit a job, \
follow it, download the student. A **study** submits many jobs together and compares them.

Every error response is a problem (RFC 9457, `application/problem+json`). Its `type` \
is `urn:retort:problem:<code>`; `code` is stable, `detail` is for people, `errors` names fields by \
JSON Pointer, and `retryable` says whether the same request may succeed later.

Wherever `GET` is, `HEAD` answers with the same status and headers and no body.

Lists are pages: `data`, `has_more`, and `next_cursor` for the next one. Fields may be added to \
responses at any time; unknown fields of a request are refused.
"""
_SECURED = "security"
_BODY_STATUSES = (
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
)
_METHODS_THAT_CHANGE = {"post", "put", "patch", "delete"}
# Downloads of one file: what `ranges.respond` returns.
_DOWNLOADS = (
    *("/student", "/archive", "/files/{path}", "/report/{path}"),
    *("/open-set", "/consensus"),
)
_ARCHIVES = ("/report.zip",)
_REPORTS = ("/report", "/report.zip")
_STREAMED_BODIES = ("/parts/{number}", "/reply")


def install(app: FastAPI) -> None:
    """Make `app` serve the complete document."""
    original, lock = app.openapi, threading.Lock()
    finished: Json = {}

    def described() -> Json:
        nonlocal finished
        # Each request asks for it; FastAPI would look through all routers for new routes.
        if finished:
            return finished
        # Threads ask for it too, and none may see it half complete.
        with lock:
            if not finished:
                document = original()
                complete(document)
                finished = document
        return finished

    # FastAPI's own way to extend the document is to replace this method.
    app.openapi = described  # type: ignore[method-assign]


def complete(document: Json) -> None:
    """Add problems, schemas of the catalog and examples to FastAPI's document."""
    document["info"]["description"] = DESCRIPTION
    schemas = document["components"]["schemas"]
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    schemas |= _problem_schemas()
    schemas |= method_schemas()
    schemas |= training_schemas()
    schemas["JobSpec"]["properties"]["method"] = {"$ref": "#/components/schemas/Method"}
    schemas["JobSpec"]["properties"]["training"] = {"$ref": "#/components/schemas/Training"}
    schemas["StudyMethod"] = study_method_schema()
    schemas["StudySpec"]["properties"]["methods"]["items"] = {
        "$ref": "#/components/schemas/StudyMethod"
    }
    document["components"]["responses"] = _problem_responses()
    for path, verb, operation in _operations(document):
        # FastAPI's own is the name of the function, such as "Index".
        if "description" in operation:
            operation["summary"] = _first_sentence(operation["description"])
        _declare_problems(path, verb, operation)
        if path.endswith(_DOWNLOADS):
            operation["responses"] |= _download_responses(path)
        if path.endswith(_ARCHIVES):
            operation["responses"] |= _archive_responses()
        for content in operation["responses"].get("200", {}).get("content", {}).values():
            # FastAPI describes streams as OpenAPI 3.2 does; in 3.1 they are plain text.
            if content.pop("itemSchema", None):
                content["schema"] = {"type": "string"}
    for path, examples in _EXAMPLES.items():
        for place in (path, f"{path}/validate"):
            body = document["paths"][place]["post"]["requestBody"]["content"]["application/json"]
            body["examples"] = copy.deepcopy(examples)


def method_schemas() -> Json:
    """Return one schema for each method, and `Method`: one of them, selected by `name`."""
    schemas: Json = {}
    mapping = {}
    for name, entry in catalog.load().methods.items():
        component = "Method" + name.title().replace("_", "").replace("-", "")
        schema = hoisted(entry["params_schema"], component, schemas)
        constant = {"const": name, "title": "Name", "type": "string"}
        schemas[component] = {
            **schema,
            "title": component,
            "type": "object",
            "description": entry["title"],
            "properties": {"name": constant, **schema.get("properties", {})},
            "required": ["name", *schema.get("required", [])],
        }
        mapping[name] = f"#/components/schemas/{component}"
    schemas["Method"] = {
        "description": "A method and its hyper-parameters, flat in one object.",
        "oneOf": [{"$ref": reference} for reference in mapping.values()],
        "discriminator": {"propertyName": "name", "mapping": mapping},
    }
    return schemas


def study_method_schema() -> Json:
    """Return the schema of a method in a study: only names are fixed, values may be several."""
    return {
        "title": "StudyMethod",
        "type": "object",
        "description": "A method and its hyper-parameters as in `Method`; a value that is given as "
        '`{"grid": [...]}` stands for one variant with each of its values, one that is given as '
        '`{"space": {...}}` for what a search chooses.',
        "properties": {"name": {"type": "string", "enum": sorted(catalog.load().methods)}},
        "required": ["name"],
        "additionalProperties": True,
    }


def training_schemas() -> Json:
    """Return `Training`: every field is optional, because the recipe has defaults."""
    schemas: Json = {}
    partial = _optional(catalog.load().training_schema)
    schemas["Training"] = {**hoisted(partial, "Training", schemas), "title": "Training"}
    return schemas


def hoisted(schema: Json, prefix: str, into: Json) -> Json:
    """Return a schema whose own definitions have moved to the document's components.

    In an OpenAPI document `#/$defs/...` would be resolved at the document's root. Titles get the
    prefix too: client generators name classes by them, and methods share names of definitions.
    """
    definitions = schema.get("$defs", {})
    targets = {f"#/$defs/{name}": f"#/components/schemas/{prefix}{name}" for name in definitions}

    def redirected(node: Any) -> Any:
        if isinstance(node, dict):
            return {
                key: targets.get(value, value) if isinstance(value, str) else redirected(value)
                for key, value in node.items()
                if key != "$defs"
            }
        return [redirected(entry) for entry in node] if isinstance(node, list) else node

    for name, definition in definitions.items():
        component = f"{prefix}{name}"
        title = {"title": component} if "title" in definition else {}
        into[component] = {**redirected(definition), **title}
    result: Json = redirected(schema)
    return result


def _optional(node: Any) -> Any:
    # Parts of `optimizer` may be given as well, and then fit more than one alternative.
    if isinstance(node, list):
        return [_optional(entry) for entry in node]
    if not isinstance(node, dict):
        return node
    changed = {}
    for key, value in node.items():
        if (key == "required" and isinstance(value, list)) or (
            key == "discriminator" and isinstance(value, dict) and "propertyName" in value
        ):
            continue
        changed["anyOf" if key == "oneOf" else key] = _optional(value)
    return changed


def _problem_schemas() -> Json:
    schema = problems.Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    faults = schema.pop("$defs")
    return {"Problem": schema, **faults}


def _problem_responses() -> Json:
    titles: dict[HTTPStatus, str] = {status: status.phrase for status in _BODY_STATUSES}
    for status in (HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, HTTPStatus.REQUEST_TIMEOUT):
        titles[status] = status.phrase
    for answer in errors.TABLE.values():
        titles.setdefault(answer.status, answer.title)
    content = {errors.MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    responses: Json = {
        _component(status): {"description": title, "content": copy.deepcopy(content)}
        for status, title in titles.items()
    }
    beyond = _component(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
    responses[beyond]["headers"] = _headers("Content-Range")
    return responses


_HEADERS = {
    "ETag": "Changes with the bytes; strong. Of a single file, its SHA-256 in quotation marks.",
    "Accept-Ranges": "`bytes`: a `Range` header is understood.",
    "Cache-Control": "`private, max-age=31536000, immutable`.",
    "Content-Disposition": "`attachment`, with the name of the file.",
    "Content-Length": "Of this response, in bytes.",
    "Content-Range": "First and last byte and the size of the file: `bytes 0-99/4711`; with 416, "
    "the size alone: `bytes */4711`.",
    "Repr-Digest": "SHA-256 of the whole file, also where a range of it is sent (RFC 9530).",
}
_OF_FILES = ("ETag", "Accept-Ranges", "Cache-Control", "Content-Disposition", "Repr-Digest")
_OF_ARCHIVES = ("ETag", "Cache-Control", "Content-Disposition")


def _headers(*names: str) -> Json:
    return {name: {"description": _HEADERS[name], "schema": {"type": "string"}} for name in names}


def _bytes_of(*kinds: str) -> Json:
    """Return content of these media types; generators of clients support the first alone."""
    return {kind: {"schema": {"type": "string", "format": "binary"}} for kind in kinds}


def _download_responses(path: str) -> Json:
    kinds = media_types.ALL if path.endswith("{path}") else (media_types.UNKNOWN,)
    content, whole = _bytes_of(*kinds), (*_OF_FILES, "Content-Length")
    return {
        "200": {"description": "The whole file", "content": content, "headers": _headers(*whole)},
        "206": {
            "description": "One range of it",
            "content": content,
            "headers": _headers(*whole, "Content-Range"),
        },
        "304": {"description": "The caller's copy is current", "headers": _headers(*_OF_FILES)},
    }


def _archive_responses() -> Json:
    return {
        "200": {
            "description": "All files of the report, as a zip archive",
            "content": _bytes_of(media_types.UNKNOWN, archives.MEDIA_TYPE),
            "headers": _headers(*_OF_ARCHIVES, "Content-Length"),
        },
        "304": {"description": "The caller's copy is current", "headers": _headers(*_OF_ARCHIVES)},
    }


def _first_sentence(description: str) -> str:
    text = " ".join(description.split("\n\n")[0].split())
    return re.split(r"(?<=[a-z)`])[.;](?:\s|$)", text, maxsplit=1)[0]


def _component(status: HTTPStatus) -> str:
    return f"Problem{status.value}"


def _operations(document: Json) -> Iterator[tuple[str, str, Json]]:
    for path, verbs in document["paths"].items():
        for verb, operation in verbs.items():
            yield path, verb, operation


def _declare_problems(path: str, verb: str, operation: Json) -> None:
    responses = operation.setdefault("responses", {})
    if "HTTPValidationError" in str(responses.get("422")):
        del responses["422"]
    for status in sorted(set(_possible(path, verb, operation))):
        reference = {"$ref": f"#/components/responses/{_component(status)}"}
        responses.setdefault(str(status.value), reference)


def _possible(path: str, verb: str, operation: Json) -> Iterator[HTTPStatus]:
    parameters = operation.get("parameters", [])
    headers = {entry["name"].lower() for entry in parameters if entry["in"] == "header"}
    yield HTTPStatus.BAD_REQUEST
    yield HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
    yield HTTPStatus.INTERNAL_SERVER_ERROR
    yield HTTPStatus.SERVICE_UNAVAILABLE
    if path == "/metrics":
        yield HTTPStatus.UNAUTHORIZED
    if operation.get(_SECURED):
        yield from (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.TOO_MANY_REQUESTS)
    if "{" in path:
        yield from (HTTPStatus.NOT_FOUND, HTTPStatus.GONE)
    if parameters or "requestBody" in operation:
        yield HTTPStatus.UNPROCESSABLE_ENTITY
    if "requestBody" in operation:
        yield from _BODY_STATUSES
    if verb in _METHODS_THAT_CHANGE or path.endswith((*_DOWNLOADS, *_REPORTS, "/plan")):
        yield HTTPStatus.CONFLICT
    if verb in _METHODS_THAT_CHANGE:
        yield HTTPStatus.INSUFFICIENT_STORAGE
    if path.endswith("/report.zip"):
        yield HTTPStatus.PRECONDITION_FAILED
    if "if-match" in headers:
        yield from (HTTPStatus.PRECONDITION_FAILED, HTTPStatus.PRECONDITION_REQUIRED)
    if path.endswith(_DOWNLOADS):
        yield HTTPStatus.PRECONDITION_FAILED
        yield HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
    if path.endswith(_STREAMED_BODIES):
        yield HTTPStatus.REQUEST_TIMEOUT
