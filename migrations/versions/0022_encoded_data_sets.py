"""How the pictures of a data set are stored that are decoded when they are used."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None

# Spelt out, not imported: a revision must not change when the tables' own types do.
JSON = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


def upgrade() -> None:
    """Go up; all data sets so far are decoded."""
    with op.batch_alter_table("dataset_versions") as table:
        table.add_column(sa.Column("encoded", JSON, nullable=True))


def downgrade() -> None:
    """Go back."""
    with op.batch_alter_table("dataset_versions") as table:
        table.drop_column("encoded")
