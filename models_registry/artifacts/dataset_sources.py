"""What a version of a data set refers to, where it was not uploaded: pinned, and never copied.

The source is listed and inspected once. What the inspection has prepared is known by its digests
and is not stored: each worker makes it again from the source, in its cache, with the same request.
So a job trains on the bytes that were registered, or not at all.
"""

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from models_registry.artifacts import references
from models_registry.persistence import source_places, tables


@dataclass(frozen=True)
class DatasetSource:
    """The address that a version refers to, and the project that must be allowed to read it."""

    url: str
    project: str

    @property
    def name(self) -> str:
        """Return the last name of its path."""
        return source_places.parse(self.url).name


@dataclass(frozen=True, kw_only=True)
class PinnedSource:
    """A source as it was when its version was inspected."""

    url: str
    kind: str
    """`file` or `folder`."""
    sha256: str
    """Of the listing: names, sizes, and ETags or times."""
    files: int
    size_bytes: int
    # Any: JSON.
    request: dict[str, Any]
    """What the inspecting process was asked; asked again, it prepares the same."""

    def as_json(self) -> dict[str, Any]:
        """Return it as the version's row keeps it."""
        return {
            "url": self.url,
            "kind": self.kind,
            "digest": f"sha256:{self.sha256}",
            "files": self.files,
            "size_bytes": self.size_bytes,
            "request": self.request,
        }

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> "PinnedSource":
        """Return it from the version's row."""
        digest = row["digest"].removeprefix("sha256:")
        return cls(sha256=digest, **{name: row[name] for name in _KEPT})


_KEPT = ("url", "kind", "files", "size_bytes", "request")


@dataclass(frozen=True)
class PreparedFile:
    """One prepared file of a source, which is not stored."""

    path: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class SourceInputs:
    """What a worker needs to make the prepared files of a version again."""

    reference: str
    source: DatasetSource
    pinned: PinnedSource
    files: tuple[PreparedFile, ...]


def source_of(session: Session, version: tables.DatasetVersionRow) -> DatasetSource:
    """Return what a version refers to."""
    if version.source is None:
        raise ValueError(f"{version.id} refers to no source")
    project = session.get_one(tables.ProjectRow, version.project_id)
    return DatasetSource(version.source["url"], project.name)


def inputs_of(session: Session, version: tables.DatasetVersionRow | None) -> SourceInputs | None:
    """Return the inputs that a version has by reference, None for one whose files are stored."""
    if version is None or version.source is None:
        return None
    row = tables.DatasetSourceFileRow
    files = session.scalars(sa.select(row).where(row.version_id == version.id).order_by(row.path))
    name = session.get_one(tables.DatasetRow, version.dataset_id).name
    return SourceInputs(
        references.write(name, version.version),
        source_of(session, version),
        PinnedSource.from_json(version.source),
        tuple(PreparedFile(file.path, file.sha256, file.size_bytes) for file in files),
    )
