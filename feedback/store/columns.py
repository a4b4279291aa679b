"""Types and columns that the tables share."""

import json
import re

import sqlalchemy as sa
from sqlalchemy import CheckConstraint, Column, Float, ForeignKey, Integer, Text

MARK = "\x01json "
"""Head of a stored text that a database could not hold as it is."""
AWKWARD = re.compile("[\x00\ud800-\udfff]")
"""Characters that a database could not hold."""


class Exact(sa.types.TypeDecorator):
    """Text that comes back byte for byte, NUL and lone surrogates included."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value, dialect):
        """The text, or its JSON behind a mark where a database would refuse it."""
        if value is None:
            return None
        awkward = AWKWARD.search(value) or value.startswith(MARK)
        return MARK + json.dumps(value) if awkward else value

    def process_result_value(self, value, dialect):
        """The text as it was given."""
        return json.loads(value[len(MARK) :]) if value and value.startswith(MARK) else value


class Json(sa.types.TypeDecorator):
    """A JSON value as ASCII text with the keys in the order in which they were given."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value, dialect):
        """The value as text; NaN is refused."""
        return None if value is None else json.dumps(value, allow_nan=False)

    def process_result_value(self, value, dialect):
        """The value."""
        return None if value is None else json.loads(value)


metadata = sa.MetaData(
    naming_convention={
        "ix": "%(table_name)s_%(column_0_N_name)s_index",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "ck": "%(table_name)s_%(constraint_name)s_check",
        "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
        "pk": "%(table_name)s_pkey",
    }
)


def one_of(column: str, *values: str) -> CheckConstraint:
    """The rule that a column takes these values alone."""
    return CheckConstraint(f"{column} IN ({', '.join(map(repr, values))})", name=column)


def number() -> Column:
    """The column of a row's number."""
    return Column("id", Integer, primary_key=True)


def at(name: str = "at", nullable: bool = False) -> Column:
    """A moment, in seconds since 1970."""
    return Column(name, Float(53), nullable=nullable)


def to(table: str, name: str | None = None, nullable: bool = False, **more) -> Column:
    """A row of another table."""
    return Column(name or table, ForeignKey(f"{table}.id"), nullable=nullable, **more)
