"""Models: register weights, find, set aliases, download, read lineage."""

import base64
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from retort import digests, downloads, errors, transport, types


class Models(transport.Resource):
    """The registry of trained networks of the key's project."""

    def register(
        self,
        name: str,
        upload: types.Upload | str,
        *,
        network: str,
        classes: int | Sequence[str] = 0,
        input: Mapping[str, object],
        arguments: Mapping[str, object] | None = None,
        task: str = "classification",
        entry: str | None = None,
        strict: bool = True,
        resize_positions: bool = False,
        card: str = "",
        tags: Mapping[str, str] | None = None,
    ) -> types.ModelVersion:
        """Make a new version of a model from an upload; a worker inspects it before it is ready.

        `classes` are left out with the task `embedding`: a network without a classifier. `entry`
        chooses one of several networks in the file. Without `strict`, weights that the
        network does not have are left aside. `resize_positions` interpolates the position
        embeddings of a transformer for images of another size. The version's `notes` say what was
        chosen and converted.
        """
        body = {
            "upload": upload if isinstance(upload, str) else upload.id,
            "network": network,
            "arguments": dict(arguments or {}),
            "task": task,
            "classes": classes if isinstance(classes, int) else list(classes),
            "input": dict(input),
            # Only what was asked for: servers before version 0.4 do not know these.
            **({} if entry is None else {"entry": entry}),
            **({} if strict else {"strict": False}),
            **({"resize_positions": True} if resize_positions else {}),
            "card": card,
            "tags": dict(tags or {}),
        }
        return self._http.create(types.ModelVersion, f"/v1/models/{name}/versions", body)

    def list(self, *, page_size: int = 100) -> Iterator[types.Model]:
        """Walk through the models, newest first."""
        return self._http.pages(types.Model, "/v1/models", size=page_size)

    def get(self, name: str) -> types.Model:
        """Return a model line."""
        return self._http.fetch(types.Model, "GET", f"/v1/models/{name}")

    def versions(
        self, name: str, *, state: str | None = None, page_size: int = 100
    ) -> Iterator[types.ModelVersion]:
        """Walk through the versions of a model, newest first."""
        path = f"/v1/models/{name}/versions"
        return self._http.pages(types.ModelVersion, path, query={"state": state}, size=page_size)

    def version(self, name: str, version: int) -> types.ModelVersion:
        """Return one version."""
        return self._http.fetch(types.ModelVersion, "GET", f"/v1/models/{name}/versions/{version}")

    def resolve(self, reference: str) -> types.ModelVersion:
        """Return the version that `name`, `name@3`, `name@alias` or `name@latest` means."""
        name, _, selector = reference.partition("@")
        if selector.isdecimal():
            return self.version(name, int(selector))
        if selector and selector != "latest":
            return self.version(name, self.alias(name, selector).version)
        newest = next(self.versions(name, state="ready", page_size=1), None)
        if newest is None:
            raise errors.ProblemError(404, "not_found", f"{name} has no version that is ready")
        return self.version(name, newest.version)  # a list shows the first of its classes alone

    def wait(
        self, name: str, version: int, *, timeout: float | None = 600.0, poll_seconds: float = 0.5
    ) -> types.ModelVersion:
        """Return a version when it is ready.

        Raises: errors.Rejected if its upload was rejected; errors.TimedOut.
        """
        return self._http.wait_until_ready(
            lambda: self.version(name, version),
            name=f"{name}@{version}",
            timeout=timeout,
            poll_seconds=poll_seconds,
        )

    def alias(self, name: str, alias: str) -> types.Alias:
        """Return the version that an alias points to."""
        return self._http.fetch(types.Alias, "GET", f"/v1/models/{name}/aliases/{alias}")

    def set_alias(self, name: str, alias: str, version: int) -> types.Alias:
        """Point an alias at a version, unless another caller moves it at the same time."""
        path = f"/v1/models/{name}/aliases/{alias}"
        current, condition = self._alias_now(path)
        if current is not None and current.version == version:
            return current
        try:
            return self._http.fetch(
                types.Alias, "PUT", path, body={"version": version}, headers=condition
            )
        except errors.ProblemError as error:
            if error.status != 412:
                raise
            # Another caller moved it, or our own first request did and its response was lost.
            current, _ = self._alias_now(path)
            if current is None or current.version != version:
                raise
            return current

    def _alias_now(self, path: str) -> tuple[types.Alias | None, dict[str, str]]:
        """Return an alias and the condition under which it is still the same."""
        try:
            response = self._http.request("GET", path)
        except errors.ProblemError as error:
            if error.status != 404:
                raise
            return None, {"if-none-match": "*"}
        return transport.parsed(types.Alias, response), {"if-match": response.headers["etag"]}

    def delete(self, name: str, version: int | None = None) -> None:
        """Delete a version that nothing refers to, or without a version the whole model."""
        path = f"/v1/models/{name}" + ("" if version is None else f"/versions/{version}")
        self._http.request("DELETE", path)

    def lineage(self, name: str, version: int) -> types.Json:
        """Return what a version was made from, and what was made from it."""
        path = f"/v1/models/{name}/versions/{version}/lineage"
        return dict(self._http.request("GET", path).json())

    def download(
        self,
        version: types.ModelVersion,
        destination: Path,
        *,
        file: str = "model.safetensors",
        progress: downloads.Progress | None = None,
    ) -> Path:
        """Save one file of a version, checked against its digest."""
        known = {stored.path: stored.sha256 for stored in version.files}
        if known and file not in known:
            raise errors.ProblemError(
                404,
                "not_found",
                f"{version.reference} has no file {file}: it has {', '.join(known)}",
            )
        return downloads.save(
            self._http,
            f"/v1/models/{version.name}/versions/{version.version}/files/{file}",
            destination,
            sha256=digests.hexadecimal(known.get(file)),
            progress=progress,
        )

    # -- exports -------------------------------------------------------------------------------

    def export(
        self,
        reference: str,
        *,
        format: str,
        precision: str = "float32",
        include_preprocessing: bool = False,
        max_drop: float = 0.01,
    ) -> types.Export:
        """Have a version written in another form; the same request again returns the same export.

        `format` is `onnx`, `torch_export`, `openvino`, `torch_state_dict` or `hub`; `precision` is
        `float32`, `float16` or `int8`. An export that loses more than `max_drop` of the task's
        deciding metric is refused.
        """
        body = {
            "format": format,
            "precision": precision,
            "include_preprocessing": include_preprocessing,
            "max_drop": max_drop,
        }
        return self._http.create(types.Export, self._exports_of(reference), body)

    def exports(self, reference: str, *, page_size: int = 100) -> Iterator[types.Export]:
        """Walk through the exports of a version, newest first."""
        return self._http.pages(types.Export, self._exports_of(reference), size=page_size)

    def wait_export(
        self, export: types.Export, *, timeout: float | None = 3600.0, poll_seconds: float = 1.0
    ) -> types.Export:
        """Return an export when it is ready.

        Raises: errors.ExportNotMade if it was refused or failed; errors.TimedOut.
        """
        path = f"{self._exports_of(export.model)}/{export.id}"
        made = self._http.poll(
            lambda: self._http.fetch(types.Export, "GET", path),
            lambda current: current.is_settled,
            name=export.id,
            timeout=timeout,
            poll_seconds=poll_seconds,
        )
        if made.failure is not None:
            what = f"{made.format} export {made.id} of {made.model}"
            raise errors.ExportNotMade(what, made.state, made.failure.code, made.failure.message)
        return made

    def delete_export(self, export: types.Export) -> None:
        """Delete an export with its files."""
        self._http.request("DELETE", f"{self._exports_of(export.model)}/{export.id}")

    def download_export(
        self,
        file: types.ExportFile,
        destination: Path,
        *,
        progress: downloads.Progress | None = None,
    ) -> Path:
        """Save one file of an export, checked against its digest."""
        return downloads.save(
            self._http,
            file.url,
            destination,
            sha256=digests.hexadecimal(file.sha256),
            progress=progress,
        )

    def predict(
        self, reference: str, pictures: Sequence[Path], *, timeout: float | None = 60.0
    ) -> types.Prediction:
        """Return what a version says of up to 32 pictures: for trying it out, not for serving.

        The version needs an ONNX export that is ready.

        Raises: errors.ExportNotMade if they could not be answered; errors.TimedOut.
        """
        encoded = [base64.b64encode(path.read_bytes()).decode() for path in pictures]
        place = self._version_of(reference)
        body = {"pictures": encoded}
        asked = self._http.fetch(types.Prediction, "POST", f"{place}/predict", body=body)
        again = f"{place}/predictions/{asked.id}"
        if not asked.is_settled:
            asked = self._http.poll(
                lambda: self._http.fetch(
                    types.Prediction, "GET", again, query={"wait_seconds": 20}
                ),
                lambda current: current.is_settled,
                name=asked.id,
                timeout=timeout,
                poll_seconds=0.1,
            )
        if asked.failure is not None:
            why = asked.failure
            raise errors.ExportNotMade(
                f"prediction by {reference}", asked.state, why.code, why.message
            )
        return asked

    def _exports_of(self, reference: str) -> str:
        return f"{self._version_of(reference)}/exports"

    def _version_of(self, reference: str) -> str:
        name, _, selector = reference.partition("@")
        if not selector.isdecimal():
            selector = str(self.resolve(reference).version)
        return f"/v1/models/{name}/versions/{selector}"
