"""One contract for every storage, on a real folder and a real S3 server; then what is special."""

import concurrent.futures
import errno
import hashlib
import itertools
import json
import os
import resource
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models_registry import errors
from models_registry.persistence import storage
from tests import services, waiting

MEBIBYTE = 2**20
# Of one S3 request and one local chunk respectively: the places where a stream may tear.
BORDERS = (storage.CHUNK_BYTES, storage.TRANSFER_BYTES)
NOT_KEYS = [
    "",
    ".",
    "..",
    "../victim",
    "/etc/passwd",
    "sha256",
    "sha256/../../victim",
    "sha256/ab/cd/../../../victim",
    "unfinished/" + "0" * 32,
    "parts/" + "0" * 31,
    "parts/" + "0" * 32 + "\n",
    "parts/" + "A" * 32,
    "parts/../" + "0" * 32,
    "parts/%2e%2e/" + "0" * 32,
    "parts\\" + "0" * 32,
    "PARTS/" + "0" * 32,
    "sha256/ab/cd/" + "0" * 64,
    "sha256/00/00/" + "0" * 63,
    "sha256/00/00/" + "0" * 64 + "/",
    "sha256/00/00/" + "٠" * 64,
    "sha256//00/00/" + "0" * 64,
    "sha256:" + "0" * 64,
]
# The fixture is a store with content-addressed keys, so examples cannot disturb one another.
STORED_ONCE = settings(
    deadline=None,
    derandomize=True,
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

KILLED_PUT = """
import json, sys, time
from models_registry.persistence import storage
url, options = json.loads(sys.argv[1])
def stream():
    for _ in range(20):
        yield b"x" * 2**20
    print("streaming", flush=True)
    time.sleep(60)
storage.from_url(url, storage.S3Options(**options)).put(stream())
"""

MEASURED_PUT = """
import hashlib, json, sys, threading, time
import psutil
from models_registry.persistence import storage
url, options = json.loads(sys.argv[1])
store = storage.from_url(url, storage.S3Options(**options))
store.open(store.put([b"warm"]).key).close()
process, peak, stop = psutil.Process(), 0, threading.Event()
def watch():
    global peak
    while not stop.wait(0.002):
        peak = max(peak, process.memory_info().rss)
before = process.memory_info().rss
thread = threading.Thread(target=watch)
thread.start()
block = bytes(2**20)
parts = []
for number in range(4):
    place = storage.PartPlace("upl_1", number * 32 * 2**20)
    with store.put_part((block for _ in range(32)), place) as part:
        parts.append(storage.stored_part(part.key, place, part.size_bytes))
whole = hashlib.sha256()
for _ in range(4 * 32):
    whole.update(block)
stored = store.assemble(parts, expected=whole.hexdigest())
stop.set()
thread.join()
print(json.dumps([stored.size_bytes, peak - before]))
"""


@pytest.fixture(scope="module")
def s3_settings() -> Iterator[dict[str, str]]:
    with services.s3_server() as found:
        yield found


@pytest.fixture(params=["local", "s3"])
def place(request, tmp_path) -> tuple[str, dict[str, str]]:
    """Return the URL of an empty store, and the fields of `S3Options` to reach it."""
    if request.param == "local":
        return (tmp_path / "bytes").as_uri(), {}
    found = request.getfixturevalue("s3_settings")
    options = {key.removeprefix("s3_"): text for key, text in found.items() if "s3_" in key}
    return f"{found['storage_url']}/{uuid.uuid4().hex}", options


@pytest.fixture
def store(place) -> storage.Storage:
    url, options = place
    return storage.from_url(url, storage.S3Options(**options))


def all_keys(store: storage.Storage) -> list[str]:
    return sorted(store.stored_before(datetime.now(UTC) + timedelta(days=1)))


def content(store: storage.Storage, key: str, *, start: int = 0, end: int | None = None) -> bytes:
    with store.open(key, start=start, end=end) as stream:
        return b"".join(stream)


def pseudo_random(size_bytes: int) -> bytes:
    return hashlib.shake_128(b"retort").digest(size_bytes)


def run(program: str, place: tuple[str, dict[str, str]]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, json.dumps(place)],
        stdout=subprocess.PIPE,
        text=True,
    )


class TestPut:
    def test_names_bytes_by_their_digest(self, store):
        stored = store.put([b"student"])

        digest = hashlib.sha256(b"student").hexdigest()
        assert stored == storage.StoredBlob(
            key=f"sha256/{digest[:2]}/{digest[2:4]}/{digest}", size_bytes=7, sha256=digest
        )
        assert content(store, stored.key) == b"student"

    def test_stores_no_bytes_at_all(self, store):
        stored = store.put([])

        assert stored.size_bytes == 0
        assert store.exists(stored.key)
        assert content(store, stored.key) == b""

    @STORED_ONCE
    @given(chunks=st.lists(st.binary(max_size=200), max_size=8))
    def test_returns_what_was_put_however_it_was_cut(self, store, chunks):
        whole = b"".join(chunks)

        stored = store.put(iter(chunks))

        assert stored == store.put([whole], expected=hashlib.sha256(whole).hexdigest())
        assert stored.size_bytes == len(whole)
        assert content(store, stored.key) == whole

    @pytest.mark.parametrize("border", BORDERS)
    @pytest.mark.parametrize("offset", [-1, 0, 1])
    def test_keeps_every_byte_around_a_border(self, store, border, offset):
        whole = pseudo_random(border + offset)

        assert content(store, store.put([whole]).key) == whole

    def test_reads_a_file_by_size_and_not_by_line(self, store, tmp_path):
        path = tmp_path / "weights"
        path.write_bytes(b"no end of line" * 100_000)
        sizes = []

        class Watched:
            def __init__(self, file) -> None:
                self.file = file

            def read(self, size: int = -1, /) -> bytes:
                sizes.append(size)
                return self.file.read(size)

        with path.open("rb") as file:
            stored = store.put(Watched(file))

        assert set(sizes) == {storage.CHUNK_BYTES}
        assert content(store, stored.key) == path.read_bytes()

    def test_refuses_bytes_of_another_digest_and_leaves_nothing_behind(self, store):
        announced = hashlib.sha256(b"teacher").hexdigest()

        with pytest.raises(errors.DigestMismatch, match=announced):
            store.put([b"teach", b"es"], expected=announced)

        assert all_keys(store) == []
        assert store.discard_unfinished(datetime.now(UTC) + timedelta(days=1)) == 0

    @pytest.mark.parametrize("failure", [TimeoutError, ConnectionError, KeyError, GeneratorExit])
    def test_passes_on_what_the_stream_raises_and_leaves_nothing_behind(self, store, failure):
        def stream() -> Iterator[bytes]:
            yield b"begun"
            raise failure

        with pytest.raises(failure):
            store.put(stream())

        assert all_keys(store) == []
        assert store.discard_unfinished(datetime.now(UTC) + timedelta(days=1)) == 0

    def test_leaves_no_visible_key_when_killed(self, store, place):
        with run(KILLED_PUT, place) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "streaming\n"
            process.kill()

        assert all_keys(store) == []
        assert store.discard_unfinished(datetime.now(UTC) - timedelta(hours=1)) == 0
        store.discard_unfinished(datetime.now(UTC) + timedelta(hours=1))
        assert store.discard_unfinished(datetime.now(UTC) + timedelta(hours=1)) == 0

    def test_accepts_the_same_bytes_from_many_at_once(self, store):
        whole = pseudo_random(3 * MEBIBYTE)
        together = threading.Barrier(6, timeout=waiting.PATIENCE_SECONDS)

        def put() -> storage.StoredBlob:
            def stream() -> Iterator[bytes]:
                yield whole[:MEBIBYTE]
                together.wait()
                yield whole[MEBIBYTE:]

            return store.put(stream())

        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            stored = {future.result() for future in [pool.submit(put) for _ in range(6)]}

        assert len(stored) == 1
        key = stored.pop().key
        assert all_keys(store) == [key]
        assert content(store, key) == whole

    def test_says_of_a_full_disk_that_it_is_full(self, store):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (MEBIBYTE, hard))
        try:
            with pytest.raises(errors.StorageFull, match="disk of the byte store is full"):
                store.put(itertools.repeat(bytes(100_000), 20))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

        assert all_keys(store) == []
        assert store.discard_unfinished(datetime.now(UTC) + timedelta(days=1)) == 0

    @pytest.mark.slow
    def test_keeps_memory_flat_from_parts_to_blob(self, place):
        with run(MEASURED_PUT, place) as process:
            size_bytes, growth_bytes = json.loads(process.communicate()[0])

        assert size_bytes == 128 * MEBIBYTE
        # S3 holds `TRANSFERS` requests in flight, and one copy of what Python reads.
        assert growth_bytes < 64 * MEBIBYTE


class TestOpen:
    @STORED_ONCE
    @given(start=st.integers(0, 1200), length=st.none() | st.integers(0, 1200))
    def test_streams_any_range_like_a_slice(self, store, start, length):
        whole = pseudo_random(1000)
        key = store.put([whole]).key
        end = None if length is None else start + length

        assert content(store, key, start=start, end=end) == whole[start:end]

    @pytest.mark.parametrize("border", BORDERS)
    def test_streams_a_range_across_a_border(self, store, border):
        whole = pseudo_random(2 * border + 5)
        key = store.put([whole]).key

        assert content(store, key, start=border - 2) == whole[border - 2 :]
        assert content(store, key, start=3, end=2 * border + 1) == whole[3 : 2 * border + 1]

    @pytest.mark.parametrize(("start", "end"), [(-1, None), (0, -1), (5, 4)])
    def test_refuses_a_range_that_is_none(self, store, start, end):
        key = store.put([b"student"]).key

        with pytest.raises(errors.Malformed):
            store.open(key, start=start, end=end)

    def test_says_at_once_that_there_are_no_bytes(self, store):
        with pytest.raises(storage.BytesNotFound):
            store.open("parts/" + "0" * 32)

    def test_ends_when_it_is_closed(self, store):
        stream = store.open(store.put([pseudo_random(2 * storage.TRANSFER_BYTES)]).key)
        assert next(stream)

        stream.close()
        stream.close()

        assert list(stream) == []

    def test_lets_go_of_a_stream_that_nobody_closed(self, store):
        # A file left open would warn, and warnings fail the suite.
        never_started = store.open(store.put([b"student"]).key)
        del never_started
        half_read = store.open(store.put([pseudo_random(3 * MEBIBYTE)]).key)
        next(half_read)
        del half_read

    def test_is_not_disturbed_by_the_same_bytes_put_again(self, store):
        whole = pseudo_random(2 * storage.TRANSFER_BYTES)
        key = store.put([whole]).key
        with store.open(key) as stream:
            first = next(stream)
            store.put([whole])

            assert first + b"".join(stream) == whole


class TestExistsAndDelete:
    def test_follow_each_other(self, store):
        key = store.put([b"student"]).key
        assert store.exists(key)

        store.delete(key)

        assert not store.exists(key)
        with pytest.raises(storage.BytesNotFound):
            store.open(key)

    def test_delete_succeeds_where_nothing_is(self, store):
        store.delete("parts/" + "0" * 32)
        store.delete("parts/" + "0" * 32, unless_stored_since=datetime.now(UTC))

    def test_delete_spares_bytes_that_were_put_again(self, store):
        key = store.put([b"student"]).key

        store.delete(key, unless_stored_since=datetime.now(UTC) - timedelta(hours=1))
        assert store.exists(key)

        store.delete(key, unless_stored_since=datetime.now(UTC) + timedelta(hours=1))
        assert not store.exists(key)

    @pytest.mark.parametrize("key", NOT_KEYS)
    def test_no_verb_takes_a_key_that_is_not_ours(self, store, key):
        for verb in (store.open, store.exists, store.delete):
            with pytest.raises(errors.Malformed):
                verb(key)

    @STORED_ONCE
    @given(key=st.text(max_size=90) | st.from_regex(r"(sha256|parts)/[./0-9a-f]{0,75}"))
    def test_no_verb_takes_a_name_that_nobody_made(self, store, key):
        # Drawn names fit the shape so rarely that a digest of nothing stored is as good a miss.
        if storage.KEY.fullmatch(key):
            assert not store.exists(key)
            return
        for verb in (store.open, store.exists, store.delete):
            with pytest.raises(errors.Malformed):
                verb(key)


def put_parts(
    store: storage.Storage, parts: list[bytes], upload_id: str = "upl_1"
) -> list[storage.StoredPart]:
    stored, offset = [], 0
    for part in parts:
        place = storage.PartPlace(upload_id, offset)
        with store.put_part([part], place) as put:
            stored.append(storage.stored_part(put.key, place, put.size_bytes))
        offset += len(part)
    return stored


def sha256(whole: bytes) -> str:
    return hashlib.sha256(whole).hexdigest()


class TestParts:
    def test_share_no_key_with_those_of_another_upload(self, store):
        (first,), (second,) = put_parts(store, [b"part"]), put_parts(store, [b"part"], "upl_2")
        blob = store.put([b"part"])
        assert len({first.key, second.key, blob.key}) == 3

        store.delete(first.key)

        assert content(store, second.key) == content(store, blob.key) == b"part"

    def test_are_checked_as_they_arrive(self, store):
        with (
            pytest.raises(errors.DigestMismatch),
            store.put_part([b"part"], storage.PartPlace("upl_1", 0), expected="0" * 64),
        ):
            pass

        assert all_keys(store) == []

    @STORED_ONCE
    @given(parts=st.lists(st.binary(min_size=1, max_size=50), min_size=1, max_size=5))
    def test_assemble_to_one_blob_in_their_order(self, store, parts):
        whole = b"".join(parts)
        stored = put_parts(store, parts, upload_id=uuid.uuid4().hex)

        blob = store.assemble(stored, expected=sha256(whole))

        assert content(store, blob.key) == whole
        assert blob == store.put([whole])
        assert all(store.exists(part.key) for part in stored)
        # As after a crash before the blob's row was committed.
        assert store.assemble(stored, expected=sha256(whole)) == blob

    def test_stay_when_their_sum_is_not_what_was_announced_and_can_be_replaced(self, store):
        parts = put_parts(store, [b"one", b"tvo"])
        before = all_keys(store)

        with pytest.raises(errors.DigestMismatch):
            store.assemble(parts, expected=sha256(b"onetwo"))

        assert all_keys(store) == before
        place = storage.PartPlace("upl_1", 3)
        with store.put_part([b"two"], place) as second:
            parts[1] = storage.stored_part(second.key, place, 3)
        blob = store.assemble(parts, expected=sha256(b"onetwo"))
        assert content(store, blob.key) == b"onetwo"

    def test_cannot_be_assembled_when_one_is_gone(self, store):
        parts = put_parts(store, [b"one", b"two"])
        store.delete(parts[1].key)

        with pytest.raises(storage.BytesNotFound):
            store.assemble(parts, expected=sha256(b"onetwo"))

        assert sha256(b"onetwo") not in "".join(all_keys(store))


class TestStoredBefore:
    def test_tells_old_keys_from_young_ones(self, store):
        keys = sorted([store.put([b"blob"]).key, put_parts(store, [b"part"])[0].key])

        assert list(store.stored_before(datetime.now(UTC) - timedelta(minutes=1))) == []
        assert sorted(store.stored_before(datetime.now(UTC) + timedelta(minutes=1))) == keys

    def test_tolerates_deleting_on_the_way(self, store):
        for number in range(20):
            store.put([b"%d" % number])

        for key in store.stored_before(datetime.now(UTC) + timedelta(minutes=1)):
            store.delete(key)

        assert all_keys(store) == []


class TestCheck:
    def test_is_silent_when_all_is_well_and_leaves_nothing(self, store):
        store.check()

        assert all_keys(store) == []


class TestFromUrl:
    def test_takes_a_folder_whose_name_has_a_space(self, tmp_path):
        folder = tmp_path / "two words"

        storage.from_url(folder.as_uri()).put([b"student"])

        assert (folder / "sha256").is_dir()

    def test_takes_a_relative_folder_and_keeps_it(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        found = storage.from_url("file:retort-data/storage")
        monkeypatch.chdir("/")

        found.put([b"student"])

        assert (tmp_path / "retort-data" / "storage" / "sha256").is_dir()

    @pytest.mark.parametrize(
        "url",
        ["", "/srv", "file:", "file://elsewhere/srv", "s3:///prefix", "http://host/x", "file:/a?b"],
    )
    def test_refuses_what_it_cannot_place(self, url):
        with pytest.raises(ValueError, match="storage_url"):
            storage.from_url(url)


class TestLocalStorage:
    def test_publishes_by_renaming_what_was_written(self, tmp_path):
        store = storage.LocalStorage(tmp_path)
        written: list[int] = []

        def stream() -> Iterator[bytes]:
            yield b"student"
            written.extend(path.stat().st_ino for path in (tmp_path / "unfinished").iterdir())

        for _ in range(2):
            key = store.put(stream()).key

            assert [(tmp_path / key).stat().st_ino] == written
            written.clear()

    def test_makes_bytes_put_again_young(self, tmp_path):
        store = storage.LocalStorage(tmp_path)
        key = store.put([b"student"]).key
        last_week = time.time() - 7 * 86_400
        os.utime(tmp_path / key, (last_week, last_week))
        yesterday = datetime.now(UTC) - timedelta(days=1)
        assert list(store.stored_before(yesterday)) == [key]

        store.put([b"student"])

        assert list(store.stored_before(yesterday)) == []
        store.delete(key, unless_stored_since=yesterday)
        assert store.exists(key)

    def test_lets_a_reader_finish_bytes_that_are_deleted(self, tmp_path):
        store = storage.LocalStorage(tmp_path)
        whole = pseudo_random(3 * MEBIBYTE)
        key = store.put([whole]).key
        with store.open(key) as stream:
            store.delete(key)

            assert b"".join(stream) == whole

    def test_does_not_hand_out_a_file_that_shrank(self, tmp_path):
        store = storage.LocalStorage(tmp_path)
        key = store.put([pseudo_random(3 * MEBIBYTE)]).key
        with store.open(key) as stream:
            next(stream)
            os.truncate(tmp_path / key, MEBIBYTE)

            with pytest.raises(errors.StorageDown, match="too early"):
                next(stream)

    def test_discards_only_what_died_long_ago(self, tmp_path):
        store = storage.LocalStorage(tmp_path)
        dead, running = (tmp_path / "unfinished" / name for name in ("dead", "running"))
        dead.write_bytes(b"x")
        running.write_bytes(b"x")
        last_week = time.time() - 7 * 86_400
        os.utime(dead, (last_week, last_week))

        assert store.discard_unfinished(datetime.now(UTC) - timedelta(days=1)) == 1
        assert not dead.exists()
        assert running.exists()

    def test_ignores_files_that_are_not_ours(self, tmp_path):
        store = storage.LocalStorage(tmp_path)
        (tmp_path / "parts").mkdir()
        (tmp_path / "parts" / "note.txt").write_text("left by a person")

        assert all_keys(store) == []

    def test_is_down_when_its_folder_is_gone(self, tmp_path):
        store = storage.LocalStorage(tmp_path / "bytes")
        (tmp_path / "bytes" / "unfinished").rmdir()

        with pytest.raises(errors.StorageDown):
            store.check()
        with pytest.raises(errors.StorageDown):
            store.put([b"student"])

    def test_is_down_when_its_folder_cannot_be_made(self, tmp_path):
        (tmp_path / "file").write_text("not a folder")

        with pytest.raises(errors.StorageDown):
            storage.LocalStorage(tmp_path / "file" / "bytes")


class TestPartsOnDisk:
    """Of `LocalStorage`: one file, which becomes the blob."""

    def test_become_the_blob_without_a_copy(self, tmp_path):
        store = storage.LocalStorage(tmp_path)
        # In any order, and one of them sent again.
        parts = put_parts(store, [b"one", b"two", b"three"])
        put_parts(store, [b"one"])
        (file,) = (path for path in tmp_path.rglob("*") if path.is_file())

        blob = store.assemble(parts, expected=sha256(b"onetwothree"))

        assert (tmp_path / blob.key).samefile(file)

    def test_are_never_written_into_a_blob(self, tmp_path):
        store = storage.LocalStorage(tmp_path)
        blob = store.assemble(put_parts(store, [b"part"]), expected=sha256(b"part"))

        with pytest.raises(errors.Conflict, match="put together"):
            put_parts(store, [b"evil"])

        assert content(store, blob.key) == b"part"
        # A sender that has opened the file before its upload was completed and its name deleted.
        key = put_parts(store, [b"next"], "upl_2")[0].key
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            with store._locked(tmp_path / key, missing_ok=False):
                late = pool.submit(put_parts, store, [b"evil"], "upl_2")
                time.sleep(0.05)
                assert not late.done()
                (tmp_path / key).rename(tmp_path / "kept")
            late.result(10)
        assert (tmp_path / "kept").read_bytes() == b"next"

    def test_that_an_older_version_kept_apart_are_joined(self, tmp_path):
        store = storage.LocalStorage(tmp_path)
        old = f"parts/{'0' * 32}"
        (tmp_path / "parts").mkdir()
        (tmp_path / old).write_bytes(b"one")
        place = storage.PartPlace("upl_1", 3)
        with store.put_part([b"two"], place) as put:
            new = storage.stored_part(put.key, place, 3)
        first = storage.stored_part(old, storage.PartPlace("upl_1", 0), 3)

        blob = store.assemble([first, new], expected=sha256(b"onetwo"))

        assert content(store, blob.key) == b"onetwo"

    def test_are_copied_where_the_system_cannot_do_it(self, tmp_path, monkeypatch):
        def refuse(*_: object) -> None:
            raise OSError(errno.EXDEV, "not between these file systems")

        monkeypatch.setattr(os, "copy_file_range", refuse)
        store = storage.LocalStorage(tmp_path)
        big = pseudo_random(storage.CHUNK_BYTES + 1)

        blob = store.assemble(put_parts(store, [b"one", big]), expected=sha256(b"one" + big))

        assert content(store, blob.key) == b"one" + big

    def test_are_joined_by_copying_where_a_file_has_one_name(self, tmp_path, monkeypatch):
        store = storage.LocalStorage(tmp_path)
        parts = put_parts(store, [b"one", b"two"])

        def refuse(*_: object) -> None:
            raise PermissionError(errno.EPERM, "no links here")

        monkeypatch.setattr(Path, "hardlink_to", refuse)
        blob = store.assemble(parts, expected=sha256(b"onetwo"))

        assert content(store, blob.key) == b"onetwo"


class TestDirectParts:
    """Of `S3Storage`: parts that clients send to the bucket themselves."""

    HOUR = timedelta(hours=1)

    @pytest.fixture
    def bucket(self, s3_settings) -> storage.Storage:
        options = {key.removeprefix("s3_"): text for key, text in s3_settings.items()}
        url = f"{options.pop('storage_url')}/{uuid.uuid4().hex}"
        public = options["endpoint"]
        return storage.from_url(url, storage.S3Options(**options, public_endpoint=public))

    def send(self, bucket: storage.Storage, place: storage.PartPlace, part: bytes) -> None:
        url = bucket.direct_url(place, lifetime=self.HOUR)
        assert url is not None
        assert httpx.put(url, content=part).status_code == 200

    def test_are_found_by_their_place_and_assembled(self, bucket):
        places = [storage.PartPlace("upl_1", offset) for offset in (0, 3)]
        for place, part in zip(reversed(places), [b"two", b"one"], strict=True):
            self.send(bucket, place, part)
        self.send(bucket, storage.PartPlace("upl_2", 0), b"of another upload")

        found = bucket.direct_parts("upl_1")

        assert {offset: part.size_bytes for offset, part in found.items()} == {0: 3, 3: 3}
        blob = bucket.assemble([found[0], found[3]], expected=sha256(b"onetwo"))
        assert content(bucket, blob.key) == b"onetwo"
        assert {part.key for part in found.values()} < set(all_keys(bucket))
        for part in found.values():
            bucket.delete(part.key)
        assert bucket.direct_parts("upl_1") == {}

    def test_have_an_address_that_names_the_public_endpoint(self, s3_settings):
        options = {key.removeprefix("s3_"): text for key, text in s3_settings.items()}
        options.pop("storage_url")
        public = storage.S3Options(**options, public_endpoint="https://bytes.example.org")
        bucket = storage.from_url("s3://bucket/prefix", public)
        url = bucket.direct_url(storage.PartPlace("upl_1", 0), lifetime=timedelta(days=365))
        assert url is not None
        assert url.startswith("https://bytes.example.org/bucket/prefix/parts/")
        assert "X-Amz-Expires=604800" in url

    def test_are_unknown_without_a_public_endpoint(self, store):
        assert store.direct_url(storage.PartPlace("upl_1", 0), lifetime=self.HOUR) is None
        assert store.direct_parts("upl_1") == {}


def fails_to_answer(store: storage.Storage) -> None:
    """Check a store that must be down."""
    with pytest.raises(errors.StorageDown):
        store.check()


class TestS3Storage:
    def test_is_down_within_seconds_when_nothing_listens(self):
        options = storage.S3Options(
            endpoint="http://127.0.0.1:9", access_key_id="test", secret_access_key="test"
        )
        store = storage.from_url("s3://retort-test", options)

        waiting.once_within(20, lambda: fails_to_answer(store))

    @pytest.mark.slow
    def test_is_down_within_seconds_when_nothing_answers(self):
        with socket.create_server(("127.0.0.1", 0)) as silent:
            options = storage.S3Options(
                endpoint=f"http://127.0.0.1:{silent.getsockname()[1]}",
                access_key_id="test",
                secret_access_key="test",
            )
            store = storage.from_url("s3://retort-test", options)

            # Of botocore's own accord, it would be five times a minute.
            waiting.once_within(30, lambda: fails_to_answer(store))

    def test_is_down_when_the_bucket_is_missing(self, s3_settings):
        options = storage.S3Options(
            endpoint=s3_settings["s3_endpoint"], access_key_id="test", secret_access_key="test"
        )
        store = storage.from_url("s3://no-such-bucket/retort", options)

        with pytest.raises(errors.StorageDown):
            store.check()
        with pytest.raises(errors.StorageDown):
            store.put([b"student"])

    def test_says_nothing_of_hosts_to_callers(self, s3_settings):
        options = storage.S3Options(
            endpoint=s3_settings["s3_endpoint"], access_key_id="test", secret_access_key="hush"
        )
        store = storage.from_url("s3://no-such-bucket/retort", options)

        with pytest.raises(errors.StorageDown) as caught:
            store.check()

        assert "127.0.0.1" not in str(caught.value)
        assert "hush" not in str(caught.value) + str(caught.value.__cause__)

    def test_keeps_to_its_prefix(self, s3_settings):
        options = storage.S3Options(
            endpoint=s3_settings["s3_endpoint"], access_key_id="test", secret_access_key="test"
        )
        one, other = (
            storage.from_url(f"{s3_settings['storage_url']}/{uuid.uuid4().hex}/", options)
            for _ in range(2)
        )

        key = one.put([b"student"]).key

        assert all_keys(one) == [key]
        assert not other.exists(key)

    def test_keeps_its_temporary_files_where_it_is_told(self, s3_settings, tmp_path):
        options = storage.S3Options(
            endpoint=s3_settings["s3_endpoint"],
            access_key_id="test",
            secret_access_key="test",
            spool_folder=tmp_path / "missing",
        )
        store = storage.from_url(s3_settings["storage_url"], options)

        with pytest.raises(errors.StorageDown):
            store.put([b"student"])
