"""Run migrations on the database that the caller names; there is no alembic.ini."""

from alembic import context
from sqlalchemy import create_engine
from sqlmodel import SQLModel

import server.tables
import vault.tables

assert server.tables, vault.tables  # noqa: S101 - imported for the tables that they declare

engine = create_engine(f"sqlite:///{context.config.attributes['path']}")
with engine.connect() as connection:
    connection.exec_driver_sql("PRAGMA secure_delete=ON")  # what a migration moves leaves nothing behind
    connection.commit()
    context.configure(connection=connection, target_metadata=SQLModel.metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()
engine.dispose()
