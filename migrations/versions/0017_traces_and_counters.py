"""The trace that a job belongs to, and what the service has counted and when."""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go up; jobs and messages that there are belong to no trace."""
    op.add_column("jobs", sa.Column("traceparent", sa.String(55), nullable=True))
    op.add_column("outbox", sa.Column("traceparent", sa.String(55), nullable=True))
    op.add_column("workers", sa.Column("gpu_utilisation", sa.Double(), nullable=True))
    op.create_table(
        "service_counters",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.Column("counted_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_service_counters")),
    )


def downgrade() -> None:
    """Go back; the counts are lost."""
    op.drop_table("service_counters")
    op.drop_column("workers", "gpu_utilisation")
    op.drop_column("outbox", "traceparent")
    op.drop_column("jobs", "traceparent")
