"""The OpenAPI document: valid, complete, and kept by the app under odd requests."""

import copy
import json
import os
from collections.abc import Iterator
from typing import Any, Literal

import jsonschema
import openapi_spec_validator
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable

from api import openapi
from models_registry import catalog
from models_registry.persistence import database, tables
from models_registry.persistence.storage import Storage
from tests import databases, factories


@pytest.fixture
def document(app: FastAPI) -> dict[str, Any]:
    """The document, to be changed at will."""
    return copy.deepcopy(app.openapi())


def operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """Return verb, path and content of each operation."""
    return [
        (verb, path, operation)
        for path, verbs in document["paths"].items()
        for verb, operation in verbs.items()
    ]


@databases.SQLITE_ONLY
class TestDocument:
    def test_is_valid_openapi_3_1(self, document: dict[str, Any]) -> None:
        assert document["openapi"].startswith("3.1")
        openapi_spec_validator.validate(document)

    def test_is_served(self, client: TestClient, document: dict[str, Any]) -> None:
        assert client.get("/v1/openapi.json").json() == json.loads(json.dumps(document))

    def test_names_each_operation_once(self, document: dict[str, Any]) -> None:
        names = [operation["operationId"] for _, _, operation in operations(document)]
        assert len(names) == len(set(names))
        assert all(name.isidentifier() and name.islower() for name in names)

    def test_says_what_each_operation_does(self, document: dict[str, Any]) -> None:
        for verb, path, operation in operations(document):
            assert operation.get("description"), (verb, path)
            assert operation["tags"], (verb, path)

    def test_declares_problems_for_every_operation(self, document: dict[str, Any]) -> None:
        for verb, path, operation in operations(document):
            refused = [code for code in operation["responses"] if code >= "400"]
            assert {"400", "500", "503"} <= set(refused), (verb, path)
            for code in refused:
                reference = operation["responses"][code]["$ref"]
                assert reference == f"#/components/responses/Problem{code}", (verb, path)
        assert "HTTPValidationError" not in json.dumps(document)

    def test_leads_every_reference_to_something(self, document: dict[str, Any]) -> None:
        waiting: list[Any] = [document]
        while waiting:
            node = waiting.pop()
            waiting += node.values() if isinstance(node, dict) else node
            waiting = [entry for entry in waiting if isinstance(entry, dict | list)]
            if isinstance(node, dict) and isinstance(node.get("$ref"), str):
                found: Any = document
                for step in node["$ref"].removeprefix("#/").split("/"):
                    found = found[step]


def is_valid(document: dict[str, Any], name: str, value: Any) -> bool:
    """Return whether a value fits a component of the document."""
    schema = {"$ref": f"#/components/schemas/{name}", **document}
    return jsonschema.Draft202012Validator(schema).is_valid(value)


@databases.SQLITE_ONLY
class TestMethodSchemas:
    def test_tell_every_method_apart_by_its_name(self, document: dict[str, Any]) -> None:
        schemas = document["components"]["schemas"]
        assert set(schemas["Method"]["discriminator"]["mapping"]) == set(catalog.load().methods)
        assert schemas["JobSpec"]["properties"]["method"] == {"$ref": "#/components/schemas/Method"}

    @pytest.mark.parametrize(
        ("method", "fits"),
        [
            ({"name": "kd"}, True),
            ({"name": "kd", "temperature": 2.0}, True),
            ({"name": "kd", "temperature": -2.0}, False),
            ({"name": "kd", "temperatur": 2.0}, False),
            ({"name": "dafl", "synthesis": {"steps": 3}}, True),
            ({"name": "dafl", "synthesis": {"stps": 3}}, False),
            ({"name": "no"}, False),
            ({}, False),
        ],
    )
    def test_are_what_submission_checks(
        self, document: dict[str, Any], method: dict[str, Any], fits: bool
    ) -> None:
        assert is_valid(document, "Method", method) is fits


@databases.SQLITE_ONLY
class TestTrainingSchema:
    @pytest.mark.parametrize(
        ("training", "fits"),
        [
            ({}, True),
            ({"recipe": "small", "epochs": 3}, True),
            ({"optimizer": {"learning_rate": 0.1}}, True),
            ({"optimizer": {"name": "adamw", "beta1": 0.8}}, True),
            ({"epochs": 0}, False),
            ({"epoch": 3}, False),
        ],
    )
    def test_lets_every_field_be_left_out(
        self, document: dict[str, Any], training: dict[str, Any], fits: bool
    ) -> None:
        assert is_valid(document, "Training", training) is fits


@databases.SQLITE_ONLY
class TestExamples:
    @pytest.mark.usefixtures("teacher")
    def test_run(self, client: TestClient, document: dict[str, Any]) -> None:
        for path, body in (("/v1/jobs", "JobSpec"), ("/v1/studies", "StudySpec")):
            self.run_examples(client, document, path, body)
            self.run_examples(client, document, f"{path}/validate", body)

    def run_examples(
        self, client: TestClient, document: dict[str, Any], path: str, body: str
    ) -> None:
        """Send the examples of an operation, and hold them to its schema."""
        content = document["paths"][path]["post"]["requestBody"]["content"]
        [example] = content["application/json"]["examples"].values()
        answer = client.post(path, json=example["value"])
        assert answer.status_code in {200, 202}, answer.text
        assert is_valid(document, body, example["value"])


class TestHoisted:
    def test_moves_definitions_to_the_components(self) -> None:
        schema = {"$defs": {"A": {"type": "null"}}, "anyOf": [{"$ref": "#/$defs/A"}]}
        components: dict[str, Any] = {}
        moved = openapi.hoisted(schema, "X", components)
        assert moved == {"anyOf": [{"$ref": "#/components/schemas/XA"}]}
        assert components == {"XA": {"type": "null"}}

    def test_gives_each_component_a_title_of_its_own(self) -> None:
        components: dict[str, Any] = {}
        for prefix in ("X", "Y"):
            openapi.hoisted({"$defs": {"A": {"title": "A"}}}, prefix, components)
        assert components == {"XA": {"title": "XA"}, "YA": {"title": "YA"}}


ODD_REQUESTS = int(os.environ.get("ODD_REQUESTS", "3"))
"""For each route and way; `make fuzz` sends more."""
LONGEST_WAIT = 60
"""Seconds that a request may ask to be kept waiting."""


@pytest.mark.slow
@databases.SQLITE_ONLY
class TestOddRequests:
    def test_about_what_exists_meet_no_crash_and_only_what_is_declared(
        self,
        app: FastAPI,
        api_key: str,
        sessions: database.Sessions,
        storage: Storage,
        job: tables.JobRow,
    ) -> None:
        with sessions.begin() as session:
            study_id = factories.study(session, project_id=job.project_id, seeds=[0]).id
            finished = factories.job(session, project_id=job.project_id)
            factories.succeeded(session, storage, finished)
        there: dict[str, dict[str, Any]] = {
            "/v1/jobs": {"job_id": job.id},
            "/v1/jobs/{job_id}/student": {"job_id": finished.id},
            "/v1/studies": {"study_id": study_id},
            "/v1/models": {"name": "digits-teacher", "version": 1, "path": "model.safetensors"},
            "/v1/datasets": {"name": "digits", "version": 1},
            "/v1/methods": {"name": "kd"},
        }
        for operation in described(app):
            known = [ids for path, ids in there.items() if operation.path.startswith(path)]
            exercise(operation, api_key, "positive", *known[-1:])

    def test_that_are_wrong_meet_no_crash_and_only_what_is_declared(
        self, app: FastAPI, api_key: str
    ) -> None:
        for operation in described(app):
            exercise(operation, api_key, "negative")


def described(app: FastAPI) -> Iterator[Any]:
    """Yield the operations of the document; those that delete come last."""
    import schemathesis  # which takes every process that collects tests a second

    schema = schemathesis.openapi.from_asgi("/v1/openapi.json", app)
    # A stream would be read to its end, which never comes for a job that waits.
    wanted = schema.exclude(operation_id="stream_job").get_all_operations()
    # None is malformed: the document is valid.
    found: list[Any] = [one.ok() for one in wanted]  # type: ignore[union-attr]  # no Err here
    yield from sorted(found, key=lambda operation: operation.method.upper() == "DELETE")


def exercise(
    operation: Any,
    api_key: str,
    mode: Literal["positive", "negative"],
    ids: dict[str, Any] | None = None,
) -> None:
    """Send a few requests to one operation, and hold each answer to the document."""
    import schemathesis
    from schemathesis import checks
    from schemathesis.specs.openapi import checks as openapi_checks

    promises: list[schemathesis.CheckFunction] = [
        checks.not_a_server_error,
        openapi_checks.status_code_conformance,
        openapi_checks.content_type_conformance,
        openapi_checks.response_schema_conformance,
    ]
    known = {name: value for name, value in (ids or {}).items() if f"{{{name}}}" in operation.path}

    @settings(
        max_examples=ODD_REQUESTS,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(
        case=operation.as_strategy(schemathesis.GenerationMode(mode), path_parameters=known or None)
    )
    def run(case: schemathesis.Case) -> None:
        headers = {"authorization": f"Bearer {api_key}"}
        waits = case.query.get("wait_seconds")
        if isinstance(waits, int | float) and 1 < waits <= LONGEST_WAIT:
            # Schemathesis itself waits for 10 s, and a longer wait shows nothing more.
            case.query["wait_seconds"] = 1
        case.call_and_validate(checks=promises, headers=headers)

    try:
        run()
    except Unsatisfiable:
        # An operation without parameters cannot be asked wrongly.
        assert mode == "negative"
