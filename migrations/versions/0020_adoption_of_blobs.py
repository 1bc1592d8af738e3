"""When bytes were last adopted, so that an erasure spares those that somebody is about to name."""

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None

# Spelt out, not imported: a revision must not change when the tables' own types do.
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Go up; `created_at` of blobs was the time of their last adoption already."""
    with op.batch_alter_table("blobs") as blobs:
        blobs.alter_column("created_at", new_column_name="adopted_at", existing_type=TIME)
    with op.batch_alter_table("erased_blobs") as erased:
        erased.add_column(sa.Column("adopted_at", TIME, nullable=True))
    op.execute("UPDATE erased_blobs SET adopted_at = erased_at")
    with op.batch_alter_table("erased_blobs") as erased:
        erased.alter_column("adopted_at", existing_type=TIME, nullable=False)


def downgrade() -> None:
    """Go back; erasures delete at once what is in the store."""
    with op.batch_alter_table("erased_blobs") as erased:
        erased.drop_column("adopted_at")
    with op.batch_alter_table("blobs") as blobs:
        blobs.alter_column("adopted_at", new_column_name="created_at", existing_type=TIME)
