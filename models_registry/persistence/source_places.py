"""Places outside of the store that a data set may refer to, and the list of those allowed.

`file:///folder/photos` is on the workers' machines, `s3://bucket/prefix` in a bucket that the
service's own key reads. An address carries no credentials, and nothing is read here: both sides
use these rules, the API when a data set is registered, and a worker before it reads.
"""

import os
import re
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SETTING = "RETORT_SOURCES"
PROJECT = "{project}"
"""In an allowed place, the name of the project that asks."""
LONGEST_URL = 1000
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_FORMS = "file:///folder or s3://bucket/prefix"


@dataclass(frozen=True)
class SourcePlace:
    """A file or folder: `parts` are the bucket, if there is one, and the names of the path."""

    scheme: str
    """`file` or `s3`."""
    parts: tuple[str, ...]
    is_folder: bool = False
    """The address ends in `/`, so that it means no single file or object."""

    @property
    def url(self) -> str:
        """Return the address in its usual form."""
        end = "/" if self.is_folder and len(self.parts) > 1 else ""
        if self.scheme == "s3":
            return "s3://" + "/".join(self.parts) + end
        return "file:///" + urllib.parse.quote("/".join(self.parts)) + end

    @property
    def name(self) -> str:
        """Return the last name of the path, or the bucket's."""
        return self.parts[-1]

    @property
    def path(self) -> Path:
        """Return the path of a `file:` place."""
        return Path("/", *self.parts)

    @property
    def bucket(self) -> str:
        """Return the bucket of an `s3:` place."""
        return self.parts[0]

    @property
    def key(self) -> str:
        """Return the key, or the prefix, of an `s3:` place."""
        return "/".join(self.parts[1:])

    def holds(self, other: "SourcePlace") -> bool:
        """Return whether the other place is this one, or below it."""
        return self.scheme == other.scheme and other.parts[: len(self.parts)] == self.parts


def parse(url: str) -> SourcePlace:
    """Return the place that an address names.

    Raises: ValueError with a sentence on what is wrong and what to write instead. It never repeats
    what may be a password.
    """
    if len(url) > LONGEST_URL:
        raise ValueError(f"an address has at most {LONGEST_URL} characters, this has {len(url)}")
    if _CONTROL.search(url) or url != url.strip():
        raise ValueError("an address has no control characters, and no spaces around it")
    try:
        place = urllib.parse.urlsplit(url)
    except ValueError as error:
        raise ValueError(f"cannot be read as an address ({error}): write {_FORMS}") from error
    if "@" in place.netloc:
        raise ValueError(
            "carries credentials before an @: leave them out, the service reads with its own key"
        )
    if place.query or place.fragment:
        raise ValueError(
            "has a ? or #: leave out what follows, such as a signature (the service reads with its "
            "own key); of files with such names, give the folder"
        )
    if place.scheme == "file":
        return _file_place(place.netloc, place.path)
    if place.scheme == "s3":
        return _bucket_place(place.netloc, place.path)
    raise ValueError(
        f"begins with {place.scheme[:20] or 'no scheme'!r}: write {_FORMS}, or upload the files"
    )


def _file_place(host: str, path: str) -> SourcePlace:
    if host not in ("", "localhost"):
        raise ValueError(
            f"names the machine {host[:100]!r}: write file:///folder, with three slashes; the "
            "folder is that of the workers"
        )
    try:
        decoded = urllib.parse.unquote(path, errors="strict")
    except UnicodeDecodeError as error:
        raise ValueError("has bytes that are not UTF-8: write the path in UTF-8") from error
    if not decoded.startswith("/"):
        raise ValueError("is no absolute path: write file:///folder, with three slashes")
    parts = _parts(decoded)
    if not parts:
        raise ValueError("is the root of the whole machine: name a folder")
    return SourcePlace("file", parts, decoded.endswith("/"))


def _bucket_place(bucket: str, path: str) -> SourcePlace:
    if not _BUCKET.fullmatch(bucket):
        raise ValueError(
            f"{bucket[:70]!r} is no name of a bucket (3 to 63 lower-case letters, digits, '-' and "
            "'.'): write s3://bucket/prefix"
        )
    parts = _parts(path)
    return SourcePlace("s3", (bucket, *parts), path.endswith("/") or not parts)


def _parts(path: str) -> tuple[str, ...]:
    if _CONTROL.search(path):
        raise ValueError("an address has no control characters")
    inner = path.strip("/")
    parts = tuple(inner.split("/")) if inner else ()
    if any(part in ("", ".", "..") for part in parts):
        raise ValueError(
            "has '..', '.' or an empty name in its path: write the path without, in full"
        )
    return parts


def parse_allowed(text: str) -> list[str]:
    """Return the allowed places of the setting, as they are written there.

    Raises: ValueError, naming the place that cannot be one.
    """
    allowed = text.split()
    for one in allowed:
        try:
            parse(_named(one, "project"))
            _check_project(one)
        except ValueError as error:
            shown = "a place" if "@" in one else repr(one[:LONGEST_URL])
            raise ValueError(f"{shown} {error}") from error
    return allowed


def _check_project(allowed: str) -> None:
    # Within a name it could not be told which folders an allowed place may be.
    _, _, path = allowed.partition("://")
    bucket, *names = path.split("/")
    if PROJECT in bucket or any(PROJECT in name and name != PROJECT for name in names):
        raise ValueError(
            f"has {PROJECT} as a part of a name or as a bucket: make it a folder of its own, such "
            f"as s3://bucket/{PROJECT}"
        )


def check_apart(allowed: Sequence[str], own: Sequence[str | Path]) -> None:
    """Raise ValueError where an allowed place and one of the service's own hold each other.

    Else whoever registers a data set could read the bytes of all projects, or the database. `own`
    are folders, and addresses as the storage has them.
    """
    for one in allowed:
        place = parse(_named(one.partition(PROJECT)[0].rstrip("/") or one, "project"))
        for kept in own:
            theirs = _own_place(kept)
            if theirs is not None and _meet(place, theirs):
                raise ValueError(
                    f"{one!r} and {str(kept)!r}, where the service keeps its own bytes, overlap: "
                    "keep sources in another folder or prefix"
                )


def _own_place(kept: str | Path) -> SourcePlace | None:
    if isinstance(kept, Path):
        return SourcePlace("file", _real(kept))
    place = urllib.parse.urlsplit(kept)
    if place.scheme == "s3":
        return SourcePlace("s3", (place.netloc, *(part for part in place.path.split("/") if part)))
    if place.scheme == "file":
        return SourcePlace("file", _real(Path(urllib.parse.unquote(place.path))))
    return None


def _real(path: Path) -> tuple[str, ...]:
    return Path(os.path.realpath(path)).parts[1:]


def _meet(place: SourcePlace, own: SourcePlace) -> bool:
    if place.scheme == "file":
        place = SourcePlace("file", _real(place.path))
    return place.holds(own) or own.holds(place)


def _named(allowed: str, project: str) -> str:
    return allowed.replace(PROJECT, project)


def root_of(place: SourcePlace, allowed: Sequence[str], *, project: str) -> SourcePlace | None:
    """Return the allowed place that a source of a project is below, or None where there is none.

    `{project}` stands for the project's name; a project whose name is no single name of a path has
    no such place.
    """
    roots = _roots(allowed, project)
    return next((root for root in roots if root.holds(place)), None)


def _roots(allowed: Sequence[str], project: str) -> list[SourcePlace]:
    has_place = bool(re.fullmatch(r"[\w-][\w. -]*", project))
    quoted = urllib.parse.quote(project)
    return [
        parse(_named(one, quoted if one.startswith("file:") else project))
        for one in allowed
        if has_place or PROJECT not in one
    ]


def refusal(url: str, allowed: Sequence[str], *, project: str) -> tuple[str, str] | None:
    """Return why a project may not refer to an address, as a code and a sentence, or None."""
    if not allowed:
        return (
            "sources_disabled",
            f"this service reads no sources ({SETTING} is empty): upload the files, or have the "
            f"operator allow a place, such as {SETTING}=s3://bucket/prefix",
        )
    try:
        place = parse(url)
    except ValueError as error:
        return "malformed_source", f"source {error}"
    if root_of(place, allowed, project=project) is None:
        readable = " and ".join(root.url for root in _roots(allowed, project)) or "none"
        return (
            "source_not_allowed",
            f"{place.url} is below no place that project {project} may read ({readable}): move the "
            f"files there, upload them, or have the operator add the place to {SETTING}",
        )
    return None
