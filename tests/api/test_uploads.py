"""Uploads by HTTP: parts, digests, limits, completion, and memory that stays flat."""

import base64
import contextlib
import hashlib
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent import futures
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pydantic import SecretStr

import retort
from models_registry.artifacts import uploads
from models_registry.persistence import database, tables
from models_registry.persistence.storage import LocalStorage, Storage
from models_registry.settings import Settings
from tests import sending, services, serving, waiting
from tests.conftest import MakeApp
from tests.databases import SQLITE_ONLY

MEBIBYTE = 2**20
PART = 5 * MEBIBYTE
# Two full parts and a rest, all different.
CONTENT = b"a" * PART + b"b" * PART + b"the rest"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(
        update={"upload_part_bytes": PART, "upload_max_bytes": 64 * MEBIBYTE}
    )


def slices(upload: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    for part in upload["parts"]:
        first = (part["number"] - 1) * PART
        yield part["url"], CONTENT[first : first + PART]


class TestCreate:
    def test_answers_with_the_places_of_all_parts(self, client: TestClient) -> None:
        answer = client.post("/v1/uploads", json=sending.announcement(CONTENT))
        body = answer.json()
        assert answer.status_code == 201
        assert answer.headers["location"] == f"/v1/uploads/{body['id']}"
        assert body["state"] == "open"
        assert body["blob"] is None
        assert body["part_size_bytes"] == PART
        assert [part["number"] for part in body["parts"]] == [1, 2, 3]
        assert [part["size_bytes"] for part in body["parts"]] == [PART, PART, 8]
        assert not any(part["received"] for part in body["parts"])
        assert body["parts"][1]["url"] == f"/v1/uploads/{body['id']}/parts/2"

    @SQLITE_ONLY
    @pytest.mark.parametrize(
        "name",
        [
            "",
            "   ",
            ".",
            "..",
            "../teacher.pt",
            "a..b",
            "/etc/passwd",
            "folder/teacher.pt",
            "folder\\teacher.pt",
            "folder\u2215teacher.pt",
            "folder\u2044teacher.pt",
            "folder\uff0fteacher.pt",
            "folder\u29f8teacher.pt",
            "folder\uff3cteacher.pt",
            "teacher.pt#fragment",
            "teacher.pt?query",
            "teacher\n.pt",
            "teacher\x7f.pt",
            "teacher\u202etp.exe",
            "x" * 256,
        ],
    )
    def test_refuses_a_name_that_could_be_taken_for_a_path(
        self, client: TestClient, name: str
    ) -> None:
        answer = client.post("/v1/uploads", json=sending.announcement(b"x", filename=name))
        assert answer.status_code == 422
        assert sending.faults(answer) == {"/filename": "bad_filename"}

    @pytest.mark.parametrize("name", ["teacher.pt", "Lehrer für Ziffern.safetensors", "教師.pt"])
    def test_keeps_an_honest_name(self, client: TestClient, name: str) -> None:
        assert sending.begin(client, b"x", filename=name)["filename"] == name

    @SQLITE_ONLY
    def test_says_everything_that_is_wrong_at_once(self, client: TestClient) -> None:
        wrong = {"filename": "a/b", "size_bytes": 0, "sha256": "12", "purpose": "fun"}
        answer = client.post("/v1/uploads", json=wrong)
        assert answer.status_code == 422
        assert set(sending.faults(answer)) == {"/filename", "/size_bytes", "/sha256", "/purpose"}

    @SQLITE_ONLY
    def test_refuses_types_that_only_look_right(self, client: TestClient) -> None:
        answer = client.post("/v1/uploads", json=sending.announcement(b"x", size_bytes="1"))
        assert answer.status_code == 422
        assert set(sending.faults(answer)) == {"/size_bytes"}

    @SQLITE_ONLY
    def test_refuses_fields_that_it_does_not_know(self, client: TestClient) -> None:
        answer = client.post("/v1/uploads", json=sending.announcement(b"x", path="/etc/passwd"))
        assert answer.status_code == 422
        assert set(sending.faults(answer)) == {"/path"}

    @SQLITE_ONLY
    def test_refuses_a_file_over_the_limit(self, client: TestClient) -> None:
        wanted = sending.announcement(b"x", size_bytes=64 * MEBIBYTE + 1)
        answer = client.post("/v1/uploads", json=wanted)
        assert answer.status_code == 413
        assert set(sending.faults(answer)) == {"/size_bytes"}

    def test_refuses_a_file_that_the_disk_has_no_room_for(
        self, settings: Settings, api_key: str, make_app: MakeApp
    ) -> None:
        vast = make_app(settings.model_copy(update={"upload_max_bytes": 2**62}))
        with TestClient(vast, headers={"authorization": f"Bearer {api_key}"}) as client:
            answer = client.post(
                "/v1/uploads", json={**sending.announcement(b"x"), "size_bytes": 2**60}
            )
        assert (answer.status_code, answer.json()["code"]) == (507, "storage_full")
        assert answer.json()["retryable"] is False
        assert [fault["pointer"] for fault in answer.json()["errors"]] == ["/size_bytes"]
        assert re.search(r"\d+ are missing", answer.json()["detail"])

    @SQLITE_ONLY
    def test_takes_a_digest_in_capitals(self, client: TestClient) -> None:
        digest = hashlib.sha256(b"x").hexdigest()
        upload = sending.begin(client, b"x", sha256=digest.upper())
        assert upload["sha256"] == digest

    def test_gives_the_same_upload_to_a_repeated_request(self, client: TestClient) -> None:
        headers = {"idempotency-key": "again"}
        first, second = (
            client.post("/v1/uploads", json=sending.announcement(b"x"), headers=headers)
            for _ in range(2)
        )
        assert first.json() == second.json()
        assert second.headers["idempotency-replayed"] == "true"

    @SQLITE_ONLY
    def test_needs_an_editor(self, app: FastAPI, client: TestClient, api_key: str) -> None:
        key = client.post("/v1/api-keys", json={"name": "eyes", "role": "viewer"}).json()["api_key"]
        headers = {"authorization": f"Bearer {key}"}
        answer = client.post("/v1/uploads", json=sending.announcement(b"x"), headers=headers)
        assert answer.status_code == 403


class TestParts:
    def test_arrive_in_any_order_and_are_shown(self, client: TestClient) -> None:
        upload = sending.begin(client, CONTENT)
        url, content = list(slices(upload))[2]
        assert client.put(url, content=content).status_code == 204
        parts = client.get(f"/v1/uploads/{upload['id']}").json()["parts"]
        assert [part["received"] for part in parts] == [False, False, True]
        assert parts[2]["sha256"] == hashlib.sha256(content).hexdigest()

    def test_may_be_sent_again_and_replaced(
        self, client: TestClient, sessions: database.Sessions, storage: LocalStorage, tmp_path: Path
    ) -> None:
        upload = sending.begin(client, b"right")
        url = upload["parts"][0]["url"]
        for content in (b"wrong", b"wrong", b"right", b"right"):
            assert client.put(url, content=content).status_code == 204
        assert len(list((tmp_path / "storage" / "parts").iterdir())) == 1
        answer = client.post(f"/v1/uploads/{upload['id']}/complete", json={})
        assert answer.status_code == 200

    @SQLITE_ONLY
    @pytest.mark.parametrize("header", ["repr-digest", "content-digest"])
    def test_are_checked_against_their_digest(self, client: TestClient, header: str) -> None:
        upload = sending.begin(client, b"weights")
        url = upload["parts"][0]["url"]
        wrong = {header: sending.digest_header(b"weightz")}
        answer = client.put(url, content=b"weights", headers=wrong)
        assert answer.status_code == 422
        assert answer.json()["code"] == "digest_mismatch"
        assert not client.get(f"/v1/uploads/{upload['id']}").json()["parts"][0]["received"]
        right = {header: "sha-512=:AAAA:, " + sending.digest_header(b"weights")}
        assert client.put(url, content=b"weights", headers=right).status_code == 204

    @SQLITE_ONLY
    @pytest.mark.parametrize(
        "value", ["sha-256=abc", "sha-256=:AAAA:", "sha-256=:A:", "sha-256", ":::"]
    )
    def test_need_a_digest_that_can_be_read(self, client: TestClient, value: str) -> None:
        url = sending.begin(client, b"x")["parts"][0]["url"]
        answer = client.put(url, content=b"x", headers={"repr-digest": value})
        assert answer.status_code == 400
        assert sending.faults(answer) == {"/header/repr-digest": "bad_digest"}

    @SQLITE_ONLY
    def test_need_digests_that_agree(self, client: TestClient) -> None:
        url = sending.begin(client, b"x")["parts"][0]["url"]
        headers = {
            "repr-digest": sending.digest_header(b"x"),
            "content-digest": sending.digest_header(b"y"),
        }
        assert client.put(url, content=b"x", headers=headers).status_code == 400

    @SQLITE_ONLY
    def test_are_limited_by_what_arrives_where_nothing_is_announced(
        self, client: TestClient
    ) -> None:
        url = sending.begin(client, b"weights")["parts"][0]["url"]

        def long() -> Iterator[bytes]:
            for _ in range(40):
                yield b"x" * 65536

        for content in (long(), b"weights and more"):
            answer = client.put(url, content=content)
            assert answer.status_code == 413
            assert answer.json()["code"] == "part_too_large"

    @SQLITE_ONLY
    def test_that_are_too_short_are_refused(self, client: TestClient) -> None:
        url = sending.begin(client, b"weights")["parts"][0]["url"]
        for content in (iter([b"weigh"]), b"weigh"):
            answer = client.put(url, content=content)
            assert (answer.status_code, answer.json()["code"]) == (422, "part_too_small")

    @SQLITE_ONLY
    def test_are_not_taken_compressed(self, client: TestClient) -> None:
        url = sending.begin(client, b"x")["parts"][0]["url"]
        answer = client.put(url, content=b"x", headers={"content-encoding": "gzip"})
        assert answer.status_code == 422
        assert sending.faults(answer) == {"/header/content-encoding": "unsupported_encoding"}

    @SQLITE_ONLY
    def test_beyond_the_last_do_not_exist(self, client: TestClient) -> None:
        upload = sending.begin(client, CONTENT)
        answer = client.put(f"/v1/uploads/{upload['id']}/parts/4", content=b"x")
        assert answer.status_code == 404
        for number in ("0", "-1", "10001", "one"):
            answer = client.put(f"/v1/uploads/{upload['id']}/parts/{number}", content=b"x")
            assert answer.status_code == 422

    def test_hold_no_database_connection_while_they_stream(
        self, app: FastAPI, client: TestClient
    ) -> None:
        url = sending.begin(client, CONTENT)["parts"][0]["url"]
        pool = app.state.service.engine.pool
        held = []

        def watched() -> Iterator[bytes]:
            for _ in range(5):
                yield b"a" * MEBIBYTE
                held.append(pool.checkedout())

        assert client.put(url, content=watched()).status_code == 204
        assert held == [0] * 5

    def test_leave_nothing_behind_when_refused(self, client: TestClient, tmp_path: Path) -> None:
        url = sending.begin(client, b"weights")["parts"][0]["url"]
        client.put(url, content=b"weight")
        client.put(url, content=b"weights and more")
        client.put(url, content=b"weightz", headers={"repr-digest": sending.digest_header(b"w")})
        files = [path for path in (tmp_path / "storage").rglob("*") if path.is_file()]
        assert files == []


class TestComplete:
    def test_makes_one_blob_and_forgets_the_parts(
        self, client: TestClient, sessions: database.Sessions, storage: Storage, tmp_path: Path
    ) -> None:
        upload = sending.begin(client, CONTENT)
        for url, content in reversed(list(slices(upload))):
            client.put(url, content=content)
        answer = client.post(f"/v1/uploads/{upload['id']}/complete", json={})
        digest = hashlib.sha256(CONTENT).hexdigest()
        assert answer.status_code == 200
        assert answer.json()["state"] == "completed"
        assert answer.json()["blob"] == f"sha256:{digest}"
        assert answer.json()["size_bytes"] == len(CONTENT)
        assert list((tmp_path / "storage" / "parts").iterdir()) == []
        with sessions() as session:
            blob = session.get_one(tables.BlobRow, digest)
            assert session.scalars(sa.select(tables.UploadPartRow)).all() == []
        with storage.open(blob.storage_key) as stream:
            assert b"".join(stream) == CONTENT

    def test_may_be_repeated(self, client: TestClient) -> None:
        upload_id = sending.send(client)
        first, second = (
            client.post(f"/v1/uploads/{upload_id}/complete", json={}) for _ in range(2)
        )
        assert first.status_code == second.status_code == 200
        assert first.json() == second.json() == client.get(f"/v1/uploads/{upload_id}").json()

    @SQLITE_ONLY
    def test_needs_no_body(self, client: TestClient) -> None:
        upload = sending.begin(client, b"x")
        client.put(upload["parts"][0]["url"], content=b"x")
        assert client.post(f"/v1/uploads/{upload['id']}/complete").status_code == 200

    def test_names_the_parts_that_are_missing(self, client: TestClient) -> None:
        upload = sending.begin(client, CONTENT)
        url, content = list(slices(upload))[1]
        client.put(url, content=content)
        answer = client.post(f"/v1/uploads/{upload['id']}/complete", json={})
        assert answer.status_code == 409
        assert answer.json()["code"] == "parts_missing"
        assert "1, 3" in answer.json()["detail"]
        assert set(sending.faults(answer)) == {"/parts/0", "/parts/2"}

    def test_refuses_other_bytes_and_lets_the_caller_mend_them(self, client: TestClient) -> None:
        upload = sending.begin(client, b"weights")
        url = upload["parts"][0]["url"]
        client.put(url, content=b"weightz")
        complete = f"/v1/uploads/{upload['id']}/complete"
        answer = client.post(complete, json={})
        assert answer.status_code == 422
        assert sending.faults(answer) == {"/sha256": "digest_mismatch"}
        client.put(url, content=b"weights")
        assert client.post(complete, json={}).status_code == 200

    def test_ends_the_time_for_parts(self, client: TestClient) -> None:
        upload = sending.begin(client, b"weights")
        url = upload["parts"][0]["url"]
        client.put(url, content=b"weights")
        client.post(f"/v1/uploads/{upload['id']}/complete", json={})
        answer = client.put(url, content=b"weights")
        assert answer.status_code == 409
        assert answer.json()["code"] == "upload_completed"

    def test_by_many_at_once_gives_all_the_same(self, client: TestClient) -> None:
        upload = sending.begin(client, CONTENT)
        for url, content in slices(upload):
            client.put(url, content=content)
        complete = f"/v1/uploads/{upload['id']}/complete"
        with futures.ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda _: client.post(complete, json={}), range(4)))
        assert [answer.status_code for answer in answers] == [200] * 4
        assert {answer.json()["blob"] for answer in answers} == {
            f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
        }


class TestList:
    def test_shows_what_is_open_or_completed_newest_first(
        self, client: TestClient, stranger: TestClient
    ) -> None:
        first, second, third = (sending.begin(client, content) for content in (b"a", b"b", b"c"))
        client.put(first["parts"][0]["url"], content=b"a")
        client.post(f"/v1/uploads/{first['id']}/complete", json={})
        client.delete(f"/v1/uploads/{second['id']}")
        found = client.get("/v1/uploads").json()["data"]
        assert [(one["id"], one["state"]) for one in found] == [
            (third["id"], "open"),
            (first["id"], "completed"),
        ]
        assert found[1]["blob"] == f"sha256:{hashlib.sha256(b'a').hexdigest()}"
        still_open = client.get("/v1/uploads", params={"state": "open"}).json()["data"]
        assert [one["id"] for one in still_open] == [third["id"]]
        assert stranger.get("/v1/uploads").json()["data"] == []


class TestEnd:
    def test_by_deletion_is_410_afterwards(self, client: TestClient, tmp_path: Path) -> None:
        upload = sending.begin(client, b"weights")
        client.put(upload["parts"][0]["url"], content=b"weights")
        url = f"/v1/uploads/{upload['id']}"
        assert client.delete(url).status_code == 204
        assert list((tmp_path / "storage" / "parts").iterdir()) == []
        assert client.get(url).status_code == 410
        assert client.put(f"{url}/parts/1", content=b"weights").status_code == 410
        assert client.post(f"{url}/complete", json={}).status_code == 410
        assert client.delete(url).status_code == 410

    def test_by_expiry_is_410_afterwards(
        self, client: TestClient, sessions: database.Sessions, storage: Storage
    ) -> None:
        upload = sending.begin(client, b"weights")
        url = f"/v1/uploads/{upload['id']}"
        with sessions.begin() as session:
            row = session.get_one(tables.UploadRow, upload["id"])
            row.expires_at -= timedelta(days=2)
        assert client.get(url).status_code == 410  # at once, not when maintenance comes by
        with sessions.begin() as session:
            assert uploads.expire(session, storage) == 1
        assert client.get(url).status_code == 410
        assert client.put(f"{url}/parts/1", content=b"weights").status_code == 410

    def test_is_put_off_by_every_part(
        self, client: TestClient, sessions: database.Sessions
    ) -> None:
        upload = sending.begin(client, b"weights")
        with sessions.begin() as session:
            row = session.get_one(tables.UploadRow, upload["id"])
            row.expires_at -= timedelta(hours=23)
            before = row.expires_at
        client.put(upload["parts"][0]["url"], content=b"weights")
        with sessions() as session:
            after = session.get_one(tables.UploadRow, upload["id"]).expires_at
        assert after - before > timedelta(hours=22)


class TestOtherProjects:
    def test_find_nothing(self, client: TestClient, stranger: TestClient) -> None:
        upload = sending.begin(client, b"weights")
        url = f"/v1/uploads/{upload['id']}"
        assert stranger.get(url).status_code == 404
        assert stranger.delete(url).status_code == 404
        assert stranger.put(f"{url}/parts/1", content=b"weights").status_code == 404
        assert stranger.post(f"{url}/complete", json={}).status_code == 404
        assert client.get(url).status_code == 200

    @SQLITE_ONLY
    @pytest.mark.parametrize("upload_id", ["upl_x", "x", "upl_" + "0" * 26, "%F0%9F%A7%AA"])
    def test_nor_does_an_id_that_never_was(self, client: TestClient, upload_id: str) -> None:
        assert client.get(f"/v1/uploads/{upload_id}").status_code == 404


@contextlib.contextmanager
def served(settings: Settings, **changes: str) -> Iterator[tuple[str, psutil.Process]]:
    """Run the API as a process of its own; yield its URL and the process."""
    port = services.free_port()
    secret = settings.cursor_secret
    assert secret is not None
    environment = {
        **os.environ,
        "RETORT_DATABASE_URL": settings.database_url,
        "RETORT_STORAGE_URL": settings.storage_url,
        "RETORT_BROKER_URL": settings.broker_url,
        "RETORT_CURSOR_SECRET": secret.get_secret_value(),
        "RETORT_LOG_LEVEL": "warning",
        **changes,
    }
    command = [sys.executable, "-m", "api.server", "--port", str(port), "--log-level", "warning"]
    with subprocess.Popen(command, env=environment) as process:
        try:
            url = f"http://127.0.0.1:{port}"

            def answers() -> bool:
                assert process.poll() is None, "the API did not start"
                return _answers(url)

            waiting.until(answers, "the API answers")
            yield url, psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait(60)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz").status_code == 200
    except httpx.TransportError:
        return False


class Peak:
    """The largest resident size that a process has reached while this was watching."""

    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.before_bytes = process.memory_info().rss
        self.peak_bytes = self.before_bytes

    def _watch(self) -> None:
        while not self._stop.wait(0.01):
            self.peak_bytes = max(self.peak_bytes, self._process.memory_info().rss)

    def __enter__(self) -> "Peak":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def growth_bytes(self) -> int:
        return self.peak_bytes - self.before_bytes


def repeated(size_bytes: int) -> Iterator[bytes]:
    chunk = bytes(range(256)) * 1024
    for _ in range(size_bytes // len(chunk)):
        yield chunk


@pytest.mark.slow
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
class TestProcess:
    """What only a real server shows."""

    def test_keeps_its_memory_while_a_large_file_passes(
        self, settings: Settings, api_key: str
    ) -> None:
        """Of two parts at once, of which one is twice as large as what is allowed."""
        size_bytes = 144 * MEBIBYTE
        digest = hashlib.sha256()
        for chunk in repeated(size_bytes):
            digest.update(chunk)
        changes = {"RETORT_UPLOAD_PART_BYTES": str(128 * MEBIBYTE)}
        headers = {"authorization": f"Bearer {api_key}"}
        with (
            served(settings, **changes) as (url, process),
            httpx.Client(base_url=url, headers=headers, timeout=120) as client,
        ):
            self._send(client, b"warm up" * 1000, hashlib.sha256(b"warm up" * 1000))
            with Peak(process) as peak:
                self._send(client, size_bytes, digest)
        assert peak.growth_bytes < 64 * MEBIBYTE, f"{peak.growth_bytes / MEBIBYTE:.0f} MiB"

    def _send(self, client: httpx.Client, content: bytes | int, digest: Any) -> None:
        size_bytes = content if isinstance(content, int) else len(content)
        wanted = {
            "filename": "large.safetensors",
            "size_bytes": size_bytes,
            "sha256": digest.hexdigest(),
            "purpose": "model",
        }
        upload = client.post("/v1/uploads", json=wanted).json()

        def put(part: dict[str, Any]) -> int:
            body = repeated(part["size_bytes"]) if isinstance(content, int) else content
            return client.put(part["url"], content=body).status_code

        with futures.ThreadPoolExecutor(4) as pool:
            assert set(pool.map(put, upload["parts"])) == {204}
        answer = client.post(f"/v1/uploads/{upload['id']}/complete", json={})
        assert answer.status_code == 200, answer.text

    def test_cuts_off_a_sender_that_stalls(self, settings: Settings, api_key: str) -> None:
        changes = {"RETORT_UPLOAD_STALL_SECONDS": "0.5"}
        with served(settings, **changes) as (url, _process):
            headers = {"authorization": f"Bearer {api_key}"}
            with httpx.Client(base_url=url, headers=headers, timeout=60) as client:
                upload = client.post("/v1/uploads", json=sending.announcement(b"weights")).json()
                address = httpx.URL(url)
                path = upload["parts"][0]["url"]
                head = (
                    f"PUT {path} HTTP/1.1\r\nHost: {address.host}\r\nContent-Length: 7\r\n"
                    f"Authorization: Bearer {api_key}\r\n\r\nwei"
                )
                place = (address.host, address.port or 0)
                with socket.create_connection(place, timeout=60) as raw:
                    raw.sendall(head.encode())
                    answer = b""
                    while b"upload_stalled" not in answer and (more := raw.recv(65536)):
                        answer += more
                assert answer.startswith(b"HTTP/1.1 408 ")
                assert b"upload_stalled" in answer
                # The part can be sent again.
                assert client.put(path, content=b"weights").status_code == 204


@SQLITE_ONLY
class TestBucket:
    """A real S3 server that clients reach, and the product's own client."""

    @pytest.fixture
    def s3(self) -> Iterator[dict[str, str]]:
        with services.s3_server() as found:
            yield found

    @pytest.fixture
    def settings(self, settings: Settings, s3: dict[str, str]) -> Settings:
        return settings.model_copy(
            update={
                **s3,
                "s3_secret_access_key": SecretStr(s3["s3_secret_access_key"]),
                "s3_public_endpoint": s3["s3_endpoint"],
            }
        )

    def test_takes_parts_from_the_client_itself_and_says_which_it_has(
        self, app: FastAPI, api_key: str, s3: dict[str, str], tmp_path: Path
    ) -> None:
        path = tmp_path / "teacher.safetensors"
        path.write_bytes(CONTENT)
        with serving.served(app) as running, retort.connect(running.url, api_key) as own:
            begun = own.uploads.begin(path, purpose="model")
            assert [part.url.startswith(s3["s3_endpoint"]) for part in begun.parts] == [True] * 3
            httpx.put(begun.parts[1].url, content=CONTENT[PART : 2 * PART]).raise_for_status()
            resumed = own.uploads.resume(path, begun.id)
            assert [part.received for part in resumed.parts] == [False, True, False]

            done = own.uploads.finish(resumed, path)

        assert done.blob == f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"


def test_digest_headers_are_written_as_the_standard_says() -> None:
    """The example of RFC 9530, appendix B.1, so that our reading and writing are not both wrong."""
    content = b'{"hello": "world"}\n'
    expected = "sha-256=:RK/0qy18MlBSVnWgjwz6lZEWjP/lF5HF9bvEF8FabDg=:"
    assert sending.digest_header(content) == expected
    assert base64.b64decode(expected[9:-1]) == hashlib.sha256(content).digest()
