"""Data sets as verbs: built-in ones, references, and numbers under concurrency."""

import pytest
import sqlalchemy as sa

from models_registry import catalog, errors
from models_registry.artifacts import datasets
from models_registry.persistence import database, tables
from tests import factories, racing


class TestBuiltIns:
    def test_are_what_the_catalog_says(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        content = catalog.load().datasets["digits"]
        with sessions() as session:
            row = datasets.resolve(session, project_id=project.id, reference="digits@1")
        assert (row.state, row.format, row.task) == ("ready", "builtin", content["task"])
        assert (row.classes, row.splits) == (content["classes"], content["splits"])
        assert row.input == content["input"]

    def test_are_added_once(self, sessions: database.Sessions, project: tables.ProjectRow) -> None:
        with sessions.begin() as session:
            datasets.add_builtins(session, project_id=project.id)
            count = sa.select(sa.func.count()).select_from(tables.DatasetVersionRow)
            assert session.scalars(count).one() == len(catalog.load().datasets)

    def test_have_the_same_digest_in_every_project(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        with sessions.begin() as session:
            other = tables.ProjectRow(id="prj_x", name="x", created_at=database.now(session))
            session.add(other)
            session.flush()
            datasets.add_builtins(session, project_id="prj_x")
            digests = session.scalars(sa.select(tables.DatasetVersionRow.sha256)).all()
        assert len(digests) == 2 * len(set(digests))


class TestResolve:
    @pytest.mark.parametrize("reference", ["digits", "digits@1", "digits@latest"])
    def test_finds_what_is_meant(
        self, sessions: database.Sessions, project: tables.ProjectRow, reference: str
    ) -> None:
        with sessions() as session:
            row = datasets.resolve(session, project_id=project.id, reference=reference)
            assert datasets.reference_of(row) == "digits@1"
            by_digest = f"digits@sha256:{row.sha256}"
            found = datasets.resolve(session, project_id=project.id, reference=by_digest)
            assert found.id == row.id

    @pytest.mark.parametrize(
        ("reference", "hint"),
        [
            ("digit", "did you mean 'digits'"),
            ("digits@2", "the latest is digits@1"),
            ("digits@best", "has no alias 'best'"),
            ("digits@sha256:" + "0" * 64, "has no version with the digest"),
        ],
    )
    def test_says_what_there_is_instead(
        self,
        sessions: database.Sessions,
        project: tables.ProjectRow,
        reference: str,
        hint: str,
    ) -> None:
        with sessions() as session, pytest.raises(errors.NotFound, match=hint):
            datasets.resolve(session, project_id=project.id, reference=reference)


def test_numbers_are_given_once_each_to_many_at_the_same_time(
    sessions: database.Sessions, project: tables.ProjectRow
) -> None:
    def add() -> int:
        with sessions.begin() as session:
            return factories.dataset_version(session, project_id=project.id).version

    assert sorted(racing.together([add] * 8)) == list(range(1, 9))
