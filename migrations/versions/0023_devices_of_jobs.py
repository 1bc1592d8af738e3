"""How many devices a job needs, and how many a worker offers to one job."""

import sqlalchemy as sa
from alembic import op

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go up; until now every job needed one device.

    The defaults stay, since processes of the version before go on inserting rows while a new one
    starts beside them.
    """
    for table, column in (("jobs", "devices"), ("workers", "offered_devices")):
        with op.batch_alter_table(table) as altered:
            altered.add_column(sa.Column(column, sa.Integer(), nullable=False, server_default="1"))


def downgrade() -> None:
    """Go back."""
    for table, column in (("jobs", "devices"), ("workers", "offered_devices")):
        with op.batch_alter_table(table) as altered:
            altered.drop_column(column)
