"""Scopes and rotation of API keys, and the audit log, which the database itself keeps whole."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

# Spelt out, not imported: a revision must not change when the tables' own types do.
JSON = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
TIME = sa.DateTime(timezone=True)

REFUSAL = "audit_entries is append-only"
POSTGRESQL = (
    f"""
    CREATE FUNCTION refuse_change_of_audit() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION '{REFUSAL}'; END $$
    """,
    """
    CREATE TRIGGER audit_entries_keep_rows BEFORE UPDATE OR DELETE ON audit_entries
    FOR EACH ROW EXECUTE FUNCTION refuse_change_of_audit()
    """,
    """
    CREATE TRIGGER audit_entries_keep_table BEFORE TRUNCATE ON audit_entries
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change_of_audit()
    """,
)
SQLITE = tuple(
    f"""
    CREATE TRIGGER audit_entries_no_{verb.lower()} BEFORE {verb} ON audit_entries
    BEGIN SELECT RAISE(ABORT, '{REFUSAL}'); END
    """
    for verb in ("UPDATE", "DELETE")
)


def upgrade() -> None:
    """Go up; the keys that there are have all scopes of their role, and no former secret."""
    with op.batch_alter_table("api_keys") as keys:
        keys.add_column(sa.Column("scopes", JSON, nullable=True))
        keys.add_column(sa.Column("rotated_at", TIME, nullable=True))
        keys.add_column(sa.Column("former_sha256", sa.String(length=64), nullable=True))
        keys.add_column(sa.Column("former_expires_at", TIME, nullable=True))
        keys.add_column(sa.Column("former_last_used_at", TIME, nullable=True))
    op.create_table(
        "audit_entries",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("project_id", sa.String(length=40), nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.Column("action", sa.String(length=64), nullable=False),
        sa.Column("subject", sa.String(length=300), nullable=False),
        sa.Column("actor", sa.String(length=300), nullable=False),
        sa.Column("key_id", sa.String(length=40), nullable=True),
        sa.Column("request_id", sa.String(length=64), nullable=True),
        sa.Column("facts", JSON, nullable=False),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name=op.f("fk_audit_entries_project_id_projects")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_entries")),
    )
    op.create_index(
        "ix_audit_entries_project_id_at_id", "audit_entries", ["project_id", "at", "id"]
    )
    is_server = op.get_bind().dialect.name == "postgresql"
    for statement in POSTGRESQL if is_server else SQLITE:
        op.execute(sa.text(statement))


def downgrade() -> None:
    """Go back; the log is lost, and keys that had scopes can do whatever their role can."""
    op.drop_table("audit_entries")  # with its triggers
    if op.get_bind().dialect.name == "postgresql":
        op.execute(sa.text("DROP FUNCTION refuse_change_of_audit()"))
    with op.batch_alter_table("api_keys") as keys:
        for column in (
            "former_last_used_at",
            "former_expires_at",
            "former_sha256",
            "rotated_at",
            "scopes",
        ):
            keys.drop_column(column)
