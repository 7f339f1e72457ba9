"""Pictures that a job shows while it works.

Revision: 0002, after: 0001.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from migrations.columns import JSON

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply the change."""
    op.create_table(
        "job_pictures",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("label", sa.String(length=200), nullable=False),
        sa.Column("caption", JSON, nullable=False),
        sa.Column("png", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name=op.f("fk_job_pictures_job_id_jobs"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_job_pictures")),
        sa.UniqueConstraint(
            "job_id", "kind", "number", name=op.f("uq_job_pictures_job_id_kind_number")
        ),
    )


def downgrade() -> None:
    """Take it back: the pictures are lost."""
    op.drop_table("job_pictures")
