"""How many images of a data set have a label, where some have none."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None

# Spelt out, not imported: a revision must not change when the tables' own types do.
JSON = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


def upgrade() -> None:
    """Go up; every image of the data sets that there are has a label."""
    with op.batch_alter_table("dataset_versions") as versions:
        versions.add_column(sa.Column("labelled", JSON, nullable=True))


def downgrade() -> None:
    """Go back; data sets with images without labels stay, and say so in their notes alone."""
    with op.batch_alter_table("dataset_versions") as versions:
        versions.drop_column("labelled")
