"""Jobs with several teachers."""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go up; the jobs that there are have one teacher or none, which their rows name."""
    op.create_table(
        "job_teachers",
        sa.Column("job_id", sa.String(40), nullable=False),
        sa.Column("place", sa.Integer(), nullable=False),
        sa.Column("version_id", sa.String(40), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_job_teachers_job_id_jobs")),
        sa.ForeignKeyConstraint(
            ["version_id"],
            ["model_versions.id"],
            name=op.f("fk_job_teachers_version_id_model_versions"),
        ),
        sa.PrimaryKeyConstraint("job_id", "place", name=op.f("pk_job_teachers")),
    )
    op.create_index(op.f("ix_job_teachers_version_id"), "job_teachers", ["version_id"])


def downgrade() -> None:
    """Go back."""
    op.drop_index(op.f("ix_job_teachers_version_id"), table_name="job_teachers")
    op.drop_table("job_teachers")
