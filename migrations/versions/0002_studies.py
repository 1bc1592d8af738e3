"""Studies, and the seats of jobs in them."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# Spelt out, not imported: a revision must not change when the tables' own types do.
UTC = sa.DateTime(timezone=True)
JSON = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


def upgrade() -> None:
    """Go up."""
    op.create_table(
        "studies",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("project_id", sa.String(length=40), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("labels", JSON, nullable=False),
        sa.Column("spec", JSON, nullable=False),
        sa.Column("variants", JSON, nullable=False),
        sa.Column("created_at", UTC, nullable=False),
        sa.Column("deleted_at", UTC, nullable=True),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name=op.f("fk_studies_project_id_projects")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_studies")),
    )
    op.create_index(
        "ix_studies_project_id_created_at_id",
        "studies",
        ["project_id", "created_at", "id"],
        unique=False,
    )
    with op.batch_alter_table("jobs") as jobs:
        jobs.add_column(sa.Column("study_id", sa.String(length=40), nullable=True))
        jobs.add_column(sa.Column("study_variant", sa.Integer(), nullable=True))
        jobs.add_column(sa.Column("study_seed", sa.Integer(), nullable=True))
        jobs.create_foreign_key(op.f("fk_jobs_study_id_studies"), "studies", ["study_id"], ["id"])
        jobs.create_unique_constraint(
            op.f("uq_jobs_study_id_study_variant_study_seed"),
            ["study_id", "study_variant", "study_seed"],
        )


def downgrade() -> None:
    """Go back; jobs of a study stay as jobs of their own."""
    with op.batch_alter_table("jobs") as jobs:
        jobs.drop_constraint(op.f("uq_jobs_study_id_study_variant_study_seed"), type_="unique")
        jobs.drop_constraint(op.f("fk_jobs_study_id_studies"), type_="foreignkey")
        jobs.drop_column("study_seed")
        jobs.drop_column("study_variant")
        jobs.drop_column("study_id")
    op.drop_index("ix_studies_project_id_created_at_id", table_name="studies")

    op.drop_table("studies")
