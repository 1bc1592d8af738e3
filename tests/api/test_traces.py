"""A caller's trace is kept with the job and its message, whether or not this process exports."""

import sqlalchemy as sa
from fastapi.testclient import TestClient

from models_registry.persistence import database, tables
from tests import databases, factories

GIVEN = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@databases.SQLITE_ONLY
def test_the_callers_context_is_stored(
    client: TestClient, sessions: database.Sessions, teacher: tables.ModelVersionRow
) -> None:
    traced = client.post("/v1/jobs", json=factories.spec(), headers={"traceparent": GIVEN}).json()
    malformed = client.post("/v1/jobs", json=factories.spec(), headers={"traceparent": "00-1"})
    assert malformed.status_code == 202
    with sessions() as session:
        job = session.get_one(tables.JobRow, traced["id"])
        messages = session.scalars(sa.select(tables.OutboxRow).order_by(tables.OutboxRow.id))
        assert job.traceparent == GIVEN
        assert [message.traceparent for message in messages] == [GIVEN, None]
