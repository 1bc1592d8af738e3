"""Bodies that models and data sets share."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from api import media_types
from api.schemas import rows
from models_registry.persistence import tables

LISTED_CLASSES = 100
"""A list shows so many classes of each version at most: a version may have 100,000 of them."""


class Images(BaseModel):
    """Shape of a network's images, and normalisation of their pixels."""

    model_config = ConfigDict(extra="forbid", strict=True)

    channels: int = Field(description="1 or more.")
    height: int = Field(description="1 to 4096.")
    width: int = Field(description="1 to 4096.")
    mean: list[float] = Field(description="One value per channel, of pixels scaled to 0..1.")
    std: list[float] = Field(description="One value per channel, greater than 0.")


class ImageHints(BaseModel):
    """Shape and normalisation as given by the uploader; absent ones are measured at inspection."""

    model_config = ConfigDict(extra="forbid", strict=True)

    channels: int | None = Field(None, description="1 or more.")
    height: int | None = Field(None, description="1 to 4096; pictures are resized to it.")
    width: int | None = Field(None, description="1 to 4096.")
    mean: list[float] | None = Field(None, description="One value per channel, of pixels in 0..1.")
    std: list[float] | None = Field(None, description="One value per channel, greater than 0.")
    max_value: int | None = Field(
        None,
        description="1 to 65535: the value that becomes white in pictures of more than 8 bits, "
        "such as 4095 for 12 bits; measured over all pictures if left out.",
    )
    max_bad_share: float | None = Field(
        None,
        description="0 to 1: the share of pictures that may be left out because they cannot be "
        "read; 0.01 if left out.",
    )


class DatasetHints(ImageHints):
    """What an uploader says about the images of a data set; absent ones are measured."""

    storage: Literal["auto", "decoded", "encoded"] | None = Field(
        None,
        description="encoded: pictures are kept as their files and decoded while training, each "
        "with its own size (classification). decoded: all are decoded once to one size. auto, or "
        "left out: encoded where they would take more than the service's "
        "RETORT_DECODED_DATASET_BYTES when decoded. The version's `encoded` and `notes` tell.",
    )


class Rejection(BaseModel):
    """Why an upload was rejected."""

    model_config = ConfigDict(extra="allow")

    code: str
    message: str


class NewestVersion(BaseModel):
    """The newest version of a model in whatever state, and why it was rejected if it was."""

    version: int
    state: str = Field(description="`pending`, `ready` or `rejected`.")
    rejection: Rejection | None


class StoredFile(rows.RowRead):
    """One file of a version."""

    path: str
    size_bytes: int
    sha256: str
    media_type: str = Field(description="By the suffix of its path.")

    @classmethod
    def of(cls, row: tables.ModelFileRow) -> Self:
        """Return the body of a row."""
        return cls.from_row(
            row,
            media_type=media_types.of(row.path),
        )
