"""Upgrades a database's schema to the newest revision, and checks whether it is current."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

_INI = Path(__file__).parents[2] / "migrations" / "alembic.ini"


def upgrade(engine: sa.Engine, revision: str = "head") -> None:
    """Run the migrations up to `revision`."""
    _run(engine, revision, command.upgrade)


def downgrade(engine: sa.Engine, revision: str) -> None:
    """Run the migrations back to `revision` (`base` for an empty database)."""
    _run(engine, revision, command.downgrade)


def is_current(connection: sa.Connection) -> bool:
    """Return whether the database is at the newest revision."""
    newest = ScriptDirectory.from_config(Config(_INI)).get_current_head()
    return MigrationContext.configure(connection).get_current_revision() == newest


@contextlib.contextmanager
def changing(engine: sa.Engine) -> Iterator[sa.Connection]:
    """Yield a connection in a transaction in which tables may be changed.

    SQLite changes a table by copying it, and would not drop the original while rows refer to it.
    So its foreign keys are off meanwhile, and are checked before the commit.

    Raises: RuntimeError when rows would be left that refer to nothing; nothing is changed then.
    """
    with engine.connect() as connection:
        if engine.dialect.name != "sqlite":
            with connection.begin():
                yield connection
            return
        driver = connection.connection.cursor()  # the switch is ignored inside a transaction
        driver.execute("PRAGMA foreign_keys=OFF")
        try:
            with connection.begin():
                yield connection
                astray = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
                if astray:
                    raise RuntimeError(
                        f"{len(astray)} rows would refer to nothing, the first in {astray[0][0]}"
                    )
        finally:
            driver.execute("PRAGMA foreign_keys=ON")
            driver.close()


def _run(engine: sa.Engine, revision: str, run: Callable[[Config, str], None]) -> None:
    config = Config(_INI)
    with changing(engine) as connection:
        config.attributes["connection"] = connection
        run(config, revision)
