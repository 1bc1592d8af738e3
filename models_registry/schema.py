"""Brings a database's schema to the newest revision, and tells whether it is there."""

from collections.abc import Callable
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

_INI = Path(__file__).parent.parent / "migrations" / "alembic.ini"


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


def _run(engine: sa.Engine, revision: str, run: Callable[[Config, str], None]) -> None:
    config = Config(_INI)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        run(config, revision)
