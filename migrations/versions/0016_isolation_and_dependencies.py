"""How a worker isolates its engines; which jobs wait for which."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

# Spelt out, not imported: a revision must not change when the tables' own types do.
JSON = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


def upgrade() -> None:
    """Go up; no job waits for another yet."""
    op.add_column("workers", sa.Column("isolation", JSON, nullable=True))
    op.create_table(
        "job_dependencies",
        sa.Column("job_id", sa.String(40), nullable=False),
        sa.Column("field", sa.String(32), nullable=False),
        sa.Column("depends_on_id", sa.String(40), nullable=False),
        sa.Column("depth", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "field", name="pk_job_dependencies"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_job_dependencies_job_id_jobs"),
        sa.ForeignKeyConstraint(
            ["depends_on_id"], ["jobs.id"], name="fk_job_dependencies_depends_on_id_jobs"
        ),
    )
    op.create_index("ix_job_dependencies_depends_on_id", "job_dependencies", ["depends_on_id"])


def downgrade() -> None:
    """Go back."""
    op.drop_table("job_dependencies")
    op.drop_column("workers", "isolation")
