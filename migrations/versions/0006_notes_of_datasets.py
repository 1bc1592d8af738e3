"""What was converted, left out or chosen when the pictures of a data set were stored."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

# Spelt out, not imported: a revision must not change when the tables' own types do.
JSON = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


def upgrade() -> None:
    """Go up; the notes of data sets that there are stay in their files alone."""
    with op.batch_alter_table("dataset_versions") as versions:
        versions.add_column(sa.Column("notes", JSON, nullable=True))


def downgrade() -> None:
    """Go back; the notes stay in the files of the data sets."""
    with op.batch_alter_table("dataset_versions") as versions:
        versions.drop_column("notes")
