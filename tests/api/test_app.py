"""The application as a whole: what every request gets, and how it starts and stops."""

import http.client
import json
import re
import socket

import pytest
import structlog
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pydantic import SecretStr

from api import middleware
from api.app import create_app
from models_registry.persistence import tables
from models_registry.settings import Settings
from tests import databases, serving, waiting

pytestmark = databases.SQLITE_ONLY


class TestCreateApp:
    def test_says_what_to_set_where_the_secret_of_cursors_is_missing(
        self, settings: Settings
    ) -> None:
        without = settings.model_copy(update={"cursor_secret": None})
        with pytest.raises(ValueError, match="RETORT_CURSOR_SECRET"):
            create_app(without)

    def test_leaves_measurements_to_nobody_in_production(self, settings: Settings) -> None:
        prod = settings.model_copy(update={"environment": "prod", "metrics_token": None})
        with pytest.raises(ValueError, match="RETORT_METRICS_TOKEN is not set"):
            create_app(prod)
        create_app(prod.model_copy(update={"metrics_token": SecretStr("between-us")}))

    def test_makes_apps_that_count_for_themselves(self, settings: Settings) -> None:
        first, second = create_app(settings), create_app(settings)
        assert first.state.collected is not second.state.collected


class TestHead:
    def test_is_wherever_get_is(self, app: FastAPI, client: TestClient) -> None:
        reads = [path for path, verbs in app.openapi()["paths"].items() if "get" in verbs]
        assert len(reads) > 30
        # An id that nothing has: the answer is a problem, in both cases the same.
        for path in (re.sub(r"\{\w+\}", "1", read) for read in reads):
            whole, head = client.get(path), client.head(path)
            assert head.status_code == whole.status_code, path
            assert head.content == b"", path
            assert head.headers["content-type"] == whole.headers["content-type"], path
            if path != "/metrics":  # which counts its own requests
                assert head.headers["content-length"] == whole.headers["content-length"], path

    def test_is_refused_where_get_is_not(self, client: TestClient) -> None:
        assert client.head("/v1/jobs/1/cancel").status_code == 405


class TestQuery:
    def test_names_a_parameter_that_nobody_reads(self, client: TestClient) -> None:
        answer = client.get("/v1/jobs", params={"stat": "running", "limit": 5})
        assert answer.status_code == 422
        assert answer.json()["errors"] == [
            {
                "pointer": "/query/stat",
                "code": "unknown_parameter",
                "detail": "'stat' is no parameter of this address: did you mean 'state'?",
            }
        ]

    def test_says_what_there_is(self, client: TestClient) -> None:
        many = client.get("/v1/workers", params={"zzz": "1"}).json()["detail"]
        none = client.get("/v1/api-keys/1", params={"zzz": "1"})
        assert many == "'zzz' is no parameter of this address: there are cursor, limit"
        assert none.status_code == 405
        health = client.get("/healthz", params={"zzz": "1"}).json()["detail"]
        assert health == "'zzz' is no parameter of this address, which has none"


class TestDocumentation:
    def test_says_in_a_line_what_each_call_does(self, app: FastAPI) -> None:
        for path, verbs in app.openapi()["paths"].items():
            for verb, operation in verbs.items():
                assert 2 <= len(operation["summary"].split()) <= 20, (verb, path)

    @pytest.mark.parametrize("page", ["/docs", "/redoc"])
    def test_asks_no_other_host(self, client: TestClient, page: str) -> None:
        text = client.get(page).text
        links = re.findall(r"(?:src|href)\s*=\s*[\"']([^\"']+)", text)
        assert links
        for link in links:
            assert link.startswith("/docs-assets/"), link
            assert client.get(link).status_code == 200, link


class TestEveryRequest:
    def test_gets_an_id_of_its_own(self, client: TestClient) -> None:
        first, second = (client.get("/healthz").headers["x-request-id"] for _ in range(2))
        assert re.fullmatch(r"req_[0-9a-z]{26}", first)
        assert first != second

    def test_keeps_a_sensible_id_of_the_caller(self, client: TestClient) -> None:
        answer = client.get("/healthz", headers={"x-request-id": "trace-1.2"})
        assert answer.headers["x-request-id"] == "trace-1.2"

    @pytest.mark.parametrize("given", ["a b", "x" * 65, "<script>", ""])
    def test_replaces_an_id_that_could_hurt_a_log(self, client: TestClient, given: str) -> None:
        answer = client.get("/healthz", headers={"x-request-id": given})
        assert answer.headers["x-request-id"].startswith("req_")

    def test_is_one_line_in_the_log_with_its_template_and_caller(
        self, client: TestClient, project: tables.ProjectRow
    ) -> None:
        with structlog.testing.capture_logs() as lines:
            client.get("/v1/jobs/job_1", headers={"x-request-id": "r1"})
        served = [line for line in lines if line["event"] == "request_served"]
        assert len(served) == 1
        assert served[0]["route"] == "/v1/jobs/{job_id}"
        assert served[0]["status"] == 404
        assert served[0]["project_id"] == project.id

    def test_logs_no_key(self, client: TestClient, api_key: str) -> None:
        with structlog.testing.capture_logs() as lines:
            client.get("/v1/jobs")
            client.post("/v1/api-keys", json={"name": "x"})
        assert "_".join(api_key.split("_")[3:]) not in str(lines)
        assert "ak_" not in str(lines)

    def test_may_not_come_from_another_site(self, client: TestClient) -> None:
        answer = client.get("/v1/jobs", headers={"origin": "https://elsewhere.example"})
        assert not [name for name in answer.headers if name.startswith("access-control")]


class TestDocs:
    def test_can_be_closed(self, settings: Settings) -> None:
        with TestClient(create_app(settings.model_copy(update={"docs": False}))) as client:
            for path in ("/docs", "/redoc", "/v1/openapi.json", "/docs-assets/redoc.js"):
                answer = client.get(path)
                assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
            assert client.get("/healthz").status_code == 200


class TestHeaders:
    def test_beyond_what_clients_send_are_refused(self, client: TestClient) -> None:
        answer = client.get("/v1/jobs", headers=[(f"x-{number}", "1") for number in range(101)])
        assert (answer.status_code, answer.json()["code"]) == (431, "too_many_headers")

    def test_that_give_two_lengths_are_refused(self, client: TestClient) -> None:
        both = {"content-length": "2", "transfer-encoding": "chunked"}
        answer = client.post("/v1/jobs", content=b"{}", headers=both)
        assert answer.status_code == 400
        assert "Transfer-Encoding" in answer.json()["detail"]


class TestBodies:
    def test_over_a_mebibyte_are_refused(self, client: TestClient) -> None:
        answer = client.post("/v1/jobs", json={"name": "x" * 2**20})
        assert answer.status_code == 413
        assert answer.json()["code"] == "too_large"

    def test_are_counted_while_they_stream_whatever_was_announced(self, client: TestClient) -> None:
        chunks = (b" " * 2**16 for _ in range(32))
        answer = client.post(
            "/v1/jobs", content=chunks, headers={"content-type": "application/json"}
        )
        assert answer.status_code == 413

    def test_that_stop_halfway_are_not_waited_for(
        self, app: FastAPI, api_key: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(middleware, "BODY_STALL_SECONDS", 0.2)
        head = f"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {api_key}\r\n"
        body = "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
        with (
            serving.served(app) as server,
            socket.create_connection(("127.0.0.1", server.port), waiting.PATIENCE_SECONDS) as line,
        ):
            line.sendall((head + body).encode())
            answer = http.client.HTTPResponse(line)
            answer.begin()
            assert (answer.status, json.load(answer)["code"]) == (408, "body_stalled")

    @pytest.mark.parametrize(
        ("body", "code"),
        [
            ("[" * 100 + "]" * 100, "too_deep"),
            ('{"a":' * 60 + "1" + "}" * 60, "too_deep"),
            ('{"name": NaN}', "malformed"),
            ('{"name": -Infinity}', "malformed"),
            ('{"name": 1e999}', "malformed"),
            ('{"name": "\\u0000"}', "bad_text"),
            ('{"name": "\\ud800"}', "bad_text"),
            ('{"na\\u0000me": 1}', "bad_text"),
            ("{", "malformed"),
            ("[" * 100 + '"', "too_deep"),
            ('["' + "[" * 100, "malformed"),
            ('{"name": ' + "1" * 5000 + "}", "malformed"),
            ("\xff\xfe", "malformed"),
        ],
    )
    def test_that_a_database_or_a_reader_would_choke_on_are_refused(
        self, client: TestClient, body: str, code: str
    ) -> None:
        answer = client.post(
            "/v1/jobs",
            content=body.encode("latin-1"),
            headers={"content-type": "application/json"},
        )
        assert answer.status_code == 400
        assert answer.json()["code"] == code

    @pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "utf-32-be"])
    def test_in_another_encoding_are_refused(self, client: TestClient, encoding: str) -> None:
        """Brackets in them cannot be counted, and a parser that reads them nests without end."""
        body = ('{"a":' * 254 + "1" + "}" * 254).encode(encoding)
        answer = client.post("/v1/jobs", content=body, headers={"content-type": "application/json"})
        assert (answer.status_code, answer.json()["code"]) == (400, "malformed")
        assert "UTF-8" in answer.json()["detail"]

    def test_with_brackets_in_texts_are_not_deep(self, client: TestClient) -> None:
        answer = client.post("/v1/jobs", json={"name": "[{" * 100 + '\\"['})
        assert answer.status_code == 422

    def test_of_another_type_are_not_supported(self, client: TestClient) -> None:
        answer = client.post("/v1/jobs", content=b"name=x", headers={"content-type": "text/plain"})
        assert answer.status_code == 415


class TestStop:
    def test_ends_every_connection_to_the_database(self, app: FastAPI, api_key: str) -> None:
        with TestClient(app, headers={"authorization": f"Bearer {api_key}"}) as client:
            assert client.get("/v1/jobs").status_code == 200
            assert app.state.service.engine.pool.checkedin() > 0
        assert app.state.service.engine.pool.checkedin() == 0
        assert app.state.service.hub.draining
