"""`keyleash serve`: over stdio for one client, or over HTTP for many."""

import asyncio
import io
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any

from server.hygiene import keep_memory_private
from server.stdio import first_answer


def serve_over_stdio(*, agent: str | None, org: str | None) -> int:
    """Serve the client at the other end of standard input and output; returns the exit code."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        release = version("keyleash")
    except PackageNotFoundError:
        release = "0"
    first_answer(release)
    keep_memory_private()
    stdin, stdout = _private_streams()
    return _guarded(lambda: _stdio(agent, org, stdin, stdout))


def serve_over_http(bind: str) -> int:
    """Serve agents over HTTP until stopped; returns the exit code."""
    return _guarded(lambda: _http(bind))


def _private_streams() -> tuple[io.TextIOWrapper, io.TextIOWrapper]:
    """Keep standard output for the protocol alone: what anything else prints goes to standard error."""
    kept = os.dup(1)
    os.dup2(2, 1)
    stdin = io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8", errors="replace")
    stdout = io.TextIOWrapper(os.fdopen(kept, "wb"), encoding="utf-8")
    return stdin, stdout


def _stdio(agent: str | None, org: str | None, stdin: io.TextIOWrapper, stdout: io.TextIOWrapper) -> None:
    from server.app import open_installation, quiet_logs, serve_stdio
    from server.duty import on_duty
    from server.identity import IdentityProblem
    from server.settings import read_settings

    settings = read_settings()
    quiet_logs(settings.log_level)
    installation = open_installation(settings)
    if sys.stdin.isatty():
        print("keyleash: this speaks to an MCP client, which starts it. Ctrl-C ends it.", file=sys.stderr)  # noqa: T201
        signal.signal(signal.SIGINT, _leave)
    found = installation.directory.org(org)
    agents = installation.directory.agents(found.id)
    if agent is None:
        names = ", ".join(each.name for each in agents) or "none yet; `keyleash agent create NAME` makes one"
        raise IdentityProblem(f"Which agent is this client? Add `--agent NAME`. There are: {names}.")
    chosen = installation.directory.agent(found.id, agent)
    if not chosen.narrowing.admits_from(None):
        raise IdentityProblem(
            f"The agent {chosen.name} is narrowed to addresses ({', '.join(chosen.narrowing.addresses)}), and a client "
            "on standard input and output comes from none. Connect it over HTTP, or lift that: "
            f"keyleash agent narrow {chosen.name} --any-address"
        )
    with on_duty(installation.database, settings, installation.vault):
        _run(serve_stdio(installation, org=found.id, agent=chosen.id, stdin=stdin, stdout=stdout))


def _leave(_signal: int, _frame: object) -> None:
    os._exit(130)  # the thread that reads the terminal cannot be woken, and would be waited for


def _http(bind: str) -> None:
    from server.app import open_installation, quiet_logs, serve_http
    from server.duty import on_duty
    from server.http import AGENT_PATH, BindProblem, allowed, not_reached, parse_bind
    from server.settings import read_settings

    settings = read_settings()
    quiet_logs(settings.log_level)
    host, port = parse_bind(bind)
    hosts, _ = allowed(host, settings.allowed_hosts)
    strange = not_reached(settings.public_url, hosts)
    installation = open_installation(settings)
    # Told to stop by a service manager, it ends as by Ctrl-C: uvicorn raises the signal again once it has closed, and
    # by default that would end the process before anything else is done, such as noting how far the logs go.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with on_duty(installation.database, settings, installation.vault):
        if installation.vault.sealed is not None:
            print(f"keyleash: sealed, no tools are offered: {installation.vault.sealed}", file=sys.stderr)  # noqa: T201
        if strange is not None:
            print(  # noqa: T201
                f"keyleash: KEYLEASH_PUBLIC_URL leads to {strange}, and this server does not answer to that name. "
                f"Add it: KEYLEASH_ALLOWED_HOSTS={','.join((*settings.allowed_hosts, strange))}",
                file=sys.stderr,
            )
        if not _free(host, port):
            raise BindProblem(f"Nothing can listen at {bind}: it is in use, or not an address of this machine.")
        shown = f"[{host}]" if ":" in host else host
        print(f"keyleash: agents connect at http://{shown}:{port}{AGENT_PATH}", file=sys.stderr)  # noqa: T201
        try:
            _run(serve_http(installation, host=host, port=port))
        except SystemExit:
            raise BindProblem(
                f"Nothing can listen at {bind}: it is in use, or not an address of this machine."
            ) from None


def _free(host: str, port: int) -> bool:
    """Whether a server can listen there; asked before it says where it is, for the server itself binds late."""

    async def listen() -> None:
        (await asyncio.get_running_loop().create_server(asyncio.Protocol, host, port)).close()

    try:
        asyncio.run(listen())
    except OSError:
        return False
    return True


def _run(coroutine: Coroutine[Any, Any, None]) -> None:
    try:
        import uvloop
    except ImportError:
        asyncio.run(coroutine)
    else:
        uvloop.run(coroutine)


def _guarded(serve: Callable[[], None]) -> int:
    """Run, and turn what is a person's to mend into one line on standard error."""
    from server.cli.problems import PROBLEMS

    try:
        serve()
    except KeyboardInterrupt:
        return 0
    except PROBLEMS as problem:
        print(f"keyleash: {problem}", file=sys.stderr)  # noqa: T201 - standard output belongs to the protocol
        return 1
    return 0
