"""How many jobs a worker runs side by side, and how many devices they share."""

import sqlalchemy as sa
from alembic import op

revision = "0026"
down_revision = "0025"
branch_labels = None
depends_on = None


COLUMNS = ("slots", "total_devices")


def upgrade() -> None:
    """Go up; until now every worker ran one job.

    The defaults stay, since workers of the version before go on announcing themselves while new
    ones start beside them.
    """
    with op.batch_alter_table("workers") as altered:
        for column in COLUMNS:
            altered.add_column(sa.Column(column, sa.Integer(), nullable=False, server_default="1"))


def downgrade() -> None:
    """Go back."""
    with op.batch_alter_table("workers") as altered:
        for column in COLUMNS:
            altered.drop_column(column)
