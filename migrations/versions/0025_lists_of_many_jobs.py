"""Indexes for lists of many jobs, and how many checkpoints a job keeps."""

import sqlalchemy as sa
from alembic import op

revision = "0025"
down_revision = "0024"
branch_labels = None
depends_on = None


FILTERED = ("state", "method", "name")


def upgrade() -> None:
    """Go up; jobs that there are keep what their project's policy says."""
    op.add_column("jobs", sa.Column("checkpoints_last", sa.Integer(), nullable=True))
    for filtered in FILTERED:
        op.create_index(
            f"ix_jobs_project_id_{filtered}_created_at_id",
            "jobs",
            ["project_id", filtered, "created_at", "id"],
        )


def downgrade() -> None:
    """Go back."""
    for filtered in FILTERED:
        op.drop_index(f"ix_jobs_project_id_{filtered}_created_at_id", table_name="jobs")
    op.drop_column("jobs", "checkpoints_last")
