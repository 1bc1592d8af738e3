"""Archives unpack to what they hold, never outside their folder, never without end."""

import gzip
import io
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from workers.distill import errors
from workers.distill.data.formats import archives


def a_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def a_tar(path: Path, files: dict[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]  # any mode of the parameters
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def a_tar_with(path: Path, **fields: object) -> Path:
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo("entry")
        for name, value in fields.items():
            setattr(member, name, value)
        archive.addfile(member)
    return path


def refusal(path: Path, folder: Path, limits: archives.Limits | None = None) -> str:
    with pytest.raises(errors.UploadRefused) as caught:
        archives.unpack(path, folder, limits)
    return caught.value.refusal


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


def a_zip_with_links(path: Path, files: dict[str, bytes], links: dict[str, str]) -> Path:
    a_zip(path, files)
    with zipfile.ZipFile(path, "a") as archive:
        for name, target in links.items():
            entry = zipfile.ZipInfo(name)
            entry.create_system = 3
            entry.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(entry, target)
    return path


def a_tar_with_links(
    path: Path, files: dict[str, bytes], links: dict[str, str], kind: bytes = tarfile.SYMTYPE
) -> Path:
    a_tar(path, files, "w")
    with tarfile.open(path, "a") as archive:
        for name, target in links.items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            archive.addfile(member)
    return path


def a_zip_of_windows(path: Path, files: dict[bytes, bytes]) -> Path:
    """Write a zip whose names are these bytes, in a code page that it does not name."""
    with zipfile.ZipFile(path, "w") as archive:
        for number, (name, content) in enumerate(files.items()):
            entry = zipfile.ZipInfo(f"{number:?>{len(name)}}")
            entry.create_system = 0
            archive.writestr(entry, content)
    raw = path.read_bytes()
    for header, size in ((b"PK\x03\x04", 30), (b"PK\x01\x02", 46)):
        at = 0
        for name in files:
            at = raw.index(header, at) + size
            raw = raw[:at] + name + raw[at + len(name) :]
    path.write_bytes(raw)
    return path


FILES = {"a/1.png": b"one", "a/b/2.png": b"two" * 1000, "./c.txt": b""}
EXPECTED = {"a/1.png": b"one", "a/b/2.png": b"two" * 1000, "c.txt": b""}
MAKERS: list[Callable[[Path, dict[str, bytes]], Path]] = [a_zip, a_tar]


class TestUnpack:
    @pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
    def test_tar_of_every_kind(self, tmp_path: Path, mode: str) -> None:
        archives.unpack(a_tar(tmp_path / "x", FILES, mode), tmp_path / "out")
        assert content(tmp_path / "out") == EXPECTED

    def test_zip(self, tmp_path: Path) -> None:
        archives.unpack(a_zip(tmp_path / "x", FILES), tmp_path / "out")
        assert content(tmp_path / "out") == EXPECTED

    @pytest.mark.parametrize("make", MAKERS)
    @pytest.mark.parametrize(
        "name", ["../evil", "a/../../evil", "/evil", "..\\evil", "C:\\evil", "a/..", "x" * 300]
    )
    def test_names_that_lead_elsewhere_are_refused(
        self, tmp_path: Path, make: Callable[[Path, dict[str, bytes]], Path], name: str
    ) -> None:
        path = make(tmp_path / "x", {name: b"evil"})
        assert refusal(path, tmp_path / "out") == "unsafe_archive"
        assert not any("evil" in str(file) for file in tmp_path.rglob("*"))

    @pytest.mark.parametrize(
        "kind",
        [
            tarfile.SYMTYPE,
            tarfile.LNKTYPE,
            tarfile.CHRTYPE,
            tarfile.BLKTYPE,
            tarfile.FIFOTYPE,
        ],
    )
    def test_links_out_of_tar_and_devices_are_refused(self, tmp_path: Path, kind: bytes) -> None:
        path = a_tar_with(tmp_path / "x", type=kind, linkname="/etc/passwd")
        assert refusal(path, tmp_path / "out") == "unsafe_archive"
        assert content(tmp_path / "out") == {}

    @pytest.mark.parametrize("target", ["/etc/passwd", "../../passwd", "C:\\passwd", "..\\..\\x"])
    def test_links_out_of_zip_are_refused(self, tmp_path: Path, target: str) -> None:
        path = a_zip_with_links(tmp_path / "x", {}, {"a/link": target})
        assert refusal(path, tmp_path / "out") == "unsafe_archive"

    @pytest.mark.parametrize("make", MAKERS)
    def test_bombs_are_stopped_while_they_unpack(
        self, tmp_path: Path, make: Callable[[Path, dict[str, bytes]], Path]
    ) -> None:
        path = make(tmp_path / "x", {"zeros": bytes(20 << 20)})
        assert path.stat().st_size < 100_000
        limits = archives.Limits(ratio_free_bytes=1 << 20)
        assert refusal(path, tmp_path / "out", limits) == "too_large"
        written = sum(len(text) for text in content(tmp_path / "out").values())
        assert written <= 100 * path.stat().st_size + archives.CHUNK_BYTES

    def test_size_in_the_header_of_a_zip_is_not_believed(self, tmp_path: Path) -> None:
        path = a_zip(tmp_path / "x", {"zeros": bytes(1 << 20)})
        raw = path.read_bytes().replace((1 << 20).to_bytes(4, "little"), (10).to_bytes(4, "little"))
        path.write_bytes(raw)
        assert refusal(path, tmp_path / "out") == "unreadable"
        assert sum(map(len, content(tmp_path / "out").values())) <= 10

    @pytest.mark.parametrize("make", MAKERS)
    @pytest.mark.parametrize(
        "limits",
        [
            archives.Limits(entries=2),
            archives.Limits(file_bytes=2999),
            archives.Limits(total_bytes=3002),
        ],
    )
    def test_every_limit_counts(
        self,
        tmp_path: Path,
        make: Callable[[Path, dict[str, bytes]], Path],
        limits: archives.Limits,
    ) -> None:
        assert refusal(make(tmp_path / "x", FILES), tmp_path / "out", limits) == "too_large"

    def test_long_headers_of_tar_are_not_taken_into_memory(self, tmp_path: Path) -> None:
        path = tmp_path / "x"
        member = tarfile.TarInfo("././@LongLink")
        member.type = tarfile.GNUTYPE_LONGNAME
        member.size = 1 << 30
        with gzip.open(path, "wb") as stream:
            stream.write(member.tobuf(tarfile.GNU_FORMAT))
            stream.write(bytes(1 << 20))
        assert refusal(path, tmp_path / "out") == "unsafe_archive"

    def test_long_names_of_tar_still_work(self, tmp_path: Path) -> None:
        name = "/".join(["folder"] * 30) + "/1.png"
        archives.unpack(a_tar(tmp_path / "x", {name: b"x"}), tmp_path / "out")
        assert content(tmp_path / "out") == {name: b"x"}

    @pytest.mark.parametrize("make", MAKERS)
    def test_file_that_is_also_a_folder_is_refused(
        self, tmp_path: Path, make: Callable[[Path, dict[str, bytes]], Path]
    ) -> None:
        path = make(tmp_path / "x", {"a": b"1", "a/b": b"2"})
        assert refusal(path, tmp_path / "out") == "unsafe_archive"

    def test_entry_that_is_in_it_twice_is_refused(self, tmp_path: Path) -> None:
        path = a_zip(tmp_path / "x", {"a/b": b"1", "a//b": b"2"})
        assert refusal(path, tmp_path / "out") == "unsafe_archive"

    @pytest.mark.parametrize("make", MAKERS)
    @pytest.mark.parametrize("share", [0.4, 0.9])
    def test_cut_archives_are_refused(
        self, tmp_path: Path, make: Callable[[Path, dict[str, bytes]], Path], share: float
    ) -> None:
        noise = bytes(range(256)) * 64
        path = make(tmp_path / "x", {str(number): noise[number:] for number in range(20)})
        whole = path.read_bytes()
        path.write_bytes(whole[: int(share * len(whole))])
        assert refusal(path, tmp_path / "out") in ("unreadable", "unsupported_format")

    @pytest.mark.parametrize("text", [b"", b"hello" * 1000])
    def test_other_files_are_refused(self, tmp_path: Path, text: bytes) -> None:
        (tmp_path / "x").write_bytes(text)
        assert refusal(tmp_path / "x", tmp_path / "out") in ("unreadable", "unsupported_format")


class TestLinks:
    @pytest.mark.parametrize("make", [a_zip_with_links, a_tar_with_links])
    def test_inside_become_what_they_lead_to(
        self,
        tmp_path: Path,
        make: Callable[[Path, dict[str, bytes], dict[str, str]], Path],
    ) -> None:
        links = {"b": "a", "c/2.png": "../a/1.png", "3.png": "c/2.png", "c/d": "../b/../a"}
        notes = archives.unpack(make(tmp_path / "x", {"a/1.png": b"1"}, links), tmp_path / "out")
        names = ("3.png", "a/1.png", "b/1.png", "c/2.png", "c/d/1.png")
        assert content(tmp_path / "out") == dict.fromkeys(names, b"1")
        assert not any(file.is_symlink() for file in (tmp_path / "out").rglob("*"))
        assert notes == ["4 links were replaced by what they lead to"]

    def test_that_are_hard_name_an_entry_of_the_archive(self, tmp_path: Path) -> None:
        files, links = {"a/b/1.png": b"1"}, {"a/c/2.png": "a/b/1.png"}
        path = a_tar_with_links(tmp_path / "x", files, links, tarfile.LNKTYPE)
        archives.unpack(path, tmp_path / "out")
        assert content(tmp_path / "out") == {"a/b/1.png": b"1", "a/c/2.png": b"1"}

    def test_to_nothing_or_in_a_circle_are_left_out_and_told(self, tmp_path: Path) -> None:
        links = {"a/up": "..", "a/here": ".", "x": "y", "y": "x", "z": "nothing"}
        path = a_tar_with_links(tmp_path / "x", {"a/1.png": b"1"}, links)
        (note,) = archives.unpack(path, tmp_path / "out")
        assert content(tmp_path / "out") == {"a/1.png": b"1"}
        assert note == (
            "5 links that lead to no entry, or in a circle, were left out: a/up, a/here, x"
        )

    def test_that_multiply_are_stopped(self, tmp_path: Path) -> None:
        links = {
            f"d{level}/{copy}": f"../d{level - 1}" for level in range(1, 8) for copy in range(10)
        }
        path = a_tar_with_links(tmp_path / "x", {"d0/1": b"1"}, links)
        limits = archives.Limits(entries=2000)
        assert refusal(path, tmp_path / "out", limits) == "too_large"

    def test_do_not_replace_files(self, tmp_path: Path) -> None:
        path = a_tar_with_links(tmp_path / "x", {"a": b"1", "b": b"2"}, {"a": "b"})
        assert refusal(path, tmp_path / "out") == "unsafe_archive"


class TestNames:
    def test_of_folders_may_end_in_a_backslash(self, tmp_path: Path) -> None:
        files = {b"data\\": b"", b"data\\cat\\": b"", b"data\\cat\\1.png": b"1"}
        archives.unpack(a_zip_of_windows(tmp_path / "x", files), tmp_path / "out")
        assert content(tmp_path / "out") == {"data/cat/1.png": b"1"}

    @pytest.mark.parametrize(
        ("page", "names", "told"),
        [
            ("utf-8", ("猫", "狗"), None),
            ("gbk", ("猫", "狗"), "GBK"),
            ("big5", ("貓", "汽車", "飛機"), "Big5"),
            ("cp932", ("犬", "ねこ"), "Shift JIS"),
            ("cp866", ("кошка", "Собака"), "cp866"),
            ("cp1251", ("кошка", "Собака"), "cp1251"),
            ("cp850", ("Größe", "Äpfel"), "Western"),
            ("cp1252", ("Übung", "café"), "Western"),
        ],
    )
    def test_of_other_code_pages_are_read_and_told(
        self, tmp_path: Path, page: str, names: tuple[str, ...], told: str | None
    ) -> None:
        files = {f"{name}/1.png".encode(page): b"1" for name in names}
        notes = archives.unpack(a_zip_of_windows(tmp_path / "x", files), tmp_path / "out")
        assert set(content(tmp_path / "out")) == {f"{name}/1.png" for name in names}
        assert [told in note for note in notes if told] == ([True] if told else [])

    def test_of_tar_may_be_no_unicode_as_well(self, tmp_path: Path) -> None:
        with tarfile.open(
            tmp_path / "x", "w", format=tarfile.GNU_FORMAT, encoding="cp1252"
        ) as archive:
            archive.addfile(tarfile.TarInfo("café/é.png"))
        notes = archives.unpack(tmp_path / "x", tmp_path / "out")
        assert content(tmp_path / "out") == {"café/é.png": b""}
        assert "cp1252" in notes[0]

    @pytest.mark.parametrize("make", MAKERS)
    def test_are_stored_with_composed_letters(
        self, tmp_path: Path, make: Callable[[Path, dict[str, bytes]], Path]
    ) -> None:
        (note,) = archives.unpack(make(tmp_path / "x", {"cafe\u0301/1": b""}), tmp_path / "out")
        assert content(tmp_path / "out") == {"caf\u00e9/1": b""}
        assert "Unicode NFC" in note

    def test_in_infozip_fields_count(self, tmp_path: Path) -> None:
        entry = zipfile.ZipInfo("?.png")
        text = "猫.png".encode()
        digest = zlib.crc32(b"\x83.png").to_bytes(4, "little")
        size = (len(text) + 5).to_bytes(2, "little")
        entry.extra = b"\x75\x70" + size + b"\1" + digest + text
        with zipfile.ZipFile(tmp_path / "x", "w") as archive:
            archive.writestr(entry, b"1")
        raw = (tmp_path / "x").read_bytes()
        (tmp_path / "x").write_bytes(raw.replace(b"?.png", b"\x83.png"))
        archives.unpack(tmp_path / "x", tmp_path / "out")
        assert content(tmp_path / "out") == {"猫.png": b"1"}

    def test_in_a_thousand_folders_are_refused(self, tmp_path: Path) -> None:
        path = a_zip(tmp_path / "x", {"a/" * 1000 + "1.png": b""})
        assert refusal(path, tmp_path / "out") == "unsafe_archive"


class TestOtherFiles:
    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
            (b"\n<!doctype html>", "an HTML page"),
            (b"", "an empty file"),
            (gzip.compress(b"hello", mtime=0), "no whole tar archive in it"),
            (b"PK\x03\x04 and no end", "its end is missing"),
        ],
    )
    def test_are_named(self, tmp_path: Path, content: bytes, words: str) -> None:
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(errors.UploadRefused, match=words):
            archives.unpack(tmp_path / "x", tmp_path / "out")

    def test_of_unknown_methods_of_zip_are_named(self, tmp_path: Path) -> None:
        path = a_zip(tmp_path / "x", {"a": b"1" * 100})
        raw = bytearray(path.read_bytes())
        at = raw.index(b"PK\x01\x02")
        raw[8], raw[at + 10] = 9, 9
        path.write_bytes(raw)
        with pytest.raises(errors.UploadRefused, match="compressed by Deflate64"):
            archives.unpack(path, tmp_path / "out")
