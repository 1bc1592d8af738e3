"""Pushing a version to a hub and to MLflow: real client libraries, real HTTP, real stores."""

import base64
import http.server
import json
import re
import sys
import threading
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
import yaml
from huggingface_hub import constants
from typer.testing import CliRunner

from models_registry.artifacts import exports
from models_registry.persistence import database, tables
from models_registry.persistence.storage import Storage
from retort.cli import app
from tests import factories
from tests.api.test_exports import MEASURED
from tests.databases import SQLITE_ONLY
from tests.retort.cli.test_exports import DESCRIBED

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

pytestmark = SQLITE_ONLY

TOKEN = "hf_of_the_test"
WEIGHTS = bytes(range(256)) * 8
HUB_FILES = {
    "config.json": b"{}",
    "model.safetensors": WEIGHTS,
    "README.md": b"---\nlibrary_name: retort\n---\n# A student\n",
    "export.json": json.dumps(DESCRIBED).encode(),
}
ONNX_FILES = {"model.onnx": b"a graph", "export.json": json.dumps(DESCRIBED).encode()}
ACCURACY = 0.9


class Hub(http.server.ThreadingHTTPServer):
    """The part of a hub's HTTP interface by which a repository is made and filled."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.large: dict[str, bytes] = {}
        self.messages: list[str] = []
        self.readers: set[str] = set()
        """Tokens that may not write."""


class HubHandler(http.server.BaseHTTPRequestHandler):
    """Answers as the hub does."""

    server: Hub

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _body(self) -> bytes:
        if self.headers.get("transfer-encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("content-length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, status: int, content: Any = None, *, words: str = "", **headers: str) -> None:
        body = words.encode() if content is None else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body if self.command != "HEAD" else b"")

    def _handle(self) -> None:
        body, path = self._body(), urlsplit(self.path).path
        token = self.headers.get("authorization", "").removeprefix("Bearer ")
        if path.startswith("/upload/"):
            self.server.large[path.removeprefix("/upload/")] = body
            return self._answer(HTTPStatus.OK)
        if path.startswith("/api/2.0/mlflow"):
            # As MLflow's own server refuses: in words, not JSON.
            return self._answer(HTTPStatus.UNAUTHORIZED, words="You are not authenticated.")
        if token != TOKEN and token not in self.server.readers:
            error = "Invalid credentials in Authorization header"
            return self._answer(HTTPStatus.UNAUTHORIZED, {"error": error}, X_Error_Message=error)
        if self.command == "POST" and token in self.server.readers:
            error = "You don't have the rights to create a model under this namespace"
            return self._answer(HTTPStatus.FORBIDDEN, {"error": error})
        for pattern, act in ROUTES:
            found = re.fullmatch(pattern, path)
            if found:
                return act(self, body, **found.groupdict())
        return self._answer(HTTPStatus.NOT_FOUND, {"error": f"no {path}"})

    do_GET = do_HEAD = do_POST = do_PUT = _handle  # noqa: N815  # names of http.server

    def _made(self, body: bytes) -> None:
        asked = json.loads(body)
        owner = asked.get("organization") or "me"
        name = f"{owner}/{asked['name']}"
        if name in self.server.repositories:
            error = "You already created this model repo"
            url = f"{self.server.url}/{name}"
            return self._answer(HTTPStatus.CONFLICT, {"error": error, "url": url})
        self.server.repositories[name] = {}
        self.server.private[name] = asked.get("private") or asked.get("visibility") == "private"
        return self._answer(HTTPStatus.OK, {"url": f"{self.server.url}/{name}", "name": name})

    def _shown(self, _body: bytes, name: str) -> None:
        if name not in self.server.repositories:
            return self._answer(
                HTTPStatus.NOT_FOUND, {"error": "Not found"}, X_Error_Code="RepoNotFound"
            )
        siblings = [{"rfilename": path} for path in self.server.repositories[name]]
        return self._answer(HTTPStatus.OK, {"id": name, "sha": "0" * 40, "siblings": siblings})

    def _asked_how(self, body: bytes, name: str) -> None:
        def how(path: str) -> str:
            return "lfs" if path.endswith(".safetensors") else "regular"

        files = [
            {"path": one["path"], "uploadMode": how(one["path"]), "shouldIgnore": False}
            for one in json.loads(body)["files"]
        ]
        self._answer(HTTPStatus.OK, {"files": files})

    def _checked_card(self, _body: bytes) -> None:
        self._answer(HTTPStatus.OK, {"errors": [], "warnings": []})

    def _batch(self, body: bytes, name: str) -> None:
        objects = [
            {**one, "actions": {"upload": {"href": f"{self.server.url}/upload/{one['oid']}"}}}
            for one in json.loads(body)["objects"]
        ]
        self._answer(HTTPStatus.OK, {"transfer": "basic", "objects": objects})

    def _committed(self, body: bytes, name: str) -> None:
        for line in body.decode().splitlines():
            one = json.loads(line)
            value = one["value"]
            match one["key"]:
                case "header":
                    self.server.messages.append(value["summary"])
                case "file":
                    content = base64.b64decode(value["content"])
                    self.server.repositories[name][value["path"]] = content
                case "lfsFile":
                    self.server.repositories[name][value["path"]] = self.server.large[value["oid"]]
        url = f"{self.server.url}/{name}/commit/{'1' * 40}"
        self._answer(HTTPStatus.OK, {"success": True, "commitOid": "1" * 40, "commitUrl": url})


_NAME = r"(?P<name>[^/]+/[^/]+)"
ROUTES: list[tuple[str, Callable[..., None]]] = [
    ("/api/repos/create", HubHandler._made),
    ("/api/validate-yaml", HubHandler._checked_card),
    (rf"/api/models/{_NAME}/preupload/main", HubHandler._asked_how),
    (rf"/api/models/{_NAME}/commit/main", HubHandler._committed),
    (rf"/api/models/{_NAME}(?:/revision/main)?", HubHandler._shown),
    (rf"/{_NAME}\.git/info/lfs/objects/batch", HubHandler._batch),
]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub of its own, with the token of somebody who may write."""
    with Hub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        # Large files go by LFS, which a hub of one's own may have; Xet's storage is a program.
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        yield server
        server.shutdown()


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch,
    service: str,
    api_key: str,
    sessions: database.Sessions,
    storage: Storage,
    project: tables.ProjectRow,
) -> Callable[..., str]:
    """Run the command line as an administrator of a project with exports of a teacher."""
    monkeypatch.setenv("RETORT_URL", service)
    monkeypatch.setenv("RETORT_API_KEY", api_key)
    monkeypatch.setenv("COLUMNS", "200")
    with sessions.begin() as session:
        factories.teacher(session, storage, project_id=project.id)

    def run(*arguments: str, code: int = 0) -> str:
        result = CliRunner().invoke(app.app, arguments, prog_name="retort")
        assert result.exit_code == code, result.output
        return result.stdout if code == 0 else result.output

    for form, files in (("hub", HUB_FILES), ("onnx", ONNX_FILES)):
        asked = json.loads(run("--json", "export", "digits-teacher@1", "--format", form))
        with sessions.begin() as session:
            claim = exports.claim(session, asked["id"])
            assert claim is not None
            stored = [
                factories.stored(session, storage, content, path=path)
                for path, content in files.items()
            ]
            exports.finish(session, claim, files=stored, measured=MEASURED, notes=[])
    return run


TO = ("push", "hub", "digits-teacher@1", "--to", "me/student")


# Of the hub's library about its own use of an HTTP library.
@pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")
class TestHub:
    def test_gets_a_private_repository_with_the_files_and_is_told_its_address(
        self, run: Callable[..., str], hub: Hub
    ) -> None:
        told = json.loads(run("--json", *TO))
        assert told["model"] == "digits-teacher@1"
        assert told["address"] == f"{hub.url}/me/student/commit/{'1' * 40}"
        uploaded = hub.repositories["me/student"]
        wanted = {name: HUB_FILES[name] for name in HUB_FILES if name != "export.json"}
        assert {name: uploaded[name] for name in wanted} == wanted
        assert "export.json" not in uploaded
        assert hub.private == {"me/student": True}
        assert hub.messages == ["digits-teacher@1, from Retort"]

    def test_that_has_the_name_keeps_it_unless_told_to_update(
        self, run: Callable[..., str], hub: Hub
    ) -> None:
        hub.repositories["me/student"] = {"README.md": b"mine"}
        assert "give --update" in run(*TO, code=2)
        assert hub.repositories["me/student"] == {"README.md": b"mine"}
        run(*TO, "--update", "--message", "second")
        assert hub.repositories["me/student"]["model.safetensors"] == WEIGHTS
        assert hub.messages == ["second"]

    def test_that_refuses_the_token_is_quoted_with_the_way_out(
        self, run: Callable[..., str], hub: Hub, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HF_TOKEN", "hf_wrong")
        told = run(*TO, code=3)
        assert "401" in told
        assert "set HF_TOKEN" in told
        assert "hf_wrong" not in told
        hub.readers.add("hf_reader")
        monkeypatch.setenv("HF_TOKEN", "hf_reader")
        assert "may not write to me/student (403)" in run(*TO, code=3)
        assert hub.repositories == {}

    def test_is_asked_for_nothing_without_a_token_or_with_a_name_that_is_none(
        self,
        run: Callable[..., str],
        hub: Hub,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
    ) -> None:
        told = run(*TO[:-1], "no/such/name", code=2)
        assert "no/such/name" in told
        assert "OWNER/NAME" in told
        monkeypatch.delenv("HF_TOKEN")
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        assert "set HF_TOKEN" in run(*TO, code=2)

    def test_that_is_away_is_said_to_be(
        self, run: Callable[..., str], hub: Hub, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        assert "cannot reach http://127.0.0.1:9" in run(*TO, code=4)

    def test_needs_its_library(
        self, run: Callable[..., str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "huggingface_hub", None)
        assert "pip install 'retort-distill[hub]'" in run(*TO, code=2)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> "MlflowClient":
    """MLflow's own store of files, which its client writes as it would to a server."""
    from mlflow.tracking import MlflowClient  # takes every process that collects tests a second

    address = (tmp_path / "mlruns").as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return MlflowClient(address)


class TestMlflow:
    def test_registers_a_version_with_files_numbers_and_where_it_is_from(
        self, run: Callable[..., str], store: "MlflowClient", tmp_path: Path
    ) -> None:
        told = json.loads(run("--json", "push", "mlflow", "digits-teacher@1"))
        assert told["address"] == "models:/digits-teacher/1"
        version = store.get_model_version("digits-teacher", "1")
        assert version.status == "READY"
        assert version.tags["retort_model"] == "digits-teacher@1"
        assert version.run_id is not None
        made = store.get_run(version.run_id)
        assert made.info.status == "FINISHED"
        assert made.data.metrics["accuracy"] == ACCURACY
        folder = Path(store.download_artifacts(version.run_id, "model", str(tmp_path)))
        assert (folder / "model.onnx").read_bytes() == b"a graph"
        described = yaml.safe_load((folder / "MLmodel").read_text())
        assert described["flavors"]["python_function"]["loader_module"] == "mlflow.onnx"
        again = json.loads(run("--json", "push", "mlflow", "digits-teacher"))
        assert again["address"] == "models:/digits-teacher/2"
        run("push", "mlflow", "digits-teacher", "--to", "other", "--experiment", "mine")
        assert store.get_experiment_by_name("mine") is not None

    def test_needs_an_address_and_its_library(
        self, run: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        assert "set MLFLOW_TRACKING_URI" in run("push", "mlflow", "digits-teacher", code=2)
        monkeypatch.setitem(sys.modules, "mlflow", None)
        told = run("push", "mlflow", "digits-teacher", code=2)
        assert "pip install 'retort-distill[mlflow]'" in told

    def test_that_refuses_or_is_away_says_so(
        self, run: Callable[..., str], hub: Hub, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", hub.url)  # which knows no such user
        told = run("push", "mlflow", "digits-teacher", code=3)
        assert "401" in told
        assert "MLFLOW_TRACKING_USERNAME" in told
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        assert "cannot reach http://127.0.0.1:9" in run("push", "mlflow", "digits-teacher", code=4)
