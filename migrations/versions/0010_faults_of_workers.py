"""Why a worker takes no jobs."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

# Spelt out, not imported: a revision must not change when the tables' own types do.
JSON = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


def upgrade() -> None:
    """Go up; the workers that there are have no fault."""
    op.add_column("workers", sa.Column("fault", JSON, nullable=True))


def downgrade() -> None:
    """Go back."""
    op.drop_column("workers", "fault")
