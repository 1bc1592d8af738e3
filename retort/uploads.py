"""Uploads files in parts, in parallel, each with its digest; an upload can be resumed.

The server keeps the parts it has; `resume` reads which those are and sends the others.
"""

import hashlib
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from urllib.parse import urlsplit

from retort import digests, errors, transport, types

PARALLEL_PARTS = 4
# Parts up to this size are read once, and hashed and sent from memory.
IN_MEMORY_BYTES = 16 * 2**20
# Called with the bytes that have arrived so far and the bytes in all.
Progress = Callable[[int, int], object]


class Uploads(transport.Resource):
    """Files on their way to the server."""

    def send(
        self,
        path: Path,
        *,
        purpose: str,
        resume: str | None = None,
        progress: Progress | None = None,
    ) -> types.Upload:
        """Upload a file, or the rest of one, and return the completed upload."""
        begun = self.resume(path, resume) if resume else self.begin(path, purpose=purpose)
        return self.finish(begun, path, progress=progress)

    def begin(self, path: Path, *, purpose: str) -> types.Upload:
        """Measure a file and announce it to the server."""
        measured = digests.measure(path)
        if not measured.size_bytes:
            raise errors.LocalFileProblem(path, "the file is empty")
        body = {
            "filename": path.name,
            "size_bytes": measured.size_bytes,
            "sha256": measured.sha256,
            "purpose": purpose,
        }
        return self._http.create(types.Upload, "/v1/uploads", body)

    def resume(self, path: Path, upload_id: str) -> types.Upload:
        """Return an interrupted upload, after checking that it is of this file."""
        upload = self.get(upload_id)
        measured = digests.measure(path)
        if upload.sha256 not in (None, measured.sha256):
            raise errors.LocalFileProblem(path, f"not the file that {upload_id} was begun with")
        return upload

    def list(self, *, state: str | None = None, page_size: int = 100) -> Iterator[types.Upload]:
        """Walk through the uploads that are open or completed, newest first."""
        query = {"state": state} if state else {}
        return self._http.pages(types.Upload, "/v1/uploads", size=page_size, query=query)

    def get(self, upload_id: str) -> types.Upload:
        """Return an upload with the parts received so far."""
        return self._http.fetch(types.Upload, "GET", f"/v1/uploads/{upload_id}")

    def finish(
        self, upload: types.Upload, path: Path, *, progress: Progress | None = None
    ) -> types.Upload:
        """Send the parts that are missing and have the server check the whole."""
        if upload.state != "completed":
            try:
                _Sender(self._http, upload, path, progress).run()
            except errors.ConnectionFailed as error:
                raise errors.UploadInterrupted(upload.id, error) from error
            except OSError as error:
                raise errors.LocalFileProblem(path, error.strerror or str(error)) from error
        # `complete` of a completed upload answers the same again, so a lost answer is harmless.
        return self._http.fetch(types.Upload, "POST", f"/v1/uploads/{upload.id}/complete", body={})

    def discard(self, upload_id: str) -> None:
        """Delete an unfinished upload."""
        self._http.request("DELETE", f"/v1/uploads/{upload_id}")


class _Sender:
    """Sends the missing parts of one upload; stops all threads when one of them fails."""

    def __init__(
        self,
        http: transport.Transport,
        upload: types.Upload,
        path: Path,
        progress: Progress | None,
    ) -> None:
        if upload.part_size_bytes is None:
            raise errors.UnexpectedAnswer(f"upload {upload.id} has no part_size_bytes")
        self._http = http
        self._upload = upload
        self._path = path
        self._progress = progress
        self._size = upload.size_bytes or path.stat().st_size
        self._part_size = upload.part_size_bytes
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._missing = [part for part in upload.parts if not self._is_there(part)]
        self._sent = {part.number: self._span(part)[1] for part in upload.parts}
        self._sent |= {part.number: 0 for part in self._missing}

    def run(self) -> None:
        """Send every missing part; raise the first failure after the others have stopped."""
        self._show()
        with futures.ThreadPoolExecutor(PARALLEL_PARTS) as pool:
            pending = [pool.submit(self._send, part) for part in self._missing]
            try:
                for done in futures.as_completed(pending):
                    done.result()
            except BaseException:  # an interrupt from the keyboard must stop the threads too
                self._stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _send(self, part: types.Part) -> None:
        offset, length = self._span(part)
        if length <= IN_MEMORY_BYTES:
            with self._path.open("rb") as file:
                file.seek(offset)
                kept = memoryview(file.read(length))
            digest = hashlib.sha256(kept).digest()
        else:
            kept = None
            digest = digests.of_slice(self._path, offset, length)
        headers = {
            "content-length": str(length),
            "content-type": "application/octet-stream",
            "repr-digest": digests.header(digest),
        }
        try:
            self._http.request(
                "PUT",
                part.url,
                headers=headers,
                content=lambda: self._bytes(part, kept),
                sleep=self._stop.wait,
            )
        except errors.ProblemError as error:
            if "://" not in part.url:
                raise
            store = urlsplit(part.url).netloc
            raise errors.UnexpectedAnswer(
                f"the store {store}, to which parts are sent, refused part {part.number} with "
                f"status {error.status}: look at this machine's clock and send the upload again, "
                "or have the operator take RETORT_S3_PUBLIC_ENDPOINT away"
            ) from error

    def _is_there(self, part: types.Part) -> bool:
        """Return whether the server has this part with the same bytes as the file."""
        if not part.received or part.sha256 is None:
            return part.received
        return part.sha256 == digests.of_slice(self._path, *self._span(part)).hex()

    def _bytes(self, part: types.Part, kept: memoryview | None) -> Iterator[bytes]:
        """Yield the bytes of a part: those that are `kept` in memory, else those of the file."""
        offset, length = self._span(part)
        self._count(part, 0)
        sent = 0
        with self._path.open("rb") as file:
            file.seek(offset)
            while sent < length:
                end = min(sent + digests.CHUNK_BYTES, length)
                chunk = file.read(end - sent) if kept is None else bytes(kept[sent:end])
                if not chunk:
                    raise errors.LocalFileProblem(self._path, "it became shorter while it was sent")
                if self._stop.is_set():
                    raise errors.ConnectionFailed(self._http.url, "the upload was stopped")
                yield chunk
                sent += len(chunk)
                self._count(part, sent)

    def _span(self, part: types.Part) -> tuple[int, int]:
        offset = (part.number - 1) * self._part_size
        return offset, min(self._part_size, self._size - offset)

    def _count(self, part: types.Part, sent: int) -> None:
        with self._lock:
            self._sent[part.number] = sent
            self._show()

    def _show(self) -> None:
        if self._progress:
            self._progress(sum(self._sent.values()), self._size)
