"""Requests sent twice: one effect, one answer, whoever is first."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta

import pytest
import sqlalchemy as sa

from models_registry import errors, ids
from models_registry.access import idempotency
from models_registry.persistence import database, tables
from tests.databases import SQLITE_ONLY

ANSWER = idempotency.StoredResponse(202, {"id": "job_1"}, "/v1/jobs/job_1")


def request_of(project: tables.ProjectRow, **changes: object) -> idempotency.KeyedRequest:
    """Return the identity of a request."""
    facts = {"route": "POST /v1/jobs", "key": "k1", "body": {"a": 1, "b": [2.5]}, **changes}
    return idempotency.keyed_request(project_id=project.id, **facts)  # type: ignore[arg-type]  # facts of a test


class TestRequest:
    def test_takes_the_same_body_in_another_order_as_the_same(
        self, project: tables.ProjectRow
    ) -> None:
        swapped = request_of(project, body={"b": [2.5], "a": 1})
        assert swapped == request_of(project)
        assert request_of(project, body={"a": 2, "b": [2.5]}) != swapped

    @SQLITE_ONLY
    @pytest.mark.parametrize("key", ["", "a b", "ü", "x" * 256, "a\nb"])
    def test_refuses_a_key_that_is_not_plain(self, project: tables.ProjectRow, key: str) -> None:
        with pytest.raises(errors.Malformed):
            request_of(project, key=key)


class TestBegin:
    def test_gives_the_first_answer_again(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        wanted = request_of(project)
        with sessions.begin() as session:
            assert idempotency.begin(session, wanted) is None
            idempotency.finish(session, wanted, ANSWER)
        with sessions.begin() as session:
            assert idempotency.begin(session, wanted) == ANSWER

    def test_forgets_a_request_that_failed(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        wanted = request_of(project)
        with sessions() as session:
            idempotency.begin(session, wanted)
            session.rollback()  # as a transaction whose work fails
        with sessions.begin() as session:
            assert idempotency.begin(session, wanted) is None

    def test_refuses_the_key_with_another_body(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        wanted = request_of(project)
        with sessions.begin() as session:
            idempotency.begin(session, wanted)
            idempotency.finish(session, wanted, ANSWER)
        with sessions.begin() as session, pytest.raises(errors.Refused) as caught:
            idempotency.begin(session, request_of(project, body={"a": 2}))
        assert caught.value.code == "idempotency_key_reused"

    @pytest.mark.parametrize("change", [{"route": "POST /v1/uploads"}, {"key": "k2"}])
    def test_keeps_routes_and_keys_apart(
        self, sessions: database.Sessions, project: tables.ProjectRow, change: dict[str, str]
    ) -> None:
        wanted = request_of(project)
        with sessions.begin() as session:
            idempotency.begin(session, wanted)
            idempotency.finish(session, wanted, ANSWER)
            assert idempotency.begin(session, replace(wanted, **change)) is None

    def test_forgets_after_a_day(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        wanted = request_of(project)
        row = tables.IdempotencyRow
        with sessions.begin() as session:
            idempotency.begin(session, wanted)
            idempotency.finish(session, wanted, ANSWER)
            old = database.now(session) - idempotency.KEPT_FOR - timedelta(seconds=1)
            session.execute(sa.update(row).values(created_at=old))
        with sessions.begin() as session:
            assert idempotency.begin(session, wanted) is None

    def test_lets_one_of_many_at_the_same_time_do_the_work(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        wanted = request_of(project)
        together = threading.Barrier(12)

        def ask(_: int) -> bool:
            together.wait()
            with sessions.begin() as session:
                if (first := idempotency.begin(session, wanted)) is not None:
                    assert first == ANSWER
                    return False
                session.add(
                    tables.ProjectRow(
                        id=ids.new("prj"), name=ids.new("x"), created_at=database.now(session)
                    )
                )
                session.flush()
                idempotency.finish(session, wanted, ANSWER)
                return True

        with ThreadPoolExecutor(12) as threads:
            worked = list(threads.map(ask, range(12)))
        assert worked.count(True) == 1
        with sessions() as session:
            made = sa.select(sa.func.count()).select_from(tables.ProjectRow)
            assert session.scalars(made).one() == 2  # the fixture's, and one
