"""`keyleash database …`: which database this installation is in, and the move to PostgreSQL."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli.acting import AsJson, Yes, opened, operators_name, require_operator
from server.cli.output import counted, progress, say, show_fields, show_json, show_text
from server.cli.terminal import require_yes

if TYPE_CHECKING:
    from server.settings import Settings

app = typer.Typer(no_args_is_help=True, help="Where everything but the root key is kept.")


@app.callback()
def group() -> None:
    """Where everything but the root key is kept."""


@app.command("status")
def status(json: AsJson = False) -> None:
    """Say which database it is, at which schema, and whether it keeps orgs apart itself. Needs no key."""
    from server.settings import read_settings

    shown = _status(read_settings())
    if json:
        show_json(shown)
        return
    apart = "no, every query does" if shown["kind"] == "sqlite" else "yes"
    apart = f"it should, and does not: {'; '.join(shown['faults'])}" if shown["faults"] else apart
    show_fields(
        {
            "database": shown["where"],
            "role": shown["role"],
            "schema": shown["schema"] or "no tables yet: run `keyleash init`",
            "keeps orgs apart itself": apart,
            "moved": shown["moved"],
        }
    )


def _status(settings: "Settings") -> dict[str, Any]:
    from contextlib import closing

    from server.database import open_database, schema_of
    from server.sqlite import moved_to

    with closing(open_database(settings)) as database:
        schema = schema_of(database)
        return {
            "kind": "sqlite" if settings.database_url is None else "postgresql",
            "where": database.name,
            "role": None if settings.database_url is None else settings.serving_role,
            "schema": schema,
            "faults": database.faults() if schema is not None else [],
            "moved": moved_to(database),
        }


@app.command("migrate")
def migrate(
    to: Annotated[
        str | None,
        typer.Option("--to", metavar="URL", help="postgresql://OWNER@HOST/DATABASE, an empty one; without a password."),
    ] = None,
    role: Annotated[
        str, typer.Option("--role", metavar="ROLE", help="The PostgreSQL role that servers are to use.")
    ] = "keyleash_app",
    undo: Annotated[
        bool, typer.Option("--undo", help="Go on with the SQLite file of before, without what was recorded since.")
    ] = False,
    yes: Yes = False,
    json: AsJson = False,
) -> None:
    """Move this installation to PostgreSQL: everything is copied, read back and compared. Stop what serves it first."""
    from server.moving import move
    from server.settings import read_settings

    if undo == (to is not None):
        raise typer.BadParameter("give either --to URL or --undo.")
    settings = read_settings()
    if to is None:
        _go_back(settings, yes=yes, json=json)
        return
    with opened(as_operator=True) as installation:
        require_operator(installation, "moving the database")
        require_yes("Move everything but the root key to PostgreSQL, and stop using the file here?", yes=yes)
        done = move(installation.settings, installation.vault, to=to, role=role, by=operators_name(), watch=progress)
    tables = [{"table": one.name, "rows": one.rows, "sha256": one.sha256} for one in done.tables]
    if json:
        show_json(
            {"to": done.to, "role": role, "tables": tables, "logs": done.logs, "opened": done.opened}
            | {"resumed": done.resumed}
        )
        return
    from server.postgres import as_role

    rows = sum(one.rows for one in done.tables)
    again = " It had been copied by a run that was cut off." if done.resumed else ""
    show_text(
        f"Moved to {done.to}: {counted(rows, 'row')} of {counted(len(done.tables), 'table')}, each read back and "
        f"compared; {counted(done.logs, 'log')} verified, and the key of {counted(done.opened, 'org')} opened.{again}"
    )
    say(
        f"Next, for everything that serves: KEYLEASH_DATABASE={as_role(to, role)}\nFor what the operator does, "
        "KEYLEASH_DATABASE_OWNER as given to --to as well. Then: keyleash doctor. The SQLite file stays where it is "
        "and serves no more; `keyleash database migrate --undo` goes back to it."
    )


def _go_back(settings: "Settings", *, yes: bool, json: bool) -> None:
    from server.moving import go_back

    require_yes(
        "Go on with the SQLite file as it was when it was moved? What was recorded since is not in it.", yes=yes
    )
    go_back(settings)
    if json:
        show_json({"undone": True, "database": str(settings.database)})
    else:
        show_text(f"{settings.database} is what serves again. Unset KEYLEASH_DATABASE where it is set.")
