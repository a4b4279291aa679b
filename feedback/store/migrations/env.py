"""Alembic's part: migrations run in the transaction that `Database.upgrade` hands over."""

from alembic import context

from feedback.store import schema

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=schema.metadata,
    transactional_ddl=False,  # the transaction is the caller's
)
context.run_migrations()
