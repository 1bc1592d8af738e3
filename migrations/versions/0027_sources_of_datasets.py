"""Data sets that refer to files elsewhere: where those are, and what was prepared of them."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0027"
down_revision = "0026"
branch_labels = None
depends_on = None

# Spelt out, not imported: a revision must not change when the tables' own types do.
JSON = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


def upgrade() -> None:
    """Go up."""
    with op.batch_alter_table("dataset_versions") as versions:
        versions.add_column(sa.Column("source", JSON, nullable=True))
    op.create_table(
        "dataset_source_files",
        sa.Column("version_id", sa.String(length=40), nullable=False),
        sa.Column("path", sa.String(length=200), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["version_id"],
            ["dataset_versions.id"],
            name=op.f("fk_dataset_source_files_version_id_dataset_versions"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("version_id", "path", name=op.f("pk_dataset_source_files")),
    )


def downgrade() -> None:
    """Go back; versions by reference lose their files, and cannot be trained on."""
    op.drop_table("dataset_source_files")
    with op.batch_alter_table("dataset_versions") as versions:
        versions.drop_column("source")
