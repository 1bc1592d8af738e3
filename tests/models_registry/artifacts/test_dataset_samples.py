"""Sample sheets are made once, kept for a time, and go with their version."""

from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from models_registry import errors
from models_registry.artifacts import dataset_samples, datasets
from models_registry.persistence import database, tables
from tests import factories

SHEET = {"split": "train", "classes": [], "notes": []}


@pytest.fixture
def session(sessions: database.Sessions) -> Iterator[Session]:
    with sessions.begin() as made:
        yield made


@pytest.fixture
def version(session: Session, project: tables.ProjectRow) -> tables.DatasetVersionRow:
    return factories.dataset_version(session, project_id=project.id, name="scans")


class TestRequest:
    def test_calls_a_worker_once(
        self, session: Session, project: tables.ProjectRow, version: tables.DatasetVersionRow
    ) -> None:
        first = dataset_samples.request(session, project_id=project.id, version=version)
        again = dataset_samples.request(session, project_id=project.id, version=version)
        assert (first.state, again.version_id) == ("queued", version.id)
        sent = session.scalars(
            sa.select(tables.OutboxRow).where(tables.OutboxRow.task == dataset_samples.TASK)
        ).all()
        assert [one.payload for one in sent] == [{"version_id": version.id}]

    def test_of_a_version_that_is_not_ready_is_refused(
        self, session: Session, project: tables.ProjectRow
    ) -> None:
        pending = factories.dataset_version(
            session, project_id=project.id, name="new", state="pending"
        )
        with pytest.raises(errors.Conflict, match="new@1 is pending"):
            dataset_samples.request(session, project_id=project.id, version=pending)

    def test_finds_what_was_made_until_it_expires(
        self, session: Session, project: tables.ProjectRow, version: tables.DatasetVersionRow
    ) -> None:
        dataset_samples.request(session, project_id=project.id, version=version)
        assert dataset_samples.claim(session, version.id) is version
        assert dataset_samples.claim(session, version.id) is None
        dataset_samples.finish(session, version.id, sheet=SHEET)
        kept = dataset_samples.request(session, project_id=project.id, version=version)
        assert (kept.state, kept.sheet) == ("ready", SHEET)
        kept.expires_at = database.now(session)
        session.flush()
        assert dataset_samples.request(session, project_id=project.id, version=version).state == (
            "queued"
        )


class TestSweep:
    def test_takes_only_what_has_expired(
        self, session: Session, project: tables.ProjectRow, version: tables.DatasetVersionRow
    ) -> None:
        made = dataset_samples.request(session, project_id=project.id, version=version)
        assert dataset_samples.sweep(session) == 0
        made.expires_at = database.now(session)
        session.flush()
        assert dataset_samples.sweep(session) == 1

    def test_a_deleted_version_takes_its_sheet_along(
        self, session: Session, project: tables.ProjectRow, version: tables.DatasetVersionRow
    ) -> None:
        dataset_samples.request(session, project_id=project.id, version=version)
        datasets.delete_version(session, project_id=project.id, name="scans", version=1)
        assert dataset_samples.find(session, version.id) is None
        dataset_samples.finish(session, version.id, sheet=SHEET)
        assert dataset_samples.find(session, version.id) is None
