"""Deleted data sets, the archives they were made from, and the logs of running attempts."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Go up; a data set keeps its archive where its upload still has it."""
    with op.batch_alter_table("datasets") as datasets:
        datasets.add_column(sa.Column("deleted_at", TIME, nullable=True))
    with op.batch_alter_table("dataset_versions") as versions:
        versions.add_column(sa.Column("deleted_at", TIME, nullable=True))
        versions.add_column(sa.Column("archive_sha256", sa.String(length=64), nullable=True))
        versions.create_foreign_key(
            op.f("fk_dataset_versions_archive_sha256_blobs"),
            "blobs",
            ["archive_sha256"],
            ["sha256"],
        )
        versions.create_index(op.f("ix_dataset_versions_archive_sha256"), ["archive_sha256"])
    op.execute(
        sa.text(
            "UPDATE dataset_versions SET archive_sha256 = (SELECT uploads.blob_sha256 FROM uploads "
            "WHERE uploads.id = dataset_versions.upload_id) WHERE state = 'ready'"
        )
    )
    op.create_table(
        "job_log_slices",
        sa.Column("job_id", sa.String(length=40), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("start", sa.BigInteger(), nullable=False),
        sa.Column("end", sa.BigInteger(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id", "attempt"],
            ["job_attempts.job_id", "job_attempts.number"],
            name=op.f("fk_job_log_slices_job_id_job_attempts"),
        ),
        sa.PrimaryKeyConstraint("job_id", "attempt", "start", name=op.f("pk_job_log_slices")),
    )


def downgrade() -> None:
    """Go back; deleted data sets reappear without their files, as rejected."""
    op.drop_table("job_log_slices")
    op.execute(
        sa.text("UPDATE dataset_versions SET state = 'rejected' WHERE deleted_at IS NOT NULL")
    )
    with op.batch_alter_table("dataset_versions") as versions:
        versions.drop_index(op.f("ix_dataset_versions_archive_sha256"))
        versions.drop_constraint(
            op.f("fk_dataset_versions_archive_sha256_blobs"), type_="foreignkey"
        )
        versions.drop_column("archive_sha256")
        versions.drop_column("deleted_at")
    with op.batch_alter_table("datasets") as datasets:
        datasets.drop_column("deleted_at")
