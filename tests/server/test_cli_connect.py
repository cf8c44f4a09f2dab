"""Accounts are connected without their secret ever being an argument, printed, or stored in the open."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.cli.arguments import holds_a_key
from server.connections import ConnectionProblem, connection_named, replan, rotate
from server.database import Rows
from tests.agents import execute
from tests.commandline import CommandLine, Ran, everything, with_environment
from tests.installed import SECRET, Place, files_holding
from tests.upstream import Answer, Upstream

CANARY = "rk_test_canary_nobody_may_read_this_51"
LOCAL = ("--allow-private", "127.0.0.1/32")


def connect(line: CommandLine, upstream: Upstream, *more: str, secret: str = CANARY) -> Ran:
    given = (*more,) if "--secret-from" in more else ("--secret-stdin", *more)
    return line(
        "connect",
        "stripe",
        "--name",
        "stripe_two",
        "--base-url",
        upstream.url,
        *LOCAL,
        *given,
        stdin=f"{secret}\n".encode(),
    )


@pytest.fixture
def engine() -> Iterator[Upstream]:
    """A key-value engine, as far as reading one secret goes."""
    with Upstream() as running:
        yield running


def test_a_connected_account_is_tried_listed_and_usable(owner: CommandLine, upstream: Upstream, place: Place) -> None:
    upstream.secret = CANARY
    upstream.answer = lambda request: Answer({"livemode": False, "available": []})
    ran = connect(owner, upstream, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["name"] == "stripe_two"
    assert ran.json["account"] == "test mode"
    assert [request.target for request in upstream.requests] == ["/v1/balance"]
    shown = {one["name"]: one for one in owner("connection", "list", "--json").json}
    assert shown["stripe_two"]["private"] == ["127.0.0.1/32"]
    assert shown["stripe_two"]["verified_at"] is not None
    entry = place.events("connection.created")[-1]
    assert (entry["base_url"], entry["private"], entry["by"]) == (upstream.url, ["127.0.0.1/32"], "alice")


def test_the_secret_is_nowhere_after_any_way_of_giving_it(
    owner: CommandLine, upstream: Upstream, engine: Upstream, tmp_path: Path
) -> None:
    upstream.secret = None
    upstream.answer = lambda request: Answer({"echo": request.headers["authorization"], "livemode": True})
    file = tmp_path / "secret.txt"
    file.write_text(f"{CANARY}\n")
    engine.answer = lambda request: Answer({"data": {"data": {"key": CANARY}}})
    (tmp_path / "kv.token").write_text("hvs.token")
    kv = {"KEYLEASH_KV_ADDR": engine.url, "KEYLEASH_KV_TOKEN_FILE": str(tmp_path / "kv.token")}
    holder = with_environment(owner, {"STRIPE_CANARY": CANARY, **kv})
    places = ("env:STRIPE_CANARY", f"file:{file}", f"cmd:cat {file}", "vault://secret/stripe#key")
    ways = [
        ("--secret-stdin",),
        *(("--secret-from", place) for place in places),
        *(("--secret-from", place, "--copy") for place in places),
    ]
    runs = []
    for number, way in enumerate(ways):
        target = ("connect", "stripe", "--name", f"way_{number}", "--base-url", upstream.url, *LOCAL)
        runs.append(holder(*target, *way, stdin=f"{CANARY}\n".encode()))
        runs.append(holder("connection", "rotate", f"way_{number}", *way, stdin=f"{CANARY}\n".encode()))
        runs.append(holder("connection", "show", f"way_{number}", "--json"))
        runs.append(holder("connection", "rotate", f"way_{number}", "--keep-secret"))
        runs.append(holder("connection", "test", f"way_{number}"))
    assert [ran.code for ran in runs] == [0] * len(runs), everything(*runs)
    runs.append(holder("audit", "export", "--output", str(tmp_path / "log.jsonl")))
    runs.append(holder("audit", "export", "--format", "csv", "--output", str(tmp_path / "log.csv")))
    file.unlink()
    assert CANARY not in everything(*runs)
    assert files_holding(tmp_path, CANARY.encode()) == []
    assert all(request.headers["authorization"] == f"Bearer {CANARY}" for request in upstream.requests)


def test_what_goes_wrong_on_the_way_shows_the_secret_no_more(owner: CommandLine, upstream: Upstream) -> None:
    upstream.answer = lambda request: Answer({"error": {"message": f"no {CANARY}"}}, status=401)
    loud = with_environment(owner, {"KEYLEASH_LOG": "debug"})
    runs = [
        connect(loud, upstream, secret=CANARY),
        connect(loud, upstream, secret=f"{CANARY}\nsecond line"),
        connect(loud, upstream, secret=f"{CANARY} with spaces\x07"),
        connect(loud, upstream, "--kind", CANARY),
        connect(loud, upstream, CANARY),
        connect(loud, upstream, f"--name={CANARY}"),
        loud("connect", CANARY),
        loud("connect", "stripe", "--secret-from", CANARY),
        loud("connect", "stripe", "--secret", CANARY),
    ]
    assert [ran.code for ran in runs] == [1, 1, 1, 2, 2, 2, 2, 2, 2]
    assert CANARY not in everything(*runs)
    assert "Traceback" not in everything(*runs)
    assert [one["name"] for one in owner("connection", "list", "--json").json] == ["stripe"]


def test_the_secret_is_in_no_argument_of_a_running_command(owner: CommandLine, upstream: Upstream) -> None:
    """A command that was given its secret on standard input is looked at from outside while it waits for an answer."""
    seen: list[bytes] = []

    def answer(_request: object) -> Answer:
        for process in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                seen.append(process.read_bytes())
            except OSError:
                continue
        return Answer({"livemode": False})

    if not Path("/proc/self/cmdline").exists():
        pytest.skip("there is no /proc here")
    upstream.secret, upstream.answer = CANARY, answer
    ran = owner.alone(
        "connect",
        "stripe",
        "--name",
        "two",
        "--base-url",
        upstream.url,
        *LOCAL,
        "--secret-stdin",
        stdin=CANARY.encode(),
    )
    assert ran.code == 0, ran.err
    assert any(b"connect" in line for line in seen)
    assert not any(CANARY.encode() in line for line in seen)


@pytest.mark.parametrize("status", [401, 403, 500])
def test_a_verification_that_fails_stores_nothing(
    owner: CommandLine, upstream: Upstream, place: Place, status: int
) -> None:
    upstream.secret = None
    upstream.answer = lambda request: Answer({"error": {"message": "no"}}, status=status)
    ran = connect(owner, upstream)
    assert (ran.code, ran.out) == (1, "")
    assert "Nothing was stored." in ran.err
    assert [one["name"] for one in owner("connection", "list", "--json").json] == ["stripe"]
    assert place.database.read("SELECT COUNT(*) FROM vault_credential") == [(1,)]


def test_an_unreachable_account_is_not_stored_unless_untried(owner: CommandLine) -> None:
    there = ("connect", "stripe", "--name", "gone", "--base-url", "http://127.0.0.1:9", *LOCAL, "--secret-stdin")
    assert owner(*there, stdin=CANARY.encode()).code == 1
    ran = owner(*there, "--no-verify", stdin=CANARY.encode())
    assert ran.code == 0
    assert "not tried" in ran.out


def test_without_permission_a_private_address_is_not_reached(owner: CommandLine, upstream: Upstream) -> None:
    ran = owner(
        "connect", "stripe", "--name", "two", "--base-url", upstream.url, "--secret-stdin", stdin=CANARY.encode()
    )
    assert ran.code == 1
    assert upstream.requests == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("connect", "nosuch"), "There is no connector"),
        (("connect", "stripe"), "already a connection 'stripe'"),
        (("connect", "stripe", "--name", "Bad-Name"), "cannot name a connection"),
        (("connect", "stripe", "--name", "two", "--kind", "oauth"), "no credential kind"),
        (("connect", "stripe", "--name", "two", "--base-url", "ftp://x"), "base URL"),
        (("connect", "zendesk"), "`--base-url https://acme.zendesk.com`"),
        (("connect", "twilio"), "`--base-url https://api.twilio.com/2010-04-01/Accounts/AC"),
        (("connect", "stripe", "--name", "two", "--allow-private", "here"), "not a range of addresses"),
        (("connection", "rotate", "nosuch"), "There is no connection"),
    ],
)
def test_what_can_be_refused_is_refused_before_the_secret_is_asked_for(
    owner: CommandLine, arguments: tuple[str, ...], says: str
) -> None:
    # Nothing is piped in and nothing asked: whatever is refused here was refused before.
    ran = owner(*arguments, "--secret-from", "cmd:this-command-does-not-exist")
    assert ran.code == 1
    assert says in ran.err


def test_without_a_terminal_the_options_are_named(owner: CommandLine) -> None:
    ran = owner.alone("connect", "stripe", "--name", "two", stdin=CANARY.encode())
    assert ran.code == 1
    assert "--secret-stdin" in ran.err
    assert CANARY not in everything(ran)


def test_at_a_terminal_the_secret_is_asked_for_and_not_shown(owner: CommandLine, upstream: Upstream) -> None:
    upstream.secret = CANARY
    with owner.at_terminal("connect", "stripe", "--name", "two", "--base-url", upstream.url, *LOCAL) as terminal:
        terminal.until("restricted API key")
        terminal.until(": ")
        terminal.type(f"{CANARY}\n")
        assert terminal.end() == 0
    assert "Connected Stripe as two" in terminal.shown
    assert CANARY not in terminal.shown


def test_the_kind_is_recognised_by_what_the_secret_looks_like(owner: CommandLine, upstream: Upstream) -> None:
    ran = connect(owner, upstream, "--no-verify", "--json", secret="sk_test_canary_nobody_may_read_this")
    assert ran.json["kind"] == "secret_key"
    assert "warning:" in ran.err
    fixed = ("--no-verify", "--json", "--kind", "restricted_key")
    ran = owner("connection", "rotate", "stripe_two", "--secret-stdin", *fixed, stdin=b"sk_test_canary_nobody_may_read")
    assert ran.json["kind"] == "restricted_key"


# -- arguments that hold a key


@pytest.mark.parametrize(
    "word",
    [
        "sk_live_51HabcdefghijK",
        "ghp_16C7e42F292c6912E7",
        "xoxb-1234-5678-abcdef",
        "sk-ant-api03-abcdefghij",
        "AKIAIOSFODNN7EXAMPLE",
    ],
)
def test_a_known_kind_of_key_is_refused_in_every_command(word: str, keyleash: CommandLine) -> None:
    for arguments in (["policy", "list", word], ["connect", f"--name={word}"], ["agent", "create", word]):
        ran = keyleash(*arguments)
        assert ran.code == 2
        assert word not in everything(ran)
        assert "--secret-stdin" in ran.err


def test_an_argument_too_many_is_not_repeated(owner: CommandLine) -> None:
    for command in (("connect", "stripe", "hunter2"), ("connection", "rotate", "stripe", "hunter2")):
        ran = owner(*command)
        assert (ran.code, ran.out) == (2, "")
        assert "hunter2" not in ran.err


def test_a_long_random_word_is_refused_where_a_credential_is_asked_for() -> None:
    word = "Zx81Kq93LmTt04PpWw27RrYy55BbHh66"
    assert holds_a_key(["connect", "stripe", word])
    assert holds_a_key(["connection", "rotate", "stripe", f"--base-url={word}"])
    assert not holds_a_key(["audit", "export", "--output", word])
    assert not holds_a_key(["connect", "stripe", "--base-url", "https://api.stripe.com/v1"])


# -- what is piped in


def test_a_command_does_not_get_what_is_piped_in(owner: CommandLine) -> None:
    ran = owner.alone(
        "connect", "stripe", "--name", "two", "--no-verify", "--secret-from", "cmd:cat", stdin=CANARY.encode()
    )
    assert (ran.code, ran.out) == (1, "")
    assert CANARY not in ran.err


def test_input_that_is_too_long_or_no_text_is_refused(owner: CommandLine) -> None:
    there = ("connect", "stripe", "--name", "two", "--secret-stdin")
    assert "longer than 65536 bytes" in owner(*there, stdin=b"x" * 70_000).err
    assert "not UTF-8" in owner(*there, stdin=b"\xff\xfe").err


# -- secrets that stay elsewhere


def pointing(line: CommandLine, upstream: Upstream, reference: str, *more: str) -> Ran:
    target = ("connect", "stripe", "--name", "two", "--base-url", upstream.url, *LOCAL)
    return line(*target, "--secret-from", reference, *more)


def test_a_reference_is_tried_and_only_it_is_stored(
    owner: CommandLine, upstream: Upstream, place: Place, tmp_path: Path
) -> None:
    file = tmp_path / "stripe.key"
    file.write_text(CANARY)
    upstream.secret = CANARY
    ran = pointing(owner, upstream, f"file:{file}")
    assert ran.code == 0, ran.err
    assert f"stays where it is (file:{file})" in ran.out
    assert len(upstream.requests) == 1
    assert place.database.read("SELECT DISTINCT field FROM vault_field ORDER BY 1") == [
        ("@reference",),
        ("secret",),
    ]
    assert files_holding(owner.home, CANARY.encode()) == []
    assert files_holding(owner.home, str(file).encode()) == [], "the reference is sealed"
    assert place.events("connection.created")[-1]["source"] == "file"
    assert str(file) not in json.dumps(place.events())


def test_what_changes_where_it_stays_is_used_and_what_was_copied_is_not(
    owner: CommandLine, upstream: Upstream, tmp_path: Path
) -> None:
    file = tmp_path / "stripe.key"
    file.write_text(SECRET)
    assert pointing(owner, upstream, f"file:{file}").code == 0
    copied = owner("connection", "rotate", "stripe", "--secret-from", f"file:{file}", "--copy")
    assert copied.code == 0
    assert "a later change there is not seen" in copied.out
    file.write_text(CANARY)
    upstream.secret = CANARY
    assert owner("connection", "test", "two").code == 0
    assert owner("connection", "test", "stripe").code == 1
    upstream.secret = SECRET
    assert owner("connection", "test", "two").code == 1
    assert owner("connection", "test", "stripe").code == 0
    file.unlink()
    gone = owner("connection", "test", "two", "--json")
    assert (gone.code, gone.json["ok"]) == (1, False)
    assert "cannot be read here" in gone.json["message"]
    sources = {one["name"]: one["source"] for one in owner("connection", "list", "--json").json}
    assert sources == {"two": "file", "stripe": "vault"}


def test_a_connection_goes_from_a_stored_secret_to_a_reference_and_back(
    owner: CommandLine, upstream: Upstream, place: Place
) -> None:
    holder = with_environment(owner, {"STRIPE_HERE": SECRET})
    there = holder("connection", "rotate", "stripe", "--secret-from", "env:STRIPE_HERE")
    assert there.code == 0, there.err
    assert "stays where it is (env:STRIPE_HERE)" in there.out
    assert "set it where the server is started" in there.err
    assert place.database.read("SELECT version, field FROM vault_field") == [(2, "@reference")]
    assert holder("connection", "test", "stripe").code == 0
    unset = owner("connection", "test", "stripe")
    assert unset.code == 1
    assert "not set here" in unset.err
    upstream.secret = CANARY
    back = owner("connection", "rotate", "stripe", "--secret-stdin", "--json", stdin=CANARY.encode())
    assert (back.json["source"], back.json["credential_version"]) == ("vault", 3)
    assert place.database.read("SELECT version, field FROM vault_field") == [(3, "secret")]
    assert [entry["source"] for entry in place.events("connection.rotated")] == ["env", "vault"]
    assert "STRIPE_HERE" not in json.dumps(place.events())


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("env:KEYLEASH_TEST_UNSET", "not set here"),
        ("file:/nowhere/at/all", "no such file"),
        ("file:HOME/keys/root.key", "own folder"),
        ("cmd:cat HOME/keys/root.key", "root key"),
        ("cmd:false", "exit code 1"),
        ("cmd:no-such-command-here", "cannot be run"),
        ("cmd:'open", "not closed"),
        ("op://vault/item", "op://VAULT/ITEM/FIELD"),
        ("op://vault/item/field", "KEYLEASH_OP_TOKEN_FILE"),
        ("vault://kv", "vault://MOUNT/PATH#FIELD"),
        ("vault://kv/path#field", "KEYLEASH_KV_ADDR"),
        ("just a secret", "never is one"),
        ("env:", "names no place"),
        ("cmd:echo short", "shorter than 8"),
    ],
)
@pytest.mark.parametrize("copy", [(), ("--copy",)], ids=["pointing", "copying"])
def test_a_reference_that_leads_to_no_secret_says_why_and_nothing_is_stored(
    owner: CommandLine, upstream: Upstream, place: Place, reference: str, says: str, copy: tuple[str, ...]
) -> None:
    ran = pointing(owner, upstream, reference.replace("HOME", str(owner.home)), *copy)
    assert (ran.code, ran.out) == (1, "")
    assert says in ran.err
    assert "just a secret" not in ran.err
    assert upstream.requests == []
    assert place.database.read("SELECT COUNT(*) FROM connection") == [(1,)]
    assert place.database.read("SELECT COUNT(*) FROM vault_field") == [(1,)]


def test_an_untried_reference_is_resolved_all_the_same(owner: CommandLine, upstream: Upstream) -> None:
    """Or a slip of the pen would be found by the first agent."""
    assert pointing(owner, upstream, "env:KEYLEASH_TEST_UNSET", "--no-verify").code == 1
    assert pointing(owner, upstream, f"cmd:echo {CANARY[:-3]}", "--no-verify").code == 0
    assert upstream.requests == []


@pytest.mark.parametrize(
    "options",
    [
        ("--copy",),
        ("--copy", "--secret-stdin"),
        ("--secret-stdin", "--secret-from", "env:HOME"),
    ],
    ids=" ".join,
)
def test_options_that_contradict_each_other_are_misuse(owner: CommandLine, options: tuple[str, ...]) -> None:
    for command in (("connect", "stripe", "--name", "two"), ("connection", "rotate", "stripe")):
        ran = owner(*command, *options, stdin=CANARY.encode())
        assert (ran.code, ran.out) == (2, "")
        assert CANARY not in ran.err


def test_only_admins_see_where_a_secret_stays_and_nobody_a_commands_arguments(
    owner: CommandLine, upstream: Upstream, place: Place
) -> None:
    place.member("bob")
    assert pointing(owner, upstream, f"cmd:printf %s {SECRET}").code == 0
    shown = owner("connection", "show", "two", "--json")
    assert shown.json["source"] == "cmd"
    assert shown.json["reference"].startswith("cmd:printf ")
    assert owner("connection", "show", "stripe", "--json").json["reference"] is None
    others = owner("connection", "show", "two", "--json", "--as", "bob")
    assert (others.json["source"], others.json["reference"]) == ("cmd", None)
    runs = (shown, others, owner("connection", "show", "two"), owner("connection", "list"))
    assert SECRET not in everything(*runs)
    assert "cmd:printf" in runs[2].out
    assert "cmd" in runs[3].out


def test_a_reference_that_was_tampered_with_is_not_shown_as_if_it_were_true(
    owner: CommandLine, upstream: Upstream, place: Place
) -> None:
    assert pointing(owner, upstream, f"cmd:printf %s {SECRET}").code == 0
    execute(place, "UPDATE connection SET source = 'env' WHERE name = 'two'")
    shown = owner("connection", "show", "two", "--json")
    assert shown.json["reference"] is None
    assert "cannot be opened" in shown.err
    tested = owner("connection", "test", "two")
    assert tested.code == 1
    assert len(upstream.requests) == 1, "only when it was connected"


@pytest.mark.sqlite_only("it is about SQLite's file")
@pytest.mark.parametrize("way", [("--keep-secret",), ("--secret-stdin",), ("--secret-from", f"cmd:printf %s {SECRET}")])
def test_what_was_sealed_before_a_rotation_is_gone_from_the_files(
    owner: CommandLine, place: Place, way: tuple[str, ...]
) -> None:
    (before,) = place.database.read("SELECT data_key, sealed FROM vault_credential, vault_field")
    assert all(files_holding(owner.home, part) for part in before)
    ran = owner("connection", "rotate", "stripe", *way, "--json", stdin=SECRET.encode())
    assert ran.code == 0, ran.err
    assert ran.json["erased"] is True
    assert [files_holding(owner.home, part) for part in before] == [[], []]
    (entry,) = place.events("erasure.completed")
    assert (entry["erased"], entry["connection"]) == ("secret", "stripe")
    ran = owner("connection", "rotate", "stripe", *way, stdin=SECRET.encode())
    assert "gone from the database's files" in ran.err


def test_the_same_secret_under_a_new_key_keeps_its_version(
    owner: CommandLine, upstream: Upstream, place: Place
) -> None:
    database = place.database
    before = database.read("SELECT data_key, key_id FROM vault_credential")
    ran = owner("connection", "rotate", "stripe", "--keep-secret")
    assert ran.code == 0, ran.err
    assert "is the same (version 1)" in ran.out
    assert owner("connection", "rotate", "stripe", "--keep-secret", "--json").json["credential_version"] == 1
    after = database.read("SELECT data_key, key_id FROM vault_credential")
    assert not set(before[0]) & set(after[0])
    assert owner("connection", "test", "stripe").code == 0
    assert [entry["same_secret"] for entry in place.events("connection.rotated")] == [True, True]
    assert owner("connection", "rotate", "nosuch", "--keep-secret").code == 1
    for more in (
        ("--secret-stdin",),
        ("--secret-from", "env:HOME"),
        ("--base-url", upstream.url),
        LOCAL,
        ("--no-verify",),
        ("--kind", "secret_key"),
    ):
        assert owner("connection", "rotate", "stripe", "--keep-secret", *more).code == 2
    assert len(place.events("connection.rotated")) == 2


# -- rotate, test, remove


def test_a_rotated_connection_uses_the_new_secret_and_keeps_its_place(
    owner: CommandLine, upstream: Upstream, place: Place
) -> None:
    upstream.secret = CANARY
    ran = owner("connection", "rotate", "stripe", "--secret-stdin", "--json", stdin=CANARY.encode())
    assert ran.code == 0, ran.err
    assert (ran.json["credential_version"], ran.json["base_url"]) == (2, upstream.url)
    assert owner("connection", "test", "stripe").code == 0
    (entry,) = place.events("connection.rotated")
    assert (entry["credential_version"], entry["by"], entry["verified"]) == (2, "alice", True)
    revision = place.database.read("SELECT revision FROM org")
    owner("connection", "rotate", "stripe", "--secret-stdin", stdin=CANARY.encode())
    assert place.database.read("SELECT revision FROM org") == [(revision[0][0] + 1,)]


def test_a_rotation_that_fails_leaves_the_old_secret_in_place(
    owner: CommandLine, upstream: Upstream, place: Place
) -> None:
    ran = owner("connection", "rotate", "stripe", "--secret-stdin", stdin=CANARY.encode())
    assert ran.code == 1
    assert connection_named(place.database, place.org, "stripe").credential_version == 1
    assert place.events("connection.rotated") == []
    assert owner("connection", "test", "stripe").code == 0


def test_of_two_rotations_at_once_the_second_is_refused_whole(place: Place, upstream: Upstream) -> None:
    before = connection_named(place.database, place.org, "stripe")
    planned = replan(before, place.installation.catalogue.connectors["stripe"], kind=None, base_url=None, private=None)

    def change(rows: Rows) -> None:
        given = {"secret": CANARY}
        rotate(rows, place.installation.vault, before, planned, fields=given, account=None, verified=False, by="alice")

    place.database.write_now(change)
    with pytest.raises(ConnectionProblem, match="meanwhile"):
        place.database.write_now(change)
    assert connection_named(place.database, place.org, "stripe").credential_version == 2
    assert place.database.read("SELECT MAX(version) FROM vault_credential") == [(2,)]
    assert len(place.events("connection.rotated")) == 1


def test_pointing_elsewhere_drops_private_addresses_that_are_not_named_again(owner: CommandLine) -> None:
    rotate = ("connection", "rotate", "stripe", "--secret-stdin", "--no-verify", "--json")
    ran = owner(*rotate, "--base-url", "https://api.stripe.com", stdin=CANARY.encode())
    assert (ran.json["base_url"], ran.json["private"]) == ("https://api.stripe.com", [])
    ran = owner(*rotate, "--allow-private", "10.0.0.0/8", stdin=CANARY.encode())
    assert (ran.json["base_url"], ran.json["private"]) == ("https://api.stripe.com", ["10.0.0.0/8"])
    ran = owner(*rotate, stdin=CANARY.encode())
    assert (ran.json["base_url"], ran.json["private"]) == ("https://api.stripe.com", ["10.0.0.0/8"])


def test_trying_a_connection_is_on_record_either_way(owner: CommandLine, upstream: Upstream, place: Place) -> None:
    assert owner("connection", "test", "stripe", "--json").json["ok"] is True
    upstream.secret = "another"
    ran = owner("connection", "test", "stripe", "--json")
    assert (ran.code, ran.json["ok"]) == (1, False)
    assert [entry["outcome"] for entry in place.events("connection.tested")] == ["succeeded", "failed"]
    assert SECRET not in everything(ran)


def test_removing_asks_and_takes_the_secret_with_it(owner: CommandLine, place: Place) -> None:
    refused = owner.alone("connection", "remove", "stripe")
    assert (refused.code, refused.out) == (1, "")
    assert "--yes" in refused.err
    assert len(owner("connection", "list", "--json").json) == 1
    assert owner("connection", "remove", "stripe", "--yes").code == 0
    assert owner("connection", "list", "--json").json == []
    assert place.database.read("SELECT COUNT(*) FROM vault_field") == [(0,)]


def test_a_sealed_vault_takes_no_secret(owner: CommandLine) -> None:
    (owner.home / "keys" / "root.key").unlink()
    connect_it = ("connect", "stripe", "--name", "two")
    refused = {
        "The vault is sealed": owner.alone(*connect_it),
        "reading a secret from where it stays": owner(*connect_it, "--secret-from", "cmd:no-such-command"),
        "addresses that are not public": owner(*connect_it, *LOCAL, "--secret-stdin", stdin=CANARY.encode()),
    }
    for why, ran in refused.items():
        assert (ran.code, ran.out) == (1, "")
        assert why in ran.err
        assert "root.key" in ran.err
    status = owner("vault", "status", "--json")
    assert status.code == 0
    assert status.json["sealed"] is True
    assert "root.key" in status.json["reason"]
    assert owner("vault", "status").code == 0


# -- connectors


def test_connectors_are_shown_without_an_installation(keyleash: CommandLine) -> None:
    found = {one["id"]: one for one in keyleash("connector", "list", "--json").json}
    assert {"stripe", "github", "slack", "openai", "anthropic", "notion"} <= set(found)
    shown = keyleash("connector", "show", "stripe", "--json").json
    refund = next(tool for tool in shown["tools"] if tool["name"] == "create_refund")
    assert refund["effect"] == "spend"
    assert refund["input_schema"]["additionalProperties"] is False
    assert keyleash("connector", "show", "stripe").code == 0
    assert keyleash("connector", "list").code == 0
    jira = keyleash("connector", "show", "jira", "--json").json
    assert (jira["base_url"], jira["example_url"]) == (None, "https://acme.atlassian.net")
    assert "your own, for instance https://acme.atlassian.net" in keyleash("connector", "show", "jira").out
    assert (shown["base_url"], shown["example_url"]) == ("https://api.stripe.com", None)
    assert not keyleash.home.exists()


def test_a_connector_file_is_checked_by_line(keyleash: CommandLine, tmp_path: Path) -> None:
    good = Path(__file__).parents[2] / "configs" / "connectors" / "stripe.yaml"
    assert keyleash("connector", "check", str(good), "--json").json["ok"] is True
    bad = tmp_path / "mine.yaml"
    bad.write_text(good.read_text().replace("    effect: spend\n", "    efect: spend\n", 1))
    ran = keyleash("connector", "check", str(bad))
    assert ran.code == 1
    assert f"{bad}:" in ran.err
    found = keyleash("connector", "check", str(bad), "--json")
    assert (found.code, found.json["ok"]) == (1, False)
    assert "efect" in bad.read_text().splitlines()[found.json["line"] - 1]


def test_lists_are_for_people_too(owner: CommandLine) -> None:
    assert "stripe" in owner("connection", "list").out
    assert "127.0.0.1/32" in owner("connection", "show", "stripe").out
    assert json.loads(owner("connection", "show", "stripe", "--json").out)["name"] == "stripe"
