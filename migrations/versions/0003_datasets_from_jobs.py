"""Data sets whose images a job has invented, and where every data set comes from."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

# Spelt out, not imported: a revision must not change when the tables' own types do.
JSON = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


def upgrade() -> None:
    """Go up; of the data sets that there are, no lineage is known."""
    with op.batch_alter_table("dataset_versions") as versions:
        versions.add_column(sa.Column("lineage", JSON, nullable=False, server_default="{}"))
        versions.add_column(sa.Column("job_id", sa.String(length=40), nullable=True))
    with op.batch_alter_table("dataset_versions") as versions:
        versions.alter_column("lineage", existing_type=JSON, server_default=None)
        versions.create_index(op.f("ix_dataset_versions_job_id"), ["job_id"], unique=False)


def downgrade() -> None:
    """Go back; data sets that jobs have made stay, and nothing says where they come from."""
    with op.batch_alter_table("dataset_versions") as versions:
        versions.drop_index(op.f("ix_dataset_versions_job_id"))
        versions.drop_column("job_id")
        versions.drop_column("lineage")
