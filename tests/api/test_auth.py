"""Who may call what: every route under /v1 needs a key, and roles are kept."""

from collections.abc import Callable

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from models_registry.access import keys
from models_registry.persistence import database, tables
from tests import databases, factories

MakeKey = Callable[[str], dict[str, str]]
OPEN = {"/healthz", "/readyz", "/metrics"}


@pytest.fixture
def headers_of(sessions: database.Sessions, project: tables.ProjectRow) -> MakeKey:
    """Makes a key with a role, and returns the headers that present it."""

    def make(role: str) -> dict[str, str]:
        with sessions.begin() as session:
            text = factories.key(session, project_id=project.id, role=role)
        return {"authorization": f"Bearer {text}"}

    return make


@databases.SQLITE_ONLY
class TestEveryRoute:
    def test_under_v1_needs_a_key(self, app: FastAPI) -> None:
        paths = app.openapi()["paths"]
        with TestClient(app) as nobody:
            for path, verbs in paths.items():
                for verb in verbs:
                    answer = nobody.request(verb, path.replace("{", "").replace("}", ""))
                    if path in OPEN:
                        assert answer.status_code != 401, path
                    else:
                        assert answer.status_code in {401, 415, 422}, (verb, path)
                    if answer.status_code == 401:
                        assert answer.headers["www-authenticate"] == "Bearer"

    def test_says_so_in_the_document(self, app: FastAPI) -> None:
        for path, verbs in app.openapi()["paths"].items():
            for verb, operation in verbs.items():
                assert bool(operation.get("security")) == (path not in OPEN), (verb, path)

    def test_lets_anyone_read_the_document(self, app: FastAPI) -> None:
        with TestClient(app) as nobody:
            assert nobody.get("/v1/openapi.json").status_code == 200
            assert nobody.get("/docs").status_code == 200

    @pytest.mark.parametrize(
        "value", ["", "Bearer", "Bearer x", "Basic YTpi", "Bearer ak_test_1_2", "ak_test_1_2"]
    )
    def test_refuses_what_is_no_key(self, app: FastAPI, value: str) -> None:
        with TestClient(app) as nobody:
            answer = nobody.get("/v1/jobs", headers={"authorization": value})
        assert answer.status_code == 401
        assert answer.json()["code"] == "unauthenticated"


class TestRoles:
    @pytest.mark.parametrize(
        ("verb", "path", "least"),
        [
            ("GET", "/v1/jobs", "viewer"),
            ("POST", "/v1/jobs/job_1/cancel", "editor"),
            ("DELETE", "/v1/jobs/job_1", "editor"),
            ("GET", "/v1/api-keys", "admin"),
            ("DELETE", "/v1/api-keys/key_1", "admin"),
        ],
    )
    def test_are_kept(
        self, app: FastAPI, headers_of: MakeKey, verb: str, path: str, least: str
    ) -> None:
        order = ["viewer", "editor", "admin"]
        with TestClient(app) as client:
            for role in order:
                answer = client.request(verb, path, headers=headers_of(role))
                may = order.index(role) >= order.index(least)
                assert (answer.status_code == 403) != may, (role, answer.text)

    def test_end_with_the_key(self, client: TestClient, app: FastAPI) -> None:
        made = client.post("/v1/api-keys", json={"name": "laptop", "role": "viewer"}).json()
        headers = {"authorization": f"Bearer {made['api_key']}"}
        assert client.get("/v1/jobs", headers=headers).status_code == 200
        assert client.delete(f"/v1/api-keys/{made['id']}").status_code == 204
        answer = client.get("/v1/jobs", headers=headers)
        assert answer.status_code == 401
        assert answer.json()["code"] == "key_revoked"


class TestApiKeys:
    def test_show_their_text_once(self, client: TestClient) -> None:
        made = client.post("/v1/api-keys", json={"name": "laptop"})
        assert made.status_code == 201
        assert made.json()["role"] == "editor"
        listed = client.get("/v1/api-keys").json()["data"]
        assert {entry["name"] for entry in listed} == {"laptop", "admin"}
        assert made.json()["api_key"].rpartition("_")[2] not in str(listed)

    def test_note_when_they_were_used(self, client: TestClient) -> None:
        [entry] = client.get("/v1/api-keys").json()["data"]
        assert entry["last_used_at"] is not None

    def test_of_another_project_do_not_exist(
        self, client: TestClient, sessions: database.Sessions
    ) -> None:
        with sessions.begin() as session:
            other = keys.create_project(session, name="other")
            row, _ = keys.create_key(
                session, project_id=other.id, name="x", role="admin", environment="test"
            )
        assert client.delete(f"/v1/api-keys/{row.id}").status_code == 404
        assert row.id not in client.get("/v1/api-keys").text

    def test_need_a_zone_in_their_expiry(self, client: TestClient) -> None:
        answer = client.post(
            "/v1/api-keys", json={"name": "x", "expires_at": "2030-01-01T00:00:00"}
        )
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["pointer"] == "/expires_at"
