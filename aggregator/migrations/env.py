"""Alembic runs this file for each command; the connection comes from `aggregator.migrations`."""

from typing import Literal

from alembic import context

from aggregator.store.tables import Base, UtcDateTime


def run() -> None:
    """Run the migrations of one command."""
    # Batch mode: SQLite cannot alter a column, so Alembic copies the table.
    context.configure(
        connection=context.config.attributes["connection"],
        target_metadata=Base.metadata,
        render_as_batch=True,
        compare_type=True,
        render_item=_render,
    )
    with context.begin_transaction():
        context.run_migrations()


def _render(kind: str, item: object, _autogen: object) -> str | Literal[False]:
    """Write a type into a draft: a revision is history, so it names no class that may change later."""
    return "sa.DateTime()" if kind == "type" and isinstance(item, UtcDateTime) else False


run()
