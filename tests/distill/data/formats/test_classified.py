"""Pictures of any kind become images of one kind; the few that cannot be read are left out."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.distill.data.formats import uploads
from workers.distill import errors
from workers.distill.data import dataset

HALF = np.concatenate([np.zeros((8, 16), np.uint8), np.full((8, 16), 200, np.uint8)])


def encoded(pixels: Any, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.asarray(pixels)).save(stream, kind, **options)
    return stream.getvalue()


def convert(tmp_path: Path, files: dict[str, bytes | str], **hints: Any) -> dataset.DatasetRecord:
    uploads.archive(tmp_path, files)
    return uploads.convert("imagefolder", tmp_path, **hints)


def both(content: bytes, count: int = 3, suffix: str = ".png") -> dict[str, bytes | str]:
    return {f"{name}/{index}{suffix}": content for name in "ab" for index in range(count)}


def train_images(tmp_path: Path) -> Any:
    return dataset.load(tmp_path / "dataset").split("train").images


class TestUpright:
    @pytest.mark.parametrize("turned", range(1, 9))
    def test_pictures_are_as_exif_says(self, tmp_path: Path, turned: int) -> None:
        exif = Image.Exif()
        exif[uploads.ORIENTATION] = turned
        wanted = Image.open(io.BytesIO(encoded(HALF)))
        # The transposition that undoes what the camera did.
        undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
        stored = wanted.transpose(Image.Transpose(undo[turned])) if turned > 1 else wanted
        record = convert(tmp_path, both(encoded(stored, exif=exif)))
        assert (train_images(tmp_path)[0, 0].numpy() == HALF).all()
        told = ["6 pictures were turned or mirrored to be upright, as their EXIF says"]
        assert record.notes[:-2] == (told if turned > 1 else [])


class TestDepth:
    @pytest.mark.parametrize(("highest", "white"), [(4080, 4095), (1000, 1023), (40_000, 65_535)])
    def test_is_found_over_the_whole_upload(self, tmp_path: Path, highest: int, white: int) -> None:
        files = both(encoded(np.full((8, 8), highest // 2, np.uint16)))
        files["b/2.png"] = encoded(np.full((8, 8), highest, np.uint16))
        record = convert(tmp_path, files)
        assert int(train_images(tmp_path).min()) == round(highest // 2 / white * 255)
        words = f"with values up to {highest}: they were scaled so that {white} becomes 255"
        assert f"6 grey pictures have more than 8 bits, {words}" in record.notes[0]

    def test_may_be_told(self, tmp_path: Path) -> None:
        record = convert(tmp_path, both(encoded(np.full((8, 8), 3000, np.uint16))), max_value=2000)
        assert (train_images(tmp_path) == 255).all()
        assert "2000 and all above it become 255" in record.notes[0]

    def test_of_fractions_is_not_guessed(self, tmp_path: Path) -> None:
        files = both(encoded(np.full((8, 8), 0.5, np.float32), "TIFF"), suffix=".tif")
        with pytest.raises(errors.UploadRefused, match="its values are fractions"):
            convert(tmp_path, files)


class TestKinds:
    @pytest.mark.parametrize(
        ("kind", "suffix"),
        [("JPEG", ".jfif"), ("AVIF", ".avif"), ("HEIF", ".HEIC"), ("PPM", ".pnm")],
    )
    def test_of_phones_and_browsers_are_read(self, tmp_path: Path, kind: str, suffix: str) -> None:
        convert(tmp_path, both(encoded(np.full((16, 16, 3), 90, np.uint8), kind), suffix=suffix))
        assert abs(int(train_images(tmp_path).float().mean()) - 90) <= 3

    def test_with_several_pictures_are_told(self, tmp_path: Path) -> None:
        more = [Image.new("L", (8, 8), 200)]
        content = encoded(np.zeros((8, 8), np.uint8), "GIF", save_all=True, append_images=more)
        record = convert(tmp_path, both(content, suffix=".gif"))
        assert record.notes[0] == "6 files hold several pictures, of which the first was read"


class TestSizes:
    def test_beyond_what_is_stored_need_a_smaller_one(self, tmp_path: Path) -> None:
        wide = both(encoded(np.zeros((2, 5000), np.uint8)))
        with pytest.raises(errors.UploadRefused, match=r"2x5000 .* give a smaller input\.height"):
            convert(tmp_path, wide)
        other = tmp_path / "other"
        other.mkdir()
        assert convert(other, wide, height=2, width=4).input.width == 4


class TestUnreadablePictures:
    CUT = encoded(np.random.RandomState(0).randint(0, 256, (20, 30)).astype(np.uint8))[:200]

    def test_are_left_out_while_they_are_few(self, tmp_path: Path) -> None:
        files = both(uploads.picture(1), count=50)
        files["a/7.png"] = self.CUT
        record = convert(tmp_path, files)
        assert sum(record.splits.values()) == 99
        assert record.notes[0].startswith("1 of 100 pictures were left out: a/7.png is not a")
        for name in dataset.SPLITS:
            split = dataset.load(tmp_path / "dataset").split(name)
            assert (split.images == 1).all()

    def test_are_all_named_at_once(self, tmp_path: Path) -> None:
        files = both(uploads.picture(1), count=5)
        files |= {"a/cut.png": self.CUT, "a/empty.png": b"", "b/page.jpg": "<html>"}
        with pytest.raises(errors.UploadRefused) as caught:
            convert(tmp_path, files)
        lines = caught.value.message.split("\n")
        assert lines[0] == "the upload has 3 problems:"
        assert [line.split()[0] for line in lines[1:4]] == [
            "a/cut.png",
            "a/empty.png",
            "b/page.jpg",
        ]
        assert "it is an empty file" in lines[2]
        assert "it is an HTML page" in lines[3]
        assert "3 of 13 pictures cannot be read" in lines[4]
        assert "input.max_bad_share" in lines[4]

    def test_are_left_out_up_to_the_share_that_is_given(self, tmp_path: Path) -> None:
        files = both(uploads.picture(1), count=5)
        files |= {"a/cut.png": self.CUT, "a/empty.png": b""}
        assert sum(convert(tmp_path / "1", files, max_bad_share=0.2).splits.values()) == 10
        with pytest.raises(errors.UploadRefused, match="2 of 12 pictures"):
            convert(tmp_path / "2", files, max_bad_share=0.1)

    def test_are_named_beside_other_problems(self, tmp_path: Path) -> None:
        files = both(uploads.picture(1), count=5)
        files |= {"a/cut.png": self.CUT, "a/other.png": uploads.picture(1, size=(9, 9))}
        with pytest.raises(errors.UploadRefused, match=r"different sizes[^\0]*a/cut.png") as caught:
            convert(tmp_path, files, max_bad_share=0.5)
        assert caught.value.refusal == "mixed_sizes"

    def test_are_named_up_to_fifty(self, tmp_path: Path) -> None:
        files = both(uploads.picture(1)) | {f"a/x{number}.png": b"" for number in range(60)}
        with pytest.raises(errors.UploadRefused) as caught:
            convert(tmp_path, files)
        assert caught.value.message.startswith("the upload has 60 problems, the first 50:\na/x")
        assert caught.value.message.count("\n") == 51
