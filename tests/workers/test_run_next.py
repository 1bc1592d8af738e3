"""A message says that there is work; the worker takes the job whose turn it is."""

import pytest
import sqlalchemy as sa

from models_registry.jobs.lifecycle import State
from models_registry.persistence import tables
from tests.databases import SQLITE_ONLY
from tests.workers import scenes
from workers import runner
from workers.context import Context

pytestmark = SQLITE_ONLY


def test_without_a_job_there_is_nothing_to_do(context: Context) -> None:
    assert runner.run_next(context, "job_none") is None


@pytest.mark.slow
def test_the_older_job_goes_first_and_the_announced_one_gets_a_new_message(
    context: Context,
) -> None:
    project = scenes.project(context)
    older, announced = scenes.submit(context, project), scenes.submit(context, project)
    with context.sessions.begin() as session:
        session.execute(sa.delete(tables.OutboxRow))
    assert runner.run_next(context, announced) == older
    assert scenes.job(context, older).state == State.SUCCEEDED
    assert scenes.job(context, announced).state == State.QUEUED
    with context.readers.begin() as session:
        (payload,) = session.scalars(sa.select(tables.OutboxRow.payload))
    assert payload["job_id"] == announced
