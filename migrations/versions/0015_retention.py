"""Retention: policies, what is marked and swept, erased bytes, and leases of maintenance."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)
BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Go up; every project has the defaults, and no blob is marked yet."""
    op.add_column("blobs", sa.Column("marked_at", TIME, nullable=True))
    op.create_index("ix_blobs_marked_at", "blobs", ["marked_at"])
    op.create_table(
        "retention_policies",
        sa.Column("project_id", sa.String(length=40), nullable=False),
        sa.Column("checkpoints_last", sa.Integer(), nullable=False),
        sa.Column("failed_attempts_days", sa.Integer(), nullable=True),
        sa.Column("logs_days", sa.Integer(), nullable=True),
        sa.Column("metrics_days", sa.Integer(), nullable=True),
        sa.Column("events_days", sa.Integer(), nullable=True),
        sa.Column("updated_at", TIME, nullable=False),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name=op.f("fk_retention_policies_project_id_projects")
        ),
        sa.PrimaryKeyConstraint("project_id", name=op.f("pk_retention_policies")),
    )
    op.create_table(
        "retention_marks",
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("job_id", sa.String(length=40), nullable=False),
        sa.Column("project_id", sa.String(length=40), nullable=False),
        sa.Column("marked_at", TIME, nullable=False),
        sa.Column("swept_at", TIME, nullable=True),
        sa.Column("entries", BIG, nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name=op.f("fk_retention_marks_job_id_jobs")
        ),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name=op.f("fk_retention_marks_project_id_projects")
        ),
        sa.PrimaryKeyConstraint("kind", "job_id", name=op.f("pk_retention_marks")),
    )
    op.create_index(
        "ix_retention_marks_project_id_swept_at_marked_at",
        "retention_marks",
        ["project_id", "swept_at", "marked_at"],
    )
    op.create_table(
        "erased_blobs",
        sa.Column("id", BIG, autoincrement=True, nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("storage_key", sa.String(length=200), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("erased_at", TIME, nullable=False),
        sa.Column("deleted_at", TIME, nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_erased_blobs")),
    )
    op.create_index("ix_erased_blobs_deleted_at", "erased_blobs", ["deleted_at"])
    op.create_table(
        "task_leases",
        sa.Column("name", sa.String(length=40), nullable=False),
        sa.Column("owner", sa.String(length=40), nullable=False),
        sa.Column("expires_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_task_leases")),
    )


def downgrade() -> None:
    """Go back; policies are lost, and nothing tells any more what was swept."""
    for table in ("task_leases", "erased_blobs", "retention_marks", "retention_policies"):
        op.drop_table(table)
    op.drop_index("ix_blobs_marked_at", "blobs")
    with op.batch_alter_table("blobs") as blobs:
        blobs.drop_column("marked_at")
