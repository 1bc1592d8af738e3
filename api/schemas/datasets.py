"""Bodies of data sets and their versions."""

from datetime import datetime
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from api.schemas import described
from models_registry import datasets, references, tables

State = Literal["pending", "ready", "rejected"]


class DatasetVersionNew(BaseModel):
    """An upload that is to become a data set."""

    model_config = ConfigDict(extra="forbid", strict=True)

    upload: str = Field(description="Id of a completed upload with purpose `dataset`.")
    format: str = Field(description="How the upload is laid out, such as `imagefolder`.")
    task: str = Field("classification", json_schema_extra={"enum": ["classification"]})
    input: described.ImagesWish | None = Field(
        None, description="Size and normalisation to use; each is measured where it is left out."
    )
    card: str = Field("", description="Markdown.")
    tags: dict[str, str] = Field({}, description="At most 64.")

    def new(self, name: str) -> datasets.NewVersion:
        """Return what the registry takes."""
        fields = self.model_dump(exclude={"upload"}, exclude_none=True)
        return datasets.NewVersion(name=name, upload_id=self.upload, **fields)


class DatasetRead(BaseModel):
    """A line of versions."""

    name: str
    card: str
    tags: dict[str, str]
    latest_version: int | None = Field(description="Newest version that is ready.")
    created_at: datetime

    @classmethod
    def of(cls, row: tables.DatasetRow, latest_version: int | None) -> Self:
        """Return the body of a row."""
        return cls(
            name=row.name,
            card=row.card,
            tags=row.tags,
            latest_version=latest_version,
            created_at=row.created_at,
        )


class DatasetVersionRead(BaseModel):
    """One immutable version."""

    name: str
    version: int
    reference: str
    state: str = Field(description="`pending`, `ready` or `rejected`.")
    format: str
    task: str
    classes: list[str]
    splits: dict[str, int]
    input: dict[str, Any] | None = Field(description="Null until it was inspected.")
    digest: str | None
    rejection: described.Rejection | None
    card: str
    tags: dict[str, str]
    upload: str | None
    created_at: datetime

    @classmethod
    def of(cls, row: tables.DatasetVersionRow) -> Self:
        """Return the body of a row that belongs to a session."""
        name = datasets.name_of(row)
        return cls(
            name=name,
            version=row.version,
            reference=references.write(name, row.version),
            state=row.state,
            format=row.format,
            task=row.task,
            classes=row.classes,
            splits=row.splits,
            input=row.input if row.state == "ready" else None,
            digest=f"sha256:{row.sha256}" if row.sha256 else None,
            rejection=described.Rejection(**row.rejection) if row.rejection else None,
            card=row.card,
            tags=row.tags,
            upload=row.upload_id,
            created_at=row.created_at,
        )
