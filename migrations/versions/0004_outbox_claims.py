"""Messages that a relay claims before it sends them."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go up; messages that wait are claimed by nobody."""
    with op.batch_alter_table("outbox") as outbox:
        outbox.add_column(sa.Column("claim_expires_at", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    """Go back; messages that wait stay."""
    with op.batch_alter_table("outbox") as outbox:
        outbox.drop_column("claim_expires_at")
