"""Download into a partial file that a later call resumes, and rename it when it is complete.

The partial file has the digest in its name, so that of another version is never resumed; the digest
of the whole file is checked before the rename.
"""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx

from retort import digests, errors, transport

# Called with the bytes that have arrived so far and the bytes in all, if known.
Progress = Callable[[int, int | None], object]


def save(
    http: transport.Transport,
    path: str,
    destination: Path,
    *,
    sha256: str | None,
    progress: Progress | None = None,
) -> Path:
    """Download `path` of the API to a file, resuming where an earlier call stopped."""
    if sha256 and destination.is_file() and digests.measure(destination).sha256 == sha256:
        return destination
    try:
        return _Download(http, path, destination, sha256, progress).run()
    except OSError as error:
        raise errors.LocalFileProblem(destination, error.strerror or str(error)) from error


class _Download:
    def __init__(
        self,
        http: transport.Transport,
        path: str,
        destination: Path,
        sha256: str | None,
        progress: Progress | None,
    ) -> None:
        self._http = http
        self._path = path
        self._destination = destination
        self._sha256 = sha256
        self._progress = progress
        mark = (sha256 or "unknown")[:12]
        self._partial = destination.with_name(f"{destination.name}.{mark}.part")

    def run(self) -> Path:
        self._destination.parent.mkdir(parents=True, exist_ok=True)
        if not self._sha256:
            self._partial.unlink(missing_ok=True)  # of which version it is cannot be known
        resumed = self._partial.exists()
        if not self._fetch_verified():
            self._partial.unlink()
            # Bytes of an earlier call can be damaged: fetch everything once more.
            if not resumed or not self._fetch_verified():
                self._partial.unlink(missing_ok=True)
                raise errors.DamagedTransfer(
                    f"{self._path}: the bytes received do not have the digest sha256:{self._sha256}"
                )
        self._partial.replace(self._destination)
        return self._destination

    def _fetch_verified(self) -> bool:
        """Fetch until the file is complete, and return whether its digest is the expected one."""
        lost = 0
        while True:
            before = self._received_bytes()
            try:
                sha256 = self._fetch_rest(before)
                return self._sha256 in (None, sha256)
            except (httpx.TransportError, errors.ProblemError) as error:
                if isinstance(error, errors.ProblemError) and not error.retryable:
                    raise
                lost = 0 if self._received_bytes() > before else lost + 1
                if lost >= self._http.attempts:
                    if isinstance(error, errors.ProblemError):
                        raise
                    raise transport.failed(self._http.url, error) from error
                self._http.sleep(transport.backoff_seconds(lost))

    def _fetch_rest(self, have: int) -> str:
        """Fetch what is missing, and return the SHA-256 of the whole file in hexadecimal."""
        # Identity: a range of compressed bytes would be a range of something else.
        headers = {"accept-encoding": "identity"}
        if have:
            headers["range"] = f"bytes={have}-"
        try:
            with self._http.open(self._path, headers) as response:
                self._check_announced(response)
                goes_on = response.status_code == 206
                total = _total(response, have if goes_on else 0)
                # Hashed on the way: to read a large file once more takes as long as to write it.
                digest = digests.begun(self._partial) if goes_on else hashlib.sha256()
                with self._partial.open("ab" if goes_on else "wb") as file:
                    for chunk in self._counted(response, have if goes_on else 0, total):
                        digest.update(chunk)
                        file.write(chunk)
                return digest.hexdigest()
        except errors.ProblemError as error:
            if error.status != 416 or not have:
                raise
            # Nothing lies beyond what we have: it was complete, or the digest will tell.
            return digests.begun(self._partial).hexdigest()

    def _counted(self, response: httpx.Response, have: int, total: int | None) -> Iterator[bytes]:
        for chunk in response.iter_raw():
            yield chunk
            have += len(chunk)
            if self._progress:
                self._progress(have, total)

    def _check_announced(self, response: httpx.Response) -> None:
        """Refuse a response that announces another digest than the expected one."""
        announced = digests.from_header(response.headers.get("repr-digest"))
        if announced and self._sha256 and announced != self._sha256:
            raise errors.DamagedTransfer(
                f"{self._path}: the server offers sha256:{announced}, expected {self._sha256}"
            )
        self._sha256 = self._sha256 or announced

    def _received_bytes(self) -> int:
        return self._partial.stat().st_size if self._partial.exists() else 0


def _total(response: httpx.Response, have: int) -> int | None:
    length = response.headers.get("content-length")
    return have + int(length) if length else None
