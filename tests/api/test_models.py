"""Models by HTTP: registration, lists, changes, deletion, downloads, aliases, lineage."""

import hashlib
from typing import Any

import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from fastapi.testclient import TestClient

from models_registry.artifacts import models
from models_registry.persistence import database, tables
from models_registry.persistence.storage import Storage
from tests import factories, sending
from tests.databases import SQLITE_ONLY

WEIGHTS = bytes(range(256)) * 4
FILE = "/v1/models/digits-teacher/versions/1/files/model.safetensors"


@pytest.fixture
def ready(
    sessions: database.Sessions, storage: Storage, project: tables.ProjectRow
) -> tables.ModelVersionRow:
    """A teacher that is ready, `digits-teacher@1`."""
    with sessions.begin() as session:
        return factories.teacher(session, storage, project_id=project.id, content=WEIGHTS)


@pytest.fixture
def finished(
    sessions: database.Sessions, storage: Storage, ready: tables.ModelVersionRow
) -> tables.JobRow:
    """A job whose teacher that was, and whose student is `digits-student@1`."""
    with sessions.begin() as session:
        job = factories.job(session, project_id=ready.project_id)
        return factories.succeeded(session, storage, job)


def register(client: TestClient, name: str = "digits-teacher", **changes: Any) -> Any:
    body = sending.model_version(sending.send(client), **changes)
    return client.post(f"/v1/models/{name}/versions", json=body)


class TestRegister:
    def test_makes_a_pending_version_and_its_line(
        self, client: TestClient, sessions: database.Sessions
    ) -> None:
        answer = register(client, card="# A teacher", tags={"team": "vision"})
        body = answer.json()
        assert answer.status_code == 202
        assert answer.headers["location"] == "/v1/models/digits-teacher/versions/1"
        assert body["reference"] == "digits-teacher@1"
        assert body["state"] == "pending"
        assert body["classes"] == [str(number) for number in range(10)]
        assert body["input"] == factories.DIGITS_INPUT
        assert body["task"] == "classification"
        assert body["digest"] is body["parameters"] is body["rejection"] is None
        assert body["files"] == []
        assert body["lineage"]["upload"].startswith("upl_")
        assert client.get(answer.headers["location"]).json() == body
        assert client.get("/v1/models/digits-teacher").json()["latest_version"] is None
        with sessions() as session:
            message = session.scalars(sa.select(tables.OutboxRow)).one()
            version = session.scalars(sa.select(tables.ModelVersionRow)).one()
        assert (message.task, message.queue) == ("models.inspect", "inspect")
        assert message.payload == {"version_id": version.id}
        assert version.announced_at is not None

    @SQLITE_ONLY
    def test_takes_names_for_classes(self, client: TestClient) -> None:
        assert register(client, classes=["cat", "dog"]).json()["classes"] == ["cat", "dog"]

    @SQLITE_ONLY
    @pytest.mark.parametrize("network", ["retort/resnet8", "retort/onnx"])
    def test_takes_a_network_without_classifier(self, client: TestClient, network: str) -> None:
        body = sending.model_version(sending.send(client), network=network, task="embedding")
        del body["classes"]
        made = client.post("/v1/models/dino/versions", json=body).json()
        assert (made["task"], made["classes"], made["classes_count"]) == ("embedding", [], 0)

    def test_numbers_versions_one_by_one(self, client: TestClient) -> None:
        numbers = [register(client).json()["version"] for _ in range(3)]
        assert numbers == [1, 2, 3]

    def test_gives_the_same_version_to_a_repeated_request(self, client: TestClient) -> None:
        body = sending.model_version(sending.send(client))
        headers = {"idempotency-key": "again"}
        url = "/v1/models/digits-teacher/versions"
        first, second = (client.post(url, json=body, headers=headers) for _ in range(2))
        assert first.status_code == second.status_code == 202
        assert first.json() == second.json()
        other = client.post(url, json={**body, "card": "other"}, headers=headers)
        assert other.status_code == 422

    @SQLITE_ONLY
    @pytest.mark.parametrize(
        ("changes", "pointer"),
        [
            ({"network": "retort/resnet8x5"}, "/network"),
            ({"arguments": {"width": 3}}, "/arguments/width"),
            ({"arguments": {"widths": [1]}}, "/arguments/widths"),
            ({"task": "magic"}, "/task"),
            ({"classes": 1}, "/classes"),
            ({"classes": 0}, "/classes"),
            ({"classes": 10, "task": "embedding"}, "/classes"),
            ({"classes": 100_001}, "/classes"),
            ({"classes": 10**30}, "/classes"),
            ({"classes": True}, "/classes"),
            ({"classes": "ten"}, "/classes"),
            ({"classes": ["cat", 1]}, "/classes"),
            ({"classes": ["cat", "dog", "cat"]}, "/classes/2"),
            ({"classes": ["cat", " "]}, "/classes/1"),
            ({"tags": {"": "x"}}, "/tags/"),
            ({"tags": {str(n): "x" for n in range(65)}}, "/tags"),
            ({"tags": {"a": 1}}, "/tags/a"),
            ({"card": "x" * 100_001}, "/card"),
            ({"unknown": 1}, "/unknown"),
        ],
    )
    def test_points_at_what_is_wrong(
        self, client: TestClient, changes: dict[str, Any], pointer: str
    ) -> None:
        answer = register(client, **changes)
        assert answer.status_code == 422
        assert set(sending.faults(answer)) == {pointer}

    @SQLITE_ONLY
    @pytest.mark.parametrize(
        ("changes", "pointer"),
        [
            ({"channels": 0}, "/input/channels"),
            ({"height": 0}, "/input/height"),
            ({"width": 4097}, "/input/width"),
            ({"mean": []}, "/input/mean"),
            ({"std": [0.3, 0.3]}, "/input/std"),
            ({"std": [0.0]}, "/input/std/0"),
            ({"std": [-1]}, "/input/std/0"),
            ({"height": 8.5}, "/input/height"),
            ({"depth": 8}, "/input/depth"),
        ],
    )
    def test_points_at_what_is_wrong_with_the_input(
        self, client: TestClient, changes: dict[str, Any], pointer: str
    ) -> None:
        images = {**factories.DIGITS_INPUT, **changes}
        answer = register(client, input=images)
        assert answer.status_code == 422
        assert pointer in sending.faults(answer)

    @SQLITE_ONLY
    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"mean": [123.675]}, "divide it by 255, which gives 0.485"),
            ({"std": [58.395]}, "divide it by 255, which gives 0.229"),
            ({"std": [0.000898]}, "multiply it by 255"),
            ({"mean": [-0.5]}, "must be 0 to 1"),
            ({"mean": [1e6]}, "must be 0 to 1"),
        ],
    )
    def test_refuses_a_normalisation_that_no_pictures_have(
        self, client: TestClient, changes: dict[str, Any], words: str
    ) -> None:
        answer = register(client, input={**factories.DIGITS_INPUT, **changes})
        assert answer.status_code == 422
        assert words in answer.json()["detail"]

    @SQLITE_ONLY
    def test_takes_the_normalisation_of_pixels_that_stay_as_they_are(
        self, client: TestClient
    ) -> None:
        for mean, std in ((0.0, 1.0), (0.0, 1 / 255), (1.0, 0.5)):
            images = {**factories.DIGITS_INPUT, "mean": [mean], "std": [std]}
            assert register(client, input=images).status_code == 202

    @SQLITE_ONLY
    def test_keeps_how_a_file_is_to_be_read(
        self, client: TestClient, sessions: database.Sessions
    ) -> None:
        register(client)
        register(client, entry="model_ema", strict=False, resize_positions=True)
        with sessions() as session:
            rows = session.query(tables.ModelVersionRow).order_by(tables.ModelVersionRow.version)
            assert [row.reading for row in rows] == [
                None,
                {"entry": "model_ema", "strict": False, "resize_positions": True},
            ]

    @SQLITE_ONLY
    def test_suggests_the_nearest_network(self, client: TestClient) -> None:
        answer = register(client, network="retort/resnet8x5")
        assert "retort/resnet8x4" in answer.json()["detail"]

    @SQLITE_ONLY
    def test_says_everything_that_is_wrong_at_once(self, client: TestClient) -> None:
        wrong = {"network": "x", "classes": 1, "task": "fun", "upload": "upl_x"}
        answer = client.post(
            "/v1/models/m/versions", json={**sending.model_version("upl_x"), **wrong}
        )
        assert set(sending.faults(answer)) == {"/network", "/classes", "/task", "/upload"}

    @SQLITE_ONLY
    @pytest.mark.parametrize("name", ["Digits", "-digits", "a b", "x" * 97, "ü"])
    def test_refuses_a_bad_name(self, client: TestClient, name: str) -> None:
        answer = register(client, name)
        assert answer.status_code == 422
        assert sending.faults(answer) == {"/name": "bad_name"}

    @SQLITE_ONLY
    def test_needs_an_upload_that_is_completed(self, client: TestClient) -> None:
        upload = sending.begin(client, b"weights")["id"]
        answer = client.post("/v1/models/m/versions", json=sending.model_version(upload))
        assert sending.faults(answer) == {"/upload": "upload_not_completed"}

    @SQLITE_ONLY
    def test_needs_an_upload_for_models(self, client: TestClient) -> None:
        upload = sending.send(client, purpose="dataset")
        answer = client.post("/v1/models/m/versions", json=sending.model_version(upload))
        assert sending.faults(answer) == {"/upload": "wrong_purpose"}

    def test_needs_an_upload_of_the_same_project(
        self, client: TestClient, stranger: TestClient
    ) -> None:
        upload = sending.send(client)
        answer = stranger.post("/v1/models/m/versions", json=sending.model_version(upload))
        assert answer.status_code == 422
        assert sending.faults(answer) == {"/upload": "not_found"}

    def test_leaves_no_line_behind_when_refused(self, client: TestClient) -> None:
        register(client, network="retort/none")
        assert client.get("/v1/models/digits-teacher").status_code == 404


class TestLines:
    def test_can_be_made_listed_and_changed(self, client: TestClient) -> None:
        made = client.post("/v1/models", json={"name": "m", "card": "c", "tags": {"a": "b"}})
        assert made.status_code == 201
        assert made.headers["location"] == "/v1/models/m"
        assert client.get("/v1/models").json()["data"] == [made.json()]
        changed = client.patch("/v1/models/m", json={"card": "new"})
        assert changed.status_code == 200
        assert changed.json()["card"] == "new"
        assert changed.json()["tags"] == {"a": "b"}

    def test_cannot_be_made_twice(self, client: TestClient) -> None:
        statuses = [client.post("/v1/models", json={"name": "m"}).status_code for _ in range(2)]
        assert statuses == [201, 409]

    def test_come_in_pages(self, client: TestClient) -> None:
        for number in range(5):
            client.post("/v1/models", json={"name": f"m{number}"})
        seen, query = [], "?limit=2"
        while query:
            page = client.get(f"/v1/models{query}").json()
            seen += [row["name"] for row in page["data"]]
            query = f"?limit=2&cursor={page['next_cursor']}" if page["has_more"] else ""
        assert seen == ["m4", "m3", "m2", "m1", "m0"]

    def test_are_filtered_by_prefix_and_tag(self, client: TestClient) -> None:
        for name, team in (("a_1", "vision"), ("ab1", "vision"), ("a_2", "speech")):
            client.post("/v1/models", json={"name": name, "tags": {"team": team}})

        def names(query: str) -> list[str]:
            return [row["name"] for row in client.get(f"/v1/models?{query}").json()["data"]]

        assert names("prefix=a_") == ["a_2", "a_1"]
        assert names("tag.team=vision") == ["ab1", "a_1"]
        assert names("tag.team=vision&prefix=a_") == ["a_1"]
        assert names("tag.absent=x") == []

    def test_change_only_if_unchanged(self, client: TestClient) -> None:
        client.post("/v1/models", json={"name": "m"})
        etag = client.get("/v1/models/m").headers["etag"]
        headers = {"if-match": etag}
        first = client.patch("/v1/models/m", json={"card": "1"}, headers=headers)
        second = client.patch("/v1/models/m", json={"card": "2"}, headers=headers)
        assert (first.status_code, second.status_code) == (200, 412)
        assert first.headers["etag"] != etag
        assert client.get("/v1/models/m").json()["card"] == "1"

    @SQLITE_ONLY
    @pytest.mark.parametrize("value", ["etag", '"a" "b"', '"a'])
    def test_need_an_entity_tag_that_can_be_read(self, client: TestClient, value: str) -> None:
        client.post("/v1/models", json={"name": "m"})
        answer = client.patch("/v1/models/m", json={}, headers={"if-match": value})
        assert answer.status_code == 400
        assert set(sending.faults(answer)) == {"/header/if-match"}

    def test_suggest_the_nearest_name(self, client: TestClient) -> None:
        client.post("/v1/models", json={"name": "digits-teacher"})
        answer = client.get("/v1/models/digit-teacher")
        assert answer.status_code == 404
        assert "did you mean 'digits-teacher'" in answer.json()["detail"]

    def test_are_410_once_deleted_and_count_on_when_made_again(self, client: TestClient) -> None:
        register(client)
        assert client.delete("/v1/models/digits-teacher").status_code == 204
        assert client.get("/v1/models/digits-teacher").status_code == 410
        assert client.get("/v1/models/digits-teacher/versions/1").status_code == 410
        assert client.get("/v1/models").json()["data"] == []
        assert register(client).json()["version"] == 2
        assert client.get("/v1/models/digits-teacher/versions/1").status_code == 410

    def test_are_deleted_by_administrators_only(self, client: TestClient) -> None:
        client.post("/v1/models", json={"name": "m"})
        made = client.post("/v1/api-keys", json={"name": "hands", "role": "editor"})
        headers = {"authorization": f"Bearer {made.json()['api_key']}"}
        assert client.delete("/v1/models/m", headers=headers).status_code == 403


class TestVersions:
    def test_show_their_files_and_digest(
        self, client: TestClient, ready: tables.ModelVersionRow
    ) -> None:
        digest = hashlib.sha256(WEIGHTS).hexdigest()
        body = client.get("/v1/models/digits-teacher/versions/1").json()
        assert body["digest"] == f"sha256:{digest}"
        assert body["files"] == [
            {
                "path": "model.safetensors",
                "size_bytes": len(WEIGHTS),
                "sha256": digest,
                "media_type": "application/octet-stream",
            }
        ]
        assert client.get("/v1/models/digits-teacher").json()["latest_version"] == 1

    def test_are_listed_newest_first_and_filtered(
        self, client: TestClient, ready: tables.ModelVersionRow
    ) -> None:
        register(client)
        url = "/v1/models/digits-teacher/versions"

        def numbers(query: str = "") -> list[int]:
            return [row["version"] for row in client.get(url + query).json()["data"]]

        assert numbers() == [2, 1]
        assert numbers("?state=ready") == [1]
        assert numbers("?state=pending") == [2]
        client.patch(f"{url}/1", json={"deprecated": True})
        assert numbers("?deprecated=true") == [1]
        assert client.get(f"{url}?state=wild").status_code == 422

    def test_change_in_card_tags_and_deprecation_only(
        self, client: TestClient, ready: tables.ModelVersionRow
    ) -> None:
        url = "/v1/models/digits-teacher/versions/1"
        before = client.get(url)
        answer = client.patch(
            url,
            json={"card": "c", "tags": {"a": "b"}, "deprecated": True},
            headers={"if-match": before.headers["etag"]},
        )
        assert answer.status_code == 200
        expected = {**before.json(), "card": "c", "tags": {"a": "b"}, "deprecated": True}
        del expected["updated_at"]
        assert expected.items() <= answer.json().items()
        assert client.patch(url, json={"network": "retort/resnet8"}).status_code == 422
        assert client.patch(url, json={"card": None}).status_code == 422
        stale = {"if-match": before.headers["etag"]}
        assert client.patch(url, json={"card": "d"}, headers=stale).status_code == 412

    def test_are_410_once_deleted(
        self, client: TestClient, ready: tables.ModelVersionRow, sessions: database.Sessions
    ) -> None:
        url = "/v1/models/digits-teacher/versions/1"
        assert client.delete(url).status_code == 204
        assert client.get(url).status_code == 410
        assert client.get(FILE).status_code == 410
        assert client.delete(url).status_code == 410
        assert client.get("/v1/models/digits-teacher/versions").json()["data"] == []
        with sessions() as session:
            assert session.scalars(sa.select(tables.ModelFileRow)).all() == []

    def test_are_kept_while_a_job_refers_to_them(
        self,
        client: TestClient,
        ready: tables.ModelVersionRow,
        sessions: database.Sessions,
        project: tables.ProjectRow,
    ) -> None:
        with sessions.begin() as session:
            job = factories.job(session, project_id=project.id)
        url = "/v1/models/digits-teacher/versions/1"
        answer = client.delete(url)
        assert answer.status_code == 409
        assert job.id in answer.json()["detail"]
        assert client.delete("/v1/models/digits-teacher").status_code == 409
        client.post(f"/v1/jobs/{job.id}/cancel")
        client.delete(f"/v1/jobs/{job.id}")
        assert client.delete(url).status_code == 204

    def test_are_kept_while_an_alias_points_to_them(
        self, client: TestClient, ready: tables.ModelVersionRow
    ) -> None:
        alias = "/v1/models/digits-teacher/aliases/champion"
        etag = client.put(alias, json={"version": 1}).headers["etag"]
        url = "/v1/models/digits-teacher/versions/1"
        answer = client.delete(url)
        assert answer.status_code == 409
        assert "alias champion" in answer.json()["detail"]
        client.delete(alias, headers={"if-match": etag})
        assert client.delete(url).status_code == 204

    def test_are_kept_while_others_descend_from_them(
        self, client: TestClient, finished: tables.JobRow
    ) -> None:
        client.delete(f"/v1/jobs/{finished.id}")
        url = "/v1/models/digits-teacher/versions/1"
        answer = client.delete(url)
        assert answer.status_code == 409
        assert "digits-student@1" in answer.json()["detail"]
        assert client.delete("/v1/models/digits-student/versions/1").status_code == 204
        assert client.delete(url).status_code == 204

    @SQLITE_ONLY
    @pytest.mark.parametrize("version", ["0", "-1", "x", "1.5", str(10**12)])
    def test_have_numbers(self, client: TestClient, version: str) -> None:
        answer = client.get(f"/v1/models/digits-teacher/versions/{version}")
        assert answer.status_code == 422


@SQLITE_ONLY
class TestDownload:
    def test_gives_the_whole_with_digests(
        self, client: TestClient, ready: tables.ModelVersionRow
    ) -> None:
        answer = client.get(FILE)
        assert answer.status_code == 200
        assert answer.content == WEIGHTS
        headers = answer.headers
        assert headers["etag"] == f'"{hashlib.sha256(WEIGHTS).hexdigest()}"'
        assert headers["content-length"] == str(len(WEIGHTS))
        assert headers["accept-ranges"] == "bytes"
        assert headers["cache-control"] == "private, max-age=31536000, immutable"
        assert headers["repr-digest"] == sending.digest_header(WEIGHTS)
        assert headers["content-digest"] == sending.digest_header(WEIGHTS)
        disposition = 'attachment; filename="digits-teacher-1-model.safetensors"'
        assert headers["content-disposition"] == disposition
        assert headers["content-type"] == "application/octet-stream"

    def test_answers_head_without_the_bytes(
        self, client: TestClient, ready: tables.ModelVersionRow
    ) -> None:
        whole, head = client.get(FILE), client.head(FILE, headers={"range": "bytes=0-1"})
        assert head.status_code == 200
        assert head.content == b""
        for name in ("etag", "content-length", "repr-digest", "accept-ranges", "content-type"):
            assert head.headers[name] == whole.headers[name]

    @pytest.mark.parametrize(
        ("wanted", "first", "last"),
        [
            ("bytes=0-0", 0, 0),
            ("bytes=0-99", 0, 99),
            ("bytes=100-", 100, 1023),
            ("bytes=1000-5000", 1000, 1023),
            ("bytes=-24", 1000, 1023),
            ("bytes=-5000", 0, 1023),
            ("Bytes = 5 - 6", 5, 6),
        ],
    )
    def test_gives_one_range(
        self,
        client: TestClient,
        ready: tables.ModelVersionRow,
        wanted: str,
        first: int,
        last: int,
    ) -> None:
        answer = client.get(FILE, headers={"range": wanted})
        assert answer.status_code == 206
        assert answer.content == WEIGHTS[first : last + 1]
        assert answer.headers["content-range"] == f"bytes {first}-{last}/1024"
        assert answer.headers["content-length"] == str(last - first + 1)
        assert answer.headers["repr-digest"] == sending.digest_header(WEIGHTS)
        assert "content-digest" not in answer.headers

    @pytest.mark.parametrize(
        "wanted",
        [
            "bytes=0-1,5-6",
            "bytes=5-4",
            "bytes=-",
            "bytes=x-y",
            "lines=1-2",
            "bytes",
            "",
            "bytes=٣-٤",
        ],
    )
    def test_gives_the_whole_where_one_range_cannot_be_read(
        self, client: TestClient, ready: tables.ModelVersionRow, wanted: str
    ) -> None:
        answer = client.get(FILE, headers={b"range": wanted.encode()})
        assert answer.status_code == 200
        assert answer.content == WEIGHTS

    @pytest.mark.parametrize("wanted", ["bytes=1024-", "bytes=9999-10000", "bytes=-0"])
    def test_refuses_a_range_beyond_the_end(
        self, client: TestClient, ready: tables.ModelVersionRow, wanted: str
    ) -> None:
        answer = client.get(FILE, headers={"range": wanted})
        assert answer.status_code == 416
        assert answer.headers["content-range"] == "bytes */1024"
        assert answer.headers["content-type"] == "application/problem+json"

    def test_gives_a_range_only_of_what_the_caller_knows(
        self, client: TestClient, ready: tables.ModelVersionRow
    ) -> None:
        etag = client.head(FILE).headers["etag"]
        same = {"range": "bytes=0-9", "if-range": etag}
        assert client.get(FILE, headers=same).status_code == 206
        for other in ('"other"', f"W/{etag}", "Wed, 21 Oct 2015 07:28:00 GMT"):
            answer = client.get(FILE, headers={"range": "bytes=0-9", "if-range": other})
            assert answer.status_code == 200
            assert answer.content == WEIGHTS

    def test_is_304_for_a_caller_who_has_it(
        self, client: TestClient, ready: tables.ModelVersionRow
    ) -> None:
        etag = client.head(FILE).headers["etag"]
        for known in (etag, f"W/{etag}", f'"other", {etag}', "*"):
            headers = {"if-none-match": known, "range": "bytes=0-9"}
            for answer in (client.get(FILE, headers=headers), client.head(FILE, headers=headers)):
                assert answer.status_code == 304
                assert answer.content == b""
                assert answer.headers["etag"] == etag
        assert client.get(FILE, headers={"if-none-match": '"other"'}).status_code == 200

    def test_is_412_where_if_match_does_not_hold(
        self, client: TestClient, ready: tables.ModelVersionRow
    ) -> None:
        etag = client.head(FILE).headers["etag"]
        assert client.get(FILE, headers={"if-match": '"other"'}).status_code == 412
        assert client.get(FILE, headers={"if-match": f"W/{etag}"}).status_code == 412
        assert client.get(FILE, headers={"if-match": etag}).status_code == 200
        assert client.get(FILE, headers={"if-match": "*"}).status_code == 200

    def test_names_the_files_that_there_are(
        self, client: TestClient, ready: tables.ModelVersionRow
    ) -> None:
        for path in ("other.bin", "..%2f..%2fsecret", "model.safetensors/"):
            answer = client.get(f"/v1/models/digits-teacher/versions/1/files/{path}")
            assert answer.status_code == 404
        answer = client.get("/v1/models/digits-teacher/versions/1/files/other.bin")
        assert "model.safetensors" in answer.json()["detail"]

    def test_waits_for_the_inspection(self, client: TestClient) -> None:
        register(client)
        answer = client.get(FILE)
        assert answer.status_code == 409
        assert answer.json()["code"] == "version_not_ready"

    def test_holds_no_database_connection_while_it_streams(
        self, app: FastAPI, client: TestClient, ready: tables.ModelVersionRow
    ) -> None:
        with client.stream("GET", FILE) as answer:
            assert app.state.service.engine.pool.checkedout() == 0
            assert answer.read() == WEIGHTS

    def test_reaches_files_in_folders(
        self,
        client: TestClient,
        sessions: database.Sessions,
        storage: Storage,
        project: tables.ProjectRow,
    ) -> None:
        with sessions.begin() as session:
            weights = factories.stored(session, storage, WEIGHTS)
            report = factories.stored(session, storage, b"{}")
            models.add_version(
                session,
                project_id=project.id,
                new=factories.new_version("m"),
                files={models.WEIGHTS: weights.sha256, "report/curves.json": report.sha256},
                state="ready",
            )
        answer = client.get("/v1/models/m/versions/1/files/report/curves.json")
        assert answer.content == b"{}"
        assert answer.headers["content-type"] == "application/json"
        assert 'filename="m-1-report-curves.json"' in answer.headers["content-disposition"]


@pytest.mark.usefixtures("ready")
class TestAliases:
    URL = "/v1/models/digits-teacher/aliases/champion"

    def test_are_made_moved_and_removed(self, client: TestClient) -> None:
        register(client)
        made = client.put(self.URL, json={"version": 1}, headers={"if-none-match": "*"})
        assert made.status_code == 201
        assert made.json()["reference"] == "digits-teacher@1"
        etag = client.get(self.URL).headers["etag"]
        moved = client.put(self.URL, json={"version": 2}, headers={"if-match": etag})
        assert moved.status_code == 200
        assert moved.headers["etag"] != etag
        assert [move["version"] for move in moved.json()["history"]] == [1, 2]
        assert client.get("/v1/models/digits-teacher").json()["aliases"] == {"champion": 2}
        listed = client.get("/v1/models/digits-teacher/aliases").json()["data"]
        assert listed == [moved.json()]
        headers = {"if-match": moved.headers["etag"]}
        assert client.delete(self.URL, headers=headers).status_code == 204
        assert client.get(self.URL).status_code == 404

    def test_move_only_for_those_who_know_where_they_point(self, client: TestClient) -> None:
        etag = client.put(self.URL, json={"version": 1}).headers["etag"]

        def put(headers: dict[str, str]) -> int:
            return client.put(self.URL, json={"version": 1}, headers=headers).status_code

        assert put({}) == 428
        assert put({"if-match": '"other"'}) == 412
        assert put({"if-none-match": "*"}) == 412
        assert put({"if-match": etag}) == 200
        assert put({"if-match": etag}) == 412
        assert put({"if-match": "*"}) == 200
        assert client.delete(self.URL).status_code == 428
        assert client.delete(self.URL, headers={"if-match": etag}).status_code == 412

    def test_cannot_be_moved_where_there_are_none(self, client: TestClient) -> None:
        for value in ("*", '"1"'):
            answer = client.put(self.URL, json={"version": 1}, headers={"if-match": value})
            assert answer.status_code == 412
        assert client.delete(self.URL, headers={"if-match": "*"}).status_code == 404

    def test_have_another_etag_when_made_again(self, client: TestClient) -> None:
        first = client.put(self.URL, json={"version": 1}).headers["etag"]
        client.delete(self.URL, headers={"if-match": first})
        second = client.put(self.URL, json={"version": 1}).headers["etag"]
        assert first != second

    @SQLITE_ONLY
    @pytest.mark.parametrize("alias", ["latest", "3", "1.0", "Champion", "a b", "-x"])
    def test_cannot_look_like_something_else(self, client: TestClient, alias: str) -> None:
        answer = client.put(f"/v1/models/digits-teacher/aliases/{alias}", json={"version": 1})
        assert answer.status_code == 422
        assert sending.faults(answer) == {"/path/alias": "bad_alias"}

    def test_point_to_versions_that_exist(self, client: TestClient) -> None:
        answer = client.put(self.URL, json={"version": 7})
        assert answer.status_code == 422
        assert sending.faults(answer) == {"/version": "not_found"}
        assert "digits-teacher@1" in answer.json()["detail"]
        assert client.put(self.URL, json={"version": 0}).status_code == 422
        assert client.put("/v1/models/none/aliases/a", json={"version": 1}).status_code == 404


class TestLineage:
    def test_leads_back_and_forth(self, client: TestClient, finished: tables.JobRow) -> None:
        child = client.get("/v1/models/digits-student/versions/1/lineage").json()
        assert child["backward"]["job"] == finished.id
        assert child["backward"]["teacher"]["reference"] == "digits-teacher@1"
        assert child["backward"]["dataset"] == "digits@1"
        assert child["backward"]["initial"] is None
        assert child["forward"]["data"] == []
        parent = client.get("/v1/models/digits-teacher/versions/1/lineage").json()
        assert parent["backward"]["job"] is None
        forward = parent["forward"]["data"]
        assert [entry["reference"] for entry in forward] == ["digits-student@1"]
        assert forward[0]["job"] == finished.id
        assert forward[0]["digest"] == child["digest"]

    def test_of_an_upload_names_it(self, client: TestClient) -> None:
        made = register(client).json()
        lineage = client.get("/v1/models/digits-teacher/versions/1/lineage").json()
        assert lineage["backward"]["upload"] == made["upload"]
        assert lineage["recorded"] == made["lineage"]


@pytest.mark.usefixtures("ready")
class TestOtherProjects:
    def test_find_nothing(self, client: TestClient, stranger: TestClient) -> None:
        client.put("/v1/models/digits-teacher/aliases/champion", json={"version": 1})
        for path in (
            "",
            "/versions",
            "/versions/1",
            "/versions/1/lineage",
            "/versions/1/files/model.safetensors",
            "/aliases",
            "/aliases/champion",
        ):
            answer = stranger.get(f"/v1/models/digits-teacher{path}")
            assert answer.status_code == 404
            assert "did you mean" not in answer.json()["detail"]
        assert stranger.patch("/v1/models/digits-teacher", json={}).status_code == 404
        assert stranger.delete("/v1/models/digits-teacher").status_code == 404
        assert stranger.delete("/v1/models/digits-teacher/versions/1").status_code == 404
        assert stranger.get("/v1/models").json()["data"] == []

    def test_may_use_the_same_name(self, stranger: TestClient) -> None:
        assert stranger.post("/v1/models", json={"name": "digits-teacher"}).status_code == 201


def test_a_worker_who_waits_for_a_deleted_version_is_told_to_stop(
    client: TestClient, sessions: database.Sessions
) -> None:
    register(client)
    assert client.delete("/v1/models/digits-teacher/versions/1").status_code == 204
    with sessions() as session:
        version = session.scalars(sa.select(tables.ModelVersionRow)).one()
    assert version.state == "rejected"
