"""Pages of lists: every row once, whatever is added meanwhile; cursors cannot be forged."""

import base64
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models_registry import errors
from models_registry.persistence import database, paging, tables
from tests.databases import SQLITE_ONLY

START = datetime(2026, 1, 1, tzinfo=UTC)
WANTED = paging.PageRequest(secret=b"secret", binding="prj_1 /v1/things []", limit=3)


def add(sessions: database.Sessions, moments: list[int], prefix: str = "prj") -> set[str]:
    """Add a row per moment, several at the same moment too, and return their ids."""
    with sessions.begin() as session:
        rows = [
            tables.ProjectRow(
                id=f"{prefix}_{place:04}",
                name=f"{prefix} {place}",
                created_at=START + timedelta(seconds=moment),
            )
            for place, moment in enumerate(moments)
        ]
        session.add_all(rows)
        return {row.id for row in rows}


def take(sessions: database.Sessions, wanted: paging.PageRequest) -> paging.Page[tables.ProjectRow]:
    """Return one page of the rows that `add` made."""
    row = tables.ProjectRow
    with sessions() as session:
        return paging.take(session, sa.select(row), by=(row.created_at, row.id), wanted=wanted)


class TestTake:
    def test_walks_through_every_row_once_newest_first(self, sessions: database.Sessions) -> None:
        expected = add(sessions, [5, 1, 1, 1, 1, 9, 3])
        seen: list[tables.ProjectRow] = []
        cursor = None
        while True:
            page = take(sessions, replace(WANTED, cursor=cursor))
            seen += page.rows
            cursor = page.next_cursor
            if not page.has_more:
                break
        assert [row.id for row in seen] == sorted(
            expected, key=lambda name: next((r.created_at, r.id) for r in seen if r.id == name)
        )[::-1]
        assert len(seen) == 7

    def test_has_no_cursor_where_the_last_page_is_full(self, sessions: database.Sessions) -> None:
        add(sessions, [1, 2, 3])
        page = take(sessions, WANTED)
        assert len(page.rows) == 3
        assert not page.has_more

    @settings(
        max_examples=15,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    @given(
        before=st.lists(st.integers(0, 5), min_size=1, max_size=12),
        during=st.lists(st.integers(0, 9), max_size=6),
        limit=st.integers(1, 5),
    )
    def test_misses_and_repeats_nothing_while_rows_are_added(
        self, sessions: database.Sessions, before: list[int], during: list[int], limit: int
    ) -> None:
        with sessions.begin() as session:
            session.execute(sa.delete(tables.ProjectRow))
        there = add(sessions, before)
        page = take(sessions, replace(WANTED, limit=limit))
        add(sessions, during, prefix="new")
        seen = [row.id for row in page.rows]
        while page.next_cursor:
            page = take(sessions, replace(WANTED, limit=limit, cursor=page.next_cursor))
            seen += [row.id for row in page.rows]
        assert len(seen) == len(set(seen))
        assert there <= set(seen)


@SQLITE_ONLY
class TestCursor:
    @pytest.fixture
    def cursor(self, sessions: database.Sessions) -> str:
        """A cursor to the second page."""
        add(sessions, [1, 2, 3, 4, 5])
        found = take(sessions, WANTED).next_cursor
        assert found is not None
        return found

    def test_of_another_list_is_refused(self, sessions: database.Sessions, cursor: str) -> None:
        with pytest.raises(errors.Malformed) as caught:
            take(sessions, replace(WANTED, cursor=cursor, binding="prj_2 /v1/things []"))
        assert caught.value.code == "cursor_mismatch"

    def test_signed_by_another_secret_is_refused(
        self, sessions: database.Sessions, cursor: str
    ) -> None:
        with pytest.raises(errors.Malformed) as caught:
            take(sessions, replace(WANTED, cursor=cursor, secret=b"another"))
        assert caught.value.code == "bad_cursor"

    def test_cannot_be_changed_anywhere(self, sessions: database.Sessions, cursor: str) -> None:
        raw = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        for place in range(0, len(raw), 7):
            forged = bytearray(raw)
            forged[place] ^= 1
            text = base64.urlsafe_b64encode(bytes(forged)).decode().rstrip("=")
            with pytest.raises(errors.Malformed):
                take(sessions, replace(WANTED, cursor=text))

    @pytest.mark.parametrize("text", ["", "x", "ä", "....", "AAAA" * 20, "=", "a" * 1000])
    def test_that_is_no_cursor_is_refused(self, sessions: database.Sessions, text: str) -> None:
        with pytest.raises(errors.Malformed):
            take(sessions, replace(WANTED, cursor=text))

    def test_does_not_show_where_it_points_without_the_secret_changing_nothing(
        self, sessions: database.Sessions, cursor: str
    ) -> None:
        again = take(sessions, WANTED).next_cursor
        assert again == cursor


class TestCut:
    def test_walks_through_a_fixed_list(self) -> None:
        entries = list(range(8))
        first = paging.cut(entries, wanted=WANTED)
        second = paging.cut(entries, wanted=replace(WANTED, cursor=first.next_cursor))
        third = paging.cut(entries, wanted=replace(WANTED, cursor=second.next_cursor))
        assert [*first.rows, *second.rows, *third.rows] == entries
        assert not third.has_more

    def test_refuses_a_forged_cursor(self) -> None:
        with pytest.raises(errors.Malformed):
            paging.cut([1, 2], wanted=replace(WANTED, cursor="bm9wZQ"))
