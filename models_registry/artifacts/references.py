"""References to versions: `name`, `name@3`, `name@alias`, `name@latest`, `name@sha256:<hex>`."""

import functools
import re
from dataclasses import dataclass
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.orm import Session

from models_registry import errors
from models_registry.persistence import tables

Version = TypeVar("Version", tables.ModelVersionRow, tables.DatasetVersionRow)

LATEST = "latest"
_FORM = re.compile(
    r"(?P<name>[a-z0-9][a-z0-9._-]{0,95})"
    r"(?:@(?:(?P<version>[1-9][0-9]{0,8})|sha256:(?P<sha256>[0-9a-f]{64})"
    r"|(?P<alias>(?=[0-9._-]*[a-z])[a-z0-9][a-z0-9._-]{0,95})))?"
)
# An alias must not look like a version number, nor be the computed `latest`.
_ALIAS = re.compile(r"(?!latest$)(?=.*[a-z])[a-z0-9][a-z0-9._-]{0,95}")


@dataclass(frozen=True)
class Reference:
    """A name, and at most one of version, digest and alias; none of them means the latest."""

    name: str
    version: int | None = None
    sha256: str | None = None
    alias: str | None = None


def parse(text: str) -> Reference:
    """Read a reference.

    Raises: errors.Malformed for text of another form.
    """
    match = _FORM.fullmatch(text)
    if match is None:
        raise errors.Malformed(
            f"{text[:200]!r} is not a reference: write name, name@3, name@alias, name@latest "
            "or name@sha256:<64 hex digits>",
            code="malformed_reference",
        )
    alias = match["alias"]
    return Reference(
        name=match["name"],
        version=int(match["version"]) if match["version"] else None,
        sha256=match["sha256"],
        alias=None if alias == LATEST else alias,
    )


def write(name: str, version: int) -> str:
    """Return the reference of one version, such as `digits@3`."""
    return f"{name}@{version}"


# Any: the rows of a line's kind.
def find(
    session: Session, line: Any, version: type[Version], wanted: Reference, *, project_id: str
) -> Version | None:
    """Return the version that a reference without an alias means, in one query.

    It is held against deletion until the transaction ends. None where line or version do not exist
    or were deleted, and for aliases: who looks again says why.
    """
    if wanted.alias is not None:
        return None
    by = "version" if wanted.version is not None else "sha256" if wanted.sha256 else LATEST
    given = {"project_id": project_id, "name": wanted.name}
    if by != LATEST:
        given[by] = getattr(wanted, by)
    found: Version | None = session.scalars(_finding(line, version, by), given).first()
    return found


# Any: the columns that both kinds of lines and versions have.
@functools.cache
def _finding(line: Any, version: Any, by: str) -> sa.Select[Any]:
    line_id = version.model_id if version is tables.ModelVersionRow else version.dataset_id
    query = (
        sa.select(version)
        .join(line, line.id == line_id)
        .where(
            line.project_id == sa.bindparam("project_id"),
            line.name == sa.bindparam("name"),
            line.deleted_at.is_(None),
            version.deleted_at.is_(None),
        )
    )
    if by != LATEST:
        query = query.where(getattr(version, by) == sa.bindparam(by))
    if by != "version":
        query = query.where(version.state == "ready").order_by(version.version.desc()).limit(1)
    held = query.with_for_update(read=True, key_share=True, of=version)
    return held.execution_options(populate_existing=True)


def check_alias(alias: str) -> None:
    """Raise Refused unless `alias` can be distinguished from a version number and from `latest`."""
    if _ALIAS.fullmatch(alias):
        return
    detail = (
        f"{alias[:96]!r} cannot be an alias: use lower-case letters, digits, '.', '_' and '-' "
        "(at most 96), with at least one letter, and not 'latest', which is computed"
    )
    fault = errors.Fault("/path/alias", "bad_alias", detail)
    raise errors.Refused(detail, code="bad_alias", faults=[fault])
