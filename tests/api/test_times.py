"""Times in requests at the edges of the calendar, on both kinds of databases."""

import pytest
from fastapi.testclient import TestClient

from tests import databases

BEYOND = ["9999-12-31T23:59:59-01:00", "0001-01-01T00:00:00+01:00"]
EDGES = ["9999-12-31T23:59:59Z", "0001-01-01T00:00:00Z", "2026-01-01T00:00:00+14:00"]


@databases.SQLITE_ONLY
@pytest.mark.parametrize("time", BEYOND)
@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/studies"])
def test_beyond_the_calendar_of_utc_are_refused(client: TestClient, path: str, time: str) -> None:
    answer = client.get(path, params={"created_after": time})
    assert answer.status_code == 422
    (fault,) = answer.json()["errors"]
    assert fault["pointer"] == "/query/created_after"
    assert "9999" in fault["detail"]


@pytest.mark.parametrize("time", EDGES)
@pytest.mark.parametrize("name", ["created_after", "created_before"])
def test_inside_of_it_are_compared(client: TestClient, name: str, time: str) -> None:
    assert client.get("/v1/jobs", params={name: time}).status_code == 200


@databases.SQLITE_ONLY
@pytest.mark.parametrize("time", BEYOND)
def test_of_a_key_are_refused_beyond_it(client: TestClient, time: str) -> None:
    wanted = {"name": "x", "role": "viewer", "expires_at": time}
    answer = client.post("/v1/api-keys", json=wanted)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/expires_at"
