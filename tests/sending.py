"""Sends files to the API as a client does, and asks for versions that need no more than that."""

import base64
import hashlib
from typing import Any

from fastapi.testclient import TestClient

from tests import factories


def digest_header(content: bytes) -> str:
    """Return the value of a `Repr-Digest` header."""
    return f"sha-256=:{base64.b64encode(hashlib.sha256(content).digest()).decode()}:"


def announcement(content: bytes, **changes: Any) -> dict[str, Any]:
    """Return the body that opens an upload."""
    return {
        "filename": "teacher.safetensors",
        "size_bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "purpose": "model",
        **changes,
    }


def begin(client: TestClient, content: bytes, **changes: Any) -> dict[str, Any]:
    """Open an upload and return it."""
    answer = client.post("/v1/uploads", json=announcement(content, **changes))
    assert answer.status_code == 201, answer.text
    body: dict[str, Any] = answer.json()
    return body


def send(client: TestClient, content: bytes = b"weights", **changes: Any) -> str:
    """Upload a file as a whole and return the upload's id."""
    upload = begin(client, content, **changes)
    size = upload["part_size_bytes"]
    for part in upload["parts"]:
        first = (part["number"] - 1) * size
        answer = client.put(part["url"], content=content[first : first + size])
        assert answer.status_code == 204, answer.text
    answer = client.post(f"/v1/uploads/{upload['id']}/complete", json={})
    assert answer.status_code == 200, answer.text
    return str(upload["id"])


def model_version(upload: str, **changes: Any) -> dict[str, Any]:
    """Return the body that makes a model version from an upload."""
    return {
        "upload": upload,
        "network": "retort/resnet8x4",
        "classes": 10,
        "input": dict(factories.DIGITS_INPUT),
        **changes,
    }


def faults(answer: Any) -> dict[str, str]:
    """Return the codes of a problem's faults by field, of either kind of response in use here."""
    return {fault["pointer"]: fault["code"] for fault in answer.json()["errors"]}
