"""Data sets by HTTP: the built-in one, and uploads on their way."""

from typing import Any

import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from fastapi.testclient import TestClient

from models_registry import catalog
from models_registry.artifacts import dataset_samples, dataset_sources, inspections
from models_registry.persistence import database, tables, tombstones
from models_registry.persistence.storage import Storage
from models_registry.settings import Settings
from tests import factories, sending
from tests.databases import SQLITE_ONLY


def register(client: TestClient, name: str = "scans", **changes: Any) -> Any:
    upload = sending.send(client, b"archive", purpose="dataset", filename="scans.zip")
    body = {"upload": upload, "format": "imagefolder", **changes}
    return client.post(f"/v1/datasets/{name}/versions", json=body)


class TestBuiltIn:
    @SQLITE_ONLY
    def test_digits_are_ready_in_every_project(self, client: TestClient) -> None:
        listed = client.get("/v1/datasets").json()["data"]
        assert ("digits", 1) in [(row["name"], row["latest_version"]) for row in listed]
        body = client.get("/v1/datasets/digits/versions/1").json()
        assert body["state"] == "ready"
        assert body["format"] == "builtin"
        assert body["reference"] == "digits@1"
        assert body["classes"] == [str(number) for number in range(10)]
        assert body["splits"] == {"train": 1257, "validation": 180, "test": 360}
        assert (body["input"]["channels"], body["input"]["height"]) == (1, 8)
        assert body["boxes"] is None
        assert body["digest"].startswith("sha256:")

    @SQLITE_ONLY
    def test_scenes_tell_how_many_boxes_each_split_has(self, client: TestClient) -> None:
        body = client.get("/v1/datasets/digit_scenes/versions/1").json()
        assert (body["task"], body["splits"]["test"]) == ("detection", 250)
        assert set(body["boxes"]) == set(body["splits"])
        assert body["notes"][0] == "composed scenes: real digits on real photographs"
        assert all(len(counts) == len(body["classes"]) for counts in body["boxes"].values())


SAMPLES = "/v1/datasets/digits/versions/1/samples"
NOW = {"wait_seconds": 0}


@SQLITE_ONLY
class TestSamples:
    def test_are_asked_of_a_worker_once_and_then_kept(
        self, client: TestClient, sessions: database.Sessions
    ) -> None:
        asked = client.get(SAMPLES, params=NOW)
        assert asked.status_code == 202, asked.text
        assert asked.headers["retry-after"]
        assert (asked.json()["state"], asked.json()["classes"]) == ("queued", [])
        assert client.get(SAMPLES, params=NOW).json() == asked.json()
        picture = {"index": 4, "content": "AAAA", "media_type": "image/png"}
        picture |= {"height": 8, "width": 8}
        group = {"class": "3", "pictures": [picture]}
        with sessions.begin() as session:
            version_id = session.scalars(sa.select(tables.DatasetSamplesRow.version_id)).one()
            assert dataset_samples.claim(session, version_id) is not None
            sheet = {"split": "train", "classes": [group], "notes": ["few"]}
            dataset_samples.finish(session, version_id, sheet=sheet)
        found = client.get(SAMPLES)
        assert found.status_code == 200
        body = found.json()
        assert (body["reference"], body["split"], body["notes"]) == ("digits@1", "train", ["few"])
        assert body["classes"][0]["class"] == "3"
        assert body["classes"][0]["pictures"][0] | picture == body["classes"][0]["pictures"][0]

    def test_that_could_not_be_made_say_why(
        self, client: TestClient, sessions: database.Sessions
    ) -> None:
        client.get(SAMPLES, params=NOW)
        with sessions.begin() as session:
            version_id = session.scalars(sa.select(tables.DatasetSamplesRow.version_id)).one()
            failure = {"code": "bad_dataset", "message": "the train split is damaged"}
            dataset_samples.finish(session, version_id, failure=failure)
        body = client.get(SAMPLES).json()
        assert (body["state"], body["failure"]) == ("failed", failure)

    def test_of_a_version_that_waits_are_refused(self, client: TestClient) -> None:
        register(client)
        refused = client.get("/v1/datasets/scans/versions/1/samples", params=NOW)
        assert refused.status_code == 409
        assert refused.json()["code"] == "version_not_ready"


class TestRegister:
    def test_makes_a_pending_version_and_calls_for_its_inspection(
        self, client: TestClient, sessions: database.Sessions
    ) -> None:
        answer = register(client, tags={"site": "b"})
        assert answer.status_code == 202
        assert answer.headers["location"] == "/v1/datasets/scans/versions/1"
        body = answer.json()
        assert (body["state"], body["reference"]) == ("pending", "scans@1")
        assert body["input"] is None
        assert client.get(answer.headers["location"]).json() == body
        assert client.get("/v1/datasets/scans").json()["latest_version"] is None
        with sessions() as session:
            message = session.scalars(sa.select(tables.OutboxRow)).one()
        assert (message.task, message.queue) == ("datasets.inspect", "inspect")

    def test_gives_the_same_version_to_a_repeated_request(self, client: TestClient) -> None:
        upload = sending.send(client, b"archive", purpose="dataset")
        body = {"upload": upload, "format": "npz"}
        headers = {"idempotency-key": "again"}
        first, second = (
            client.post("/v1/datasets/scans/versions", json=body, headers=headers) for _ in range(2)
        )
        assert first.json() == second.json()

    @SQLITE_ONLY
    @pytest.mark.parametrize(
        ("changes", "pointer", "code"),
        [
            ({"format": "mine"}, "/format", "unsupported_format"),
            ({"format": "builtin"}, "/format", "unsupported_format"),
            ({"task": "magic"}, "/task", "unknown_task"),
            ({"input": {"max_value": 70_000}}, "/input/max_value", "out_of_range"),
            ({"input": {"max_bad_share": 1.5}}, "/input/max_bad_share", "out_of_range"),
            (
                {"input": {"storage": "encoded"}, "format": "npz"},
                "/input/storage",
                "unsupported_format",
            ),
            (
                {"input": {"storage": "encoded"}, "format": "auto", "task": "segmentation"},
                "/input/storage",
                "unsupported_format",
            ),
            ({"card": "x" * 100_001}, "/card", "too_long"),
        ],
    )
    def test_points_at_what_is_wrong(
        self, client: TestClient, changes: dict[str, Any], pointer: str, code: str
    ) -> None:
        answer = register(client, **changes)
        assert answer.status_code == 422
        assert sending.faults(answer) == {pointer: code}

    @SQLITE_ONLY
    def test_checks_the_input_where_one_is_given(self, client: TestClient) -> None:
        images = {"channels": 3, "height": 32, "width": 32, "mean": [0.5], "std": [1, 1, 0]}
        answer = register(client, input=images)
        assert set(sending.faults(answer)) == {"/input/mean", "/input/std/2"}

    @SQLITE_ONLY
    def test_takes_a_size_alone_and_leaves_the_rest_to_be_measured(
        self, client: TestClient, sessions: database.Sessions
    ) -> None:
        answer = register(client, input={"height": 16, "width": 16})
        assert answer.status_code == 202
        assert answer.json()["input"] is None
        with sessions() as session:
            row = session.scalars(
                sa.select(tables.DatasetVersionRow).where(
                    tables.DatasetVersionRow.format != "builtin"
                )
            ).one()
            assert row.input == {"height": 16, "width": 16}
        wrong = register(client, input={"height": 0, "std": [0.0]})
        assert set(sending.faults(wrong)) == {"/input/height", "/input/std/0"}

    @SQLITE_ONLY
    def test_names_the_formats_that_there_are(self, client: TestClient) -> None:
        assert "imagefolder" in register(client, format="image-folder").json()["detail"]

    @SQLITE_ONLY
    @pytest.mark.parametrize("given", [None, "auto"])
    def test_leaves_the_format_to_be_recognised(self, client: TestClient, given: str) -> None:
        answer = register(client, format=given, task="detection")
        assert answer.status_code == 202
        assert answer.json()["format"] == "auto"

    @SQLITE_ONLY
    def test_refuses_a_format_that_cannot_hold_the_labels(self, client: TestClient) -> None:
        answer = register(client, task="segmentation")
        assert sending.faults(answer) == {"/format": "unsupported_format"}
        assert answer.json()["detail"] == (
            "imagefolder holds no labels for segmentation; upload npz, voc, masks"
        )
        assert register(client, task="segmentation", format="npz").status_code == 202

    @SQLITE_ONLY
    def test_says_of_an_unknown_task_that_alone(self, client: TestClient) -> None:
        assert sending.faults(register(client, task="magic")) == {"/task": "unknown_task"}

    @SQLITE_ONLY
    def test_accepts_whatever_format_the_catalog_has(
        self, client: TestClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(catalog.load().formats, "toy", {"tasks": ["classification"]})
        assert register(client, format="toy").status_code == 202

    @SQLITE_ONLY
    def test_needs_an_upload_for_data_sets(self, client: TestClient) -> None:
        body = {"upload": sending.send(client), "format": "npz"}
        answer = client.post("/v1/datasets/scans/versions", json=body)
        assert sending.faults(answer) == {"/upload": "wrong_purpose"}

    @SQLITE_ONLY
    def test_refuses_a_bad_name(self, client: TestClient) -> None:
        assert sending.faults(register(client, "Scans")) == {"/name": "bad_name"}


class TestLists:
    def test_of_versions_are_newest_first(self, client: TestClient) -> None:
        for _ in range(3):
            register(client)
        page = client.get("/v1/datasets/scans/versions?limit=2").json()
        assert [row["version"] for row in page["data"]] == [3, 2]
        rest = client.get(f"/v1/datasets/scans/versions?limit=2&cursor={page['next_cursor']}")
        assert [row["version"] for row in rest.json()["data"]] == [1]
        ready = client.get("/v1/datasets/scans/versions?state=ready").json()
        assert ready["data"] == []

    def test_of_names_are_filtered_by_prefix(self, client: TestClient) -> None:
        register(client)
        page = client.get("/v1/datasets?prefix=sc").json()
        assert [row["name"] for row in page["data"]] == ["scans"]

    def test_suggest_the_nearest_name(self, client: TestClient) -> None:
        answer = client.get("/v1/datasets/digit")
        assert answer.status_code == 404
        assert "did you mean 'digits'" in answer.json()["detail"]
        assert "digits@1" in client.get("/v1/datasets/digits/versions/2").json()["detail"]


def test_other_projects_find_nothing(client: TestClient, stranger: TestClient) -> None:
    register(client)
    for path in ("", "/versions", "/versions/1"):
        assert stranger.get(f"/v1/datasets/scans{path}").status_code == 404
    assert "scans" not in [row["name"] for row in stranger.get("/v1/datasets").json()["data"]]


class TestFromJob:
    @pytest.fixture
    def job(
        self, sessions: database.Sessions, storage: Storage, project: tables.ProjectRow
    ) -> tables.JobRow:
        """A data-free job that has kept its synthetic images."""
        with sessions.begin() as session:
            factories.teacher(session, storage, project_id=project.id)
            return factories.synthetic_job(session, storage, project_id=project.id)

    def test_is_ready_at_once_and_says_where_it_comes_from(
        self, client: TestClient, job: tables.JobRow
    ) -> None:
        body = {"job": job.id, "tags": {"site": "b"}}
        answer = client.post("/v1/datasets/dreams/versions", json=body)
        assert answer.status_code == 201, answer.text
        made = answer.json()
        assert (made["reference"], made["state"], made["job"]) == ("dreams@1", "ready", job.id)
        assert made["splits"] == factories.IMAGES_RECORD["splits"]
        assert made["lineage"]["teacher"] == "digits-teacher@1"
        assert made["lineage"]["job"] == job.id
        assert client.get(answer.headers["location"]).json() == made
        assert client.get("/v1/datasets/dreams").json()["latest_version"] == 1

    def test_is_made_once_for_a_repeated_request(
        self, client: TestClient, job: tables.JobRow
    ) -> None:
        headers = {"idempotency-key": "again"}
        first, second = (
            client.post("/v1/datasets/dreams/versions", json={"job": job.id}, headers=headers)
            for _ in range(2)
        )
        assert first.status_code == second.status_code == 201
        assert first.json() == second.json()

    def test_is_found_from_the_models_that_took_part(
        self, client: TestClient, job: tables.JobRow
    ) -> None:
        client.post("/v1/datasets/dreams/versions", json={"job": job.id})
        for name in ("digits-teacher", "digits-student"):
            found = client.get(f"/v1/models/{name}/versions/1/lineage").json()
            assert found["datasets"] == ["dreams@1"]

    def test_is_named_by_students_that_learned_on_it(
        self,
        client: TestClient,
        job: tables.JobRow,
        sessions: database.Sessions,
        storage: Storage,
        project: tables.ProjectRow,
    ) -> None:
        client.post("/v1/datasets/dreams/versions", json={"job": job.id})
        with sessions.begin() as session:
            child = factories.job(session, project_id=project.id, dataset="dreams@1")
            factories.succeeded(session, storage, child, content=b"another student")
        backward = client.get("/v1/models/digits-student/versions/2/lineage").json()["backward"]
        assert backward["dataset"] == "dreams@1"
        assert backward["dataset_lineage"]["job"] == job.id
        version = client.get("/v1/datasets/dreams/versions/1").json()
        assert backward["dataset_notes"] == version["notes"]

    def test_leaves_the_images_to_be_downloaded_with_the_student(
        self, client: TestClient, job: tables.JobRow
    ) -> None:
        here = "/v1/models/digits-student/versions/1"
        paths = {file["path"] for file in client.get(here).json()["files"]}
        assert {f"synthetic/{path}" for path in factories.IMAGES} < paths
        answer = client.get(f"{here}/files/synthetic/train.safetensors")
        assert answer.content == factories.IMAGES["train.safetensors"]

    @SQLITE_ONLY
    @pytest.mark.parametrize(
        ("changes", "faults"),
        [
            ({"format": "npz"}, {"/format": "not_with_job"}),
            ({"upload": "upl_1", "input": {}}, {"/upload": "not_with_job"}),
            ({"task": "segmentation"}, {"/task": "wrong_task"}),
            ({"job": "job_none"}, {"/job": "not_found"}),
            ({"job": 7}, {"/job": "string_type"}),
        ],
    )
    def test_points_at_what_is_wrong(
        self,
        client: TestClient,
        job: tables.JobRow,
        changes: dict[str, Any],
        faults: dict[str, str],
    ) -> None:
        body = {"job": job.id, **changes}
        answer = client.post("/v1/datasets/dreams/versions", json=body)
        assert answer.status_code == 422
        assert faults.items() <= sending.faults(answer).items()

    @SQLITE_ONLY
    @pytest.mark.parametrize(
        ("body", "faults"),
        [
            ({}, {"/upload": "missing"}),
            ({"format": "npz"}, {"/upload": "missing"}),
        ],
    )
    def test_or_from_an_upload_and_its_format(
        self, client: TestClient, body: dict[str, Any], faults: dict[str, str]
    ) -> None:
        answer = client.post("/v1/datasets/dreams/versions", json=body)
        assert answer.status_code == 422
        assert sending.faults(answer) == faults


@SQLITE_ONLY
class TestFromSource:
    ALLOWED = "s3://photos/{project} file:///srv/photos"

    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return settings.model_copy(update={"sources": self.ALLOWED})

    def post(self, client: TestClient, body: dict[str, Any], **options: Any) -> Any:
        return client.post("/v1/datasets/scans/versions", json=body, **options)

    def test_waits_for_its_inspection_and_names_the_source(
        self, client: TestClient, sessions: database.Sessions
    ) -> None:
        url = "file:///srv/photos/my%20scans"
        answer = self.post(client, {"source": url, "input": {"height": 8}, "card": "Scans."})
        assert answer.status_code == 202, answer.text
        body = answer.json()
        unknown = dict.fromkeys(("kind", "digest", "files", "size_bytes"))
        assert body["source"] == {"url": url, **unknown}
        assert (body["state"], body["upload"], body["size_bytes"]) == ("pending", None, 0)
        assert body["lineage"] == {"source": url}
        with sessions() as session:
            message = session.scalars(sa.select(tables.OutboxRow)).one()
        assert (message.task, message.queue) == ("datasets.inspect", "inspect")
        (entry,) = client.get("/v1/audit", params={"action": "dataset_version"}).json()["data"]
        assert (entry["action"], entry["subject"]) == ("dataset_version.referred", "scans@1")
        assert entry["facts"] == {"source": url}
        used = {one["name"]: one["used"] for one in client.get("/v1/usage").json()["quotas"]}
        assert used["storage_bytes"] == 0
        assert client.delete("/v1/datasets/scans/versions/1").status_code == 204

    def test_is_registered_once_for_a_repeated_request(self, client: TestClient) -> None:
        body, headers = {"source": "file:///srv/photos"}, {"idempotency-key": "again"}
        first, second = (self.post(client, body, headers=headers) for _ in range(2))
        assert first.json() == second.json()
        assert first.json()["version"] == 1

    @pytest.mark.parametrize(
        ("body", "faults"),
        [
            ({"source": "file:///srv/private"}, {"/source": "source_not_allowed"}),
            ({"source": "file:///srv/photos/../private"}, {"/source": "malformed_source"}),
            ({"source": "s3://key:secret@photos/a"}, {"/source": "malformed_source"}),
            ({"source": "https://example.org/a.zip"}, {"/source": "malformed_source"}),
            ({"source": ""}, {"/source": "malformed_source"}),
            ({"source": 7}, {"/source": "string_type"}),
            ({"source": "s3://photos/another/a"}, {"/source": "source_not_allowed"}),
            (
                {"source": "file:///srv/private", "format": "mine"},
                {"/source": "source_not_allowed", "/format": "unsupported_format"},
            ),
            ({"source": "file:///srv/photos", "upload": "upl_1"}, {"/source": "not_with_upload"}),
            ({"source": "file:///srv/photos", "job": "job_1"}, {"/source": "not_with_job"}),
        ],
    )
    def test_points_at_what_is_wrong(
        self, client: TestClient, body: dict[str, Any], faults: dict[str, str]
    ) -> None:
        answer = self.post(client, body)
        assert answer.status_code == 422
        assert sending.faults(answer) == faults
        assert "secret" not in answer.text

    def test_tells_what_was_pinned_and_has_no_archive(
        self, client: TestClient, sessions: database.Sessions
    ) -> None:
        url = "file:///srv/photos"
        self.post(client, {"source": url})
        pinned = dataset_sources.PinnedSource(
            url=url, kind="folder", sha256="a" * 64, files=2, size_bytes=30, request={"kind": "x"}
        )
        with sessions.begin() as session:
            row = session.scalars(
                sa.select(tables.DatasetVersionRow).filter_by(state="pending")
            ).one()
            claim = inspections.claim(session, kind="datasets", version_id=row.id)
            assert claim is not None
            inspections.accept_source(
                session,
                claim,
                pinned=pinned,
                files=[dataset_sources.PreparedFile("train.safetensors", "b" * 64, 40)],
                sha256="c" * 64,
                facts={"format": "imagefolder", "classes": [], "splits": {}, "notes": []},
            )
        body = client.get("/v1/datasets/scans/versions/1").json()
        digest = f"sha256:{'a' * 64}"
        assert body["source"] == {
            "url": url,
            "kind": "folder",
            "digest": digest,
            "files": 2,
            "size_bytes": 30,
        }
        assert body["lineage"] == {"source": url, "source_digest": digest}
        assert (body["archive"], body["size_bytes"]) == (None, 0)
        answer = client.get("/v1/datasets/scans/versions/1/archive")
        assert (answer.status_code, answer.json()["code"]) == (404, "no_archive")
        assert url in answer.json()["detail"]


@SQLITE_ONLY
def test_without_the_setting_no_source_is_read(client: TestClient) -> None:
    answer = client.post("/v1/datasets/scans/versions", json={"source": "s3://bucket/a"})
    assert sending.faults(answer) == {"/source": "sources_disabled"}
    assert "RETORT_SOURCES is empty" in answer.text


ARCHIVE = b"bytes of a zip archive"


def ready(
    client: TestClient, sessions: database.Sessions, storage: Storage, name: str = "scans"
) -> tables.DatasetVersionRow:
    """Register an archive, and have it inspected."""
    upload = sending.send(client, ARCHIVE, purpose="dataset", filename="scans.zip")
    client.post(f"/v1/datasets/{name}/versions", json={"upload": upload})
    with sessions.begin() as session:
        pending = tables.DatasetVersionRow.state == "pending"
        row = session.scalars(sa.select(tables.DatasetVersionRow).where(pending)).one()
        claim = inspections.claim(session, kind="datasets", version_id=row.id)
        assert claim is not None
        prepared = factories.stored(session, storage, b"prepared", path="train.safetensors")
        facts = {"classes": [], "splits": {}, "format": "imagefolder", "notes": []}
        inspections.accept(session, claim, files=[prepared], sha256="0" * 64, facts=facts)
    return row


class TestArchive:
    @SQLITE_ONLY
    def test_is_returned_as_it_was_sent_after_the_upload_has_gone(
        self, client: TestClient, sessions: database.Sessions, storage: Storage
    ) -> None:
        row = ready(client, sessions, storage)
        client.delete(f"/v1/uploads/{row.upload_id}")
        body = client.get("/v1/datasets/scans/versions/1").json()
        sizes = len(ARCHIVE) + len(b"prepared")
        assert body["size_bytes"] == sizes
        assert client.get("/v1/datasets/scans").json()["size_bytes"] == sizes
        kept = body["archive"]
        assert (kept["filename"], kept["size_bytes"]) == ("scans.zip", len(ARCHIVE))
        answer = client.get(kept["url"])
        assert answer.content == ARCHIVE
        assert answer.headers["etag"] == f'"{kept["sha256"]}"'
        assert 'filename="scans-1-scans.zip"' in answer.headers["content-disposition"]
        part = client.get(kept["url"], headers={"range": "bytes=9-11"})
        assert (part.status_code, part.content) == (206, ARCHIVE[9:12])

    @SQLITE_ONLY
    def test_says_why_there_is_none(self, client: TestClient) -> None:
        built_in = client.get("/v1/datasets/digits/versions/1/archive")
        assert (built_in.status_code, built_in.json()["code"]) == (404, "no_archive")
        register(client)
        waiting = client.get("/v1/datasets/scans/versions/1/archive")
        assert (waiting.status_code, waiting.json()["code"]) == (409, "version_not_ready")


class TestDelete:
    def test_takes_back_what_waits_and_never_gives_its_number_again(
        self, client: TestClient, sessions: database.Sessions
    ) -> None:
        upload = register(client).json()["upload"]
        with sessions.begin() as session:
            pending = tables.DatasetVersionRow.state == "pending"
            waiting = session.scalars(sa.select(tables.DatasetVersionRow).where(pending)).one().id
        assert client.delete(f"/v1/uploads/{upload}").status_code == 409
        assert client.delete("/v1/datasets/scans/versions/1").status_code == 204
        assert client.get("/v1/datasets/scans/versions/1").status_code == 410
        assert client.get("/v1/datasets/scans/versions").json()["data"] == []
        with sessions.begin() as session:
            assert inspections.claim(session, kind="datasets", version_id=waiting) is None
        assert client.delete(f"/v1/uploads/{upload}").status_code == 204
        assert register(client).json()["reference"] == "scans@2"

    def test_is_refused_while_a_job_names_it_and_says_which(
        self,
        client: TestClient,
        sessions: database.Sessions,
        storage: Storage,
        project: tables.ProjectRow,
    ) -> None:
        ready(client, sessions, storage)
        with sessions.begin() as session:
            factories.teacher(session, storage, project_id=project.id)
            job = factories.job(session, project_id=project.id)
            version = session.scalars(
                sa.select(tables.DatasetVersionRow).where(
                    tables.DatasetVersionRow.archive_sha256.is_not(None)
                )
            ).one()
            job.dataset_version_id = version.id
            named = job.id
        for path in ("/v1/datasets/scans", "/v1/datasets/scans/versions/1"):
            answer = client.delete(path)
            assert (answer.status_code, answer.json()["code"]) == (409, "in_use")
            assert answer.json()["uses"] == [{"kind": "job", "count": 1, "names": [named]}]
            assert f"in use by job {named}: cancel what" in answer.json()["detail"]
        client.post(f"/v1/jobs/{named}/cancel")
        assert client.delete(f"/v1/jobs/{named}").status_code == 204
        assert client.delete("/v1/datasets/scans").status_code == 204

    def test_is_remembered_for_a_while_and_the_name_is_free(
        self, client: TestClient, sessions: database.Sessions, storage: Storage
    ) -> None:
        row = ready(client, sessions, storage)
        assert client.delete("/v1/datasets/scans").status_code == 204
        assert "scans" not in [d["name"] for d in client.get("/v1/datasets").json()["data"]]
        assert client.get("/v1/datasets/scans/versions/1/archive").status_code == 410
        with sessions.begin() as session:
            for kind in (tables.DatasetRow, tables.DatasetVersionRow):
                aged = {"deleted_at": database.now(session) - 2 * tombstones.GONE_FOR}
                session.execute(sa.update(kind).where(kind.deleted_at.is_not(None)).values(aged))
            assert session.get_one(tables.DatasetVersionRow, row.id).archive_sha256 is None
            assert session.scalars(sa.select(tables.DatasetFileRow)).all() == []
        assert client.get("/v1/datasets/scans").status_code == 404
        assert register(client).json()["reference"] == "scans@2"
        assert client.get("/v1/datasets/scans/versions/1").status_code == 404

    @SQLITE_ONLY
    def test_is_for_administrators_of_the_project_and_not_for_what_is_built_in(
        self,
        client: TestClient,
        stranger: TestClient,
        app: FastAPI,
        sessions: database.Sessions,
        project: tables.ProjectRow,
    ) -> None:
        register(client)
        assert stranger.delete("/v1/datasets/scans").status_code == 404
        assert stranger.get("/v1/datasets/scans/versions/1/archive").status_code == 404
        with sessions.begin() as session:
            text = factories.key(session, project_id=project.id, role="editor")
        editor = TestClient(app, headers={"authorization": f"Bearer {text}"})
        assert editor.delete("/v1/datasets/scans").status_code == 403
        refused = client.delete("/v1/datasets/digits")
        assert (refused.status_code, refused.json()["code"]) == (409, "builtin")
