"""Responses to downloads: the whole file or one range, with preconditions and a digest.

The entity tag is the SHA-256 of the content, so it is strong, never changes, and is the same in
every process. A request for several ranges gets the whole file, as RFC 9110 allows.
"""

import base64
import re
from collections.abc import Iterator
from http import HTTPStatus

from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from starlette.exceptions import HTTPException

from api import media_types, preconditions
from models_registry import errors
from models_registry.artifacts import models
from models_registry.persistence import storage as bytes_store

_ONE_RANGE = re.compile(r"\s*bytes\s*=\s*([0-9]{0,30})\s*-\s*([0-9]{0,30})\s*", re.IGNORECASE)
_NOT_PLAIN = re.compile(r"[^A-Za-z0-9._-]+")


def respond(request: Request, storage: bytes_store.Storage, file: models.File) -> Response:
    """Return the response to a GET or HEAD for these bytes.

    Raises: errors.PreconditionFailed; errors.Malformed; an HTTPException 416 for a range that
    lies beyond the end.
    """
    headers = _headers(file)
    if is_known(request, _etag(file)):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    span = _span(request, file)
    start, end = span or (0, file.size_bytes)
    headers["content-length"] = str(end - start)
    if span:
        headers["content-range"] = f"bytes {start}-{end - 1}/{file.size_bytes}"
        status = HTTPStatus.PARTIAL_CONTENT
    else:
        # The digest of what is sent, which is known for the whole file only.
        headers["content-digest"] = headers["repr-digest"]
        status = HTTPStatus.OK
    media_type = media_types.of(file.path)
    if is_head(request):
        return Response(status_code=status, headers=headers, media_type=media_type)
    stream = _open(storage, file, start, end)
    return StreamingResponse(stream, status, headers=headers, media_type=media_type)


def is_head(request: Request) -> bool:
    """Return whether the caller asks for the headers alone, which the middleware has noted."""
    return bool(request.scope.get("is_head"))


def is_known(request: Request, etag: str) -> bool:
    """Return whether the caller has these bytes already.

    Raises: errors.PreconditionFailed when `If-Match` names other ones.
    """
    expected = preconditions.tags(request.headers.get("if-match"), header="If-Match")
    if expected is not None and not {"*", etag} & set(expected):
        raise errors.PreconditionFailed(f"the ETag is {etag}")
    known = preconditions.tags(request.headers.get("if-none-match"), header="If-None-Match")
    return known is not None and bool({"*", etag} & {tag.removeprefix("W/") for tag in known})


def _etag(file: models.File) -> str:
    return f'"{file.sha256}"'


def _headers(file: models.File) -> dict[str, str]:
    encoded = base64.b64encode(bytes.fromhex(file.sha256)).decode()
    name = _NOT_PLAIN.sub("-", file.filename)
    return {
        "etag": _etag(file),
        "accept-ranges": "bytes",
        "cache-control": "private, max-age=31536000, immutable",
        "content-disposition": f'attachment; filename="{name}"',
        "repr-digest": f"sha-256=:{encoded}:",
    }


def _span(request: Request, file: models.File) -> tuple[int, int] | None:
    """Return start and end (exclusive) of the requested range, None for the whole."""
    value = request.headers.get("range")
    condition = request.headers.get("if-range")
    if value is None or is_head(request):
        return None
    if condition is not None and condition.strip() != _etag(file):
        return None  # also for a date: without Last-Modified none can match
    match = _ONE_RANGE.fullmatch(value)
    if match is None or not (match[1] or match[2]):
        return None
    size = file.size_bytes
    if not match[1]:
        start, end = max(size - int(match[2]), 0), size
    else:
        start, end = int(match[1]), min(int(match[2]) + 1, size) if match[2] else size
        if match[2] and int(match[2]) < start:
            return None  # not a valid range: the header is ignored
    if start >= size:
        raise HTTPException(
            HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
            f"the file has {size} bytes: {value[:100]!r} is beyond its end",
            headers={"content-range": f"bytes */{size}"},
        )
    return start, end


def _open(storage: bytes_store.Storage, file: models.File, start: int, end: int) -> Iterator[bytes]:
    try:
        stream = storage.open(file.storage_key, start=start, end=end)
    except bytes_store.BytesNotFound as error:
        raise errors.Gone("the file was deleted a moment ago") from error
    return _closing(stream)


def _closing(stream: bytes_store.ByteStream) -> Iterator[bytes]:
    with stream:
        yield from stream
