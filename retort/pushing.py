"""Take an export to where its owner has an account: a Hugging Face hub, or a server of MLflow.

Both are reached by their own client libraries, which find address and credentials in the user's
environment. Nothing of either is stored, sent to the Retort server or printed.
"""

import importlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from retort import errors, types
from retort.exporting import DESCRIPTION_FILE

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from mlflow.tracking import MlflowClient

EXPERIMENT = "retort"
ARTIFACT_FOLDER = "model"
MLFLOW_CREDENTIALS = "MLFLOW_TRACKING_USERNAME and _PASSWORD, or _TOKEN,"
_EXISTS = 409
_BAD_KEY = 401
_FORBIDDEN = 403
_NOT_FOUND = 404


class HubTarget:
    """A repository of models on a hub, which the environment's token may write to."""

    def __init__(self, repository: str, *, may_exist: bool) -> None:
        """Check all that can be known before anything is made.

        Raises: errors.NotConfigured without the library or a token; errors.BadOption for a name
        that no repository has, or that is taken; errors.PushRefused; errors.ConnectionFailed.
        """
        self.repository, self.may_exist = repository, may_exist
        self.api = _hub()
        with _told_of_hub(self.api.endpoint, repository):
            is_taken = self.api.repo_exists(repository)
        if is_taken and not may_exist:
            raise _taken(repository)

    def push(self, folder: Path, *, is_public: bool, message: str) -> str:
        """Upload the files of a folder as one commit; return its address.

        The repository is made where there is none. Raises: as the constructor.
        """
        with _told_of_hub(self.api.endpoint, self.repository):
            self.api.create_repo(self.repository, private=not is_public, exist_ok=self.may_exist)
            done = self.api.upload_folder(
                repo_id=self.repository,
                folder_path=folder,
                commit_message=message,
                ignore_patterns=[DESCRIPTION_FILE],
            )
        return done.commit_url


class MlflowTarget:
    """A registered model of an MLflow server, whose address the environment has."""

    def __init__(self, name: str, *, experiment: str = EXPERIMENT) -> None:
        """Check that the server can be reached and takes the name.

        Raises: errors.NotConfigured without the library or an address; errors.PushRefused;
        errors.ConnectionFailed.
        """
        self.name, self.experiment = name, experiment
        self.address, self.client = _mlflow()
        with _told_of_mlflow(self.address):
            found = self.client.get_experiment_by_name(experiment)
            self._experiment_id = None if found is None else found.experiment_id

    def push(self, folder: Path, made: types.Export) -> str:
        """Log a folder as the model of a new run and register it; return `name/version`.

        A registered model of the name gets a further version. Raises: as the constructor.
        """
        with _told_of_mlflow(self.address):
            if self._experiment_id is None:
                self._experiment_id = self.client.create_experiment(self.experiment)
            facts = {"retort_model": made.model, "retort_export": made.id}
            run = self.client.create_run(self._experiment_id, run_name=made.model, tags=facts)
            number = run.info.run_id
            try:
                for name, value in _numbers(made).items():
                    self.client.log_metric(number, name, value)
                self.client.log_artifacts(number, str(folder), ARTIFACT_FOLDER)
                self._make_line()
                version = self.client.create_model_version(
                    self.name,
                    source=f"{run.info.artifact_uri}/{ARTIFACT_FOLDER}",
                    run_id=number,
                    tags=facts,
                )
            except BaseException:
                self.client.set_terminated(number, "FAILED")
                raise
            self.client.set_terminated(number)
        return f"{self.name}/{version.version}"

    def _make_line(self) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self.client.create_registered_model(self.name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise


def _numbers(made: types.Export) -> dict[str, float]:
    """Return what was measured of an export, by names of MLflow."""
    checks = made.checks or {}
    found = {
        str(checks.get("metric")): checks.get("accuracy"),
        "retort_drop": checks.get("drop"),
        "retort_latency_ms": (made.latency or {}).get("ms"),
    }
    return {name: float(value) for name, value in found.items() if value is not None}


def _hub() -> "HfApi":
    try:
        import huggingface_hub
        from huggingface_hub import constants
    except ImportError as error:
        raise _not_installed("huggingface_hub", "hub") from error
    token = huggingface_hub.get_token()
    if token is None:
        raise errors.NotConfigured(
            f"no token for {constants.ENDPOINT}: set HF_TOKEN to one that may "
            "write, or sign in with `hf auth login`"
        )
    return huggingface_hub.HfApi(token=token, library_name="retort")


def _mlflow() -> "tuple[str, MlflowClient]":
    try:
        import mlflow
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient
    except ImportError as error:
        raise _not_installed("mlflow-skinny", "mlflow") from error
    is_known = mlflow.is_tracking_uri_set()  # type: ignore[no-untyped-call]  # theirs
    if not is_known:
        raise errors.NotConfigured(
            "no MLflow server is known: set MLFLOW_TRACKING_URI to its address (and its user, "
            "password or token as MLflow's documentation says)"
        )
    address = mlflow.get_tracking_uri()
    try:
        return address, MlflowClient()
    except MlflowException as error:
        raise errors.NotConfigured(f"MLFLOW_TRACKING_URI {address}: {error.message}") from error


def _not_installed(package: str, extra: str) -> errors.NotConfigured:
    return errors.NotConfigured(
        f"the package {package} is not installed: pip install 'retort-distill[{extra}]'"
    )


def _taken(repository: str) -> errors.BadOption:
    return errors.BadOption(
        f"--to {repository}: the hub has a repository of this name; give --update to add a commit "
        "to it, or another name"
    )


@contextmanager
def _told_of_hub(endpoint: str, repository: str) -> Iterator[None]:
    """Tell errors of the hub's library as those of this client."""
    from huggingface_hub import errors as of_hub

    lost = _transport_errors()
    try:
        yield
    except of_hub.HFValidationError as error:
        raise errors.BadOption(f"--to {repository}: {error}; write OWNER/NAME") from error
    except of_hub.HfHubHTTPError as error:
        status = error.response.status_code
        if status == _EXISTS:
            raise _taken(repository) from error
        said = error.server_message or str(error).splitlines()[0]
        raise errors.PushRefused(endpoint, _reason(status, "HF_TOKEN", repository, said)) from error
    except lost as error:
        raise errors.ConnectionFailed(endpoint, str(error) or type(error).__name__) from error
    except RuntimeError as error:
        # Of a large file whose upload has failed; why stands in its cause.
        why = f"{error} {error.__cause__ or ''}"
        raise errors.PushRefused(endpoint, f"{why.strip()}; push again with --update") from error


def _transport_errors() -> tuple[type[Exception], ...]:
    """Return what is raised where a hub cannot be reached, by huggingface_hub 1 and 2."""
    names = [name for name in ("httpx", "httpx2") if importlib.util.find_spec(name)]
    return (ConnectionError, *(importlib.import_module(name).HTTPError for name in names))


@contextmanager
def _told_of_mlflow(address: str) -> Iterator[None]:
    """Tell errors of MLflow's library as those of this client."""
    import requests
    from mlflow.exceptions import MlflowException, RestException

    try:
        yield
    except MlflowException as error:
        status = error.get_http_status_code()  # type: ignore[no-untyped-call]  # theirs
        is_answer = isinstance(error, RestException) or "failed with error code" in error.message
        if not is_answer and "API request to" in error.message:
            raise errors.ConnectionFailed(address, error.message) from error
        for code in (_BAD_KEY, _FORBIDDEN):
            # MLflow keeps no status of answers that are not its own, such as a proxy's.
            if f"failed with error code {code}" in error.message:
                status = code
        reason = _reason(status, MLFLOW_CREDENTIALS, address, error.message)
        raise errors.PushRefused(address, reason) from error
    except requests.RequestException as error:
        raise errors.ConnectionFailed(address, str(error)) from error


def _reason(status: int, credentials: str, target: str, said: str) -> str:
    """Return what a status means for who pushes, and the way out."""
    if status == _BAD_KEY:
        return f"the credentials were refused (401): set {credentials} to valid ones; {said}"
    if status == _FORBIDDEN:
        return f"the credentials may not write to {target} (403): use others; {said}"
    if status == _NOT_FOUND:
        return f"there is no {target}, or the credentials may not see it (404); {said}"
    return f"{said} ({status})"
