"""What is printed is harmless and clean; what goes wrong is one line and an exit code."""

import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.cli import commands
from server.cli.output import plain, show_table
from tests.commandline import CommandLine
from tests.hostile import assert_visible
from tests.installed import Place


@given(st.text())
def test_nothing_that_is_printed_can_act_on_a_terminal(text: str) -> None:
    shown = plain(text)
    assert shown.isprintable()
    assert plain(text, lines=True).replace("\n", "").isprintable()
    assert_visible(shown)
    if text.isascii() and text.isprintable():
        assert shown == text


def test_markup_in_a_cell_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    show_table(("A",), [("[red]x[/red] :smile: \x1b[0m",), (None,)], empty="")
    assert "[red]x[/red] :smile: \\x1b[0m" in capsys.readouterr().out


@pytest.mark.parametrize(
    "command",
    [
        ("connection", "list"),
        ("connection", "show", "stripe"),
        ("connector", "list"),
        ("connector", "show", "stripe"),
        ("org", "list"),
        ("org", "show"),
        ("member", "list"),
        ("agent", "list"),
        ("policy", "list"),
        ("policy", "preset"),
        ("policy", "explain", "--agent", "reconciler", "--tool", "stripe_get_balance"),
        ("approvals", "list"),
        ("grant", "list"),
        ("audit", "list"),
        ("audit", "verify"),
        ("vault", "status"),
        ("client", "show", "cursor"),
        ("doctor",),
        ("upgrade",),
    ],
    ids=" ".join,
)
def test_json_is_all_that_stands_on_standard_output(owner: CommandLine, place: Place, command: tuple[str, ...]) -> None:
    ran = owner(*command, "--json")
    assert ran.code == 0, ran.err
    assert ran.out.isascii()
    json.loads(ran.out)
    assert owner(*command).code == 0


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ((), 2),
        (("bogus",), 2),
        (("policy",), 2),
        (("connection", "show"), 2),
        (("connection", "list", "--bogus"), 2),
        (("audit", "export"), 2),
        (("serve", "--http", "127.0.0.1:1", "--agent", "x"), 2),
        (("serve", "--http", "nonsense"), 1),
        (("connection", "show", "nosuch"), 1),
        (("connection", "list", "--org", "nosuch"), 1),
        (("--version",), 0),
        (("--help",), 0),
        (("policy", "add", "--help"), 0),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_every_ending_has_its_exit_code(owner: CommandLine, place: Place, command: tuple[str, ...], code: int) -> None:
    ran = owner(*command)
    assert ran.code == code
    assert "Traceback" not in ran.err
    assert (ran.out == "") is (code != 0)


def test_what_nobody_expected_is_one_line_without_its_text(
    owner: CommandLine, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_self: object) -> None:
        hidden = "a canary in a local variable"
        raise RuntimeError(f"and one in the message: {hidden}")

    monkeypatch.setattr("server.identity.Directory.orgs", broken)
    ran = owner("org", "list")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.count("\n") == 1
    assert "RuntimeError" in ran.err
    owner.environ["KEYLEASH_LOG"] = "debug"
    told = owner("org", "list")
    assert told.code == 1
    assert "in broken" in told.err
    assert "canary in a local" not in told.err.replace('hidden = "a canary in a local variable"', "")


def test_a_setting_that_makes_no_sense_is_named(owner: CommandLine) -> None:
    owner.environ["KEYLEASH_HOLD_SECONDS"] = "soon"
    ran = owner("org", "list")
    assert ran.code == 1
    assert "KEYLEASH_HOLD_SECONDS" in ran.err


def test_shell_completion_is_there(owner: CommandLine) -> None:
    ran = owner("--help")
    assert "--install-completion" in ran.out


def test_help_costs_no_heavy_import() -> None:
    import subprocess

    heavy = ("sqlmodel", "sqlalchemy", "alembic", "mcp", "aiohttp", "cryptography", "keyring", "rich.table", "yaml")
    heavy += ("asyncio", "ssl")
    code = f"import sys, server.cli.commands; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=commands.__file__[: -len("server/cli/commands.py")],
    )
    assert done.stdout.strip() == "[]"


def test_a_command_that_sends_nothing_loads_no_http_library() -> None:
    import subprocess

    code = "import sys, server.app; print([name for name in ('aiohttp', 'mcp', 'sqlalchemy') if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=commands.__file__[: -len("server/cli/commands.py")],
    )
    assert done.stdout.strip() == "[]"
