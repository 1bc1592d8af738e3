"""Folders and buckets as sources: what is listed, what is refused, what is noticed."""

import contextlib
import os
import tempfile
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import obstore
import pytest

from models_registry import errors
from models_registry.persistence import source_places, storage
from tests import conftest, services
from workers import source_reading
from workers.distill.config import formats as format_rules
from workers.source_reading import Listing, SourceChanged, SourceReader, SourceRefused

FILES = {"cat/1.png": b"one", "cat/2.png": b"", "dog/my é%20.png": b"three" * 300_000}
NOBODY = 65534


@pytest.fixture(scope="module")
def s3_settings() -> Iterator[dict[str, str]]:
    with services.s3_server() as found:
        yield found


class Place:
    """A source of one kind, and how a test changes it."""

    # Any: settings, as the server of the tests gives them.
    def __init__(self, folder: Path, found: dict[str, Any] | None) -> None:
        self._folder = folder
        self._found = found
        if found is None:
            folder.mkdir()
            self.url = folder.as_uri()
            self.settings = conftest.GivenSettings(data_dir=folder.parent / "d", sources=self.url)
            return
        self.prefix = uuid.uuid4().hex
        self.url = f"s3://{services.BUCKET}/sources/{self.prefix}"
        allowed = f"s3://{services.BUCKET}/sources s3://no-such-bucket"
        self.settings = conftest.GivenSettings(
            data_dir=folder.parent / "d", sources=allowed, **found
        )
        self.store = storage.s3_store(
            services.BUCKET,
            f"sources/{self.prefix}",
            storage.s3_options(self.settings),
            timeout=source_reading._REQUEST,
            patience=source_reading._PATIENCE,
        )

    def put(self, name: str, content: bytes) -> None:
        if self._found is None:
            path = self._folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            # Written within a tick of the file system's clock, it would look unchanged.
            os.utime(path, ns=(0, uuid.uuid4().int % 10**18))
        else:
            obstore.put(self.store, name, content)

    def delete(self, name: str) -> None:
        if self._found is None:
            (self._folder / name).unlink()
        else:
            obstore.delete(self.store, name)

    def reader(self, name: str = "") -> SourceReader:
        return source_reading.open_source(self.url + name, self.settings, project="vision")


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    is_local = request.param == "local"
    made = Place(tmp_path / "photos", None if is_local else request.getfixturevalue("s3_settings"))
    for name, content in FILES.items():
        made.put(name, content)
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Place:
    made = Place(tmp_path / "photos", None)
    made.put("cat/1.png", b"one")
    return made


def contents(reader: SourceReader, listing: Listing) -> dict[str, bytes]:
    return {file.name: b"".join(chunks) for file, chunks in reader.contents(listing)}


def refusal(act: Callable[[], object]) -> SourceRefused:
    with pytest.raises(SourceRefused) as caught:
        act()
    return caught.value


class TestEverySource:
    def test_lists_and_reads_all_files_below_a_folder(self, place: Place) -> None:
        reader = place.reader()
        listing = reader.listing()
        assert listing.kind == "folder"
        assert [file.name for file in listing.files] == sorted(FILES)
        assert listing.size_bytes == sum(map(len, FILES.values()))
        assert contents(reader, listing) == FILES

    def test_is_one_file_where_the_address_names_one(self, place: Place) -> None:
        reader = place.reader("/cat/1.png")
        listing = reader.listing()
        assert (listing.kind, contents(reader, listing)) == ("file", {"1.png": b"one"})

    def test_that_ends_in_a_slash_is_no_file(self, place: Place) -> None:
        assert refusal(place.reader("/cat/1.png/").listing).code in (
            "source_missing",
            "source_empty",
        )

    def test_has_the_same_digest_until_something_changes(self, place: Place) -> None:
        first = place.reader().listing().sha256
        assert place.reader().listing().sha256 == first
        place.put("cat/1.png", b"new")
        second = place.reader().listing().sha256
        place.delete("cat/2.png")
        third = place.reader().listing().sha256
        place.put("cat/3.png", b"")
        assert len({first, second, third, place.reader().listing().sha256}) == 4

    def test_that_is_missing_is_refused_by_its_address(self, place: Place) -> None:
        found = refusal(place.reader("/bird").listing)
        assert found.code in ("source_missing", "source_empty")
        assert f"{place.url}/bird" in found.message

    def test_that_changes_while_it_is_read_is_refused(self, place: Place) -> None:
        reader = place.reader()
        listing = reader.listing()
        place.put("cat/1.png", b"two")
        with pytest.raises(SourceChanged, match=r"'cat/1.png' of .* was changed"):
            contents(reader, listing)

    def test_that_goes_away_while_it_is_read_is_refused(self, place: Place) -> None:
        reader = place.reader()
        listing = reader.listing()
        place.delete("dog/my é%20.png")
        with pytest.raises(SourceChanged, match="is no longer there"):
            contents(reader, listing)

    def test_of_too_many_names_is_given_up_while_it_is_listed(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(format_rules, "MOST_ENTRIES", 2)
        found = refusal(place.reader().listing)
        assert found.code == "too_large"
        assert "lists more than 2 names" in found.message

    @pytest.mark.parametrize("limit", ["LARGEST_FILE_BYTES", "LARGEST_TOTAL_BYTES"])
    def test_of_too_many_bytes_is_refused_before_any_is_read(
        self, place: Place, monkeypatch: pytest.MonkeyPatch, limit: str
    ) -> None:
        monkeypatch.setattr(format_rules, limit, 2)
        assert refusal(place.reader().listing).code == "too_large"

    def test_as_one_file_has_a_limit_too(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(format_rules, "LARGEST_TOTAL_BYTES", 2)
        assert refusal(place.reader("/cat/1.png").listing).code == "too_large"


class TestBucket:
    def test_reads_large_objects_in_parts_and_small_ones_side_by_side(
        self, tmp_path: Path, s3_settings: dict[str, str]
    ) -> None:
        place = Place(tmp_path / "x", s3_settings)
        large = os.urandom(storage.TRANSFER_BYTES + 17)
        given = {f"{number:03d}": bytes([number]) for number in range(2 * source_reading.AHEAD)}
        for name, content in {**given, "050-large": large}.items():
            place.put(name, content)
        reader = place.reader()
        assert contents(reader, reader.listing()) == {**given, "050-large": large}

    def test_prefers_an_object_of_the_name_and_leaves_others_out(
        self, tmp_path: Path, s3_settings: dict[str, str]
    ) -> None:
        place = Place(tmp_path / "x", s3_settings)
        for name in ("a", "a/b", "a/a", "ab/c"):
            place.put(name, name.encode())
        for address, kind, given in (
            ("/a", "file", {"a": b"a"}),
            ("/a/", "folder", {"a": b"a/a", "b": b"a/b"}),
        ):
            reader = place.reader(address)
            listing = reader.listing()
            assert (listing.kind, contents(reader, listing)) == (kind, given)

    def test_leaves_out_empty_objects_that_mark_folders(
        self, tmp_path: Path, s3_settings: dict[str, str]
    ) -> None:
        place = Place(tmp_path / "x", s3_settings)
        for name in ("cat", "cat/deep", "cat/deep/1.png"):
            place.put(name, b"1" if name.endswith("png") else b"")
        assert [file.name for file in place.reader().listing().files] == ["cat/deep/1.png"]

    def test_that_does_not_exist_is_named(
        self, tmp_path: Path, s3_settings: dict[str, str]
    ) -> None:
        settings = Place(tmp_path / "x", s3_settings).settings
        reader = source_reading.open_source("s3://no-such-bucket/a", settings, project="p")
        found = refusal(reader.listing)
        assert (found.code, "no bucket no-such-bucket" in found.message) == ("source_missing", True)

    def test_with_a_key_that_is_no_path_is_refused(
        self, tmp_path: Path, s3_settings: dict[str, str]
    ) -> None:
        place = Place(tmp_path / "x", s3_settings)
        url = f"{s3_settings['s3_endpoint']}/{services.BUCKET}/sources/{place.prefix}/a//b"
        put = urllib.request.Request(url, b"1", {"content-type": "image/png"}, method="PUT")
        urllib.request.urlopen(put).close()  # our own client refuses to write such a key
        found = refusal(place.reader().listing)
        assert found.code == "source_refused"
        assert "rename the object" in found.message

    def test_that_cannot_be_reached_is_waited_for(
        self, tmp_path: Path, s3_settings: dict[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(source_reading, "_PATIENCE", source_reading._PATIENCE * 0)
        place = Place(tmp_path / "x", {**s3_settings, "s3_endpoint": "http://127.0.0.1:9"})
        with pytest.raises(errors.StorageDown, match="cannot be read just now"):
            place.reader().listing()


class TestFolder:
    def test_follows_links_to_files_in_the_allowed_folder(
        self, folder: Place, tmp_path: Path
    ) -> None:
        (tmp_path / "photos" / "dog").mkdir()
        (tmp_path / "photos" / "dog" / "1.png").symlink_to("../cat/1.png")
        reader = folder.reader("/dog")
        assert contents(reader, reader.listing()) == {"1.png": b"one"}

    @pytest.mark.parametrize(
        ("target", "told"),
        [
            ("../secret", "leads out of"),
            ("/etc/passwd", "leads out of"),
            ("gone", "leads nowhere"),
            ("link", "leads nowhere"),
            ("cat", "to something else than a file"),
        ],
    )
    def test_refuses_other_links(
        self, folder: Place, tmp_path: Path, target: str, told: str
    ) -> None:
        (tmp_path / "secret").write_text("of somebody else")
        (tmp_path / "photos" / "link").symlink_to(target)
        found = refusal(folder.reader().listing)
        assert found.code == "source_refused"
        assert told in found.message
        assert "somebody" not in found.message

    def test_refuses_an_address_that_a_link_leads_out_of_the_allowed_folder(
        self, folder: Place, tmp_path: Path
    ) -> None:
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere" / "1.png").write_bytes(b"secret")
        (tmp_path / "photos" / "way").symlink_to(tmp_path / "elsewhere")
        for address in ("/way", "/way/1.png", "/way/"):
            assert "leads out of" in refusal(folder.reader(address).listing).message

    def test_follows_no_link_that_takes_a_files_place_meanwhile(
        self, folder: Place, tmp_path: Path
    ) -> None:
        reader = folder.reader()
        listing = reader.listing()
        secret = tmp_path / "secret.png"
        secret.write_bytes(b"two")
        photo = tmp_path / "photos" / "cat" / "1.png"
        mark = photo.stat().st_mtime_ns
        os.utime(secret, ns=(mark, mark))
        photo.unlink()
        photo.symlink_to(secret)
        assert "leads out of" in refusal(lambda: contents(reader, listing)).message

    def test_refuses_what_is_neither_file_nor_folder(self, folder: Place, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "photos" / "pipe")
        assert "neither a file nor a folder" in refusal(folder.reader().listing).message
        assert "neither a file nor a folder" in refusal(folder.reader("/pipe").listing).message

    def test_refuses_names_that_are_not_utf_8(self, folder: Place, tmp_path: Path) -> None:
        os.close(os.open(os.fsencode(tmp_path / "photos") + b"/\xff.png", os.O_CREAT))
        found = refusal(folder.reader().listing)
        assert "not named in UTF-8" in found.message
        found.message.encode()

    def test_refuses_folders_without_end(self, folder: Place, tmp_path: Path) -> None:
        deep = tmp_path / "photos" / "/".join(["d"] * (source_reading.MOST_FOLDERS + 1))
        deep.mkdir(parents=True)
        assert "in more than 100 folders" in refusal(folder.reader().listing).message

    def test_without_files_is_refused(self, folder: Place, tmp_path: Path) -> None:
        (tmp_path / "photos" / "empty").mkdir()
        found = refusal(folder.reader("/empty").listing)
        assert (found.code, "has no files" in found.message) == ("source_empty", True)

    def test_whose_allowed_folder_is_not_mounted_is_waited_for(
        self, folder: Place, tmp_path: Path
    ) -> None:
        (tmp_path / "photos").rename(tmp_path / "unmounted")
        with pytest.raises(errors.StorageDown, match="mount it on every worker"):
            folder.reader().listing()

    def test_that_may_not_be_read_is_refused_by_name(self) -> None:
        with tempfile.TemporaryDirectory(prefix="retort-sources-") as name:  # pytest's are closed
            home = Path(name)
            home.chmod(0o755)
            place = Place(home / "photos", None)
            place.put("cat/1.png", b"one")
            reader = place.reader()
            listing = reader.listing()
            (home / "photos" / "cat" / "1.png").chmod(0)
            with as_nobody():
                found = refusal(lambda: contents(reader, listing))
            assert (found.code, "'cat/1.png'" in found.message) == ("source_unreadable", True)
            (home / "photos" / "cat").chmod(0)
            with as_nobody():
                assert refusal(reader.listing).code == "source_unreadable"
            (home / "photos" / "cat").chmod(0o755)


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Give up root's right to read everything; without it there is nothing to give up."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(before)


class TestOpenSource:
    @pytest.mark.parametrize(
        ("url", "code"),
        [
            ("file:///etc", "source_not_allowed"),
            ("s3://bucket/a", "source_not_allowed"),
            ("file://x/etc", "malformed_source"),
        ],
    )
    def test_asks_this_workers_own_settings(self, folder: Place, url: str, code: str) -> None:
        assert (
            refusal(lambda: source_reading.open_source(url, folder.settings, project="p")).code
            == code
        )

    def test_refuses_all_without_the_setting(self, folder: Place) -> None:
        none = folder.settings.model_copy(update={"sources": ""})
        found = refusal(lambda: source_reading.open_source(folder.url, none, project="p"))
        assert found.code == "sources_disabled"
        assert source_places.SETTING in found.message
