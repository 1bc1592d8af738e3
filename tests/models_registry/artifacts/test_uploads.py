"""Uploads as verbs: what must hold when several requests and the clock interfere."""

import hashlib
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from models_registry import errors
from models_registry.artifacts import datasets, models, uploads
from models_registry.persistence import database, tables
from models_registry.persistence.storage import LocalStorage, StoredBlob, StoredPart
from models_registry.settings import Settings
from tests import factories, waiting
from tests.databases import SQLITE_ONLY

MEBIBYTE = 2**20
CONTENT = b"0123456789"


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "storage")


def begin(
    session: Session, settings: Settings, project: tables.ProjectRow, purpose: str = "model"
) -> tables.UploadRow:
    return uploads.create(
        session,
        project_id=project.id,
        filename="file",
        size_bytes=len(CONTENT),
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        purpose=purpose,
        settings=settings,
    )


class Sender:
    """Holds what a request holds: project, upload, settings, storage."""

    def __init__(
        self,
        sessions: database.Sessions,
        storage: LocalStorage,
        settings: Settings,
        project: tables.ProjectRow,
    ) -> None:
        self.sessions, self.storage, self.settings = sessions, storage, settings
        self.project = project
        with sessions.begin() as session:
            self.upload_id = begin(session, settings, project).id

    def receive(self, chunks: Iterator[bytes], **changes: object) -> None:
        wanted = {"announced_bytes": None, "sha256": None, "number": 1, **changes}
        uploads.receive(
            self.sessions,
            self.storage,
            project_id=self.project.id,
            upload_id=self.upload_id,
            chunks=chunks,
            settings=self.settings,
            **wanted,  # type: ignore[arg-type]  # mixed values by name
        )

    def complete(self, storage: LocalStorage | None = None) -> tables.UploadRow:
        return uploads.complete(
            self.sessions,
            storage or self.storage,
            project_id=self.project.id,
            upload_id=self.upload_id,
            settings=self.settings,
        )

    def age(self) -> None:
        """Let the upload have been idle for longer than it may."""
        with self.sessions.begin() as session:
            row = session.get_one(tables.UploadRow, self.upload_id)
            row.expires_at -= timedelta(days=2)

    def expire(self) -> int:
        with self.sessions.begin() as session:
            return uploads.expire(session, self.storage)


class Overtaken(LocalStorage):
    """A store so slow that something else happens before it puts parts together."""

    def __init__(self, folder: Path, overtake: Callable[[], object]) -> None:
        super().__init__(folder)
        self._overtake = overtake

    def assemble(self, parts: Sequence[StoredPart], *, expected: str) -> StoredBlob:
        self._overtake()
        return super().assemble(parts, expected=expected)


@pytest.fixture
def sender(
    sessions: database.Sessions,
    storage: LocalStorage,
    settings: Settings,
    project: tables.ProjectRow,
) -> Sender:
    return Sender(sessions, storage, settings, project)


def stored_files(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "storage").rglob("*") if path.is_file()]


class TestReceive:
    def test_stops_reading_at_the_first_byte_too_many(self, sender: Sender) -> None:
        taken = []

        def endless() -> Iterator[bytes]:
            for number in itertools.count():
                taken.append(number)
                yield b"1234"

        with pytest.raises(errors.TooLarge):
            sender.receive(endless())
        assert taken == [0, 1, 2]

    def test_reads_nothing_when_the_announced_size_is_wrong(self, sender: Sender) -> None:
        for announced, kind in ((11, errors.TooLarge), (9, errors.Refused)):
            chunks = iter([CONTENT])
            with pytest.raises(kind):
                sender.receive(chunks, announced_bytes=announced)
            assert next(chunks) == CONTENT

    def test_keeps_nothing_of_a_part_whose_upload_was_closed_meanwhile(
        self, sender: Sender, tmp_path: Path
    ) -> None:
        def interrupted() -> Iterator[bytes]:
            yield CONTENT[:5]
            with sender.sessions.begin() as session:
                uploads.delete(session, project_id=sender.project.id, upload_id=sender.upload_id)
            yield CONTENT[5:]

        with pytest.raises(errors.Gone):
            sender.receive(interrupted())
        assert stored_files(tmp_path) == []

    def test_of_the_same_part_by_many_keeps_one(self, sender: Sender, tmp_path: Path) -> None:
        together = threading.Barrier(4)

        def send(number: int) -> None:
            def chunks() -> Iterator[bytes]:
                together.wait(waiting.PATIENCE_SECONDS)
                yield CONTENT if number % 2 else CONTENT[::-1]

            sender.receive(chunks())

        with futures.ThreadPoolExecutor(4) as pool:
            list(pool.map(send, range(4)))
        with sender.sessions() as session:
            part = session.scalars(sa.select(tables.UploadPartRow)).one()
        (file,) = stored_files(tmp_path)
        assert hashlib.sha256(file.read_bytes()).hexdigest() == part.sha256


class TestComplete:
    def test_survives_parts_that_another_completion_has_taken(
        self, sender: Sender, tmp_path: Path
    ) -> None:
        sender.receive(iter([CONTENT]))
        slow = Overtaken(tmp_path / "storage", overtake=sender.complete)
        second = sender.complete(slow)
        assert second.state == "completed"
        assert second.blob_sha256 == hashlib.sha256(CONTENT).hexdigest()

    def test_of_the_same_bytes_twice_shares_a_blob(
        self, sender: Sender, sessions: database.Sessions
    ) -> None:
        other = Sender(sessions, sender.storage, sender.settings, sender.project)
        for one in (sender, other):
            one.receive(iter([CONTENT]))
            one.complete()
        with sessions() as session:
            assert len(session.scalars(sa.select(tables.BlobRow)).all()) == 1

    def test_needs_no_second_copy(self, sender: Sender, tmp_path: Path) -> None:
        sender.receive(iter([CONTENT]))
        (file,) = stored_files(tmp_path)
        before = file.stat().st_ino
        sender.complete()
        (blob,) = stored_files(tmp_path)
        assert (blob.stat().st_ino, blob.read_bytes()) == (before, CONTENT)

    @pytest.mark.parametrize("left", [None, b"", b"0123", b"0123x56789"])
    def test_asks_again_for_a_part_of_which_bytes_were_lost(
        self, sender: Sender, tmp_path: Path, left: bytes | None
    ) -> None:
        sender.receive(iter([CONTENT]))
        (file,) = stored_files(tmp_path)
        if left is None:
            file.unlink()
        else:
            file.write_bytes(left)
        with pytest.raises(errors.Conflict, match="parts are missing: 1") as caught:
            sender.complete()
        assert [fault.pointer for fault in caught.value.faults] == ["/parts/0"]
        sender.receive(iter([CONTENT]))
        assert sender.complete().blob_sha256 == hashlib.sha256(CONTENT).hexdigest()


class Bucket(LocalStorage):
    """A folder that clients reach as they reach a bucket: what they put lies beside the parts."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._folder_of_clients = folder

    def direct_parts(self, upload_id: str) -> dict[int, StoredPart]:
        found = {}
        for path in self._folder_of_clients.glob(f"parts/{'c' * 32}/*"):
            key = path.relative_to(self._folder_of_clients).as_posix()
            found[int(path.name)] = StoredPart(key, 0, path.stat().st_size)
        return found

    def put_by_client(self, content: bytes, offset: int = 0) -> None:
        path = self._folder_of_clients / "parts" / ("c" * 32) / str(offset)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


@SQLITE_ONLY
class TestPartsThatClientsPut:
    @pytest.fixture
    def storage(self, tmp_path: Path) -> Bucket:
        return Bucket(tmp_path / "storage")

    def test_are_taken_and_deleted(self, sender: Sender, storage: Bucket, tmp_path: Path) -> None:
        storage.put_by_client(CONTENT)
        assert sender.complete().blob_sha256 == hashlib.sha256(CONTENT).hexdigest()
        (blob,) = stored_files(tmp_path)
        assert blob.read_bytes() == CONTENT

    @pytest.mark.parametrize("wrong", [CONTENT[1:], CONTENT + b"1"])
    def test_are_missing_when_their_size_is_wrong(
        self, sender: Sender, storage: Bucket, wrong: bytes
    ) -> None:
        storage.put_by_client(wrong)
        with pytest.raises(errors.Conflict, match="parts are missing: 1"):
            sender.complete()

    def test_are_missing_after_they_did_not_have_the_digest(
        self, sender: Sender, storage: Bucket
    ) -> None:
        storage.put_by_client(CONTENT[::-1])
        with pytest.raises(errors.DigestMismatch):
            sender.complete()
        with pytest.raises(errors.Conflict, match="parts are missing: 1"):
            sender.complete()
        storage.put_by_client(CONTENT)
        assert sender.complete().state == "completed"

    def test_give_way_to_those_that_came_through_the_service(
        self, sender: Sender, storage: Bucket
    ) -> None:
        storage.put_by_client(CONTENT[::-1])
        sender.receive(iter([CONTENT]))
        assert sender.complete().state == "completed"


class TestRoom:
    FREE = 25
    """Enough for one upload and its part beside it, and not for two."""

    def create(self, sender: Sender) -> None:
        with sender.sessions.begin() as session:
            uploads.create(
                session,
                project_id=sender.project.id,
                filename="file",
                size_bytes=len(CONTENT),
                sha256="0" * 64,
                purpose="model",
                settings=sender.settings,
                free_bytes=lambda: self.FREE,
            )

    def test_is_promised_once(self, sender: Sender) -> None:
        # That of the fixture is open: 10 bytes are promised, 20 needed, 15 left.
        with pytest.raises(errors.StorageFull, match="20 free bytes: 5 are missing, 10 of its"):
            self.create(sender)
        sender.receive(iter([CONTENT]))  # now they are on the disk, and not free any more
        self.create(sender)

    def test_is_promised_to_one_of_two_at_a_time(self, sender: Sender) -> None:
        with sender.sessions.begin() as session:
            uploads.delete(session, project_id=sender.project.id, upload_id=sender.upload_id)

        def attempt(_: int) -> bool:
            try:
                self.create(sender)
            except errors.StorageFull:
                return False
            return True

        with futures.ThreadPoolExecutor(4) as pool:
            assert sum(pool.map(attempt, range(4))) == 1

    def test_of_an_upload_that_has_expired_is_free_again(self, sender: Sender) -> None:
        sender.age()
        self.create(sender)


class TestExpire:
    def test_takes_idle_uploads_and_then_their_bytes(self, sender: Sender, tmp_path: Path) -> None:
        sender.receive(iter([CONTENT]))
        assert sender.expire() == 0
        sender.age()
        assert [sender.expire(), sender.expire()] == [1, 0]
        assert stored_files(tmp_path) == []
        with sender.sessions() as session:
            assert session.scalars(sa.select(tables.UploadPartRow)).all() == []
            with pytest.raises(errors.Gone):
                uploads.get(session, project_id=sender.project.id, upload_id=sender.upload_id)

    def test_deletes_no_bytes_before_the_closing_is_committed(
        self, sender: Sender, tmp_path: Path
    ) -> None:
        sender.receive(iter([CONTENT]))
        sender.age()
        with sender.sessions() as session:
            uploads.expire(session, sender.storage)
            session.rollback()
        assert len(stored_files(tmp_path)) == 1

    def test_lets_go_of_the_blob_of_a_completed_upload(self, sender: Sender) -> None:
        sender.receive(iter([CONTENT]))
        sender.complete()
        sender.age()
        assert sender.expire() == 1
        with sender.sessions() as session:
            assert session.get_one(tables.UploadRow, sender.upload_id).blob_sha256 is None

    @pytest.mark.parametrize("purpose", ["model", "dataset"])
    def test_waits_for_versions_that_are_to_be_inspected(
        self, sender: Sender, purpose: str
    ) -> None:
        sender.receive(iter([CONTENT]))
        sender.complete()
        with sender.sessions.begin() as session:
            row = session.get_one(tables.UploadRow, sender.upload_id)
            row.purpose = purpose
            if purpose == "model":
                new = factories.new_version(upload_id=row.id)
                models.register(session, project_id=sender.project.id, new=new)
            else:
                datasets.register(
                    session,
                    project_id=sender.project.id,
                    new=datasets.NewDatasetVersion(
                        name="d", upload_id=row.id, format="npz", task="classification"
                    ),
                )
        sender.age()
        assert sender.expire() == 0
        with sender.sessions.begin() as session, pytest.raises(errors.InUse):
            uploads.delete(session, project_id=sender.project.id, upload_id=sender.upload_id)


class TestAdopt:
    def test_makes_an_old_blob_young(self, sessions: database.Sessions) -> None:
        wanted = {"sha256": "0" * 64, "size_bytes": 1, "storage_key": "k"}
        with sessions.begin() as session:
            old = uploads.adopt(session, **wanted)  # type: ignore[arg-type]  # mixed values
            old.adopted_at -= timedelta(days=2)
        with sessions.begin() as session:
            again = uploads.adopt(session, **wanted)  # type: ignore[arg-type]  # mixed values
            assert database.now(session) - again.adopted_at < timedelta(hours=1)


class TestPartSize:
    @pytest.mark.parametrize("size_bytes", [1, 8 * MEBIBYTE, 2**36, 2**40])
    def test_keeps_the_number_of_parts_in_bounds(self, size_bytes: int) -> None:
        part = uploads._part_size(size_bytes, 8 * MEBIBYTE)
        row = tables.UploadRow(size_bytes=size_bytes, part_size_bytes=part)
        count = uploads.part_count(row)
        assert 1 <= count <= uploads.MAX_PARTS
        sizes = [uploads.part_bytes(row, number) for number in range(1, count + 1)]
        assert sum(sizes) == size_bytes
        assert set(sizes[:-1]) <= {part}
        assert 0 < sizes[-1] <= part
