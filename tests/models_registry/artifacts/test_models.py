"""Models as verbs: numbers that are never given twice, references, and races."""

import threading
from collections.abc import Callable
from concurrent import futures

import pytest
import sqlalchemy as sa

from models_registry import errors
from models_registry.artifacts import aliases, models, references
from models_registry.persistence import database, tables
from models_registry.persistence.storage import Storage
from tests import factories, waiting


def add(
    sessions: database.Sessions, project: tables.ProjectRow, name: str = "m", state: str = "pending"
) -> tables.ModelVersionRow:
    with sessions.begin() as session:
        return models.add_version(
            session,
            project_id=project.id,
            new=factories.new_version(name),
            files={},
            state=state,
        )


def together(*works: Callable[[], object]) -> list[object]:
    """Run each in a thread of its own, at the same time; return results or errors."""
    start = threading.Barrier(len(works))

    def run(work: Callable[[], object]) -> object:
        start.wait(waiting.PATIENCE_SECONDS)
        try:
            return work()
        except errors.RegistryError as error:
            return error

    with futures.ThreadPoolExecutor(len(works)) as pool:
        return list(pool.map(run, works))


class TestNumbers:
    def test_are_given_once_each_to_many_at_the_same_time(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        # None of them finds the line: it is made in the race as well.
        found = together(*[lambda: add(sessions, project).version] * 8)
        assert sorted(found) == list(range(1, 9))  # type: ignore[type-var]  # all are numbers

    def test_grow_with_time(self, sessions: database.Sessions, project: tables.ProjectRow) -> None:
        together(*[lambda: add(sessions, project).version] * 6)
        row = tables.ModelVersionRow
        with sessions() as session:
            by_time = session.scalars(sa.select(row.version).order_by(row.created_at)).all()
        assert list(by_time) == sorted(by_time)

    def test_are_not_reused_after_deletion(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        add(sessions, project)
        with sessions.begin() as session:
            models.delete_version(session, project_id=project.id, name="m", version=1)
        assert add(sessions, project).version == 2
        with sessions.begin() as session:
            models.delete(session, project_id=project.id, name="m")
        assert add(sessions, project).version == 3

    def test_are_not_used_up_by_what_is_rolled_back(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        with sessions() as session:
            new = factories.new_version("m")
            models.add_version(session, project_id=project.id, new=new, files={}, state="ready")
            session.rollback()
        assert add(sessions, project).version == 1


class TestResolve:
    @pytest.fixture
    def digests(
        self, sessions: database.Sessions, storage: Storage, project: tables.ProjectRow
    ) -> list[str | None]:
        """The digests of m@1 and m@2, which are ready; m@3 is pending; `best` is m@1."""
        with sessions.begin() as session:
            rows = [
                factories.teacher(
                    session, storage, project_id=project.id, name="m", content=content
                )
                for content in (b"one", b"two")
            ]
        add(sessions, project)
        with sessions.begin() as session:
            factories.alias(session, project_id=project.id, name="m", alias="best")
        return [row.sha256 for row in rows]

    @pytest.mark.parametrize(
        ("reference", "version"), [("m", 2), ("m@latest", 2), ("m@3", 3), ("m@best", 1)]
    )
    def test_finds_what_is_meant(
        self,
        sessions: database.Sessions,
        project: tables.ProjectRow,
        digests: list[str | None],
        reference: str,
        version: int,
    ) -> None:
        with sessions() as session:
            found = models.resolve(session, project_id=project.id, reference=reference)
            assert found.version == version
            assert models.reference_of(found) == f"m@{version}"

    def test_finds_by_digest(
        self, sessions: database.Sessions, project: tables.ProjectRow, digests: list[str | None]
    ) -> None:
        with sessions() as session:
            for number, digest in enumerate(digests, 1):
                reference = f"m@sha256:{digest}"
                found = models.resolve(session, project_id=project.id, reference=reference)
                assert found.version == number

    @pytest.mark.parametrize(
        ("reference", "hint"),
        [
            ("mm", "did you mean 'm'"),
            ("m@9", "the latest is m@2"),
            ("m@bes", "did you mean 'best'"),
            ("m@xyz", "its aliases: best"),
            ("m@sha256:" + "0" * 64, "has no version with the digest"),
        ],
    )
    def test_says_what_there_is_instead(
        self,
        sessions: database.Sessions,
        project: tables.ProjectRow,
        digests: list[str | None],
        reference: str,
        hint: str,
    ) -> None:
        with sessions() as session, pytest.raises(errors.NotFound, match=hint):
            models.resolve(session, project_id=project.id, reference=reference)

    @pytest.mark.parametrize(
        "reference", ["", "M", "m@", "@1", "m@0", "m@01x@2", "m@sha256:12", "m@-1", "a b", "m@1\n"]
    )
    def test_refuses_what_is_no_reference(
        self, sessions: database.Sessions, project: tables.ProjectRow, reference: str
    ) -> None:
        with sessions() as session, pytest.raises(errors.Malformed):
            models.resolve(session, project_id=project.id, reference=reference)

    def test_tells_deleted_from_unknown(
        self, sessions: database.Sessions, project: tables.ProjectRow, digests: list[str | None]
    ) -> None:
        with sessions.begin() as session:
            models.delete_version(session, project_id=project.id, name="m", version=2)
        with sessions() as session:
            with pytest.raises(errors.Gone):
                models.resolve(session, project_id=project.id, reference="m@2")
            found = models.resolve(session, project_id=project.id, reference="m")
            assert found.version == 1


class TestRaces:
    def test_a_version_is_either_deleted_or_used_by_a_job(
        self, sessions: database.Sessions, storage: Storage, project: tables.ProjectRow
    ) -> None:
        for number in range(1, 6):
            with sessions.begin() as session:
                factories.teacher(session, storage, project_id=project.id)

            def delete(number: int = number) -> str:
                with sessions.begin() as session:
                    models.delete_version(
                        session, project_id=project.id, name="digits-teacher", version=number
                    )
                return "deleted"

            def submit(number: int = number) -> str:
                with sessions.begin() as session:
                    factories.job(
                        session, project_id=project.id, teacher=f"digits-teacher@{number}"
                    )
                return "submitted"

            done = [result for result in together(delete, submit) if isinstance(result, str)]
            assert len(done) == 1

    def test_a_line_is_deleted_while_an_alias_is_made_without_a_deadlock(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        for _ in range(10):
            version = add(sessions, project).version

            def delete() -> str:
                with sessions.begin() as session:
                    models.delete(session, project_id=project.id, name="m")
                return "deleted"

            def point(version: int = version) -> str:
                with sessions.begin() as session:
                    factories.alias(
                        session, project_id=project.id, name="m", alias="best", version=version
                    )
                return "made"

            results = together(delete, point)
            assert "deleted" in results
            with sessions() as session:
                assert session.scalars(sa.select(tables.ModelAliasRow)).all() == []

    def test_an_alias_is_moved_by_one_of_many(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        add(sessions, project)

        def put(expected: list[str] | None) -> bool:
            with sessions.begin() as session:
                _, is_new = aliases.put(
                    session,
                    project_id=project.id,
                    name="m",
                    alias="best",
                    version=1,
                    expected=expected,
                )
            return is_new

        made = together(*[lambda: put(None)] * 4)
        assert sorted(map(str, (type(result).__name__ for result in made))) == [
            *["PreconditionRequired"] * 3,
            "bool",
        ]
        with sessions() as session:
            row = aliases.get(session, project_id=project.id, name="m", alias="best")
            etag = aliases.etag(row)
        moved = together(*[lambda: put([etag])] * 4)
        assert [type(result) for result in moved].count(errors.PreconditionFailed) == 3


class TestAddVersion:
    def test_takes_digest_and_sizes_from_the_blobs(
        self, sessions: database.Sessions, storage: Storage, project: tables.ProjectRow
    ) -> None:
        with sessions.begin() as session:
            row = factories.teacher(session, storage, project_id=project.id, content=b"weights")
            (file,) = models.files(session, [row])[row.id]
        assert row.sha256 == file.sha256
        assert file.size_bytes == len(b"weights")

    def test_brings_a_deleted_line_back_empty(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        with sessions.begin() as session:
            models.create(session, project_id=project.id, name="m", card="old", tags={"a": "b"})
            models.delete(session, project_id=project.id, name="m")
        add(sessions, project)
        with sessions() as session:
            row = models.get(session, project_id=project.id, name="m")
        assert (row.card, row.tags) == ("", {})


class TestReferences:
    def test_are_read_as_they_are_written(self) -> None:
        wanted = references.Reference("a-b.c_1", version=12)
        assert references.parse(references.write("a-b.c_1", 12)) == wanted

    def test_take_latest_for_no_alias(self) -> None:
        assert references.parse("m@latest") == references.parse("m") == references.Reference("m")
