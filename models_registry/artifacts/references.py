"""References to versions: `name`, `name@3`, `name@alias`, `name@latest`, `name@sha256:<hex>`."""

import re
from dataclasses import dataclass

from models_registry import errors

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
