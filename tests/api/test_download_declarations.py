"""What OpenAPI says of downloads is what they return: statuses, media types, headers."""

from typing import Any

import pytest
from fastapi.testclient import TestClient

from models_registry.persistence import database, tables
from models_registry.persistence.storage import Storage
from tests import databases, factories


def declared(document: dict[str, Any], path: str, status: int) -> dict[str, Any]:
    """Return what the document says of one response to GET."""
    response: dict[str, Any] = document["paths"][path]["get"]["responses"][str(status)]
    if "$ref" in response:
        return dict(document["components"]["responses"][response["$ref"].rpartition("/")[2]])
    return response


@databases.SQLITE_ONLY
@pytest.mark.parametrize(
    "path",
    [
        "/v1/jobs/{job_id}/student",
        "/v1/jobs/{job_id}/report/{path}",
        "/v1/models/{name}/versions/{version}/files/{path}",
    ],
)
def test_files(
    client: TestClient,
    sessions: database.Sessions,
    storage: Storage,
    job: tables.JobRow,
    path: str,
    openapi_document: dict[str, Any],
) -> None:
    with sessions.begin() as session:
        row = session.get_one(tables.JobRow, job.id)
        factories.succeeded(session, storage, row, report={"curves.svg": b"<svg/>"})
    file = "curves.svg" if "report" in path else "model.safetensors"
    url = path.format(job_id=job.id, name="digits-student", version=1, path=file)
    whole = client.get(url)
    asked = {
        200: {},
        206: {"range": "bytes=0-1"},
        304: {"if-none-match": whole.headers["etag"]},
        416: {"range": "bytes=999-"},
    }
    for status, headers in asked.items():
        answer = client.get(url, headers=headers)
        assert answer.status_code == status
        response = declared(openapi_document, path, status)
        assert {name.lower() for name in response["headers"]} <= set(answer.headers)
        if "content" in response:
            assert answer.headers["content-type"] in response["content"]


@databases.SQLITE_ONLY
def test_archives(
    client: TestClient,
    sessions: database.Sessions,
    storage: Storage,
    job: tables.JobRow,
    openapi_document: dict[str, Any],
) -> None:
    with sessions.begin() as session:
        row = session.get_one(tables.JobRow, job.id)
        factories.succeeded(session, storage, row, report={"a.json": b"{}"})
    url = f"/v1/jobs/{job.id}/report.zip"
    whole = client.get(url)
    known = client.get(url, headers={"if-none-match": whole.headers["etag"]})
    for answer in (whole, known):
        response = declared(openapi_document, "/v1/jobs/{job_id}/report.zip", answer.status_code)
        assert {name.lower() for name in response["headers"]} <= set(answer.headers)
    assert (
        whole.headers["content-type"]
        in declared(openapi_document, "/v1/jobs/{job_id}/report.zip", 200)["content"]
    )


@databases.SQLITE_ONLY
def test_every_download_is_declared(openapi_document: dict[str, Any], client: TestClient) -> None:
    """A response without a declared type is JSON to a client: only these have bodies of none."""
    for path, verbs in openapi_document["paths"].items():
        response = verbs.get("get", {}).get("responses", {}).get("200")
        assert response is None or response.get("content"), path
        if "application/octet-stream" in (response or {}).get("content", {}):
            assert response["content"]["application/octet-stream"]["schema"]["format"] == "binary"
            assert "304" in verbs["get"]["responses"], path
