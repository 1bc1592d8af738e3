"""Which pictures are kept as their files, and which are written anew."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.distill.data.formats import uploads
from tests.distill.data.formats.test_imagefolder import an_archive, refusal, two_classes
from workers.distill.data import dataset, shards
from workers.distill.data.formats import conversion


def converted(folder: Path, files: dict[str, bytes], **hints: Any) -> dataset.DatasetRecord:
    folder.mkdir(exist_ok=True)
    an_archive(folder / "upload", files)
    return uploads.convert("imagefolder", folder, **{"storage": "encoded", **hints})


def saved(image: Image.Image, kind: str) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


class TestStorage:
    @pytest.mark.parametrize(
        ("storage", "limit", "is_encoded"),
        [
            ("auto", 100, True),
            ("auto", 10**6, False),
            ("decoded", 0, False),
            ("encoded", 9**9, True),
        ],
    )
    def test_auto_goes_by_the_decoded_size(
        self, storage: Any, limit: int, *, is_encoded: bool
    ) -> None:
        hints = conversion.InputHints(storage=storage, decoded_bytes=limit)
        assert hints.stores_encoded(conversion.StoredForm(3, 10, 10), 1000) == is_encoded

    def test_one_record_tells_how_and_why(self, tmp_path: Path) -> None:
        record = converted(tmp_path, two_classes(), storage="auto", decoded_bytes=1000)
        assert record.encoded is not None
        assert record.encoded.kinds == {"png": 20}
        assert record.encoded.smallest == record.encoded.largest == [8, 8]
        assert any("more than 1000 bytes when they are decoded" in note for note in record.notes)


class TestFiles:
    def test_files_are_kept_byte_for_byte_where_the_decoder_reads_them_alike(
        self, tmp_path: Path
    ) -> None:
        files = two_classes()
        deep = Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000)
        files["cat/deep.png"] = saved(deep, "PNG")
        files["cat/odd.gif"] = saved(Image.new("RGB", (8, 8), (9, 8, 7)), "GIF")
        files["dog/cmyk.jpg"] = saved(Image.new("CMYK", (8, 8), (9, 8, 7, 1)), "JPEG")
        record = converted(tmp_path, files)
        uploaded = set(files.values())
        found = {
            reader.read(row).content
            for name in dataset.SPLITS
            for reader in [shards.ShardReader.of(tmp_path / "dataset", name)]
            for row in range(len(reader))
        }
        # Colours of print are read alike; what has more than 8 bits or frames is not kept.
        assert len(uploaded & found) == 21
        assert files["dog/cmyk.jpg"] in found
        assert len(found) == 23
        assert record.encoded is not None
        assert record.encoded.kinds == {"jpg": 1, "png": 22}

    def test_a_damaged_picture_is_named(self, tmp_path: Path) -> None:
        cut = saved(Image.effect_noise((64, 64), 90).convert("RGB"), "JPEG")
        files = {**two_classes(), "cat/cut.jpg": cut[: len(cut) // 2]}
        fault = refusal(tmp_path, files, storage="encoded", height=8, width=8)
        assert "cat/cut.jpg is not a readable picture" in fault.message

    def test_a_few_damaged_ones_may_be_left_out(self, tmp_path: Path) -> None:
        files = {**two_classes(), "cat/cut.png": two_classes()["cat/00.png"][:45]}
        record = converted(tmp_path, files, max_bad_share=0.1)
        assert sum(record.sizes().values()) == 20
        assert any("cat/cut.png" in note for note in record.notes)
