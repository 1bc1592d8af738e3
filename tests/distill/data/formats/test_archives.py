"""Archives unpack to what they hold, never outside their folder, never without end."""

import gzip
import io
import stat
import tarfile
import zipfile
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
    def test_links_and_devices_in_tar_are_refused(self, tmp_path: Path, kind: bytes) -> None:
        path = a_tar_with(tmp_path / "x", type=kind, linkname="/etc/passwd")
        assert refusal(path, tmp_path / "out") == "unsafe_archive"
        assert content(tmp_path / "out") == {}

    def test_links_in_zip_are_refused(self, tmp_path: Path) -> None:
        entry = zipfile.ZipInfo("link")
        entry.create_system = 3
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16
        with zipfile.ZipFile(tmp_path / "x", "w") as archive:
            archive.writestr(entry, "/etc/passwd")
        assert refusal(tmp_path / "x", tmp_path / "out") == "unsafe_archive"

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
