"""Pictures that are stored as their files give the images that decoded ones give."""

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.distill.data.formats import uploads
from tests.distill.data.formats.test_imagefolder import an_archive
from tests.distill.data.test_loader import same
from workers.distill import errors
from workers.distill.config.training import expand
from workers.distill.data import dataset, encoded_images, shards
from workers.distill.data.formats import pictures
from workers.distill.data.lazy_images import shown
from workers.distill.data.loader import BatchLoader
from workers.distill.data.transforms import random_crops
from workers.distill.data.types import ResizedCrops

CPU = torch.device("cpu")
KINDS = ("JPEG", "PNG", "WEBP", "GIF")


def a_picture(number: int, size: tuple[int, int], kind: str, **options: Any) -> bytes:
    """Return a smooth picture, as photographs are."""
    values = np.random.default_rng(number).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(values).resize(size[::-1], Image.Resampling.BICUBIC).save(
        stream, kind, **options
    )
    return stream.getvalue()


def converted(folder: Path, files: dict[str, bytes], **hints: Any) -> dataset.StoredDataset:
    folder.mkdir()
    an_archive(folder / "upload", files)
    uploads.convert("imagefolder", folder, **hints)
    return dataset.load(folder / "dataset")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dataset.StoredDataset]:
    """The same pictures of one size, stored in both ways."""
    files = {
        f"{split}/{'cat' if number % 2 else 'dog'}/{number}.{kind.lower()}": a_picture(
            number, (24, 30), kind
        )
        for split, count in (("train", 13), ("val", 4), ("test", 4))
        for number in range(count)
        for kind in KINDS[number % 4 : number % 4 + 1]
    }
    folder = tmp_path_factory.mktemp("both")
    return {how: converted(folder / how, files, storage=how) for how in ("decoded", "encoded")}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> dataset.StoredDataset:
    """Pictures of different sizes, stored encoded for an input of 16 x 16."""
    files = {
        f"{'cat' if number % 2 else 'dog'}/{number}.jpg": a_picture(
            number, (20 + 3 * number, 50 - number), "JPEG"
        )
        for number in range(12)
    }
    folder = tmp_path_factory.mktemp("mixed")
    return converted(folder / "mixed", files, storage="encoded", height=16, width=16)


def loader_of(stored: dataset.StoredDataset, **fields: Any) -> BatchLoader:
    split = stored.open_split("train")
    training = expand({"batch_size": 4, **fields})
    return BatchLoader(split.images, split.labels, training=training, flip=True, device=CPU)


class TestBothForms:
    @pytest.mark.parametrize(
        "fields",
        [
            {},
            {"augmentation": "none"},
            {"augmentation": "scale_jitter"},
            {"augmentation": "trivialaugment", "random_resized_crop": {}},
            {"random_resized_crop": {"interpolation": "bicubic"}, "random_erasing": {}},
            {"teacher_cache": {"views": 3, "per_visit": 2}, "random_resized_crop": {}},
            {"mixing": {"name": "cutmix"}},
        ],
    )
    def test_train_on_the_same_images(
        self, both: dict[str, dataset.StoredDataset], fields: dict[str, Any]
    ) -> None:
        one, other = (loader_of(stored, **fields) for stored in both.values())
        for epoch in (1, 2):
            pairs = zip(one.epoch(epoch), other.epoch(epoch), strict=True)
            assert all(same(*pair) for pair in pairs)
        rest = list(other.epoch(2, first=2))
        assert all(same(*pair) for pair in zip(list(one.epoch(2))[2:], rest, strict=True))
        assert rest[0].images.is_contiguous(memory_format=torch.channels_last)

    @pytest.mark.parametrize("ratio", [None, 0.7])
    def test_are_scored_on_the_same_images(
        self, both: dict[str, dataset.StoredDataset], ratio: float | None
    ) -> None:
        one, other = (shown(stored.open_split("test").images, ratio) for stored in both.values())
        assert one.shape == other.shape
        assert torch.equal(one[0:4], other[0:4])
        assert torch.equal(one[torch.tensor([3, 1])], other[torch.tensor([3, 1])])

    def test_have_the_same_record(self, both: dict[str, dataset.StoredDataset]) -> None:
        decoded, encoded = both["decoded"].record, both["encoded"].record
        assert decoded.encoded is None
        assert encoded.encoded is not None
        assert encoded.encoded.kinds == {"jpg": 6, "png": 10, "webp": 5}
        assert encoded.encoded.moments_of == 13
        left_out: Any = {"encoded", "notes"}
        assert encoded.model_dump(exclude=left_out) == decoded.model_dump(exclude=left_out)
        assert any("stored encoded" in note for note in encoded.notes)

    def test_whoever_needs_decoded_images_refuses_the_others(
        self, both: dict[str, dataset.StoredDataset]
    ) -> None:
        with pytest.raises(errors.BadDataset, match='"storage": "decoded"'):
            both["encoded"].split("train")


class TestPicturesOfDifferentSizes:
    def test_crops_are_cut_from_the_picture_as_it_was_uploaded(
        self, mixed: dataset.StoredDataset
    ) -> None:
        loader = loader_of(mixed, random_resized_crop={"scale": [0.2, 0.6]})
        images = mixed.open_split("train").images
        assert isinstance(images, encoded_images.EncodedImages)
        sides = set()
        for plan, batch in zip(loader.plans(1), loader.epoch(1), strict=True):
            assert isinstance(plan.crops, ResizedCrops)
            rows = zip(plan.index.tolist(), plan.crops.rows(), batch.images, strict=True)
            for place, row, image in rows:
                picture = images.picture(place)
                sides.add(tuple(picture.shape[1:]))
                part = (row.top, row.left, row.tall, row.wide)
                cut = random_crops.resize_part(picture, part, (16, 16), "bilinear")
                assert torch.equal(image, cut.flip(2) if row.mirrored else cut)
        assert len(sides) > 4

    def test_are_shown_in_the_inputs_size(self, mixed: dataset.StoredDataset) -> None:
        images = mixed.open_split("validation").images
        assert images[:].shape == (mixed.record.splits["validation"], 3, 16, 16)


class TestShards:
    def test_files_are_tar_archives_of_pictures_and_their_classes(
        self, mixed: dataset.StoredDataset
    ) -> None:
        # As WebDataset reads them: entries with one key follow one another.
        labels = mixed.open_split("train").labels.tolist()
        with tarfile.open(mixed.folder / shards.shard_name("train", 0)) as archive:
            entries = archive.getmembers()
            assert [entry.name for entry in entries] == [
                f"{number:09d}.{suffix}"
                for number in range(len(labels))
                for suffix in ("jpg", "cls")
            ]
            contents = [archive.extractfile(entry) for entry in entries]
            read = [stream.read() for stream in contents if stream is not None]
        assert [int(each) for each in read[1::2]] == labels
        reader = shards.ShardReader.of(mixed.folder, "train")
        assert [reader.read(row).content for row in range(len(labels))] == read[::2]

    def test_a_new_file_begins_where_one_is_large(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(shards, "SHARD_BYTES", 4000)
        writer = shards.ShardWriter(tmp_path, "train")
        contents = [bytes([number]) * 1500 for number in range(7)]
        for content in contents:
            writer.add(shards.EncodedPicture(content, "png", 1, 2), None)
        writer.close(torch.full((7,), -1))
        names = sorted(path.name for path in tmp_path.glob("*.tar"))
        assert names == [shards.shard_name("train", number) for number in range(4)]
        reader = shards.ShardReader.of(tmp_path, "train")
        assert [reader.read(row).content for row in range(7)] == contents

    def test_a_file_that_is_cut_off_is_named(self, tmp_path: Path) -> None:
        writer = shards.ShardWriter(tmp_path, "test")
        writer.add(shards.EncodedPicture(bytes(5000), "png", 1, 2), 0)
        writer.close(torch.zeros(1, dtype=torch.int64))
        path = tmp_path / shards.shard_name("test", 0)
        path.write_bytes(path.read_bytes()[:3000])
        with pytest.raises(errors.BadDataset, match=r"test-00000\.tar .* shorter than its index"):
            shards.ShardReader.of(tmp_path, "test")
        path.unlink()
        with pytest.raises(errors.BadDataset, match=r"test-00000\.tar .* cannot be read"):
            shards.ShardReader.of(tmp_path, "test")


class TestDecode:
    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("channels", [1, 3])
    def test_is_what_pillow_shows_upright(
        self, tmp_path: Path, orientation: int, channels: int
    ) -> None:
        exif = Image.Exif()
        exif[pictures.ORIENTATION] = orientation
        file = tmp_path / "a.png"
        file.write_bytes(a_picture(3, (6, 9), "PNG", exif=exif))
        header = pictures.read_header(file, tmp_path)
        picture = shards.EncodedPicture(
            file.read_bytes(), "png", header.height, header.width, header.orientation
        )
        shown_upright = pictures.to_array(pictures.decode(file, tmp_path, channels))
        ours = encoded_images.decode(picture, channels).numpy()
        assert np.array_equal(ours, shown_upright)

    def test_a_damaged_picture_is_named(self, tmp_path: Path) -> None:
        writer = shards.ShardWriter(tmp_path, "train")
        writer.add(shards.EncodedPicture(a_picture(1, (8, 8), "PNG"), "png", 8, 8), 0)
        writer.add(shards.EncodedPicture(b"\x89PNG\r\n\x1a\nno more", "png", 8, 8), 0)
        writer.close(torch.zeros(2, dtype=torch.int64))
        reader = shards.ShardReader.of(tmp_path, "train")
        images = encoded_images.EncodedImages(reader, (3, 8, 8))
        assert images[0:1].shape == (1, 3, 8, 8)
        with pytest.raises(errors.BadDataset, match="picture 1 cannot be decoded"):
            images[0:2]
