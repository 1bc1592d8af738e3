"""Every answer that is not a success is a problem (RFC 9457), and tells nothing of our insides."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import structlog
from fastapi import FastAPI
from fastapi.testclient import TestClient

from api import errors as api_errors
from models_registry import errors
from models_registry.settings import Settings
from tests import databases
from tests.conftest import MakeApp


def check(answer: Any, status: int, code: str) -> dict[str, Any]:
    """Check what all problems have in common, and return the body."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert body["status"] == status
    assert body["code"] == code
    assert body["type"] == f"urn:retort:problem:{code}"
    assert body["title"]
    assert body["detail"]
    assert body["instance"] == answer.headers["x-request-id"]
    assert isinstance(body["errors"], list)
    assert isinstance(body["retryable"], bool)
    return body


@databases.SQLITE_ONLY
class TestProblem:
    def test_answers_an_unknown_route(self, client: TestClient) -> None:
        assert "/v1/nothing" in check(client.get("/v1/nothing"), 404, "not_found")["detail"]

    def test_answers_an_unknown_method(self, client: TestClient) -> None:
        answer = client.put("/v1/jobs")
        check(answer, 405, "method_not_allowed")
        assert "GET" in answer.headers["allow"]

    def test_answers_a_slash_too_many(self, client: TestClient) -> None:
        check(client.get("/v1/jobs/", follow_redirects=False), 404, "not_found")

    def test_answers_a_body_that_is_not_json(self, client: TestClient) -> None:
        answer = client.post(
            "/v1/jobs", content=b"{'a'}", headers={"content-type": "application/json"}
        )
        check(answer, 400, "malformed")

    def test_points_at_each_field_of_a_body(self, client: TestClient) -> None:
        answer = client.post(
            "/v1/jobs",
            json={"student": {"network": "retort/resnet8", "net/work~": 1}, "method": {}},
        )
        body = check(answer, 422, "invalid_request")
        found = {fault["pointer"]: fault["code"] for fault in body["errors"]}
        assert found["/name"] == "missing"
        assert found["/student/net~1work~0"] == "extra_forbidden"
        assert '"name"' in next(f["detail"] for f in body["errors"] if f["pointer"] == "/method")

    def test_points_at_parameters_of_the_query(self, client: TestClient) -> None:
        body = check(client.get("/v1/jobs?limit=1000"), 422, "invalid_request")
        assert body["errors"][0]["pointer"] == "/query/limit"

    @pytest.mark.parametrize("url", ["/v1/jobs/%00", "/v1/jobs?name=a%00b"])
    def test_answers_text_that_no_database_takes(self, client: TestClient, url: str) -> None:
        check(client.get(url), 400, "malformed")

    def test_lists_the_allowed_events_of_an_illegal_transition(self, app: FastAPI) -> None:
        error = errors.IllegalMove("no", state="paused", allowed=["resume", "cancel"])
        body = check(raised(app, error), 409, "illegal_transition")
        assert body["allowed"] == ["resume", "cancel"]

    def test_says_when_to_come_back(self, app: FastAPI) -> None:
        answer = raised(app, errors.StorageDown("the store is away"))
        assert check(answer, 503, "storage_down")["retryable"]
        assert int(answer.headers["retry-after"]) > 0

    def test_hides_what_nobody_foresaw_and_logs_it(self, app: FastAPI) -> None:
        with structlog.testing.capture_logs() as lines:
            answer = raised(app, ZeroDivisionError("secret insides"))
        body = check(answer, 500, "internal_error")
        assert "secret" not in str(body)
        failed = [line for line in lines if line["event"] == "request_failed"]
        assert failed
        assert failed[0]["exc_info"]


def raised(app: FastAPI, error: Exception) -> Any:
    """Return the answer to a request whose route raises."""

    @app.get("/raise")
    def fail() -> None:
        raise error

    with TestClient(app) as client:
        return client.get("/raise")


@databases.SQLITE_ONLY
class TestLostDatabase:
    def test_is_unavailable_and_not_a_fault_of_the_caller(
        self, settings: Settings, tmp_path: Path, make_app: MakeApp
    ) -> None:
        nowhere = "postgresql+psycopg://retort@/retort?host=" + str(tmp_path)
        app = make_app(settings.model_copy(update={"database_url": nowhere}))
        headers = {"authorization": f"Bearer ak_test_{'0' * 26}_{'0' * 64}"}
        with TestClient(app, headers=headers) as client:
            answer = client.get("/v1/jobs")
        assert check(answer, 503, "database_unavailable")["retryable"]
        assert str(tmp_path) not in answer.text


class TestTable:
    def test_knows_every_error_of_the_registry(self) -> None:
        kinds = [
            kind
            for _, kind in inspect.getmembers(errors, inspect.isclass)
            if issubclass(kind, errors.RegistryError)
        ]
        for kind in kinds:
            assert any(parent in api_errors.TABLE for parent in kind.__mro__)

    @pytest.mark.parametrize(
        ("kind", "status"),
        [
            (errors.Malformed, 400),
            (errors.Unauthenticated, 401),
            (errors.Forbidden, 403),
            (errors.NotFound, 404),
            (errors.Conflict, 409),
            (errors.InUse, 409),
            (errors.Gone, 410),
            (errors.PreconditionFailed, 412),
            (errors.TooLarge, 413),
            (errors.Refused, 422),
            (errors.DigestMismatch, 422),
            (errors.PreconditionRequired, 428),
            (api_errors.TooManyStreams, 429),
            (errors.QueueDown, 503),
        ],
    )
    def test_gives_each_its_status(self, kind: type[errors.RegistryError], status: int) -> None:
        answer = next(api_errors.TABLE[k] for k in kind.__mro__ if k in api_errors.TABLE)
        assert answer.status == status
