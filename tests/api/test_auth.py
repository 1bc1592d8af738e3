"""Who may call what: every route under /v1 needs a key, and roles are kept."""

import dataclasses
from collections.abc import Callable, Iterator

import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient

from api import dependencies
from models_registry.access import keys, oidc, scopes
from models_registry.persistence import database, tables
from models_registry.settings import Settings
from tests import databases, factories, issuers, waiting

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


def operations_with_keys(app: FastAPI) -> Iterator[tuple[str, str, str]]:
    """Yield verb, path and needed scope of every operation that opens with an API key."""
    for route in app.router.routes:
        for inner in getattr(route, "original_router", app.router).routes:
            if not isinstance(inner, APIRoute) or not needs_key(inner.dependant):
                continue
            [verb] = list(inner.methods or [])
            operation_id = inner.operation_id or ""
            needed = scopes.of(area=str(inner.tags[0]), method=verb, operation_id=operation_id)
            yield verb, inner.path, needed


def needs_key(dependant: Dependant) -> bool:
    """Return whether a route depends on the holder of an API key."""
    inner = dependant.dependencies
    return dependant.call is dependencies.caller or any(needs_key(one) for one in inner)


@databases.SQLITE_ONLY
class TestScopes:
    def test_are_asked_for_by_every_route(
        self, app: FastAPI, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        def headers(*held: str) -> dict[str, str]:
            with sessions.begin() as session:
                _, text = keys.create_key(
                    session,
                    project_id=project.id,
                    name="scoped",
                    role="admin",
                    environment="test",
                    scopes=held,
                )
            return {"authorization": f"Bearer {text}"}

        operations = list(operations_with_keys(app))
        assert {needed for _, _, needed in operations} == set(scopes.SCOPES)
        just = {needed: headers(needed) for needed in scopes.SCOPES}
        other = {
            needed: headers(*(one for one in scopes.SCOPES if one.split(":")[0] not in needed))
            for needed in scopes.SCOPES
        }
        streams = {"/v1/jobs/{job_id}/stream", "/v1/jobs/{job_id}/logs/stream"}
        with TestClient(app) as client:
            for verb, template, needed in operations:
                path = template.replace("{", "").replace("}", "")
                answer = client.request(verb, path, headers=other[needed])
                assert answer.status_code == 403, (verb, path, answer.text)
                assert answer.json()["code"] == "missing_scope"
                assert needed in answer.json()["detail"]
                if template not in streams and needed in just:  # of each scope, the first
                    answer = client.request(verb, path, headers=just.pop(needed))
                    assert answer.status_code != 403, (verb, path, answer.text)

    def test_are_not_handed_on_beyond_ones_own(self, client: TestClient) -> None:
        held = ["keys:write", "jobs:read"]
        limited = client.post("/v1/api-keys", json={"name": "a", "role": "admin", "scopes": held})
        assert limited.json()["scopes"] == sorted(held)
        headers = {"authorization": f"Bearer {limited.json()['api_key']}"}
        whole = client.post("/v1/api-keys", json={"name": "b"}).json()
        for refused in (
            client.post("/v1/api-keys", json={"name": "c"}, headers=headers),
            client.post(
                "/v1/api-keys", json={"name": "c", "scopes": ["jobs:write"]}, headers=headers
            ),
            client.post(f"/v1/api-keys/{whole['id']}/rotate", json={}, headers=headers),
        ):
            assert (refused.status_code, refused.json()["code"]) == (403, "scope_not_held")
        narrower = {"name": "d", "scopes": ["jobs:read"]}
        assert client.post("/v1/api-keys", json=narrower, headers=headers).status_code == 201

    def test_that_do_not_exist_are_refused(self, client: TestClient) -> None:
        answer = client.post("/v1/api-keys", json={"name": "a", "scopes": ["jobs:wirte"]})
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["pointer"] == "/scopes/0"
        assert "jobs:write" in answer.json()["detail"]


class TestRoles:
    @databases.SQLITE_ONLY
    @pytest.mark.parametrize(
        ("verb", "path", "least"),
        [
            ("GET", "/v1/jobs", "viewer"),
            ("POST", "/v1/jobs/job_1/cancel", "editor"),
            ("DELETE", "/v1/jobs/job_1", "editor"),
            ("GET", "/v1/api-keys", "admin"),
            ("POST", "/v1/api-keys/key_1/rotate", "admin"),
            ("GET", "/v1/audit", "admin"),
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

    def test_end_soon_where_another_process_ends_the_key(
        self,
        app: FastAPI,
        sessions: database.Sessions,
        project: tables.ProjectRow,
        headers_of: MakeKey,
    ) -> None:
        headers = headers_of("viewer")
        with TestClient(app) as client:
            assert client.get("/v1/jobs", headers=headers).status_code == 200
            key_id = f"key_{headers['authorization'].split('_')[2]}"
            with sessions.begin() as session:
                keys.revoke(session, project_id=project.id, key_id=key_id)
            waiting.until(
                lambda: client.get("/v1/jobs", headers=headers).status_code != 200,
                "the key has ended here too",
            )


class TestRotation:
    def test_shows_the_new_text_and_until_when_the_old_one_holds(self, client: TestClient) -> None:
        made = client.post("/v1/api-keys", json={"name": "laptop", "role": "viewer"}).json()
        rotated = client.post(f"/v1/api-keys/{made['id']}/rotate", json={"overlap_seconds": 60})
        assert rotated.status_code == 200
        body = rotated.json()
        assert (body["id"], body["role"]) == (made["id"], "viewer")
        assert body["former_expires_at"] > body["rotated_at"]
        for text in (made["api_key"], body["api_key"]):
            answer = client.get("/v1/jobs", headers={"authorization": f"Bearer {text}"})
            assert answer.status_code == 200
        [entry] = [
            one for one in client.get("/v1/api-keys").json()["data"] if one["id"] == made["id"]
        ]
        assert entry["former_last_used_at"] is not None
        assert client.post("/v1/api-keys/key_1/rotate", json={}).status_code == 404


class TestTokens:
    @databases.SQLITE_ONLY
    def test_open_what_their_role_allows(
        self,
        app: FastAPI,
        settings: Settings,
        sessions: database.Sessions,
        project: tables.ProjectRow,
    ) -> None:
        with issuers.running() as issuer:
            config = settings.model_copy(
                update={"oidc_issuer": issuer.url, "oidc_audience": issuers.AUDIENCE}
            )
            tokens = oidc.from_settings(config)
            app.state.service = dataclasses.replace(app.state.service, tokens=tokens)
            with TestClient(app) as client:
                viewer = issuer.token(retort_role="viewer", retort_project=project.name)
                headers = {"authorization": f"Bearer {viewer}"}
                assert client.get("/v1/jobs", headers=headers).status_code == 200
                refused = client.get("/v1/api-keys", headers=headers)
                assert refused.status_code == 403
                expired = {"authorization": f"Bearer {issuer.token(exp=1)}"}
                answer = client.get("/v1/jobs", headers=expired)
                assert (answer.status_code, answer.json()["code"]) == (401, "token_expired")
                admin = issuer.token(retort_role="admin", retort_project=project.name)
                headers = {"authorization": f"Bearer {admin}"}
                made = client.post("/v1/api-keys", json={"name": "x"}, headers=headers)
                assert made.status_code == 201
        with sessions() as session:
            entry = session.scalars(sa.select(tables.AuditRow)).one()
            assert (entry.actor, entry.key_id, entry.subject) == ("ada", None, made.json()["id"])


class TestAudit:
    def test_lists_what_was_done_and_by_whom(
        self, client: TestClient, stranger: TestClient, teacher: tables.ModelVersionRow
    ) -> None:
        made = client.post(
            "/v1/api-keys", json={"name": "ci"}, headers={"x-request-id": "req-7"}
        ).json()
        client.delete(f"/v1/api-keys/{made['id']}")
        client.delete(f"/v1/api-keys/{made['id']}")  # changes nothing, and is no entry
        client.put("/v1/models/digits-teacher/aliases/best", json={"version": 1})
        client.delete("/v1/models/nowhere")
        entries = client.get("/v1/audit").json()["data"]
        assert [(one["action"], one["subject"]) for one in entries] == [
            ("alias.created", "digits-teacher@best"),
            ("key.revoked", made["id"]),
            ("key.created", made["id"]),
        ]
        [created] = client.get("/v1/audit", params={"action": "key.created"}).json()["data"]
        assert (created["actor"], created["request_id"]) == ("admin", "req-7")
        assert created["facts"] == {"name": "ci", "role": "editor"}
        assert made["api_key"].rpartition("_")[2] not in client.get("/v1/audit").text
        assert len(client.get("/v1/audit", params={"action": "key"}).json()["data"]) == 2
        by_key = {"key_id": created["key_id"], "subject": made["id"], "since": created["at"]}
        assert len(client.get("/v1/audit", params=by_key).json()["data"]) == 2
        assert client.get("/v1/audit", params={"until": created["at"]}).json()["data"] == []
        assert stranger.get("/v1/audit").json()["data"] == []

    @databases.SQLITE_ONLY
    def test_comes_in_pages(self, client: TestClient) -> None:
        for number in range(3):
            client.post("/v1/api-keys", json={"name": str(number)})
        page = client.get("/v1/audit", params={"limit": 2}).json()
        cursor = {"limit": 2, "cursor": page["next_cursor"]}
        rest = client.get("/v1/audit", params=cursor).json()
        names = [one["facts"]["name"] for one in page["data"] + rest["data"]]
        assert (names, rest["has_more"]) == (["2", "1", "0"], False)


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

    @databases.SQLITE_ONLY
    def test_need_a_zone_in_their_expiry(self, client: TestClient) -> None:
        answer = client.post(
            "/v1/api-keys", json={"name": "x", "expires_at": "2030-01-01T00:00:00"}
        )
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["pointer"] == "/expires_at"
