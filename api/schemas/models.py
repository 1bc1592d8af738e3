"""Bodies of models, their versions, aliases and lineage."""

from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    WithJsonSchema,
)

from api.schemas import lists, rows, versions
from models_registry.artifacts import datasets, lineage, models, references
from models_registry.artifacts.input_checks import TASKS
from models_registry.persistence import tables
from workers.distill.config import teachers
from workers.distill.config.teachers import Kind

# Free-form JSON: arguments of a network, scores and lineage as the engine wrote them.
Json = dict[str, Any]
Tags = dict[str, str]
State = Literal["pending", "ready", "rejected"]
READING = {"entry", "strict", "resize_positions"}
"""Fields that say how a file is to be read."""


def _classes(value: Any) -> int | list[str]:
    # By hand: for a union, pydantic reports errors at locations that are not fields of the body.
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        return value
    raise ValueError('must be a number of classes, or a list of their names, such as ["cat"]')


Classes = Annotated[
    int | list[str],
    PlainValidator(_classes),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 0, "maximum": 100_000},
                {"type": "array", "items": {"type": "string"}},
            ],
            "description": "How many (at least 2), or their names in the order of the logits. Left "
            "out with the task `embedding`: a network without a classifier.",
        }
    ),
]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class ModelNew(_Body):
    """A model: a name for its versions."""

    name: str = Field(description="1 to 96 of a-z, 0-9, '.', '_', '-'.")
    card: str = Field("", description="Markdown.")
    tags: Tags = Field({}, description="At most 64.")


class ModelChange(_Body):
    """Fields to change; those left out stay as they are."""

    card: str = Field("", description="Replaces the card.")
    tags: Tags = Field({}, description="Replaces all tags.")


class ModelVersionNew(_Body):
    """An upload that becomes a version."""

    upload: str = Field(description="Id of a completed upload with purpose `model`.")
    network: str = Field(
        max_length=160,
        description="Such as `retort/resnet32x4`; `retort/onnx` for a graph in an ONNX file, "
        "`retort/predictions` for a table of predictions.",
    )
    arguments: Json = Field({}, description="Keyword arguments of the network.")
    task: str = Field("classification", json_schema_extra={"enum": list(TASKS)})
    classes: Classes = 0
    input: versions.Images
    entry: str | None = Field(
        None,
        max_length=500,
        description="Which of several networks in the file, such as `model_ema` or "
        "`state_dict.teacher`; `.` is the file itself. Needed where several fit.",
    )
    strict: bool = Field(
        True,
        description="Refuse a file with weights that the network does not have; false leaves them "
        "aside. Missing weights are always refused.",
    )
    resize_positions: bool = Field(
        False,
        description="Interpolate position embeddings of a transformer for images of another size.",
    )
    card: str = Field("", description="Markdown.")
    tags: Tags = Field({}, description="At most 64.")

    def new(self, name: str) -> models.NewModelVersion:
        """Return what the registry takes."""
        return models.NewModelVersion(
            name=name,
            upload_id=self.upload,
            reading=self.model_dump(include=READING, exclude_defaults=True) or None,
            **self.model_dump(exclude={"upload", *READING}),
        )


class VersionChange(_Body):
    """Fields to change; those left out stay as they are. Files never change."""

    card: str = Field("", description="Replaces the card.")
    tags: Tags = Field({}, description="Replaces all tags.")
    deprecated: bool = Field(
        False, description="Tells users to choose another version; changes nothing else."
    )


class AliasPut(_Body):
    """The version that an alias shall point to."""

    version: int = Field(ge=1, le=999_999_999)


class ModelRead(rows.RowRead):
    """A model: a name for its versions."""

    name: str
    card: str
    tags: Tags
    latest_version: int | None = Field(description="Newest version that is ready.")
    newest_version: versions.NewestVersion | None = Field(
        description="Null for a model without versions."
    )
    aliases: dict[str, int]
    created_at: datetime
    updated_at: datetime

    @classmethod
    def of(cls, row: tables.ModelRow, standing: models.LineSummary) -> Self:
        """Return the body of a row."""
        newest = standing.newest
        return cls.from_row(
            row,
            latest_version=standing.latest_version,
            newest_version=versions.NewestVersion(
                version=newest.version, state=newest.state, rejection=newest.rejection
            )
            if newest
            else None,
            aliases=standing.aliases,
        )


class ModelVersionRead(rows.RowRead):
    """One version."""

    name: str
    version: int
    state: str = Field(description="`pending`, `ready` or `rejected`.")
    reference: str
    network: str
    kind: Kind = Field(
        description="As a teacher: weights of a network, a graph, or predictions of a data set."
    )
    gives: list[str] | None = Field(
        description="What methods can read of it besides logits: features by name, `batch_norm` "
        "and `gradients`; null before the inspection, and where a network is known by its name."
    )
    arguments: Json
    task: str
    classes: list[str] = Field(
        description=f"Their names, in the order of the logits; in lists, the first "
        f"{versions.LISTED_CLASSES} of them."
    )
    classes_count: int = Field(description="How many classes there are.")
    input: Json
    digest: str | None = Field(description="`sha256:` and the digest of the weights, once ready.")
    parameters: int | None
    scores: Json
    lineage: Json
    rejection: versions.Rejection | None
    notes: list[str] | None = Field(
        description="What was chosen, converted or left aside when the file was read; null before "
        "the inspection, and where it is not known."
    )
    files: list[versions.StoredFile]
    card: str
    tags: Tags
    deprecated: bool
    upload: str | None
    job: str | None = Field(description="The job that made it.")
    created_at: datetime
    updated_at: datetime

    @classmethod
    def of(
        cls,
        row: tables.ModelVersionRow,
        files: Iterable[tables.ModelFileRow],
        *,
        is_listed: bool = False,
    ) -> Self:
        """Return the body of a row that belongs to a session, alone or as one of a list."""
        name = models.name_of(row)
        return cls.from_row(
            row,
            classes=row.classes[: versions.LISTED_CLASSES] if is_listed else row.classes,
            classes_count=len(row.classes),
            name=name,
            reference=references.write(name, row.version),
            kind=teachers.kind_of(row.network),
            gives=models.gives(row),
            digest=f"sha256:{row.sha256}" if row.sha256 else None,
            rejection=versions.Rejection(**row.rejection) if row.rejection else None,
            files=[versions.StoredFile.of(file) for file in files],
            upload=row.upload_id,
            job=row.job_id,
        )


class AliasMove(BaseModel):
    """One move of an alias."""

    version: int
    at: datetime


class AliasRead(rows.RowRead):
    """A movable pointer to a version."""

    alias: str
    version: int
    reference: str
    history: list[AliasMove] = Field(description="Oldest first; the last one is where it points.")
    updated_at: datetime

    @classmethod
    def of(cls, name: str, row: tables.ModelAliasRow) -> Self:
        """Return the body of a row."""
        return cls.from_row(
            row,
            reference=references.write(name, row.version),
            history=[AliasMove(**move) for move in row.history],
        )


class AliasList(BaseModel):
    """All aliases of a model."""

    data: list[AliasRead]


class Relative(BaseModel):
    """A version that this one was made from, or that was made from it."""

    reference: str
    kind: Kind = Field(description="`weights`, `graph` or `predictions`.")
    digest: str | None
    job: str | None = Field(description="The job that made it.")
    deleted: bool = Field(description="Whether only its tombstone is left.")

    @classmethod
    def of(cls, row: tables.ModelVersionRow) -> Self:
        """Return the body of a row that belongs to a session."""
        return cls(
            reference=models.reference_of(row),
            kind=teachers.kind_of(row.network),
            digest=f"sha256:{row.sha256}" if row.sha256 else None,
            job=row.job_id,
            deleted=row.deleted_at is not None,
        )


class Backward(BaseModel):
    """What a version was made from: an upload, or a job and its inputs."""

    upload: str | None
    job: str | None
    teacher: Relative | None = Field(description="Null also of a job with several.")
    teachers: list[Relative] = Field(description="All of them, one or several.")
    initial: Relative | None
    dataset: str | None = Field(description="Reference of the data set's version.")
    dataset_lineage: Json = Field(
        description="Where that data set comes from, as recorded: an upload, or the job that "
        "made its synthetic images."
    )
    dataset_notes: list[str] = Field(
        description="What was converted, left out or chosen when its pictures were stored."
    )

    @classmethod
    def of(cls, row: tables.ModelVersionRow, origins: lineage.Origins) -> Self:
        """Return the body of a version's origins."""
        dataset = origins.dataset
        return cls(
            upload=row.upload_id,
            job=row.job_id,
            teacher=Relative.of(origins.teacher) if origins.teacher else None,
            teachers=[Relative.of(one) for one in origins.teachers],
            initial=Relative.of(origins.initial) if origins.initial else None,
            dataset=datasets.reference_of(dataset) if dataset else None,
            dataset_lineage=dataset.lineage if dataset else {},
            dataset_notes=(dataset.notes or []) if dataset else [],
        )


class LineageRead(BaseModel):
    """What a version was made from, and what was made from it."""

    reference: str
    digest: str | None
    recorded: Json = Field(description="As written by the server when the version was made.")
    notes: list[str] | None = Field(
        description="What was chosen, converted or left aside when its file was read."
    )
    backward: Backward
    forward: lists.ListRead[Relative] = Field(
        description="Versions made directly from this one, newest first; a page."
    )
    datasets: list[str] = Field(
        description="Data sets of synthetic images that were made with it, newest first; at most "
        "100."
    )

    @classmethod
    def of(
        cls,
        row: tables.ModelVersionRow,
        origins: lineage.Origins,
        forward: lists.ListRead[Relative],
        synthetic: Iterable[tables.DatasetVersionRow],
    ) -> Self:
        """Return the body of a version's lineage."""
        return cls(
            reference=models.reference_of(row),
            digest=f"sha256:{row.sha256}" if row.sha256 else None,
            recorded=row.lineage,
            notes=row.notes,
            backward=Backward.of(row, origins),
            forward=forward,
            datasets=[datasets.reference_of(found) for found in synthetic],
        )
