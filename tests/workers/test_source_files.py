"""Data sets that refer to a source, inspected, prepared and trained on by the real processes."""

import dataclasses
import io
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import obstore
import pytest
import structlog.testing

from models_registry import errors
from models_registry.access import quotas
from models_registry.artifacts import (
    dataset_samples,
    dataset_sources,
    datasets,
    exports,
    inspections,
    postponements,
)
from models_registry.jobs.lifecycle import State
from models_registry.persistence import database, storage, tables
from models_registry.retention import erasures
from tests import services
from tests.distill.data.formats import uploads as pictures
from tests.workers import scenes
from tests.workers.test_inspector import uploaded_dataset
from workers import (
    disk_space,
    exporter,
    inspector,
    machine_health,
    runner,
    sampler,
    source_files,
    source_reading,
    staging,
)
from workers.context import Context
from workers.distill.config.exports import ExportChoice
from workers.erased_inputs import ErasedInputs
from workers.source_reading import SourceRefused

pytestmark = pytest.mark.slow

SIZE = (8, 8)
OTHER_SPLITS = frozenset({"validation.safetensors", "test.safetensors"})


def tree() -> dict[str, bytes]:
    """Return 24 pictures of two classes, in folders for their classes."""
    return {
        f"{name}/{number}.png": pictures.picture(first + number, size=SIZE)
        for name, first in (("dark", 0), ("light", 200))
        for number in range(12)
    }


def put(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def zipped(files: Mapping[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


@pytest.fixture(scope="module")
def s3_settings() -> Iterator[dict[str, str]]:
    with services.s3_server() as found:
        yield found


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sources")


@pytest.fixture(scope="module")
def context(workshop: Context, sources: Path) -> Context:
    return allowing(workshop, sources.as_uri())


def allowing(context: Context, allowed: str, **changes: Any) -> Context:
    """Return a worker that may read these places."""
    wanted = {"sources": allowed, **changes}
    return dataclasses.replace(context, settings=context.settings.model_copy(update=wanted))


@pytest.fixture(scope="module")
def project(context: Context) -> str:
    return scenes.project(context, "by reference")


def register(context: Context, project: str, url: str, **changes: Any) -> str:
    new = datasets.NewDatasetVersion(
        name="photos", source=url, **{"task": "classification", **changes}
    )
    with context.sessions.begin() as session:
        return datasets.register(
            session,
            project_id=project,
            new=new,
            allowed_sources=context.settings.allowed_sources,
        ).id


def version_of(context: Context, version_id: str) -> tables.DatasetVersionRow:
    with context.readers.begin() as session:
        return session.get_one(tables.DatasetVersionRow, version_id)


def inputs_of(context: Context, version_id: str) -> dataset_sources.SourceInputs:
    with context.readers.begin() as session:
        version = session.get_one(tables.DatasetVersionRow, version_id)
        found = dataset_sources.inputs_of(session, version)
        assert found is not None
        return found


def empty_cache(context: Context) -> None:
    for path in context.settings.cache_dir.glob("[0-9a-f]*"):
        path.unlink()


@pytest.fixture
def ready(context: Context, project: str, sources: Path, request: pytest.FixtureRequest) -> str:
    """A version of a folder of its own, inspected."""
    return _ready(context, project, sources / request.node.name.partition("[")[0])


def _ready(context: Context, project: str, folder: Path) -> str:
    put(folder, tree())
    version_id = register(context, project, folder.as_uri())
    assert inspector.inspect(context, "datasets", version_id) == "ready"
    return version_id


def folder_of(context: Context, version_id: str) -> Path:
    source = version_of(context, version_id).source
    assert source is not None
    return Path(source["url"].removeprefix("file://"))


def never() -> bool:
    return False


def provided(context: Context, version_id: str, folder: Path, **options: Any) -> dict[str, str]:
    """Provide the files of a version in a folder; return their digests."""
    source_files.provide(
        context, inputs_of(context, version_id), folder, must_stop=never, **options
    )
    found = {}
    for path in (folder / "dataset").iterdir():
        with path.open("rb") as file:
            found[path.name] = staging.digest_of(file)[0]
    return found


class TestInspection:
    def test_of_a_folder_prepares_what_its_archive_would_and_stores_nothing(
        self, context: Context, project: str, ready: str
    ) -> None:
        version = version_of(context, ready)
        assert version.source is not None
        told = {name: version.source[name] for name in ("kind", "files", "size_bytes")}
        assert told == {
            "kind": "folder",
            "files": 24,
            "size_bytes": sum(map(len, tree().values())),
        }
        assert version.lineage == {
            "source": version.source["url"],
            "source_digest": version.source["digest"],
        }
        assert version.classes == ["dark", "light"]
        assert version.upload_id is None
        with context.readers.begin() as session:
            row = session.get_one(tables.DatasetVersionRow, ready)
            assert datasets.stored(session, [row])[ready].size_bytes == 0
            with pytest.raises(errors.NotFound, match="was never uploaded: its files are there"):
                datasets.archive(session, row)
        for file in inputs_of(context, ready).files:
            key = f"sha256/{file.sha256[:2]}/{file.sha256[2:4]}/{file.sha256}"
            assert not context.storage.exists(key)
        uploaded = uploaded_dataset(context, project, zipped(tree()), "auto", "photos.zip")
        assert inspector.inspect(context, "datasets", uploaded) == "ready"
        assert version_of(context, uploaded).sha256 == version.sha256

    def test_of_what_is_no_data_set_names_the_source(
        self, context: Context, project: str, sources: Path
    ) -> None:
        put(sources / "texts", {"a.txt": b"no picture"})
        url = (sources / "texts").as_uri()
        version_id = register(context, project, url)
        assert inspector.inspect(context, "datasets", version_id) == "rejected"
        rejection = version_of(context, version_id).rejection
        assert rejection is not None
        assert rejection["message"].startswith(f"{url}: ")

    def test_of_what_is_missing_or_forbidden_on_this_worker_rejects(
        self, context: Context, workshop: Context, project: str, sources: Path
    ) -> None:
        for worker, code in ((context, "source_missing"), (workshop, "sources_disabled")):
            version_id = register(context, project, (sources / "nowhere").as_uri())
            assert inspector.inspect(worker, "datasets", version_id) == "rejected"
            rejection = version_of(context, version_id).rejection
            assert rejection is not None
            assert rejection["code"] == code

    def test_of_what_does_not_answer_is_postponed_and_rejected_in_the_end(
        self, context: Context, project: str, tmp_path: Path
    ) -> None:
        worker = allowing(context, (tmp_path / "unmounted").as_uri())
        version_id = register(worker, project, (tmp_path / "unmounted" / "a").as_uri())
        with structlog.testing.capture_logs():
            for _ in range(postponements.MOST):
                assert version_of(context, version_id).state == "pending"
                assert inspector.inspect(worker, "datasets", version_id) is None
                with context.sessions.begin() as session:
                    rested = session.get_one(tables.DatasetVersionRow, version_id)
                    rested.inspection_expires_at = database.now(session) - timedelta(seconds=1)
        rejection = version_of(context, version_id).rejection
        assert rejection is not None
        assert rejection["code"] == "source_unreachable"
        assert "mount it on every worker" in rejection["message"]

    def test_of_what_has_no_room_here_is_postponed_before_it_is_fetched(
        self, context: Context, project: str, sources: Path
    ) -> None:
        put(sources / "large", tree())
        version_id = register(context, project, (sources / "large").as_uri())
        settings = context.settings.model_copy(update={"worker_min_free_bytes": 2**60})
        with structlog.testing.capture_logs():
            full = dataclasses.replace(context, settings=settings)
            assert inspector.inspect(full, "datasets", version_id) is None
        assert version_of(context, version_id).state == "pending"
        assert not any(context.settings.scratch_dir.rglob(source_files.UPLOAD))

    def test_of_a_worker_that_stops_is_given_back(
        self, context: Context, project: str, sources: Path
    ) -> None:
        put(sources / "stopped", tree())
        version_id = register(context, project, (sources / "stopped").as_uri())
        context.shutting_down.set()
        try:
            assert inspector.inspect(context, "datasets", version_id) is None
        finally:
            context.shutting_down.clear()
        version = version_of(context, version_id)
        assert (version.state, version.inspection_attempts) == ("pending", 0)

    def test_is_not_begun_for_what_the_registration_refuses(
        self, context: Context, project: str
    ) -> None:
        with pytest.raises(errors.Refused) as caught:
            register(context, project, "file:///etc")
        assert [(fault.pointer, fault.code) for fault in caught.value.faults] == [
            ("/source", "source_not_allowed")
        ]


class TestProvide:
    def test_makes_the_same_files_again_where_the_cache_is_empty(
        self, context: Context, ready: str, tmp_path: Path
    ) -> None:
        files = {file.path: file.sha256 for file in inputs_of(context, ready).files}
        assert all((context.settings.cache_dir / digest).exists() for digest in files.values())
        empty_cache(context)
        assert provided(context, ready, tmp_path / "again") == files
        with structlog.testing.capture_logs() as logged:
            assert provided(context, ready, tmp_path / "cached", without=OTHER_SPLITS) == {
                path: digest for path, digest in files.items() if path not in OTHER_SPLITS
            }
        assert logged == []
        damaged = context.settings.cache_dir / files["train.safetensors"]
        damaged.chmod(0o600)
        damaged.write_bytes(b"damaged")
        assert provided(context, ready, tmp_path / "mended") == files

    def test_refuses_a_source_that_has_changed_though_the_cache_has_its_files(
        self, context: Context, ready: str, tmp_path: Path
    ) -> None:
        put(folder_of(context, ready), {"dark/new.png": b"new"})
        with pytest.raises(SourceRefused, match=r"24 files of \d+ bytes then, 25 of") as caught:
            provided(context, ready, tmp_path)
        assert caught.value.code == "source_changed"
        assert "register it again as a new version" in caught.value.message
        assert not (tmp_path / "dataset").exists()

    def test_refuses_other_bytes_under_the_same_listing(
        self, context: Context, ready: str, tmp_path: Path
    ) -> None:
        """What a listing cannot show is found by the digests of what was prepared."""
        path = folder_of(context, ready) / "light" / "0.png"
        before = path.stat()
        content = path.read_bytes()
        others = (pictures.picture(value, size=SIZE) for value in range(20, 190))
        path.write_bytes(next(one for one in others if len(one) == len(content)))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        provided(context, ready, tmp_path / "cached")
        empty_cache(context)
        with pytest.raises(SourceRefused) as caught:
            provided(context, ready, tmp_path / "again")
        assert caught.value.code == "source_not_reproduced"
        assert "has other bytes" in caught.value.message

    def test_ends_where_it_must_stop(self, context: Context, ready: str, tmp_path: Path) -> None:
        empty_cache(context)
        made = inputs_of(context, ready)
        source_files.provide(context, made, tmp_path, must_stop=lambda: True)
        assert not (tmp_path / "dataset").exists()
        assert not list(context.settings.scratch_dir.glob("source*"))


class TestRoom:
    def test_counts_what_is_fetched_and_prepared_unless_the_cache_has_it(
        self, context: Context, project: str, ready: str
    ) -> None:
        reference = inputs_of(context, ready).reference
        job_id = scenes.submit(context, project, dataset=reference)
        with context.sessions.begin() as session:
            row = session.get_one(tables.DatasetVersionRow, ready)
            row.source = {**(row.source or {}), "size_bytes": 2**50}
        assert disk_space.make_room(context, job_id) is None
        empty_cache(context)
        told = disk_space.make_room(context, job_id)
        assert told is not None
        prepared = sum(file.size_bytes for file in inputs_of(context, ready).files)
        assert f"inputs need {machine_health.gibibytes(2**51 + 2 * prepared)}" in told


class TestJob:
    def test_trains_on_a_source_and_names_it_until_that_changes(
        self, context: Context, project: str, ready: str
    ) -> None:
        empty_cache(context)
        reference = inputs_of(context, ready).reference
        job_id = scenes.submit(context, project, dataset=reference)
        assert runner.run_job(context, job_id) == State.SUCCEEDED
        with context.readers.begin() as session:
            student = session.query(tables.ModelVersionRow).filter_by(job_id=job_id).one()
            source = session.get_one(tables.DatasetVersionRow, ready).source
            assert source is not None
            assert student.lineage["dataset_source"] == source["url"]
            assert student.lineage["dataset_source_digest"] == source["digest"]
            assert source["url"] in student.card.replace("\\", "")  # escaped for Markdown
            assert source["digest"] in student.card
        assert exported(context, student.id).measured["checks"]["images"] > 0
        shutil.rmtree(folder_of(context, ready))
        without = exported(context, student.id)
        assert any("noise" in note and "is no longer there" in note for note in without.notes)
        second = scenes.submit(context, project, dataset=reference)
        assert runner.run_job(context, second) == State.FAILED
        failure = scenes.job(context, second).failure
        assert failure is not None
        assert (failure["code"], failure["retryable"]) == ("source_changed", False)
        assert f"{source['url']} is no longer there" in failure["message"]


def exported(context: Context, version_id: str) -> Any:
    """Export a student, and return the row of the export."""
    with context.sessions.begin() as session:
        export_id = exports.request(
            session,
            version=session.get_one(tables.ModelVersionRow, version_id),
            choice=ExportChoice(format="torch_state_dict"),
            service=quotas.UNLIMITED,
        ).id
    assert exporter.make(context, export_id) == "ready"
    with context.sessions.begin() as session:
        row = session.get_one(tables.ModelExportRow, export_id)
        session.delete(row)  # the same form can be asked for again
        return row


class TestSamples:
    def test_are_made_from_the_source(self, context: Context, project: str, ready: str) -> None:
        with context.sessions.begin() as session:
            version = session.get_one(tables.DatasetVersionRow, ready)
            dataset_samples.request(session, project_id=project, version=version)
        assert sampler.make(context, ready) == dataset_samples.READY

    def test_of_a_source_that_changed_say_so(
        self, context: Context, project: str, ready: str
    ) -> None:
        put(folder_of(context, ready), {"dark/new.png": b"new"})
        with context.sessions.begin() as session:
            version = session.get_one(tables.DatasetVersionRow, ready)
            dataset_samples.request(session, project_id=project, version=version)
        assert sampler.make(context, ready) == dataset_samples.FAILED
        with context.readers.begin() as session:
            failure = session.get_one(tables.DatasetSamplesRow, ready).failure
        assert failure is not None
        assert failure["code"] == "source_changed"


class TestErasure:
    def test_finds_what_workers_have_of_one_that_was_deleted_before(
        self, context: Context, project: str, ready: str
    ) -> None:
        made = inputs_of(context, ready)
        with context.sessions.begin() as session:
            version = session.get_one(tables.DatasetVersionRow, ready).version
            datasets.delete_version(session, project_id=project, name="photos", version=version)
        with context.sessions.begin() as session:
            erasure = erasures.erase(session, project_id=project, name="photos", version=version)
        assert [one.kind for one in erasure.remains if "prepared" in one.kind] == []
        ErasedInputs(context.settings).drop(context.sessions)
        assert not any((context.settings.cache_dir / file.sha256).exists() for file in made.files)

    def test_drops_what_workers_have_and_leaves_the_source(
        self, context: Context, project: str, ready: str
    ) -> None:
        folder, made = folder_of(context, ready), inputs_of(context, ready)
        with context.sessions.begin() as session:
            version = session.get_one(tables.DatasetVersionRow, ready).version
            erasure = erasures.erase(session, project_id=project, name="photos", version=version)
        assert [one.name for one in erasure.remains if one.kind == "source"] == [folder.as_uri()]
        with context.readers.begin() as session:
            assert erasures.waiting(session, erasure) == 0
        ErasedInputs(context.settings).drop(context.sessions)
        assert not any((context.settings.cache_dir / file.sha256).exists() for file in made.files)
        with context.readers.begin() as session:
            assert not session.query(tables.DatasetSourceFileRow).filter_by(version_id=ready).all()
        assert len(list(folder.rglob("*.png"))) == len(tree())


class TestBucket:
    def test_has_an_archive_that_is_inspected_and_pinned_by_its_etag(
        self, context: Context, project: str, s3_settings: dict[str, str], tmp_path: Path
    ) -> None:
        wanted = {key: text for key, text in s3_settings.items() if key.startswith("s3_")}
        place = f"s3://{services.BUCKET}/sets"
        settings = context.settings.model_validate(
            {**context.settings.model_dump(), **wanted, "sources": place}
        )
        worker = dataclasses.replace(context, settings=settings)
        bucket = storage.s3_store(
            services.BUCKET,
            "sets",
            storage.s3_options(settings),
            timeout=source_reading._REQUEST,
            patience=source_reading._PATIENCE,
        )
        obstore.put(bucket, "photos.zip", zipped(tree()))
        version_id = register(worker, project, f"{place}/photos.zip")
        assert inspector.inspect(worker, "datasets", version_id) == "ready"
        assert version_of(context, version_id).splits["train"] > 0
        empty_cache(context)
        assert provided(worker, version_id, tmp_path / "again")
        obstore.put(bucket, "photos.zip", zipped(tree()) + b" ")
        with pytest.raises(SourceRefused, match="is not as it was"):
            provided(worker, version_id, tmp_path / "changed")
        obstore.delete(bucket, "photos.zip")
        with pytest.raises(SourceRefused, match="is no longer there"):
            provided(worker, version_id, tmp_path / "gone")


def test_a_claim_has_the_source_in_place_of_an_upload(
    context: Context, project: str, sources: Path
) -> None:
    version_id = register(context, project, (sources / "photos.zip").as_uri())
    with context.sessions.begin() as session:
        claimed = inspections.claim(session, kind="datasets", version_id=version_id)
        assert claimed is not None
        assert (claimed.blob, claimed.filename) == (None, "photos.zip")
        assert claimed.source == dataset_sources.DatasetSource(
            (sources / "photos.zip").as_uri(), "by reference"
        )
