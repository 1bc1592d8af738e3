"""Studies that search: their phase, their summary and their trials."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

# Spelt out, not imported: a revision must not change when the tables' own types do.
UTC = sa.DateTime(timezone=True)
JSON = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


def upgrade() -> None:
    """Go up; the studies that there are search nothing."""
    op.add_column("studies", sa.Column("search_phase", sa.String(length=16), nullable=True))
    op.add_column("studies", sa.Column("search", JSON, nullable=True))
    op.create_index(op.f("ix_studies_search_phase"), "studies", ["search_phase"], unique=False)
    op.create_table(
        "study_trials",
        sa.Column("study_id", sa.String(length=40), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("method", sa.String(length=200), nullable=False),
        sa.Column("place", sa.Integer(), nullable=False),
        sa.Column("choices", JSON, nullable=False),
        sa.Column("settings", JSON, nullable=False),
        sa.Column("rungs", JSON, nullable=False),
        sa.Column("value", sa.Double(), nullable=True),
        sa.Column("message", sa.Text(), nullable=True),
        sa.Column("created_at", UTC, nullable=False),
        sa.Column("ended_at", UTC, nullable=True),
        sa.ForeignKeyConstraint(
            ["study_id"], ["studies.id"], name=op.f("fk_study_trials_study_id_studies")
        ),
        sa.PrimaryKeyConstraint("study_id", "number", name=op.f("pk_study_trials")),
    )


def downgrade() -> None:
    """Go back; the jobs of trials stay as jobs of their studies."""
    op.drop_table("study_trials")
    op.drop_index(op.f("ix_studies_search_phase"), table_name="studies")
    op.drop_column("studies", "search")
    op.drop_column("studies", "search_phase")
