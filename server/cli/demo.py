"""`keyleash demo`: the main job told in a terminal, with real parts in separate processes.

Simulated is the upstream alone: a stand-in for Stripe on loopback. The commands, the server, the client and its
messages, the vault and the log are the real ones.
"""

import asyncio
import base64
import json
import os
import secrets
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import anyio
import mcp_types as t
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.shared.message import SessionMessage
from rich.console import Console
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from server.cli.demo_upstream import DAY, yesterday

CLIENT = t.Implementation(name="keyleash-demo", version="1")
Decide = Callable[[list[str]], Awaitable[str]]


class DemoFailed(Exception):
    """Something did not happen as the demo says it does; the message says what."""


@dataclass
class Stage:
    """The temporary home, the stand-in's process, and everything that went over the client's wire."""

    console: Console
    home: Path
    key: str
    upstream: "subprocess.Popen[str]"
    url: str
    wire: list[str] = field(default_factory=list[str])
    asked_upstream: list[str] = field(default_factory=list[str])

    def refunds_sent(self) -> int:
        """How many refunds have reached the stand-in."""
        return sum(1 for line in self.asked_upstream if line.startswith("POST /v1/refunds 200"))

    def command(self, *arguments: str, secret: str | None = None, good: tuple[int, ...] = (0,)) -> str:
        """Run a real `keyleash` command, show it, and return what it printed."""
        shown = ('printf %s "$STRIPE_KEY" | ' if secret else "") + "keyleash " + " ".join(map(_quoted, arguments))
        self.console.print(Text(f"  $ {shown}", style="bold"), soft_wrap=True)  # to be copied
        done = subprocess.run(  # noqa: S603 - our own command
            [*keyleash(), *arguments],
            input=secret,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if done.returncode not in good:
            raise DemoFailed(f"`keyleash {arguments[0]}` ended with {done.returncode}: {done.stderr or done.stdout}")
        self.wire += [done.stdout, done.stderr]
        return done.stdout + done.stderr

    def environment(self) -> dict[str, str]:
        """What a child inherits: enough to run, and the demo's own home."""
        return {**os.environ, "KEYLEASH_HOME": str(self.home), "KEYLEASH_HOLD_SECONDS": "5", "COLUMNS": "100"}

    def heading(self, text: str) -> None:
        """A new part of the scene."""
        self.console.print()
        self.console.print(Text(text, style="bold cyan"))

    def say(self, text: str, style: str = "") -> None:
        """One line of the story; on a terminal it is wrapped, in a pipe it stays one."""
        if self.console.is_terminal:
            self.console.print(Padding(Text(text, style=style), (0, 0, 0, 2), expand=False))
        else:
            self.console.print(Text(f"  {text}", style=style), soft_wrap=True)


def keyleash() -> list[str]:
    """How to run this very Keyleash: the console script beside this Python, or its entry point."""
    script = Path(sys.executable).with_name("keyleash")
    return [str(script)] if script.exists() else [sys.executable, "-c", "from server.cli import main; main()"]


def run(*, no_input: bool, console: Console) -> int:
    """Tell the scene; returns the exit code. With `no_input` the person's answers are: deny, then approve."""
    started = time.monotonic()
    home = Path(tempfile.mkdtemp(prefix="keyleash-demo-"))
    key = f"rk_test_{secrets.token_hex(16)}"
    upstream = subprocess.Popen(
        [sys.executable, "-c", "from server.cli.demo_upstream import serve; serve()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is for the demo, which ends it
    )
    failed = False
    try:
        url = _started(upstream, key)
        stage = Stage(console, home, key, upstream, url)
        waited = asyncio.run(_scene(stage, _scripted() if no_input else _at_the_terminal(console)))
        seconds = time.monotonic() - started - waited
        console.print()
        stage.say(f"{seconds:.0f} seconds, not counting the time you took.", "dim")
    except* (KeyboardInterrupt, BrokenPipeError):
        failed = True  # whoever stopped it knows; what it made is taken away all the same
    except* DemoFailed as group:
        console.print(Text(f"The demo did not go as it should: {_first(group)}", style="bold red"))
        failed = True
    finally:
        upstream.kill()
        upstream.wait()
        shutil.rmtree(home, ignore_errors=True)
    return 1 if failed else 0


def _first(group: BaseExceptionGroup[DemoFailed]) -> BaseException:
    inner = group.exceptions[0]
    return _first(inner) if isinstance(inner, BaseExceptionGroup) else inner


def _started(upstream: "subprocess.Popen[str]", key: str) -> str:
    if upstream.stdin is None or upstream.stdout is None:
        raise DemoFailed("the stand-in for Stripe has no pipes")
    upstream.stdin.write(key + "\n")
    upstream.stdin.flush()
    port = upstream.stdout.readline().strip()
    if not port.isdigit():
        raise DemoFailed("the stand-in for Stripe did not start")
    return f"http://127.0.0.1:{port}"


async def _scene(stage: Stage, decide: Decide) -> float:
    """The whole story; returns the seconds that the person took to answer."""
    stage.console.print(
        Panel(
            "An admin connects Stripe. A teammate, who has never seen the key, asks an agent to reconcile yesterday's "
            "charges. Simulated: Stripe itself, by a small service on this machine that refuses calls without the "
            "key, and the agent's reasoning, by a few lines of Python. Everything else is the real thing.",
            title="keyleash demo",
            border_style="cyan",
        )
    )
    waited = 0.0
    async with anyio.create_task_group() as group:
        group.start_soon(_watch_upstream, stage)
        _admin(stage)
        waited = await _agent(stage, decide)
        _nowhere(stage)
        _auditor(stage)
        _closing(stage)
        group.cancel_scope.cancel()
    return waited


async def _watch_upstream(stage: Stage) -> None:
    """Keep what the stand-in says that it was asked."""
    output = stage.upstream.stdout
    while output is not None:
        line = await anyio.to_thread.run_sync(output.readline, abandon_on_cancel=True)
        if not line:
            return
        stage.asked_upstream.append(line.strip())


def _admin(stage: Stage) -> None:
    stage.heading("1  An admin connects the account, once")
    stage.command("init", "--org", "acme", "--root", "file")
    stage.command(
        "connect",
        "stripe",
        "--secret-stdin",
        "--base-url",
        stage.url,
        "--allow-private",
        "127.0.0.1/32",
        secret=stage.key,
    )
    stage.say("The key was checked with the account, encrypted, and no command reads it out again.", "green")
    stage.command("member", "create", "bob")
    stage.command("agent", "create", "reconciler", "--for", "bob")
    stage.say("Bob's agent may now ask. It has no key, and a leash: the rules of the preset `default`.", "green")


async def _agent(stage: Stage, decide: Decide) -> float:
    waited = 0.0

    async def never(context: Any, params: Any) -> t.ElicitResult:
        return t.ElicitResult(action="cancel")  # the demo asks by hand, below; this only says that it can

    async with (
        _recorded(stage) as transport,
        Client(transport, mode="auto", client_info=CLIENT, elicitation_callback=never) as client,
    ):
        stage.heading("2  A teammate's agent reads the day")
        double = await _reconcile(stage, client)
        stage.heading("3  It asks for a refund, and a person is asked")
        refund = {"charge": double["id"], "amount": double["amount"], "reason": "duplicate"}
        for attempt in (1, 2):
            before = stage.refunds_sent()
            question = await client.session.call_tool("stripe_create_refund", refund, allow_input_required=True)
            if not isinstance(question, t.InputRequiredResult):
                raise DemoFailed("the refund was not held for a person")
            form = _shown(stage, question)
            started = time.monotonic()
            answer = await decide(form)
            waited += time.monotonic() - started
            result = await _answered(client, refund, question, answer)
            if answer == "approve":
                await _approved(stage, client, refund, question, result, before)
                break
            if stage.refunds_sent() != before:
                raise DemoFailed("a denied refund was sent")
            stage.say("Denied. Refunds sent to Stripe: 0.", "bold yellow")
            stage.say(f"The agent is told: {_text(result)}", "dim")
            if attempt == 1:
                stage.say("The person has thought about it, and lets the agent ask once more.", "dim")
    return waited


async def _reconcile(stage: Stage, client: Client) -> dict[str, Any]:
    tools = (await client.list_tools()).tools
    stage.say(f"The client sees {len(tools)} tools, such as {', '.join(tool.name for tool in tools[:4])}.")
    day = {"created_gte": yesterday(), "created_lt": yesterday() + DAY, "limit": 100}
    found: dict[str, list[dict[str, Any]]] = {}
    for kind, key in [
        ("charges", "charges"),
        ("refunds", "refunds"),
        ("balance_transactions", "transactions"),
        ("payouts", "payouts"),
    ]:
        result = await client.call_tool(f"stripe_list_{kind}", day)
        if result.is_error or result.structured_content is None:
            raise DemoFailed(f"reading {kind} failed: {_text(result)}")
        found[kind] = result.structured_content[key]
    double = _double(found["charges"])
    stage.console.print(_ledger(found, double))
    stage.say(
        f"{double['id']} has the same customer, amount and order as the charge before it, seconds apart: "
        "charged twice.",
        "bold",
    )
    return double


def _double(charges: list[dict[str, Any]]) -> dict[str, Any]:
    seen: dict[tuple[Any, ...], dict[str, Any]] = {}
    for charge in sorted(charges, key=lambda charge: charge["created"]):
        same = (charge["customer"], charge["amount"], charge["description"])
        if same in seen and charge["created"] - seen[same]["created"] < 60:
            return charge
        seen[same] = charge
    raise DemoFailed("the double charge was not found")


def _ledger(found: dict[str, list[dict[str, Any]]], double: dict[str, Any]) -> Table:
    table = Table(box=None, padding=(0, 2), show_header=True, header_style="dim")
    for column in ("what", "when", "order", "customer"):
        table.add_column(column)
    table.add_column("amount", justify="right")
    for charge in sorted(found["charges"], key=lambda charge: charge["created"]):
        table.add_row(
            charge["id"],
            time.strftime("%H:%M:%S", time.gmtime(charge["created"])),
            charge["description"],
            charge["customer"],
            _euro(charge["amount"]),
            style="bold yellow" if charge is double else "",
        )
    for refund in found["refunds"]:
        table.add_row(refund["id"], "", f"refund of {refund['charge']}", "", _euro(-refund["amount"]))
    fees = sum(line["fee"] for line in found["balance_transactions"])
    table.add_row("fees", "", f"{len(found['balance_transactions'])} balance transactions", "", _euro(-fees))
    for payout in found["payouts"]:
        table.add_row(payout["id"], "", "payout to the bank", "", _euro(-payout["amount"]))
    return table


def _shown(stage: Stage, question: t.InputRequiredResult) -> list[str]:
    """Print the prompt as the client got it; returns the answers there are."""
    request = (question.input_requests or {})["approval"]
    params = request.params
    if not isinstance(params, t.ElicitRequestFormParams):
        raise DemoFailed("the question is no form")
    stage.console.print(
        Panel(Text(params.message), title="what the person sees", border_style="yellow", padding=(0, 1))
    )
    choices: list[str] = params.requested_schema["properties"]["decision"]["enum"]
    return choices


async def _answered(
    client: Client, refund: dict[str, Any], question: t.InputRequiredResult, answer: str
) -> t.CallToolResult:
    """Repeat the call with the person's answer, as a client does."""
    result = await client.session.call_tool(
        "stripe_create_refund",
        refund,
        input_responses={"approval": t.ElicitResult(action="accept", content={"decision": answer})},
        request_state=question.request_state,
        allow_input_required=True,
    )
    if not isinstance(result, t.CallToolResult):
        raise DemoFailed("the answer was not taken")
    return result


async def _approved(
    stage: Stage,
    client: Client,
    refund: dict[str, Any],
    question: t.InputRequiredResult,
    result: t.CallToolResult,
    before: int,
) -> None:
    if result.is_error or result.structured_content is None:
        raise DemoFailed(f"the approved refund failed: {_text(result)}")
    await _settled(stage, before + 1)
    name = result.structured_content["id"]
    stage.say(f"Approved. Refunds sent to Stripe: {stage.refunds_sent() - before} ({name}).", "bold green")
    again = await _answered(client, refund, question, "approve")
    await client.call_tool("stripe_list_refunds", {"limit": 1})  # whatever was under way is behind this one
    sent = stage.refunds_sent() - before
    if sent != 1 or again.structured_content != result.structured_content:
        raise DemoFailed("a replay of the approval did more than tell the outcome again")
    stage.say("The same approval sent again: the stored outcome comes back. Refunds sent: still 1.", "green")


async def _settled(stage: Stage, refunds: int) -> None:
    """Wait until the stand-in has said that it was asked for this many refunds."""
    with anyio.fail_after(10):
        while stage.refunds_sent() < refunds:  # noqa: ASYNC110 - it comes from another process
            await anyio.sleep(0.01)


def _nowhere(stage: Stage) -> None:
    stage.heading("4  Where the key is")
    everything = "\n".join(stage.wire)
    files = [path for path in stage.home.rglob("*") if path.is_file()]
    spellings = [stage.key, stage.key[::-1], stage.key.encode().hex(), base64.b64encode(stage.key.encode()).decode()]
    for spelling in spellings:
        if spelling in everything or any(spelling.encode() in path.read_bytes() for path in files):
            raise DemoFailed("the key was found where it must not be")
    stage.say(
        f"In none of {len(stage.wire)} messages and outputs ({len(everything):,} characters), and in none of "
        f"{len(files)} files.",
        "green",
    )


def _auditor(stage: Stage) -> None:
    stage.heading("5  An auditor checks the record, and does not trust us")
    log = stage.home / "log.jsonl"
    stage.command("audit", "export", "--format", "jsonl", "--output", str(log))
    stage.say(_first_line(stage.command("audit", "verify", "--export", str(log))), "green")
    altered = stage.home / "altered.jsonl"
    number, change = _alter(log, altered)
    stage.say(f"Somebody changes one word in a copy: in entry {number}, {change}.")
    verdict = stage.command("audit", "verify", "--export", str(altered), good=(1,))
    stage.say(_first_line(verdict), "bold yellow")
    if str(number) not in verdict:
        raise DemoFailed("the verifier did not name the altered entry")


def _alter(log: Path, altered: Path) -> tuple[int, str]:
    """Change one decision in a copy of the export; returns the number of the entry, and what was changed."""
    lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
    for place, line in enumerate(lines):
        if "approval.decided" in line:
            word, other = ("deny", "approve") if "deny" in line else ("approve", "deny")
            lines[place] = line.replace(word, other)
            altered.write_text("".join(lines), encoding="utf-8")
            change = "the denial becomes an approval" if word == "deny" else "the approval becomes a denial"
            return _number(line), change
    raise DemoFailed("the log holds no decision")


def _number(line: str) -> int:
    entry = json.loads(line)
    for value in (entry, entry.get("body"), entry.get("entry")):
        inner = json.loads(value) if isinstance(value, str) else value
        if isinstance(inner, dict) and "seq" in inner:
            return int(inner["seq"])  # pyright: ignore[reportUnknownArgumentType] - JSON
    raise DemoFailed("an entry of the export has no number")


def _closing(stage: Stage) -> None:
    stage.heading("That was the main job")
    stage.say("Real: init, connect, serve over stdio, an MCP client of protocol 2026-07-28, vault, rules, log.")
    stage.say("Simulated: Stripe, and the agent's reasoning. The demo's home folder is gone again.")
    here = keyleash()[0]
    stage.say(f"Next: {here} init · connect stripe · client add claude-code", "bold")


@asynccontextmanager
async def _recorded(stage: Stage) -> "AsyncGenerator[Any]":
    """The client's end of `keyleash serve` over stdio; every line in either direction is kept."""
    command, *arguments = keyleash()
    parameters = StdioServerParameters(
        command=command, args=[*arguments, "serve", "--agent", "reconciler"], env=stage.environment()
    )
    stage.wire.append(json.dumps(parameters.args))
    log = (stage.home / "serve.log").open("w+", encoding="utf-8")
    try:
        yield _tapped(parameters, log, stage.wire)
    finally:
        log.seek(0)
        stage.wire.append(log.read())
        log.close()


@asynccontextmanager
async def _tapped(parameters: StdioServerParameters, log: TextIO, wire: list[str]) -> AsyncGenerator[Any]:
    """The transport to this server, with a copy of what goes through it in `wire`."""

    async def copy(source: Any, target: Any) -> None:
        async with target:
            async for item in source:
                if isinstance(item, SessionMessage):
                    wire.append(item.message.model_dump_json(by_alias=True, exclude_unset=True))
                await target.send(item)

    to_client, from_server = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    to_server, from_client = anyio.create_memory_object_stream[SessionMessage](0)
    async with stdio_client(parameters, errlog=log) as (read, write), anyio.create_task_group() as group:
        group.start_soon(copy, read, to_client)
        group.start_soon(copy, from_client, write)
        yield from_server, to_server
        group.cancel_scope.cancel()


def _scripted() -> Decide:
    answers = iter(["deny", "approve"])

    async def answer(_choices: list[str]) -> str:
        return next(answers)

    return answer


def _at_the_terminal(console: Console) -> Decide:
    scripted = _scripted()

    async def ask(choices: list[str]) -> str:
        while True:
            console.print(Text("  You are Bob. Type a to approve or d to deny, then Enter: ", style="bold"), end="")
            typed = await _typed()
            if typed is None:
                answer = await scripted(choices)
                console.print(Text(f"\n  Nobody is at this terminal, so the demo answers: {answer}", style="dim"))
                return answer
            for choice in choices:
                if typed and choice.startswith(typed):
                    return choice

    return ask


async def _typed() -> str | None:
    """A line from standard input, None at its end. It is waited for here, where Ctrl-C still works."""
    if sys.platform != "win32":
        while not select.select([sys.stdin], [], [], 0)[0]:  # noqa: ASYNC110 - a terminal has no event
            await anyio.sleep(0.05)
    line = sys.stdin.readline()
    return line.strip().lower() if line else None


def _text(result: t.CallToolResult) -> str:
    first = result.content[0]
    return first.text if isinstance(first, t.TextContent) else ""


def _euro(cents: int) -> str:
    return f"{cents / 100:,.2f} EUR"


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def _quoted(argument: str) -> str:
    import shlex

    return shlex.quote(argument)
