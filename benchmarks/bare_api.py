"""The least that an answer costs: one route of FastAPI with one indexed query.

    BARE_DATABASE_URL=... python -m uvicorn benchmarks.bare_api:app

`benchmarks.requests` measures the service's reads beside it.
"""

import os
from typing import Any

import sqlalchemy as sa
from fastapi import FastAPI
from pydantic import BaseModel

from models_registry.persistence import database, tables

app = FastAPI()
_readers = database.readers(database.connect(os.environ["BARE_DATABASE_URL"]))


class BareJob(BaseModel):
    """Some columns of a job."""

    id: str
    name: str
    state: str
    spec: dict[str, Any]


@app.get("/jobs/{job_id}")
def show(job_id: str) -> BareJob:
    """Return some columns of a job, whoever asks."""
    row = tables.JobRow
    with _readers() as session:
        query = sa.select(row.id, row.name, row.state, row.spec).where(row.id == job_id)
        found = session.execute(query).one()
    return BareJob(id=found.id, name=found.name, state=found.state, spec=found.spec)
