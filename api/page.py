"""The page at `/`: a client of /v1 in the browser, built from web/ into page_files/.

Where it was not built, `/` says how to build it.
"""

import errno
import functools
import gzip
import mimetypes
from pathlib import Path

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response

from models_registry import errors

FILES = Path(__file__).with_name("page_files")
# Nothing inline, nothing from or to another host, and no site may show it in a frame.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "font-src 'self'",
        "img-src 'self' blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
_GUARDED = {
    "content-security-policy": POLICY,
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
# Their names hold a digest of their content; index.html names the current ones.
_KEPT = {"cache-control": "public, max-age=31536000, immutable"}
_ASKED_EACH_TIME = {"cache-control": "no-cache"}

# As the standards have them, whatever the machine's own table says.
_KINDS = {".js": "text/javascript", ".css": "text/css", ".woff2": "font/woff2"}
_PACKED = {".js", ".css", ".svg"}

NOT_BUILT = """\
<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>Retort: the page is not built</title></head>
<body>
<h1>The page is not built</h1>
<p>The service runs; its page was not built with it. In the project's folder, run
<code>make web</code>, then load this address again.</p>
<p>The same is on the command line (<code>retort --help</code>) and in the
<a href="docs">documentation of the API</a>.</p>
</body>
</html>
"""


def install(app: FastAPI, files: Path = FILES) -> None:
    """Serve the page's `files` under `/` and `/assets/`."""

    async def first(_request: Request) -> Response:
        index = files / "index.html"
        headers = _GUARDED | _ASKED_EACH_TIME
        if not index.is_file():
            return HTMLResponse(NOT_BUILT, headers=headers)
        return FileResponse(index, media_type="text/html", headers=headers)

    async def asset(request: Request) -> Response:
        name = request.path_params["name"]
        path = files / "assets" / name
        # A file of this very folder: the parameter of the route takes no slash.
        if name in {".", ".."} or not _is_file(path):
            raise errors.NotFound(f"the page has no asset {name!r}: load the page again")
        kind = _KINDS.get(path.suffix) or mimetypes.guess_type(name)[0]
        if path.suffix in _PACKED and "gzip" in request.headers.get("accept-encoding", ""):
            headers = _KEPT | {"content-encoding": "gzip", "vary": "Accept-Encoding"}
            return Response(_gzipped(path), media_type=kind, headers=headers)
        return FileResponse(path, media_type=kind, headers=_KEPT)

    app.add_route("/", first, include_in_schema=False)
    app.add_route("/assets/{name}", asset, include_in_schema=False)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError as error:
        # No file can have such a name.
        if error.errno == errno.ENAMETOOLONG:
            return False
        raise


@functools.lru_cache(maxsize=256)
def _gzipped(path: Path) -> bytes:
    # An asset never changes under its name.
    return gzip.compress(path.read_bytes(), mtime=0)
