"""Triggers that let a table only grow, in SQLite and in PostgreSQL."""

from alembic import op


def protect(table: str, columns: tuple[str, ...] = ()) -> None:
    """Makes DELETE, TRUNCATE and UPDATE of `columns` (all where none is named) fail in the database."""
    of = f" OF {', '.join(columns)}" if columns else ""
    if op.get_bind().dialect.name == "sqlite":
        for change, what in (("DELETE", "DELETE"), ("UPDATE", f"UPDATE{of}")):
            op.execute(
                f"CREATE TRIGGER {table}_no_{change.lower()} BEFORE {what} ON {table} "
                f"BEGIN SELECT RAISE(ABORT, '{table} only grows: {change} is refused'); END"
            )
        return
    op.execute(
        "CREATE OR REPLACE FUNCTION only_grows() RETURNS trigger LANGUAGE plpgsql AS $$ "
        "BEGIN RAISE EXCEPTION '% only grows: % is refused', TG_TABLE_NAME, TG_OP; END $$"
    )
    for change, what, each in (
        ("DELETE", "DELETE", "ROW"),
        ("UPDATE", f"UPDATE{of}", "ROW"),
        ("TRUNCATE", "TRUNCATE", "STATEMENT"),
    ):
        op.execute(
            f"CREATE TRIGGER {table}_no_{change.lower()} BEFORE {what} ON {table} "
            f"FOR EACH {each} EXECUTE FUNCTION only_grows()"
        )
