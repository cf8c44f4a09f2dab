"""Run migrations on the database that the caller names, a file or an open connection; there is no alembic.ini."""

from typing import Any

from alembic import context
from sqlalchemy import Connection, create_engine
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.types import String
from sqlmodel import SQLModel

import server.tables
import vault.tables

assert server.tables, vault.tables  # noqa: S101 - imported for the tables that they declare


@compiles(String, "postgresql")
def _in_order_of_bytes(kind: String, compiler: Any, **more: Any) -> str:
    """Text is compared and sorted as SQLite does it, whatever the database's own language is."""
    return f'{compiler.visit_VARCHAR(kind, **more)} COLLATE "C"'


def migrate(connection: Connection) -> None:
    context.configure(connection=connection, target_metadata=SQLModel.metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()


if "connection" in context.config.attributes:
    migrate(context.config.attributes["connection"])
else:
    engine = create_engine(f"sqlite:///{context.config.attributes['path']}")
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA secure_delete=ON")  # what a migration moves leaves nothing behind
        connection.commit()
        migrate(connection)
    engine.dispose()
