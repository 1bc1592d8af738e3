import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from api import archives
from models_registry.persistence.storage import LocalStorage, Storage

CONTENTS = {"report/index.json": b"{}", "report/a.png": bytes(range(256)) * 8192, "report/ö": b""}


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return LocalStorage(tmp_path / "bytes")


@pytest.fixture
def entries(storage: Storage) -> list[archives.ArchiveEntry]:
    kept = {path: storage.put(io.BytesIO(content)) for path, content in CONTENTS.items()}
    return [archives.ArchiveEntry(path, s.sha256, s.size_bytes, s.key) for path, s in kept.items()]


class TestStream:
    def test_gives_every_file_back(
        self, storage: Storage, entries: list[archives.ArchiveEntry]
    ) -> None:
        content = b"".join(archives.stream(storage, entries))
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            assert archive.testzip() is None
            assert {name: archive.read(name) for name in archive.namelist()} == CONTENTS

    def test_has_the_length_that_is_told_before(
        self, storage: Storage, entries: list[archives.ArchiveEntry]
    ) -> None:
        for some in (entries, entries[:1], []):
            assert len(b"".join(archives.stream(storage, some))) == archives.length(some)

    def test_gives_the_same_bytes_every_time(
        self, storage: Storage, entries: list[archives.ArchiveEntry]
    ) -> None:
        first, second = (b"".join(archives.stream(storage, entries)) for _ in range(2))
        assert first == second

    def test_keeps_nothing_of_what_was_sent(
        self, storage: Storage, entries: list[archives.ArchiveEntry]
    ) -> None:
        pieces: Iterator[bytes] = archives.stream(storage, entries)
        assert max(map(len, pieces)) < 2**20 + 1000

    def test_can_be_left_in_the_middle(
        self, storage: Storage, entries: list[archives.ArchiveEntry]
    ) -> None:
        pieces = archives.stream(storage, entries)
        next(pieces)
        next(pieces)
        pieces.close()  # type: ignore[attr-defined]  # a generator, told as an iterator
