"""Exports of models, and pictures that somebody tries a model with."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None

# Spelt out, not imported: a revision must not change when the tables' own types do.
JSON = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Go up."""
    op.create_table(
        "model_exports",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("project_id", sa.String(40), nullable=False),
        sa.Column("version_id", sa.String(40), nullable=False),
        sa.Column("format", sa.String(32), nullable=False),
        sa.Column("precision", sa.String(16), nullable=False),
        sa.Column("include_preprocessing", sa.Boolean(), nullable=False),
        sa.Column("max_drop", sa.Float(53), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("failure", JSON, nullable=True),
        sa.Column("measured", JSON, nullable=True),
        sa.Column("notes", JSON, nullable=False),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("claim_expires_at", TIME, nullable=True),
        sa.Column("announced_at", TIME, nullable=True),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("started_at", TIME, nullable=True),
        sa.Column("finished_at", TIME, nullable=True),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name=op.f("fk_model_exports_project_id_projects")
        ),
        sa.ForeignKeyConstraint(
            ["version_id"],
            ["model_versions.id"],
            name=op.f("fk_model_exports_version_id_model_versions"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_model_exports")),
    )
    op.create_index(op.f("ix_model_exports_project_id"), "model_exports", ["project_id"])
    op.create_index(op.f("ix_model_exports_state"), "model_exports", ["state"])
    op.create_index(
        "ix_model_exports_version_id_created_at_id",
        "model_exports",
        ["version_id", "created_at", "id"],
    )
    op.create_table(
        "predictions",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("project_id", sa.String(40), nullable=False),
        sa.Column("version_id", sa.String(40), nullable=False),
        sa.Column("export_id", sa.String(40), nullable=False),
        sa.Column("pictures", JSON, nullable=True),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("answer", JSON, nullable=True),
        sa.Column("failure", JSON, nullable=True),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("expires_at", TIME, nullable=False),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name=op.f("fk_predictions_project_id_projects")
        ),
        sa.ForeignKeyConstraint(
            ["version_id"],
            ["model_versions.id"],
            name=op.f("fk_predictions_version_id_model_versions"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_predictions")),
    )
    op.create_index(op.f("ix_predictions_expires_at"), "predictions", ["expires_at"])
    op.create_index(op.f("ix_predictions_project_id"), "predictions", ["project_id"])
    op.create_index(op.f("ix_predictions_version_id"), "predictions", ["version_id"])


def downgrade() -> None:
    """Go back; the files of exports stay files of their versions."""
    op.drop_table("predictions")
    op.drop_table("model_exports")
