"""How checkpoints are read and what was found in them; warnings of jobs; networks tried out."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

# Spelt out, not imported: a revision must not change when the tables' own types do.
UTC = sa.DateTime(timezone=True)
JSON = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
MODEL_COLUMNS = ("reading", "notes", "traits")


def upgrade() -> None:
    """Go up; of the models and jobs that there are nothing is known, which is null."""
    with op.batch_alter_table("model_versions") as versions:
        for name in MODEL_COLUMNS:
            versions.add_column(sa.Column(name, JSON, nullable=True))
    with op.batch_alter_table("jobs") as jobs:
        jobs.add_column(sa.Column("warnings", JSON, nullable=True))
    op.create_table(
        "network_trials",
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("network", sa.String(160), nullable=False),
        sa.Column("arguments", JSON, nullable=False),
        sa.Column("input", JSON, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("traits", JSON, nullable=True),
        sa.Column("rejection", JSON, nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("announced_at", UTC, nullable=True),
        sa.Column("created_at", UTC, nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_network_trials")),
    )
    op.create_index("ix_network_trials_state", "network_trials", ["state"])


def downgrade() -> None:
    """Go back; notes and warnings are lost, and networks are tried by the engine alone."""
    op.drop_index("ix_network_trials_state", table_name="network_trials")
    op.drop_table("network_trials")
    with op.batch_alter_table("jobs") as jobs:
        jobs.drop_column("warnings")
    with op.batch_alter_table("model_versions") as versions:
        for name in MODEL_COLUMNS:
            versions.drop_column(name)
