"""Every command of `keyleash`, and the one place where an exception becomes a line and an exit code.

0 is fine, 1 failed, 2 misuse; `audit verify` adds 3. No traceback reaches a person who did not ask for one.
"""

import io
import os
import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from server.cli import (
    agents,
    approvals,
    audit,
    backup,
    budget,
    channel,
    client,
    connect,
    connectors,
    database,
    doctor,
    grants,
    importing,
    limits,
    managed,
    offers,
    people,
    policy,
    proving,
    replaying,
    reviewing,
    rulebooks,
    setup,
    streaming,
    trying,
    usage,
    vault,
    wrapping,
)
from server.cli.acting import OrgName
from server.cli.arguments import REFUSED, holds_a_key
from server.cli.output import complain

app = typer.Typer(
    name="keyleash",
    help="Let agents use your organisation's accounts without ever seeing a key.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # its tracebacks show locals, and locals may hold a secret
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print this release's version.", is_eager=True)] = False,
) -> None:
    """Let agents use your organisation's accounts without ever seeing a key."""
    if version:
        from importlib.metadata import PackageNotFoundError
        from importlib.metadata import version as version_of

        try:
            sys.stdout.write(f"keyleash {version_of('keyleash')}\n")
        except PackageNotFoundError:
            sys.stdout.write("keyleash, not installed: this runs from its source\n")
        raise typer.Exit
    if context.invoked_subcommand is None:
        raise typer.Exit(2)


@app.command()
def serve(
    agent: Annotated[
        str | None, typer.Option("--agent", metavar="NAME", help="Over standard input and output, as this agent.")
    ] = None,
    org: OrgName = None,
    http: Annotated[
        str | None,
        typer.Option("--http", metavar="HOST:PORT", help="Over HTTP, for agents with a token, at /agent/mcp."),
    ] = None,
) -> None:
    """Serve MCP clients: one over standard input and output, or many over HTTP."""
    from server.cli.serving import serve_over_http, serve_over_stdio

    if http is None:
        raise typer.Exit(serve_over_stdio(agent=agent, org=org))
    if agent is not None or org is not None:
        raise typer.BadParameter("--http takes neither --agent nor --org: each agent's token says who it is.")
    raise typer.Exit(serve_over_http(http))


@app.command()
def demo(
    no_input: Annotated[
        bool, typer.Option("--no-input", help="Ask nothing: the held refund is denied, then approved.")
    ] = False,
) -> None:
    """See it work: a teammate's agent, a held refund, and a record that can be checked. Under 20 seconds."""
    from rich.console import Console

    from server.cli.demo import run as tell

    raise typer.Exit(tell(no_input=no_input, console=Console(highlight=False)))


for function in (
    setup.init,
    setup.upgrade,
    doctor.doctor,
    connect.connect,
    people.freeze,
    people.unfreeze,
    usage.usage,
):
    app.command()(function)

for name, function in backup.COMMANDS.items():
    vault.app.command(name)(function)

for name, function in proving.COMMANDS.items():
    audit.app.command(name)(function)

for name, function in {
    "new": importing.new,
    "import-openapi": importing.import_openapi,
    "import-mcp": wrapping.import_mcp,
    "review": reviewing.review,
    "test": trying.test,
}.items():
    connectors.app.command(name)(function)

connect.connection_app.command("use-managed")(offers.use_managed)
for name, function in limits.COMMANDS.items():
    connect.connection_app.command(name)(function)

for name, function in {**rulebooks.COMMANDS, **replaying.COMMANDS}.items():
    policy.app.command(name)(function)

for name, function in streaming.COMMANDS.items():
    audit.app.command(name)(function)

for name, group in {
    "connection": connect.connection_app,
    "connector": connectors.app,
    "managed": managed.app,
    "org": people.org_app,
    "member": people.member_app,
    "agent": agents.app,
    "policy": policy.app,
    "approvals": approvals.app,
    "grant": grants.app,
    "channel": channel.app,
    "budget": budget.app,
    "audit": audit.app,
    "vault": vault.app,
    "database": database.app,
    "client": client.app,
}.items():
    app.add_typer(group, name=name)


def run(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and end the process with its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if holds_a_key(given):
        complain(REFUSED)
        sys.exit(2)
    try:
        app(args=given, prog_name="keyleash")
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        _explain(error)
    sys.exit(1)


def _explain(error: Exception) -> None:
    """One line on what went wrong: ours says how to mend it, any other only what it is."""
    if _is_ours(error):
        complain(str(error))
        sys.stderr.write(getattr(error, "snippet", ""))
        return
    # Its text may quote what it was given, a secret for instance; its type cannot.
    complain(
        f"something went wrong inside Keyleash ({type(error).__name__}). Run again with KEYLEASH_LOG=debug and "
        "report what that prints."
    )
    if os.environ.get("KEYLEASH_LOG", "").lower() == "debug":
        import traceback

        sys.stderr.write("".join(traceback.format_list(traceback.extract_tb(error.__traceback__))))


def _is_ours(error: Exception) -> bool:
    try:
        from server.cli.problems import PROBLEMS
    except Exception:  # an installation so broken that not even its errors can be imported
        return False
    return isinstance(error, PROBLEMS)
