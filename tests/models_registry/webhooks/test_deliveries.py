"""Deliveries come with their events, are tried again for days, and end where nobody listens."""

from datetime import datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from models_registry import errors
from models_registry.jobs import actions
from models_registry.persistence import database, tables
from models_registry.webhooks import deliveries, endpoints
from models_registry.webhooks.deliveries import Outcome, Outgoing, Policy
from tests import factories
from tests.databases import SQLITE_ONLY

POLICY = Policy((0, 5, 300), disable_after_seconds=5 * 86_400)
TAKEN = Outcome(204, None)
REFUSED = Outcome(500, "it answered 500", excerpt="no")
Delivery = tables.WebhookDeliveryRow


def endpoint(
    session: Session, project: tables.ProjectRow, **changes: Any
) -> tables.WebhookEndpointRow:
    """Add an endpoint, by default one that is told of everything."""
    facts: dict[str, Any] = {"url": "https://example.com/", "events": None, "description": ""}
    return endpoints.create(session, project_id=project.id, **{**facts, **changes})


def only(session: Session) -> Delivery:
    return session.scalars(sa.select(Delivery).execution_options(populate_existing=True)).one()


def sending(session: Session, delivery_id: str) -> Outgoing:
    """Claim a delivery, whose time is let come."""
    session.get_one(Delivery, delivery_id).next_attempt_at = database.now(session)
    session.flush()
    claimed = deliveries.claim(session, delivery_id=delivery_id, lease_seconds=30)
    assert claimed is not None
    return claimed


def fail(session: Session, delivery_id: str, outcome: Outcome = REFUSED) -> Delivery:
    deliveries.finish(session, sending(session, delivery_id), outcome, POLICY)
    return session.get_one(Delivery, delivery_id)


def wait_seconds(session: Session, row: Delivery, begun: datetime) -> tuple[float, float]:
    """Return the least and the most that the wait can have been, by what `begun` shows and now.

    It was decided in between, however long this process was kept waiting there.
    """
    moments = (database.now(session), begun)
    least, most = ((row.next_attempt_at - moment).total_seconds() for moment in moments)
    return least, most


@pytest.fixture
def pending(sessions: database.Sessions, job: tables.JobRow, project: tables.ProjectRow) -> str:
    """A delivery of a job's cancellation."""
    with sessions.begin() as session:
        endpoint(session, project, events=["job.cancelled"])
        actions.cancel(session, project_id=project.id, job_id=job.id)
        return only(session).id


class TestRecord:
    def test_comes_and_goes_with_the_events_transaction(
        self, sessions: database.Sessions, job: tables.JobRow, project: tables.ProjectRow
    ) -> None:
        with sessions.begin() as session:
            made = endpoint(session, project).id
        with sessions() as session:
            actions.pause(session, project_id=project.id, job_id=job.id)
            assert only(session).state == deliveries.PENDING
            session.rollback()
        with sessions.begin() as session:
            assert session.scalars(sa.select(Delivery)).all() == []
            actions.cancel(session, project_id=project.id, job_id=job.id)
        with sessions.begin() as session:
            told = only(session)
            assert (told.endpoint_id, told.type) == (made, "job.cancelled")
            facts = told.payload["data"]
            assert facts == {
                "project_id": project.id,
                "job_id": job.id,
                "study_id": None,
                "sequence": facts["sequence"],
                "state": "cancelled",
                "state_reason": "cancelled_by_caller",
                "attempt": 0,
            }
            assert told.payload["timestamp"].endswith("Z")
            assert told.message_id == f"msg_{job.id.removeprefix('job_')}_{facts['sequence']}"
            message = session.scalars(
                sa.select(tables.OutboxRow).where(tables.OutboxRow.queue == "webhooks")
            ).one()
            assert (message.task, message.payload) == (
                "webhooks.deliver",
                {"delivery_id": told.id},
            )

    @SQLITE_ONLY
    def test_is_for_enabled_endpoints_of_the_project_that_want_the_event(
        self, sessions: database.Sessions, job: tables.JobRow, project: tables.ProjectRow
    ) -> None:
        with sessions.begin() as session:
            wants = endpoint(session, project, events=["job.succeeded", "job.cancelled"]).id
            endpoint(session, project, events=["job.succeeded"])
            endpoints.change(session, endpoint(session, project), enabled=False)
            foreign = tables.ProjectRow(id="prj_x", name="x", created_at=job.created_at)
            session.add(foreign)
            session.flush()
            endpoint(session, foreign)
            actions.cancel(session, project_id=project.id, job_id=job.id)
            assert only(session).endpoint_id == wants

    @SQLITE_ONLY
    def test_of_a_study_takes_a_few_statements_however_many_jobs_it_has(
        self, sessions: database.Sessions, teacher: tables.ModelVersionRow
    ) -> None:
        statements: list[str] = []
        with sessions.begin() as session:
            project = session.query(tables.ProjectRow).one()
            endpoint(session, project)
            sa.event.listen(
                session.get_bind(),
                "before_cursor_execute",
                lambda _c, _k, statement, *_: statements.append(statement),
            )
            factories.study(session, project_id=project.id, seeds=list(range(10)))
            told = session.scalars(sa.select(Delivery)).all()
        assert {row.type for row in told} >= {"job.validating", "job.queued"}
        for row in told:  # the state that the event led to, and not the one that followed
            assert row.payload["data"]["state"] == row.type.removeprefix("job.")
        assert len({(row.message_id, row.endpoint_id) for row in told}) == len(told) >= 60
        about_hooks = [text for text in statements if "webhook" in text]
        assert len(about_hooks) <= 6

    @SQLITE_ONLY
    def test_covers_events_that_change_no_state(
        self, sessions: database.Sessions, job: tables.JobRow, project: tables.ProjectRow
    ) -> None:
        from models_registry.jobs import leases

        with sessions.begin() as session:
            lease = factories.running(session, session.get_one(tables.JobRow, job.id))
            endpoint(session, project, events=["job.warning"])
            leases.warn(session, lease, code="slow", message="slow")
            told = only(session)
            assert (told.type, told.payload["data"]["state"]) == ("job.warning", "running")


class TestClaim:
    def test_is_given_once_until_it_expires(
        self, sessions: database.Sessions, pending: str
    ) -> None:
        with sessions.begin() as session:
            first = sending(session, pending)
            assert first.attempt == 1
            assert deliveries.claim(session, delivery_id=pending, lease_seconds=30) is None
        with sessions.begin() as session:
            # Its sender was killed.
            only(session).claim_expires_at = database.now(session) - timedelta(seconds=1)
        with sessions.begin() as session:
            assert deliveries.republish(session, after_seconds=0) == 1
            second = sending(session, pending)
            assert (second.attempt, second.message_id) == (2, first.message_id)
            assert second.body == first.body
            # The first one lives after all: its answer is kept, and decides nothing.
            deliveries.finish(session, first, TAKEN, POLICY)
            assert only(session).state == deliveries.PENDING
            deliveries.finish(session, second, TAKEN, POLICY)
            assert only(session).state == deliveries.DELIVERED
            made = deliveries.attempts(session, delivery_ids=[pending])[pending]
            assert [(one.number, one.status) for one in made] == [(1, 204), (2, 204)]

    @SQLITE_ONLY
    def test_of_a_busy_endpoint_waits_without_counting(
        self, sessions: database.Sessions, job: tables.JobRow, project: tables.ProjectRow
    ) -> None:
        with sessions.begin() as session:
            endpoint(session, project)
            for _ in range(2):
                actions.pause(session, project_id=project.id, job_id=job.id)
                actions.resume(session, project_id=project.id, job_id=job.id)
            waiting = [row.id for row in session.scalars(sa.select(Delivery))]
            for delivery_id in waiting[: deliveries.MOST_AT_A_TIME]:
                sending(session, delivery_id)
            last = waiting[-1]
            begun = database.now(session)
            assert deliveries.claim(session, delivery_id=last, lease_seconds=30) is None
            row = session.get_one(Delivery, last)
            assert (row.attempts, row.announced_at) == (0, None)
            least, most = wait_seconds(session, row, begun)
            assert least <= deliveries._BUSY_SECONDS <= most

    @SQLITE_ONLY
    def test_has_both_secrets_while_they_overlap(
        self, sessions: database.Sessions, pending: str
    ) -> None:
        with sessions.begin() as session:
            row = session.query(tables.WebhookEndpointRow).one()
            former = row.secret
            endpoints.rotate_secret(session, row)
            assert sending(session, pending).secrets == (row.secret, former)
            only(session).claim_expires_at = None
            row.former_secret_expires_at = database.now(session)
            assert sending(session, pending).secrets == (row.secret,)


@SQLITE_ONLY
class TestFinish:
    def test_of_a_failure_waits_longer_each_time_and_then_gives_up(
        self, sessions: database.Sessions, pending: str
    ) -> None:
        with sessions.begin() as session:
            for low, high in ((4, 6), (299, 360)):
                begun = database.now(session)
                row = fail(session, pending)
                least, most = wait_seconds(session, row, begun)
                assert least <= high
                assert most > low
                assert deliveries.claim(session, delivery_id=pending, lease_seconds=9) is None
            assert fail(session, pending).state == deliveries.FAILED
            assert row.ended_at is not None
            found = session.query(tables.WebhookEndpointRow).one()
            assert found.enabled
            assert found.failing_since is not None
            made = deliveries.attempts(session, delivery_ids=[pending])[pending]
            assert [(one.status, one.error, one.excerpt) for one in made] == 3 * [
                (500, "it answered 500", "no")
            ]

    def test_waits_as_long_as_it_is_asked_to_up_to_a_day(
        self, sessions: database.Sessions, pending: str
    ) -> None:
        with sessions.begin() as session:
            for asked, granted in ((3600, 3600), (1e9, 86_400)):
                begun = database.now(session)
                row = fail(session, pending, Outcome(429, "busy", retry_after_seconds=asked))
                least, most = wait_seconds(session, row, begun)
                assert least <= granted <= most

    def test_of_a_success_forgets_that_the_endpoint_was_failing(
        self, sessions: database.Sessions, pending: str
    ) -> None:
        with sessions.begin() as session:
            fail(session, pending)
            deliveries.finish(session, sending(session, pending), TAKEN, POLICY)
            found = session.query(tables.WebhookEndpointRow).one()
            assert found.failing_since is None
            assert found.last_delivered_at is not None

    def test_of_410_disables_the_endpoint_and_tells_the_others(
        self, sessions: database.Sessions, pending: str, project: tables.ProjectRow
    ) -> None:
        with sessions.begin() as session:
            other = endpoint(session, project, events=["webhook_endpoint.disabled"]).id
            assert fail(session, pending, Outcome(410, "gone")).state == deliveries.FAILED
            gone = session.get_one(Delivery, pending).endpoint_id
            row = session.get_one(tables.WebhookEndpointRow, gone)
            assert (row.enabled, row.disabled_reason) == (False, "gone")
            told = session.scalars(sa.select(Delivery).where(Delivery.endpoint_id == other)).one()
            assert told.payload["data"]["webhook_endpoint_id"] == gone
            assert told.payload["data"]["reason"] == "gone"

    def test_after_days_of_failures_disables_the_endpoint_and_says_why(
        self, sessions: database.Sessions, pending: str
    ) -> None:
        with sessions.begin() as session:
            fail(session, pending)
            row = session.query(tables.WebhookEndpointRow).one()
            row.failing_since = database.now(session) - timedelta(days=5, seconds=1)
            fail(session, pending)
            assert (row.enabled, row.disabled_reason) == (False, "failing")
            assert "it answered 500" in (row.disabled_message or "")

    def test_has_nothing_to_record_once_the_endpoint_is_deleted(
        self, sessions: database.Sessions, pending: str, project: tables.ProjectRow
    ) -> None:
        with sessions.begin() as session:
            sent = sending(session, pending)
            endpoints.delete(session, project_id=project.id, endpoint_id=sent.endpoint_id)
        with sessions.begin() as session:
            deliveries.finish(session, sent, TAKEN, POLICY)
            assert session.query(tables.WebhookAttemptRow).all() == []


class TestDisabled:
    def test_keeps_what_waits_until_it_is_enabled_again(
        self, sessions: database.Sessions, pending: str
    ) -> None:
        with sessions.begin() as session:
            row = session.query(tables.WebhookEndpointRow).one()
            endpoints.change(session, row, enabled=False)
            assert deliveries.claim(session, delivery_id=pending, lease_seconds=9) is None
            assert deliveries.republish(session, after_seconds=0) == 0
            assert deliveries.lag_seconds(session) == 0
            with pytest.raises(errors.Conflict, match="enabled: true"):
                deliveries.redeliver(session, row, delivery_id=pending)
            endpoints.change(session, row, enabled=True)
            assert (row.disabled_reason, row.disabled_at) == (None, None)
            assert deliveries.lag_seconds(session) >= 0
            assert deliveries.republish(session, after_seconds=0) == 1
            assert sending(session, pending)


@SQLITE_ONLY
class TestRepublish:
    def test_announces_what_is_due_and_was_not_announced_lately(
        self, sessions: database.Sessions, pending: str
    ) -> None:
        with sessions.begin() as session:
            assert deliveries.republish(session, after_seconds=60) == 0
            row = fail(session, pending)
            assert deliveries.republish(session, after_seconds=60) == 0  # not due yet
            row.next_attempt_at = database.now(session)
            assert deliveries.republish(session, after_seconds=60) == 1
            assert deliveries.republish(session, after_seconds=60) == 0


@SQLITE_ONLY
class TestRedeliver:
    def test_sends_a_failed_one_again_under_its_id_with_the_whole_schedule(
        self, sessions: database.Sessions, pending: str
    ) -> None:
        with sessions.begin() as session:
            first = sending(session, pending)
            deliveries.finish(session, first, Outcome(410, "gone"), POLICY)
            row = session.query(tables.WebhookEndpointRow).one()
            endpoints.change(session, row, enabled=True)
            deliveries.redeliver(session, row, delivery_id=pending)
            again = sending(session, pending)
            assert (again.message_id, again.attempt) == (first.message_id, 2)
            with pytest.raises(errors.Conflict, match="being sent just now"):
                deliveries.redeliver(session, row, delivery_id=pending)
            deliveries.finish(session, again, REFUSED, POLICY)
            assert only(session).state == deliveries.PENDING


@SQLITE_ONLY
def test_deliveries_are_forgotten_after_a_month_with_their_attempts(
    sessions: database.Sessions, pending: str
) -> None:
    with sessions.begin() as session:
        deliveries.finish(session, sending(session, pending), TAKEN, POLICY)
        assert deliveries.forget(session) == 0
        only(session).created_at -= timedelta(days=31)
        session.flush()
        assert deliveries.forget(session) == 1
        assert session.query(tables.WebhookAttemptRow).all() == []
