"""Bodies of data sets and their versions."""

from datetime import datetime
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from api.schemas import rows, versions
from models_registry import catalog, errors
from models_registry.artifacts import datasets, references, synthetic_datasets
from models_registry.artifacts import input_checks as rules
from models_registry.artifacts.input_checks import TASKS_OF_DATASETS
from models_registry.persistence import tables
from workers.distill.config import samples

FORMATS = catalog.load().formats
State = Literal["pending", "ready", "rejected"]


class DatasetVersionNew(BaseModel):
    """A new version: of an upload, of files elsewhere, or of images that a data-free job kept."""

    model_config = ConfigDict(extra="forbid", strict=True)

    upload: str | None = Field(None, description="Id of a completed upload with purpose `dataset`.")
    source: str | None = Field(
        None,
        description="Instead of `upload`: address of a file or folder that the service may read "
        "(`RETORT_SOURCES`), as `s3://bucket/prefix` or `file:///folder` of its workers, without "
        "credentials. A file is what an upload would be; a folder is laid out as an archive of it "
        "would be. Nothing is copied into the store: the version is pinned by the digest of what "
        "is listed there, and a job whose source has changed since fails with `source_changed`.",
    )
    format: str | None = Field(
        None,
        description="How the upload is laid out. `auto`, or left out: recognised by its content, "
        "which `format` and `notes` of the version then tell. "
        + "; ".join(f"`{name}`: {entry['title']}" for name, entry in FORMATS.items())
        + ".",
    )
    task: str = Field("classification", json_schema_extra={"enum": list(TASKS_OF_DATASETS)})
    input: versions.DatasetHints | None = Field(
        None, description="Size and normalisation to use; each is measured where it is left out."
    )
    job: str | None = Field(
        None,
        description="Instead of `upload`, `format` and `input`: id of a data-free job that "
        "succeeded and kept its images.",
    )
    card: str = Field(
        "", description="Markdown; for a job's images, written by the server if left out."
    )
    tags: dict[str, str] = Field({}, description="At most 64.")

    def new(self, name: str) -> datasets.NewDatasetVersion | synthetic_datasets.NewSyntheticDataset:
        """Return the new version as the registry takes it.

        Raises: errors.Refused where none of `upload`, `source` and `job` is there, or several are.
        """
        if self.job is not None:
            self._refuse_given("upload", "source", "format", "input")
            task = self.task if "task" in self.model_fields_set else None
            return synthetic_datasets.NewSyntheticDataset(
                name=name, job_id=self.job, task=task, card=self.card, tags=self.tags
            )
        if self.upload is None and self.source is None:
            raise self._incomplete()
        if self.upload is not None and self.source is not None:
            raise self._refused("/source", "not_with_upload", "give upload or source, not both")
        given = self.model_dump(exclude={"upload", "job"}, exclude_none=True)
        return datasets.NewDatasetVersion(name=name, upload_id=self.upload, **given)

    def _refuse_given(self, *names: str) -> None:
        detail = "leave it out: what a job has kept is known"
        faults = [
            errors.Fault(f"/{name}", "not_with_job", detail)
            for name in names
            if getattr(self, name) is not None
        ]
        rules.refuse(faults, code="invalid_version")

    def _incomplete(self) -> errors.Refused:
        detail = "name a completed upload, a source, or a job that kept images"
        return self._refused("/upload", "missing", detail)

    def _refused(self, pointer: str, code: str, detail: str) -> errors.Refused:
        fault = errors.Fault(pointer, code, detail)
        return errors.Refused(detail, code="invalid_version", faults=[fault])


class DatasetRead(rows.RowRead):
    """A data set: a name for its versions."""

    name: str
    card: str
    tags: dict[str, str]
    latest_version: int | None = Field(description="Newest version that is ready.")
    size_bytes: int = Field(description="Of all versions: prepared images and archives.")
    created_at: datetime

    @classmethod
    def of(cls, row: tables.DatasetRow, latest_version: int | None, size_bytes: int) -> Self:
        """Return the body of a row."""
        return cls.from_row(row, latest_version=latest_version, size_bytes=size_bytes)


class Archive(BaseModel):
    """The file that a version was uploaded as."""

    filename: str
    size_bytes: int
    sha256: str
    url: str = Field(description="GET the bytes here.")


class SourceRead(BaseModel):
    """Files elsewhere that a version refers to."""

    url: str
    kind: Literal["file", "folder"] | None = Field(description="Null until it was inspected.")
    digest: str | None = Field(
        description="SHA-256 of what was listed when it was inspected: name and size of each file, "
        "and its ETag, or the time of its last change. Whoever trains on the version lists the "
        "source again, and compares."
    )
    files: int | None
    size_bytes: int | None = Field(description="Of these files, of which none is in the store.")

    @classmethod
    def of(cls, source: dict[str, Any]) -> Self:
        """Return the body of the row's column; what was asked of the inspection stays out."""
        return cls(**{name: source.get(name) for name in cls.model_fields})


class SampleBox(BaseModel):
    """An object in a picture."""

    name: str = Field(alias="class")
    box: list[float] = Field(description="x1, y1, x2, y2 as shares 0..1 of the picture's sides.")
    is_ordinary: bool = Field(description="False for crowds and difficult ones: never trained on.")


class SamplePicture(BaseModel):
    """An image of the training split, made small."""

    index: int = Field(description="Its place in the split, from 0.")
    content: str = Field(description="The picture's file in base64.")
    media_type: str
    height: int = Field(description="Pixels of the image as it is trained on.")
    width: int
    boxes: list[SampleBox] | None = Field(None, description="In detection.")
    mask_png: str | None = Field(
        None,
        description="In segmentation: a grey PNG in base64 with the number of each pixel's "
        "class; 255 belongs to no class.",
    )


class SampleClass(BaseModel):
    """Pictures of one class."""

    name: str | None = Field(alias="class", description="Null where no image has a label.")
    pictures: list[SamplePicture]


class SamplesFailure(BaseModel):
    """Why there are no pictures."""

    code: str
    message: str


class SamplesRead(BaseModel):
    """A few small pictures of each class, to look at."""

    reference: str
    state: Literal["queued", "running", "ready", "failed"]
    failure: SamplesFailure | None
    split: str | None = Field(description="Which images they are of; null until they were made.")
    classes: list[SampleClass] = Field(
        description=f"The first {samples.MOST_CLASSES} classes; of each up to "
        f"{samples.MOST_OF_CLASS} pictures, at most {samples.MOST_PICTURES} in all, with sides of "
        f"up to {samples.LONGEST_SIDE} pixels."
    )
    notes: list[str] = Field(description="What was left out.")
    created_at: datetime
    expires_at: datetime = Field(description="When they are made anew, if somebody asks then.")

    @classmethod
    def of(cls, reference: str, row: tables.DatasetSamplesRow) -> Self:
        """Return the body of a row that belongs to a session."""
        sheet = (row.sheet if row.state == "ready" else None) or {}
        return cls.model_validate(
            {
                "reference": reference,
                "state": row.state,
                "failure": row.failure,
                "split": sheet.get("split"),
                "classes": sheet.get("classes", []),
                "notes": sheet.get("notes", []),
                "created_at": row.created_at,
                "expires_at": row.expires_at,
            }
        )


class EncodedForm(BaseModel):
    """Pictures that are stored as their files."""

    kinds: dict[str, int] = Field(description="Pictures by their suffix: jpg, png, webp.")
    size_bytes: int
    smallest: list[int] = Field(description="Height and width of the smallest, by area.")
    largest: list[int] = Field(description="Height and width of the largest, by area.")
    moments_of: int = Field(
        description="Training images on which mean and standard deviation were measured."
    )


class DatasetVersionRead(rows.RowRead):
    """One immutable version."""

    name: str
    version: int
    reference: str
    state: str = Field(description="`pending`, `ready` or `rejected`.")
    format: str = Field(
        description="As asked for; with `auto`, what was recognised once it was inspected."
    )
    task: str
    classes: list[str] = Field(
        description=f"Their names, in their order; in lists, the first {versions.LISTED_CLASSES} "
        "of them."
    )
    classes_count: int = Field(description="How many classes there are; 0 until it was inspected.")
    splits: dict[str, int] = Field(description="Images of each split.")
    boxes: dict[str, list[int]] | None = Field(
        description="In detection: boxes of each of these classes in each split, without crowds "
        "and difficult ones."
    )
    labelled: dict[str, int] | None = Field(
        description="Images with a label in each split; null where all have one. `classes` is "
        "empty where none has."
    )
    encoded: EncodedForm | None = Field(
        description="How the pictures are stored that training decodes each time, with their own "
        "sizes; null where all images are stored decoded in one size, as `input` says."
    )
    notes: list[str] | None = Field(
        description="What was converted, left out or chosen when the pictures were stored; null "
        "until it was inspected."
    )
    input: dict[str, Any] | None = Field(description="Null until it was inspected.")
    size_bytes: int = Field(
        description="Of the prepared images and the archive; 0 until it was inspected, and of "
        "built-in data sets."
    )
    archive: Archive | None = Field(
        description="Null until it was inspected, and where there is none: built-in data sets, "
        "images of a job, files elsewhere."
    )
    digest: str | None
    rejection: versions.Rejection | None
    card: str
    tags: dict[str, str]
    upload: str | None
    source: SourceRead | None = Field(
        description="Files elsewhere that the version refers to; they are never changed or deleted."
    )
    job: str | None = Field(description="The job that made its synthetic images.")
    lineage: dict[str, Any] = Field(
        description="As written by the server: the upload; the source; or the job, its teacher and "
        "its method; empty for built-in data sets."
    )
    created_at: datetime

    @classmethod
    def of(
        cls, row: tables.DatasetVersionRow, stored: datasets.Stored, *, is_listed: bool = False
    ) -> Self:
        """Return the body of a row that belongs to a session, alone or as one of a list."""
        name = datasets.name_of(row)
        kept = stored.archive
        shown = versions.LISTED_CLASSES if is_listed else len(row.classes)
        return cls.from_row(
            row,
            name=name,
            classes=row.classes[:shown],
            classes_count=len(row.classes),
            boxes=row.boxes and {split: each[:shown] for split, each in row.boxes.items()},
            reference=references.write(name, row.version),
            input=row.input if row.state == "ready" else None,
            digest=f"sha256:{row.sha256}" if row.sha256 else None,
            rejection=versions.Rejection(**row.rejection) if row.rejection else None,
            upload=row.upload_id,
            source=SourceRead.of(row.source) if row.source else None,
            job=row.job_id,
            size_bytes=stored.size_bytes,
            archive=Archive(
                filename=kept.path,
                size_bytes=kept.size_bytes,
                sha256=kept.sha256,
                url=f"/v1/datasets/{name}/versions/{row.version}/archive",
            )
            if kept
            else None,
        )
