"""Bodies of exports of a model version."""

from collections.abc import Iterable
from datetime import datetime
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from api.schemas import rows, versions
from models_registry.artifacts import models, predictions, references
from models_registry.persistence import tables
from workers.distill.config.exports import ExportChoice

State = Literal["queued", "running", "ready", "failed", "refused"]


class ExportNew(ExportChoice):
    """In which form the version is to be written."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ExportFile(versions.StoredFile):
    """One file of an export; it is a file of the version as well."""

    url: str = Field(description="Where it is downloaded, as the version's own files are.")


class ExportFailure(BaseModel):
    """Why an export failed, or was refused."""

    code: str
    message: str


class ExportChecks(BaseModel):
    """How an export compares with the original, on the same images."""

    images: int = Field(description="Of the test split, or of noise where `notes` say so.")
    largest_logit_difference: float = Field(description="Of a detector, between scores.")
    largest_box_difference: float | None = Field(
        None, description="Of a detector: in pixels of its input, along an axis."
    )
    decisions_equal: int = Field(description="How many get the same class from both.")
    decisions: int = Field(description="Of how many.")
    decisions_of: str = Field(description="`images`, `pixels`, or `locations` of a detector.")
    metric: str = Field(description="The task's deciding metric: accuracy, miou or ap.")
    accuracy: float | None = Field(description="The metric of the export; null without labels.")
    original_accuracy: float | None = Field(description="The metric of the original.")
    drop: float | None = Field(description="What the export loses of it.")


class ExportLatency(BaseModel):
    """The median time of one batch on the worker's processor."""

    ms: float
    device: str
    batch: int
    threads: int
    original_ms: float = Field(description="Of the original, in torch, at the same time.")


class ExportRead(rows.RowRead):
    """A version in another form."""

    id: str
    model: str = Field(description="Reference of the version.")
    format: str
    precision: str
    include_preprocessing: bool
    max_drop: float
    state: State = Field(
        description="`refused`: it was made, and loses too much; `checks` has the numbers."
    )
    failure: ExportFailure | None
    files: list[ExportFile]
    opset: int | None = Field(description="Of an ONNX graph.")
    library_versions: dict[str, str] = Field(description="What it was written with.")
    checks: ExportChecks | None
    latency: ExportLatency | None
    notes: list[str] = Field(description="What was chosen, left out or not measured.")
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @classmethod
    def of(
        cls,
        version: tables.ModelVersionRow,
        row: tables.ModelExportRow,
        files: Iterable[tables.ModelFileRow],
    ) -> Self:
        """Return the body of a row whose version belongs to a session."""
        name = models.name_of(version)
        place = f"/v1/models/{name}/versions/{version.version}/files"
        measured = row.measured or {}
        return cls.from_row(
            row,
            model=references.write(name, version.version),
            failure=ExportFailure(**row.failure) if row.failure else None,
            files=[
                ExportFile(**versions.StoredFile.of(file).model_dump(), url=f"{place}/{file.path}")
                for file in files
            ],
            opset=measured.get("opset"),
            library_versions=measured.get("library_versions", {}),
            checks=ExportChecks(**measured["checks"]) if measured else None,
            latency=ExportLatency(**measured["latency"]) if measured else None,
        )


class PredictionNew(BaseModel):
    """Pictures to try a version with."""

    model_config = ConfigDict(extra="forbid", strict=True)

    pictures: list[str] = Field(
        description=f"1 to {predictions.MOST_PICTURES} files such as PNG and JPEG in base64, "
        f"together at most {predictions.MOST_BYTES} bytes."
    )


class ClassProbability(BaseModel):
    """A class, and how likely it is."""

    model_config = ConfigDict(populate_by_name=True)

    name: str = Field(alias="class")
    probability: float


class ClassShare(BaseModel):
    """A class, and its share of a picture's pixels."""

    model_config = ConfigDict(populate_by_name=True)

    name: str = Field(alias="class")
    share: float


class DetectedBox(BaseModel):
    """A box with its class."""

    model_config = ConfigDict(populate_by_name=True)

    name: str = Field(alias="class")
    score: float
    box: list[float] = Field(description="x1, y1, x2, y2 in pixels of the picture.")


class PictureAnswer(BaseModel):
    """What the model says of one picture, by its task."""

    classes: list[ClassProbability] | None = Field(
        None, description="Classification: the likeliest first, at most 5."
    )
    shares: list[ClassShare] | None = Field(None, description="Segmentation.")
    mask_png: str | None = Field(
        None,
        description="Segmentation: a grey PNG in base64 with the number of each pixel's class, "
        "modulo 256.",
    )
    boxes: list[DetectedBox] | None = Field(None, description="Detection.")


class PredictionRead(BaseModel):
    """Pictures, and what a version says of them; kept for minutes."""

    id: str
    state: Literal["queued", "running", "ready", "failed"]
    export: str = Field(description="Id of the ONNX export that answers.")
    answers: list[PictureAnswer] | None = Field(description="In the order of the pictures.")
    milliseconds: float | None = Field(description="To read the pictures and run the graph.")
    failure: ExportFailure | None
    created_at: datetime
    expires_at: datetime

    @classmethod
    def of(cls, row: tables.PredictionRow) -> Self:
        """Return the body of a row."""
        answer = row.answer or {}
        return cls(
            id=row.id,
            state=row.state,
            export=row.export_id,
            answers=answer.get("answers"),
            milliseconds=answer.get("milliseconds"),
            failure=ExportFailure(**row.failure) if row.failure else None,
            created_at=row.created_at,
            expires_at=row.expires_at,
        )
