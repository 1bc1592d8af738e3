"""Bodies of uploads."""

import dataclasses
from collections.abc import Sequence
from datetime import datetime
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from api.schemas import rows
from models_registry.artifacts import uploads
from models_registry.persistence import tables

State = Literal["open", "completed"]


class UploadNew(BaseModel):
    """A file that will be sent in parts."""

    model_config = ConfigDict(extra="forbid", strict=True)

    filename: str = Field(description="Name of the file without folders; kept as a label only.")
    size_bytes: int = Field(description="Size of the whole file.")
    sha256: str = Field(description="SHA-256 of the whole file, 64 hexadecimal digits.")
    purpose: str = Field(
        description="What it is for.", json_schema_extra={"enum": ["model", "dataset"]}
    )


class UploadPart(BaseModel):
    """One part of an upload."""

    number: int
    url: str = Field(
        description="PUT the bytes of the part here: a path of this API, or a presigned URL of the "
        "store, which takes no key. The API's own path always works as well."
    )
    size_bytes: int
    received: bool
    sha256: str | None = Field(
        description="Of the bytes received; null before, once completed, and of a part that was "
        "sent to the store itself."
    )


class UploadSummary(rows.RowRead):
    """An upload in a list."""

    id: str
    state: str = Field(description="`open` or `completed`.")
    filename: str
    purpose: str
    size_bytes: int
    sha256: str
    part_size_bytes: int = Field(description="Size of every part but the last.")
    blob: str | None = Field(description="`sha256:<hex>` once completed.")
    created_at: datetime
    expires_at: datetime = Field(
        description="When an idle upload is deleted; each part received postpones it."
    )

    @classmethod
    def of_row(cls, upload: tables.UploadRow) -> Self:
        """Return the body of a row."""
        return cls.from_row(upload, blob=_blob(upload))


class UploadRead(UploadSummary):
    """An upload as it is now, with its parts."""

    parts: list[UploadPart]

    @classmethod
    def of(cls, upload: tables.UploadRow, parts: Sequence[uploads.PartStatus]) -> Self:
        """Return the body of a row with its parts."""
        shown = [UploadPart(**dataclasses.asdict(part)) for part in parts]
        return cls.from_row(upload, blob=_blob(upload), parts=shown)


def _blob(upload: tables.UploadRow) -> str | None:
    return f"sha256:{upload.blob_sha256}" if upload.blob_sha256 else None
