"""Points Alembic at `models_registry.persistence.tables`, and at the database of the settings.

Callers inside a process pass a connection (`config.attributes["connection"]`); the command line
connects by itself.
"""

from alembic import context
from sqlalchemy import Connection

from models_registry.persistence import database, schema, tables
from models_registry.settings import Settings


def _run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=tables.Row.metadata,
        render_as_batch=connection.dialect.name == "sqlite",
        compare_type=True,
    )
    with context.begin_transaction():
        context.run_migrations()


given = context.config.attributes.get("connection")
if given is not None:
    _run(given)
else:
    engine = database.connect(Settings().database_url)
    with schema.changing(engine) as connection:
        _run(connection)
    engine.dispose()
