"""Quotas of projects, and the order in which jobs are claimed."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)
LIMITS = {
    "limit_jobs_queued": sa.Integer(),
    "limit_jobs_running": sa.Integer(),
    "limit_storage_bytes": sa.BigInteger(),
    "limit_upload_bytes": sa.BigInteger(),
    "limit_requests_per_minute": sa.Integer(),
}
# As `jobs/fair_share.py` has it: half an hour for each level of priority.
_PLACES = {
    "postgresql": "created_at - priority * interval '30 minutes'",
    "sqlite": "strftime('%Y-%m-%d %H:%M:%f', created_at, "
    "'-' || (priority * 1800) || ' seconds') || '000'",
}


def upgrade() -> None:
    """Go up; no project has limits of its own, and all have the same share."""
    for name, kind in LIMITS.items():
        op.add_column("projects", sa.Column(name, kind, nullable=True))
    for name, default in (("share_weight", "1"), ("share_position", "0")):
        op.add_column(
            "projects", sa.Column(name, sa.Float(53), nullable=False, server_default=default)
        )
    # The default is for the rows that there are; each new row has a place of its own.
    early = sa.text("'1970-01-01 00:00:00'")
    op.add_column("jobs", sa.Column("claim_order_at", TIME, nullable=False, server_default=early))
    place = _PLACES[op.get_bind().dialect.name]
    op.execute(sa.text(f"UPDATE jobs SET claim_order_at = {place}"))
    op.create_index("ix_jobs_claim_order", "jobs", ["project_id", "state", "claim_order_at", "id"])


def downgrade() -> None:
    """Go back; limits are lost."""
    op.drop_index("ix_jobs_claim_order", table_name="jobs")
    op.drop_column("jobs", "claim_order_at")
    for name in ("share_position", "share_weight", *LIMITS):
        op.drop_column("projects", name)
