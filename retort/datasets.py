"""Data sets: register, find, wait for inspection."""

import time
from collections.abc import Iterator, Mapping

from retort import errors, transport, types


class Datasets:
    """The data sets of the key's project."""

    def __init__(self, http: transport.Transport) -> None:
        self._http = http

    def register(
        self,
        name: str,
        upload: types.Upload | str,
        *,
        format: str,
        task: str = "classification",
        input: Mapping[str, object] | None = None,
        card: str = "",
        tags: Mapping[str, str] | None = None,
    ) -> types.DatasetVersion:
        """Make a new version of a data set from an upload; a worker unpacks it first."""
        body = {
            "upload": upload if isinstance(upload, str) else upload.id,
            "format": format,
            "task": task,
            "input": dict(input) if input else None,
            "card": card,
            "tags": dict(tags or {}),
        }
        return self._register(name, body)

    def register_job(
        self, name: str, job_id: str, *, card: str = "", tags: Mapping[str, str] | None = None
    ) -> types.DatasetVersion:
        """Make a new version of a data set from the images that a data-free job has kept."""
        return self._register(name, {"job": job_id, "card": card, "tags": dict(tags or {})})

    def _register(self, name: str, body: Mapping[str, object]) -> types.DatasetVersion:
        headers = {"idempotency-key": transport.fresh_key()}
        path = f"/v1/datasets/{name}/versions"
        return self._http.fetch(types.DatasetVersion, "POST", path, body=body, headers=headers)

    def list(self, *, page_size: int = 100) -> Iterator[types.Dataset]:
        """Walk through the data sets, newest first."""
        return self._http.pages(types.Dataset, "/v1/datasets", size=page_size)

    def get(self, name: str) -> types.Dataset:
        """Return a data set line."""
        return self._http.fetch(types.Dataset, "GET", f"/v1/datasets/{name}")

    def versions(self, name: str, *, page_size: int = 100) -> Iterator[types.DatasetVersion]:
        """Walk through the versions of a data set, newest first."""
        path = f"/v1/datasets/{name}/versions"
        return self._http.pages(types.DatasetVersion, path, size=page_size)

    def version(self, name: str, version: int) -> types.DatasetVersion:
        """Return one version."""
        path = f"/v1/datasets/{name}/versions/{version}"
        return self._http.fetch(types.DatasetVersion, "GET", path)

    def wait(
        self, name: str, version: int, *, timeout: float | None = 600.0, poll_seconds: float = 0.5
    ) -> types.DatasetVersion:
        """Return a version once it is ready; raise `Rejected` if its upload was turned down."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not (found := self.version(name, version)).is_settled:
            if deadline is not None and time.monotonic() + poll_seconds > deadline:
                raise errors.TimedOut(f"{found.reference} is still {found.state}")
            self._http.sleep(poll_seconds)
        if found.rejection is not None:
            raise errors.Rejected(found.reference, found.rejection.code, found.rejection.message)
        return found
