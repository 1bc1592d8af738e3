"""Data sets: register uploads and sources, find, wait for inspection, download, delete."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from retort import digests, downloads, errors, transport, types


class Datasets(transport.Resource):
    """The data sets of the key's project."""

    def register(
        self,
        name: str,
        upload: types.Upload | str,
        *,
        format: str = "auto",
        task: str = "classification",
        input: Mapping[str, object] | None = None,
        card: str = "",
        tags: Mapping[str, str] | None = None,
    ) -> types.DatasetVersion:
        """Make a new version of a data set from an upload; a worker unpacks it first.

        With the format `auto` the worker recognises it; `format` and `notes` of the version tell.
        `input` may say `height`, `width`, `channels`, `mean`, `std`, `max_value`,
        `max_bad_share` and `storage` (auto, decoded, encoded); what it leaves out is measured.
        """
        given = {"upload": upload if isinstance(upload, str) else upload.id}
        return self._register(name, given, format, task, input, card, tags)

    def register_source(
        self,
        name: str,
        source: str,
        *,
        format: str = "auto",
        task: str = "classification",
        input: Mapping[str, object] | None = None,
        card: str = "",
        tags: Mapping[str, str] | None = None,
    ) -> types.DatasetVersion:
        """Make a new version of a data set from files that the service reads where they are.

        `source` is an address such as `s3://bucket/prefix` or `file:///folder` of the workers,
        below a place that the service's operator allows. All else as in `register`. Nothing is
        copied: jobs fail once the files have changed.
        """
        return self._register(name, {"source": source}, format, task, input, card, tags)

    def register_job(
        self, name: str, job_id: str, *, card: str = "", tags: Mapping[str, str] | None = None
    ) -> types.DatasetVersion:
        """Make a new version of a data set from the images that a data-free job has kept."""
        return self._create(name, {"job": job_id, "card": card, "tags": dict(tags or {})})

    def _register(
        self,
        name: str,
        given: Mapping[str, str],
        format: str,
        task: str,
        input: Mapping[str, object] | None,
        card: str,
        tags: Mapping[str, str] | None,
    ) -> types.DatasetVersion:
        body = {
            **given,
            "format": format,
            "task": task,
            "input": dict(input) if input else None,
            "card": card,
            "tags": dict(tags or {}),
        }
        return self._create(name, body)

    def _create(self, name: str, body: Mapping[str, object]) -> types.DatasetVersion:
        return self._http.create(types.DatasetVersion, f"/v1/datasets/{name}/versions", body)

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

    def resolve(self, reference: str) -> types.DatasetVersion:
        """Return the version that `name@3` or `name@latest`, the newest that is ready, means."""
        name, _, selector = reference.partition("@")
        if selector.isdecimal():
            return self.version(name, int(selector))
        newest = self.get(name).latest_version if selector in ("", "latest") else None
        if newest is None:
            raise errors.ProblemError(404, "not_found", f"{reference} is no version that is ready")
        return self.version(name, newest)

    def delete(self, name: str, version: int | None = None) -> None:
        """Delete a version that no job names, or without a version the whole data set.

        A version that is `pending` is taken back.
        """
        path = f"/v1/datasets/{name}" + ("" if version is None else f"/versions/{version}")
        self._http.request("DELETE", path)

    def erase(
        self, name: str, version: int | None = None, *, cancel_jobs: bool = False
    ) -> types.Erasure:
        """Erase a version, or the whole data set, at once and for good; return what remains.

        With `cancel_jobs`, jobs that need it are cancelled; without, they prevent it.
        """
        path = f"/v1/datasets/{name}" + ("" if version is None else f"/versions/{version}")
        body = {"cancel_jobs": cancel_jobs}
        return self._http.fetch(types.Erasure, "POST", f"{path}/erase", body=body)

    def download(
        self,
        version: types.DatasetVersion,
        destination: Path,
        *,
        progress: downloads.Progress | None = None,
    ) -> Path:
        """Save the archive of a version as it was uploaded, checked against its digest."""
        return downloads.save(
            self._http,
            f"/v1/datasets/{version.name}/versions/{version.version}/archive",
            destination,
            sha256=digests.hexadecimal(version.archive.sha256 if version.archive else None),
            progress=progress,
        )

    def wait(
        self, name: str, version: int, *, timeout: float | None = 600.0, poll_seconds: float = 0.5
    ) -> types.DatasetVersion:
        """Return a version when it is ready.

        Raises: errors.Rejected if its upload was rejected; errors.TimedOut.
        """
        return self._http.wait_until_ready(
            lambda: self.version(name, version),
            name=f"{name}@{version}",
            timeout=timeout,
            poll_seconds=poll_seconds,
        )
