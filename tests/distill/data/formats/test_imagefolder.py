"""Folders of pictures become a prepared data set; every fault is named with its file."""

import io
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.distill.data.formats import uploads
from workers.distill import errors
from workers.distill.data import dataset


def a_picture(value: int = 0, *, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> bytes:
    stream = io.BytesIO()
    depth = 3 if mode == "RGB" else 1
    pixels = np.full((*size, depth), value, dtype=np.uint8)
    Image.fromarray(pixels if depth == 3 else pixels[..., 0]).save(stream, "PNG")
    return stream.getvalue()


def an_archive(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def convert(tmp_path: Path, files: dict[str, bytes], **hints: Any) -> dataset.DatasetRecord:
    tmp_path.mkdir(exist_ok=True)
    an_archive(tmp_path / "upload", files)
    return uploads.convert("imagefolder", tmp_path, **hints)


def refusal(tmp_path: Path, files: dict[str, bytes], **hints: Any) -> errors.UploadRefused:
    with pytest.raises(errors.UploadRefused) as caught:
        convert(tmp_path, files, **hints)
    return caught.value


def two_classes(prefix: str = "", *, count: int = 10, mode: str = "RGB") -> dict[str, bytes]:
    return {
        f"{prefix}{name}/{index:02}.png": a_picture(value + index, mode=mode)
        for name, value in (("dog", 100), ("cat", 50))
        for index in range(count)
    }


class TestConvert:
    def test_class_folders_become_three_splits(self, tmp_path: Path) -> None:
        record = convert(tmp_path, two_classes())
        assert record.classes == ["cat", "dog"]
        assert record.splits == {"train": 14, "validation": 2, "test": 4}
        assert record.flip
        assert (record.input.channels, record.input.height, record.input.width) == (3, 8, 8)
        assert len(record.notes) == 2
        stored = dataset.load(tmp_path / "dataset")
        seen = torch.cat([stored.split(name).images[:, 0, 0, 0] for name in dataset.SPLITS])
        assert sorted(seen.tolist()) == [*range(50, 60), *range(100, 110)]
        for name in dataset.SPLITS:
            split = stored.split(name)
            assert torch.equal(split.labels, (split.images[:, 0, 0, 0] >= 100).long())

    def test_moments_are_those_of_the_training_split(self, tmp_path: Path) -> None:
        record = convert(tmp_path, two_classes())
        pixels = dataset.load(tmp_path / "dataset").split("train").images.double() / 255
        assert record.input.mean == pytest.approx(pixels.mean(dim=(0, 2, 3)).tolist(), abs=1e-6)
        expected = pixels.std(dim=(0, 2, 3), correction=0).tolist()
        assert record.input.std == pytest.approx(expected, abs=1e-6)

    def test_given_moments_are_kept(self, tmp_path: Path) -> None:
        record = convert(tmp_path, two_classes(), mean=[0.1, 0.2, 0.3], std=[1.0, 1.0, 2.0])
        assert (record.input.mean, record.input.std) == ([0.1, 0.2, 0.3], [1.0, 1.0, 2.0])

    @pytest.mark.parametrize("wrapper", ["", "photos/", "a/b/"])
    @pytest.mark.parametrize("validation", ["val", "validation", "Valid"])
    def test_given_splits_are_kept_in_any_wrapping_folder(
        self, tmp_path: Path, wrapper: str, validation: str
    ) -> None:
        files = {
            **two_classes(f"{wrapper}train/", count=5),
            **two_classes(f"{wrapper}{validation}/", count=2),
            **two_classes(f"{wrapper}test/", count=1),
        }
        record = convert(tmp_path, files)
        assert record.splits == {"train": 10, "validation": 4, "test": 2}
        assert record.notes == []

    def test_tar_works_as_well(self, tmp_path: Path) -> None:
        with tarfile.open(tmp_path / "upload", "w:gz") as archive:
            for name, content in two_classes().items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        record = uploads.convert("imagefolder", tmp_path)
        assert sum(record.splits.values()) == 20

    def test_grey_pictures_stay_grey_unless_colour_is_asked_for(self, tmp_path: Path) -> None:
        files = two_classes(mode="L")
        assert convert(tmp_path / "1", files).input.channels == 1
        assert convert(tmp_path / "3", files, channels=3).input.channels == 3

    def test_pictures_are_scaled_on_their_shorter_side_and_cut_in_the_middle(
        self, tmp_path: Path
    ) -> None:
        wide = np.zeros((8, 24, 3), dtype=np.uint8)
        wide[:, 8:16] = 200
        stream = io.BytesIO()
        Image.fromarray(wide).save(stream, "PNG")
        files = {f"{name}/{index}.png": stream.getvalue() for name in "ab" for index in range(3)}
        convert(tmp_path, files, height=8)
        images = dataset.load(tmp_path / "dataset").split("train").images
        assert images.shape[1:] == (3, 8, 8)
        assert (images == 200).all()

    def test_debris_and_other_files_are_left_out(self, tmp_path: Path) -> None:
        files = {
            **two_classes(),
            "__MACOSX/cat/._00.png": b"x",
            "cat/.DS_Store": b"x",
            "cat/._00.png": b"x",
            "cat/notes.txt": b"x",
            "README": b"x",
        }
        record = convert(tmp_path, files)
        assert sum(record.splits.values()) == 20
        words = "files that are no pictures were left out: "
        assert record.notes[0] == words + "1 without an ending, 1 ending in .txt"

    def test_palettes_and_sixteen_bits_are_converted(self, tmp_path: Path) -> None:
        deep, palette = io.BytesIO(), io.BytesIO()
        Image.fromarray(np.full((8, 8), 256 * 77, dtype=np.uint16)).save(deep, "PNG")
        Image.new("P", (8, 8), 3).save(palette, "PNG", transparency=b"\0\1\2")
        files = {f"a/{index}.png": deep.getvalue() for index in range(3)}
        files |= {f"b/{index}.png": palette.getvalue() for index in range(3)}
        convert(tmp_path, files)
        split = dataset.load(tmp_path / "dataset").split("train")
        assert (split.images[split.labels == 0] == 77).all()

    def test_turned_pictures_are_upright(self, tmp_path: Path) -> None:
        turned = uploads.picture(1, size=(8, 12), turned=6)
        files: dict[str, bytes] = {f"{name}/{n}.png": turned for name in "ab" for n in range(3)}
        record = convert(tmp_path, files)
        assert (record.input.height, record.input.width) == (12, 8)


class TestRefusedArchives:
    @pytest.mark.parametrize(
        "files",
        [
            {"README": b"x"},
            {"1.png": a_picture()},
            {"cat/slice.dcm": b"x", "dog/1.png": a_picture()},
            {**two_classes("val/"), **two_classes("test/")},
        ],
    )
    def test_no_images(self, tmp_path: Path, files: dict[str, bytes]) -> None:
        assert refusal(tmp_path, files).refusal == "no_images"

    def test_one_class_only(self, tmp_path: Path) -> None:
        assert refusal(tmp_path, {"cat/1.png": a_picture()}).refusal == "bad_labels"

    def test_class_that_training_does_not_know(self, tmp_path: Path) -> None:
        files = {**two_classes("train/"), "test/cow/1.png": a_picture()}
        error = refusal(tmp_path, files)
        assert error.refusal == "bad_labels"
        assert "'cow'" in error.message

    def test_mixed_sizes_say_what_to_give(self, tmp_path: Path) -> None:
        error = refusal(tmp_path, {**two_classes(), "cat/x.png": a_picture(size=(9, 8))})
        assert error.refusal == "mixed_sizes"
        assert "input.height" in error.message
        assert "9x8" in error.message

    @pytest.mark.parametrize("content", [b"not a picture", b"", b"\x89PNG\r\n\x1a\n broken"])
    def test_file_that_is_no_picture_is_named(self, tmp_path: Path, content: bytes) -> None:
        error = refusal(tmp_path, {**two_classes(), "cat/broken.png": content})
        assert error.refusal == "unreadable"
        assert "cat/broken.png" in error.message

    def test_cut_picture_is_named(self, tmp_path: Path) -> None:
        noise = np.random.RandomState(0).randint(0, 256, (8, 8, 3)).astype(np.uint8)
        stream = io.BytesIO()
        Image.fromarray(noise).save(stream, "PNG")
        error = refusal(tmp_path, {**two_classes(), "cat/cut.png": stream.getvalue()[:120]})
        assert error.refusal == "unreadable"
        assert "cat/cut.png" in error.message

    def test_picture_of_too_many_pixels_is_not_decoded(self, tmp_path: Path) -> None:
        stream = io.BytesIO()
        Image.new("1", (9000, 9000)).save(stream, "PNG")
        error = refusal(tmp_path, {**two_classes(), "cat/huge.png": stream.getvalue()}, height=8)
        assert error.refusal == "too_large"

    def test_link_is_refused(self, tmp_path: Path) -> None:
        with tarfile.open(tmp_path / "upload", "w") as archive:
            member = tarfile.TarInfo("cat/1.png")
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(member)
        with pytest.raises(errors.UploadRefused) as caught:
            uploads.convert("imagefolder", tmp_path)
        assert caught.value.refusal == "unsafe_archive"
