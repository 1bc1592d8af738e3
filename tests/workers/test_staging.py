import hashlib
import io
import os
import signal
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from models_registry import errors
from models_registry.persistence import tables
from models_registry.persistence.storage import LocalStorage, Storage
from workers import staging

HOLDING_A_FOLDER = """
import sys, time
from pathlib import Path
from workers import staging
with staging.scratch(Path(sys.argv[1]), "job_1-1") as path:
    (path / "weights").write_bytes(b"x")
    print(path, flush=True)
    time.sleep(600)
"""


def blob(storage: Storage, content: bytes) -> tables.BlobRow:
    stored = storage.put(io.BytesIO(content))
    return tables.BlobRow(
        sha256=stored.sha256,
        size_bytes=stored.size_bytes,
        storage_key=stored.key,
        adopted_at=datetime.now(UTC),
    )


def stored_file(folder: Path, row: tables.BlobRow) -> Path:
    return folder / "storage" / row.storage_key


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return LocalStorage(tmp_path / "storage")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    folder = tmp_path / "cache"
    folder.mkdir()
    return folder


class TestScratch:
    def test_is_private_and_removed_at_the_end(self, tmp_path: Path) -> None:
        with staging.scratch(tmp_path / "scratch", "job_1-1") as path:
            assert path.parent == tmp_path / "scratch"
            assert path.name.startswith("job_1-1-")
            assert path.stat().st_mode & 0o777 == 0o700
            (path / "checkpoints").mkdir()
            (path / "checkpoints" / "step").write_bytes(b"x")
        assert not path.exists()

    def test_is_removed_after_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(KeyError), staging.scratch(tmp_path, "job_1-1") as path:
            raise KeyError("x")
        assert not path.exists()

    def test_of_two_attempts_are_two(self, tmp_path: Path) -> None:
        with staging.scratch(tmp_path, "a") as one, staging.scratch(tmp_path, "a") as two:
            assert one != two


class TestSweepScratch:
    def test_removes_the_folders_of_killed_processes_only(self, tmp_path: Path) -> None:
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", HOLDING_A_FOLDER, str(tmp_path)], stdout=subprocess.PIPE
            )
            for _ in range(2)
        ]
        folders = [Path(p.stdout.readline().decode().strip()) for p in processes if p.stdout]
        killed, living = processes
        os.kill(killed.pid, signal.SIGKILL)
        killed.wait()
        (tmp_path / "notes").mkdir()  # not a working folder
        with staging.scratch(tmp_path, "ours") as ours:
            assert staging.sweep_scratch(tmp_path) == 1
            assert not folders[0].exists()
            assert (folders[1] / "weights").exists()
            assert ours.exists()
            assert (tmp_path / "notes").exists()
        living.kill()
        living.wait()
        assert staging.sweep_scratch(tmp_path) == 1
        assert staging.sweep_scratch(tmp_path) == 0
        for process in processes:
            assert process.stdout is not None
            process.stdout.close()

    def test_of_a_folder_that_was_never_made_finds_nothing(self, tmp_path: Path) -> None:
        assert staging.sweep_scratch(tmp_path / "scratch") == 0

    def test_never_takes_a_folder_that_is_being_made(self, tmp_path: Path) -> None:
        """A sweep and a start at the same time: the folder is either unseen or in use."""
        done = threading.Event()

        def sweep() -> None:
            while not done.is_set():
                staging.sweep_scratch(tmp_path)

        sweeper = threading.Thread(target=sweep)
        sweeper.start()
        try:
            for _ in range(200):
                with staging.scratch(tmp_path, "job") as path:
                    (path / "recipe.json").write_text("{}")
        finally:
            done.set()
            sweeper.join()


class TestPlace:
    def test_gives_the_bytes_and_keeps_them_for_the_next(
        self, tmp_path: Path, storage: Storage, cache: Path
    ) -> None:
        row = blob(storage, b"weights")
        staging.place(storage, row, tmp_path / "a" / "teacher" / "x", cache=cache)
        stored_file(tmp_path, row).unlink()
        staging.place(storage, row, tmp_path / "b" / "x", cache=cache)
        assert (tmp_path / "a" / "teacher" / "x").read_bytes() == b"weights"
        # The engine must not write into the cache, be it by an accident.
        assert not (tmp_path / "b" / "x").samefile(cache / row.sha256)
        assert (tmp_path / "b" / "x").stat().st_mode & 0o222 == 0

    def test_never_trusts_a_cache_that_was_changed(
        self, tmp_path: Path, storage: Storage, cache: Path
    ) -> None:
        """One byte is flipped, and size and time are as before."""
        row = blob(storage, b"weights")
        staging.place(storage, row, tmp_path / "a" / "x", cache=cache)
        kept = cache / row.sha256
        before = kept.stat()
        kept.chmod(0o600)
        kept.write_bytes(b"Weights")
        os.utime(kept, ns=(before.st_atime_ns, before.st_mtime_ns))
        staging.place(storage, row, tmp_path / "b" / "x", cache=cache)
        assert (tmp_path / "b" / "x").read_bytes() == b"weights"
        assert kept.read_bytes() == b"weights"

    def test_takes_the_file_out_of_the_cache_where_there_is_no_room_for_two(
        self, tmp_path: Path, storage: Storage, cache: Path
    ) -> None:
        row = blob(storage, b"weights")
        staging.place(storage, row, tmp_path / "a" / "x", cache=cache)
        staging.place(storage, row, tmp_path / "b" / "x", cache=cache, keep_free=2**60)
        assert (tmp_path / "b" / "x").read_bytes() == b"weights"
        assert list(cache.iterdir()) == []
        staging.place(storage, row, tmp_path / "c" / "x", cache=cache, keep_free=2**60)
        assert (tmp_path / "c" / "x").read_bytes() == b"weights"
        assert list(cache.iterdir()) == []

    def test_refuses_other_bytes_than_the_digest_says(
        self, tmp_path: Path, storage: Storage, cache: Path
    ) -> None:
        row = blob(storage, b"weights")
        stored_file(tmp_path, row).write_bytes(b"Weights")
        target = tmp_path / "work" / "x"
        with pytest.raises(errors.DigestMismatch, match=row.sha256):
            staging.place(storage, row, target, cache=cache)
        assert list(target.parent.iterdir()) == []
        assert list(cache.iterdir()) == []

    def test_tells_that_the_bytes_are_missing(
        self, tmp_path: Path, storage: Storage, cache: Path
    ) -> None:
        row = blob(storage, b"weights")
        storage.delete(row.storage_key)
        with pytest.raises(errors.NotFound):
            staging.place(storage, row, tmp_path / "work" / "x", cache=cache)
        assert list(cache.iterdir()) == []

    def test_survives_that_the_cache_drops_the_file(
        self, tmp_path: Path, storage: Storage, cache: Path
    ) -> None:
        row = blob(storage, b"weights")
        target = tmp_path / "work" / "x"
        staging.place(storage, row, target, cache=cache)
        assert staging.trim(cache, limit_bytes=0) == len(b"weights")
        assert list(cache.iterdir()) == []
        assert target.read_bytes() == b"weights"

    def test_is_not_disturbed_in_its_unfinished_copies(self, cache: Path) -> None:
        fresh, left = cache / ".copy-fresh", cache / ".copy-left"
        for unfinished in (fresh, left):
            unfinished.write_bytes(b"half")
        os.utime(left, (0, 0))
        assert staging.trim(cache, limit_bytes=0) == 4
        assert fresh.exists()
        assert not left.exists()

    def test_goes_on_while_the_cache_is_dropped_again_and_again(
        self, tmp_path: Path, storage: Storage, cache: Path
    ) -> None:
        row = blob(storage, b"weights")
        done = threading.Event()

        def drop() -> None:
            while not done.is_set():
                staging.trim(cache, limit_bytes=0)

        dropper = threading.Thread(target=drop)
        dropper.start()
        try:
            for number in range(200):
                target = tmp_path / f"{number}" / "x"
                staging.place(storage, row, target, cache=cache)
                assert target.read_bytes() == b"weights"
        finally:
            done.set()
            dropper.join()


class TestSeal:
    def test_tells_a_folder_that_was_changed_and_removes_it(self, tmp_path: Path) -> None:
        folder = tmp_path / "digits"
        folder.mkdir()
        (folder / "train").write_bytes(b"images")
        assert not staging.is_intact(folder)  # never sealed: who wrote it may have been killed
        assert not folder.exists()
        folder.mkdir()
        (folder / "train").write_bytes(b"images")
        staging.seal(folder)
        assert staging.is_intact(folder)
        (folder / "train").write_bytes(b"Images")
        assert not staging.is_intact(folder)
        assert not folder.exists()
        assert not staging.is_intact(folder)


class TestCopy:
    def test_shares_nothing_with_its_source(self, tmp_path: Path) -> None:
        """Also across file systems: memory here, the disk there."""
        source = Path("/dev/shm") / f"retort-test-{os.getpid()}"
        source.write_bytes(b"weights")
        target = tmp_path / "work" / "x"
        try:
            assert staging.copy(source, target) == hashlib.sha256(b"weights").hexdigest()
        finally:
            source.unlink()
        assert target.read_bytes() == b"weights"
        assert list(target.parent.iterdir()) == [target]


class TestFree:
    def test_drops_the_oldest_that_nobody_needs_now(self, cache: Path) -> None:
        for age, name in enumerate(("needed", "old", "new"), 1):
            (cache / name).write_bytes(b"12345678")
            os.utime(cache / name, (age, age))
        assert staging.free(cache, size_bytes=5, keep={"needed"}) == 8
        assert {path.name for path in cache.iterdir()} == {"needed", "new"}
        assert staging.free(cache, size_bytes=100, keep={"needed"}) == 8
        assert [path.name for path in cache.iterdir()] == ["needed"]


class TestTrim:
    def kept(self, cache: Path, name: str, *, size: int, used_at: int) -> Path:
        path = cache / hashlib.sha256(name.encode()).hexdigest()
        path.write_bytes(bytes(size))
        os.utime(path, (used_at, used_at))
        return path

    def test_drops_the_least_recently_used_first(self, cache: Path) -> None:
        middle = self.kept(cache, "middle", size=10, used_at=2000)
        oldest = self.kept(cache, "oldest", size=10, used_at=1000)
        newest = self.kept(cache, "newest", size=10, used_at=3000)
        assert staging.trim(cache, limit_bytes=25) == 10
        assert not oldest.exists()
        assert staging.trim(cache, limit_bytes=10) == 10
        assert not middle.exists()
        assert newest.exists()

    def test_drops_nothing_within_the_limit(self, cache: Path) -> None:
        path = self.kept(cache, "one", size=10, used_at=1000)
        assert staging.trim(cache, limit_bytes=10) == 0
        assert path.exists()

    def test_counts_a_use_as_recent(self, tmp_path: Path, storage: Storage, cache: Path) -> None:
        used = blob(storage, b"u" * 10)
        staging.place(storage, used, tmp_path / "1" / "x", cache=cache)
        os.utime(cache / used.sha256, (1000, 1000))
        other = self.kept(cache, "other", size=10, used_at=2000)
        staging.place(storage, used, tmp_path / "2" / "x", cache=cache)
        staging.trim(cache, limit_bytes=10)
        assert (cache / used.sha256).exists()
        assert not other.exists()

    def test_leaves_the_built_in_data_sets_whole(self, cache: Path) -> None:
        path = cache / "builtin" / "digits" / "train.safetensors"
        path.parent.mkdir(parents=True)
        path.write_bytes(bytes(10))
        assert staging.trim(cache, limit_bytes=0) == 0
        assert path.exists()

    def test_of_a_cache_that_is_gone_drops_nothing(self, tmp_path: Path) -> None:
        assert staging.trim(tmp_path / "nothing", limit_bytes=0) == 0
