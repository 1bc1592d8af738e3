"""Federations with remote clients: their keys, rounds and replies."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

# Spelt out, not imported: a revision must not change when the tables' own types do.
JSON = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Go up; jobs that there are have no remote clients."""
    _add_federations()
    _add_clients()
    _add_rounds()
    _add_replies()


def _add_federations() -> None:
    op.create_table(
        "federations",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("project_id", sa.String(length=40), nullable=False),
        sa.Column("job_id", sa.String(length=40), nullable=False),
        sa.Column("method", sa.String(length=64), nullable=False),
        sa.Column("rounds", sa.Integer(), nullable=False),
        sa.Column("min_clients", sa.Integer(), nullable=False),
        sa.Column("deadline_seconds", sa.Double(), nullable=False),
        sa.Column("join_seconds", sa.Double(), nullable=False),
        sa.Column("plan", JSON, nullable=True),
        sa.Column("open_set_sha256", sa.String(length=64), nullable=True),
        sa.Column("gathering_since", TIME, nullable=True),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name=op.f("fk_federations_project_id_projects")
        ),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_federations_job_id_jobs")),
        sa.ForeignKeyConstraint(
            ["open_set_sha256"],
            ["blobs.sha256"],
            name=op.f("fk_federations_open_set_sha256_blobs"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_federations")),
        sa.UniqueConstraint("job_id", name=op.f("uq_federations_job_id")),
    )
    op.create_index(op.f("ix_federations_project_id"), "federations", ["project_id"])
    op.create_index(op.f("ix_federations_open_set_sha256"), "federations", ["open_set_sha256"])


def _add_clients() -> None:
    op.create_table(
        "federation_clients",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("federation_id", sa.String(length=40), nullable=False),
        sa.Column("name", sa.String(length=96), nullable=False),
        sa.Column("secret_sha256", sa.String(length=64), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("revoked_at", TIME, nullable=True),
        sa.Column("joined_at", TIME, nullable=True),
        sa.Column("left_at", TIME, nullable=True),
        sa.Column("last_seen_at", TIME, nullable=True),
        sa.Column("samples", sa.BigInteger(), nullable=True),
        sa.Column("metrics", JSON, nullable=False),
        sa.Column("last_round", sa.Integer(), nullable=True),
        sa.Column("bytes_up", sa.BigInteger(), nullable=False),
        sa.Column("bytes_down", sa.BigInteger(), nullable=False),
        sa.Column("late", sa.Integer(), nullable=False),
        sa.Column("refused", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["federation_id"],
            ["federations.id"],
            name=op.f("fk_federation_clients_federation_id_federations"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_federation_clients")),
        sa.UniqueConstraint(
            "federation_id", "name", name=op.f("uq_federation_clients_federation_id_name")
        ),
    )


def _add_rounds() -> None:
    op.create_table(
        "federation_rounds",
        sa.Column("federation_id", sa.String(length=40), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("task", JSON, nullable=False),
        sa.Column("opened_at", TIME, nullable=False),
        sa.Column("deadline_at", TIME, nullable=True),
        sa.Column("closed_at", TIME, nullable=True),
        sa.Column("published_at", TIME, nullable=True),
        sa.Column("consensus_sha256", sa.String(length=64), nullable=True),
        sa.Column("consensus_bytes", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["federation_id"],
            ["federations.id"],
            name=op.f("fk_federation_rounds_federation_id_federations"),
        ),
        sa.ForeignKeyConstraint(
            ["consensus_sha256"],
            ["blobs.sha256"],
            name=op.f("fk_federation_rounds_consensus_sha256_blobs"),
        ),
        sa.PrimaryKeyConstraint("federation_id", "number", name=op.f("pk_federation_rounds")),
    )
    op.create_index(
        op.f("ix_federation_rounds_consensus_sha256"), "federation_rounds", ["consensus_sha256"]
    )


def _add_replies() -> None:
    op.create_table(
        "federation_replies",
        sa.Column("federation_id", sa.String(length=40), nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("client_id", sa.String(length=40), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("blob_sha256", sa.String(length=64), nullable=True),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("samples", sa.BigInteger(), nullable=False),
        sa.Column("metrics", JSON, nullable=False),
        sa.Column("received_at", TIME, nullable=False),
        sa.ForeignKeyConstraint(
            ["federation_id", "round"],
            ["federation_rounds.federation_id", "federation_rounds.number"],
            name=op.f("fk_federation_replies_federation_id_round_federation_rounds"),
        ),
        sa.ForeignKeyConstraint(
            ["client_id"],
            ["federation_clients.id"],
            name=op.f("fk_federation_replies_client_id_federation_clients"),
        ),
        sa.ForeignKeyConstraint(
            ["blob_sha256"],
            ["blobs.sha256"],
            name=op.f("fk_federation_replies_blob_sha256_blobs"),
        ),
        sa.PrimaryKeyConstraint(
            "federation_id", "round", "client_id", name=op.f("pk_federation_replies")
        ),
    )
    op.create_index(
        op.f("ix_federation_replies_blob_sha256"), "federation_replies", ["blob_sha256"]
    )


def downgrade() -> None:
    """Go back; federations go, and with them keys and replies of clients; jobs stay."""
    for table in ("federation_replies", "federation_rounds", "federation_clients", "federations"):
        op.drop_table(table)
