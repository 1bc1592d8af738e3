"""A worker's cache keeps nothing that was erased."""

from datetime import timedelta

from models_registry.persistence import database, tables
from models_registry.retention import erasures
from tests.databases import SQLITE_ONLY
from workers.context import Context
from workers.erased_inputs import ErasedInputs


@SQLITE_ONLY
class TestDrop:
    def test_looks_for_a_while_for_what_comes_back(self, context: Context) -> None:
        cache = context.settings.cache_dir
        erased, other = cache / ("a" * 64), cache / ("b" * 64)
        other.write_bytes(b"of another data set")
        with context.sessions.begin() as session:
            row = tables.ErasedBlobRow(
                sha256=erased.name,
                storage_key=f"sha256/aa/aa/{erased.name}",
                size_bytes=6,
                adopted_at=database.now(session),
                erased_at=database.now(session),
            )
            session.add(row)
        inputs = ErasedInputs(context.settings)
        for _ in range(2):  # the second time, an attempt that had it has put it back
            erased.write_bytes(b"a face")
            assert inputs.drop(context.sessions) == 1
            assert not erased.exists()
        with context.sessions.begin() as session:
            row = session.query(tables.ErasedBlobRow).one()
            row.erased_at -= erasures.SETTLED_AFTER + timedelta(minutes=1)
        inputs.drop(context.sessions)
        erased.write_bytes(b"uploaded again, by somebody who may")
        assert inputs.drop(context.sessions) == 0
        assert erased.exists()
        assert other.exists()
