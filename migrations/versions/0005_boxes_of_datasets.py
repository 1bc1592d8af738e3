"""How many boxes of each class the splits of a data set for detection have."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

# Spelt out, not imported: a revision must not change when the tables' own types do.
JSON = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


def upgrade() -> None:
    """Go up; none of the data sets that there are has boxes."""
    with op.batch_alter_table("dataset_versions") as versions:
        versions.add_column(sa.Column("boxes", JSON, nullable=True))


def downgrade() -> None:
    """Go back; data sets stay, and their boxes are counted nowhere."""
    with op.batch_alter_table("dataset_versions") as versions:
        versions.drop_column("boxes")
