"""Packed checkpoints are found, and files of other kinds are named for what they are."""

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from workers.distill import errors
from workers.distill.files import torchfile, wrapping

STATE = {"w": torch.arange(100.0)}


def saved() -> bytes:
    stream = io.BytesIO()
    torch.save(STATE, stream)
    return stream.getvalue()


def zipped(entries: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return stream.getvalue()


def tarred(entries: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in entries.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def reopened(content: bytes) -> bytes:
    """Return a file of torch.save that was unpacked and packed again, as file managers do."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = {f"t/{name}": archive.read(name) for name in archive.namelist()}
    return zipped({**entries, "__MACOSX/t/._archive": b"\x00"})


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "t.pth.gz": gzip.compress,
    "t.pth.bz2": bz2.compress,
    "t.pth.xz": lzma.compress,
    "t.zip": lambda content: zipped({"t.pth": content}),
    "with by-products.zip": lambda content: zipped(
        {"a/t.pth": content, "__MACOSX/a/._t.pth": b"x", "a/.DS_Store": b"x"}
    ),
    "with a note.zip": lambda content: zipped({"t.safetensors": content, "README.md": b"x"}),
    "t.pth.tar": lambda content: tarred({"./t.pth": content}),
    "t.tgz": lambda content: gzip.compress(tarred({"t.pth": content})),
    "repacked.zip": reopened,
}


class TestOpened:
    @pytest.mark.parametrize("name", PACKED)
    def test_the_checkpoint_inside_is_found_and_told(self, tmp_path: Path, name: str) -> None:
        path = tmp_path / name
        path.write_bytes(PACKED[name](saved()))
        with wrapping.opened(path) as found:
            checkpoint = torchfile.read(found.path)
            assert torch.equal(checkpoint.tensor(checkpoint.content["w"]), STATE["w"])
            assert all(name in remark or "t.pth" in remark for remark in found.remarks)
            assert found.remarks or name == "repacked.zip"
        assert [file.name for file in tmp_path.iterdir()] == [name]

    def test_a_plain_file_is_itself(self, tmp_path: Path) -> None:
        path = tmp_path / "t.pth"
        path.write_bytes(saved())
        with wrapping.opened(path) as found:
            assert found == wrapping.Opened(path)

    def test_bombs_are_not_unpacked(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(wrapping, "SMALLEST_LIMIT", 1 << 16)
        path = tmp_path / "bomb.gz"
        path.write_bytes(gzip.compress(bytes(1 << 20)))
        with pytest.raises(errors.UploadRefused, match="more than 65536 bytes"):
            wrapping.opened(path).__enter__()

    def test_several_checkpoints_are_listed(self, tmp_path: Path) -> None:
        path = tmp_path / "both.zip"
        path.write_bytes(zipped({"a.pth": saved(), "b.pth": saved()}))
        with pytest.raises(errors.UploadRefused, match=r"several checkpoints \(a.pth, b.pth\)"):
            wrapping.opened(path).__enter__()

    @pytest.mark.parametrize("name", ["t.pth.gz", "t.zip", "t.pth.tar", "t.pth.xz"])
    def test_cut_archives_are_named(self, tmp_path: Path, name: str) -> None:
        whole = PACKED[name](saved())
        (tmp_path / name).write_bytes(whole[: min(len(whole) // 2, 1000)])
        with pytest.raises(errors.UploadRefused, match=f"{name} is a damaged or cut archive"):
            wrapping.opened(tmp_path / name).__enter__()

    def test_names_in_an_archive_lead_nowhere(self, tmp_path: Path) -> None:
        path = tmp_path / "t.zip"
        path.write_bytes(zipped({"../../evil.pth": saved()}))
        with wrapping.opened(path) as found:
            assert tmp_path in found.path.parents


class TestOtherKinds:
    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (b"", "empty"),
            (b"<!DOCTYPE html><html>Virus scan warning</html>", "an HTML page"),
            (b"\n  <html lang=en>", "an HTML page"),
            (b'<?xml version="1.0"?><Error><Code>AccessDenied', "an XML text"),
            (b'{"message": "Not Found"}', "a JSON text"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d", "git lfs pull"),
            (b"/annex/objects/SHA256E-s1--a", "git annex get"),
            (b"\x89HDF\r\n\x1a\n" + bytes(8), "HDF5"),
            (b"\x08\x08\x12\x07pytorch\x1a\x052.1.0", "an ONNX model"),
            (b"\x08\x09:\xc3\x84\x01\n", "an ONNX model"),
            (b"\x08\x01\x12\x89\xab\x04\xff\xfe", "a SavedModel of TensorFlow"),
            (b"\x1c\x00\x00\x00TFL3" + bytes(8), "TensorFlow Lite"),
            (bytes(50) + wrapping.TENSORFLOW_TABLE, "a checkpoint of TensorFlow"),
            (b"\x93NUMPY\x01\x00", "a NumPy array"),
            (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
            (b"GGUF\x03\x00", "GGUF"),
            (zipped({"m/saved_model.pb": b"x"}), "a SavedModel of TensorFlow"),
            (zipped({"config.json": b"{}", "model.weights.h5": b"x"}), "a model of Keras"),
            (zipped({"w.npy": b"x"}), "npz"),
        ],
    )
    def test_are_named_with_their_own_name_and_a_way_out(
        self, tmp_path: Path, content: bytes, words: str
    ) -> None:
        path = tmp_path / "mine.pth"
        path.write_bytes(content)
        with pytest.raises(errors.UploadRefused) as caught:
            wrapping.opened(path).__enter__()
        assert caught.value.refusal == "unreadable"
        assert caught.value.message.startswith("mine.pth is ")
        assert words in caught.value.message
