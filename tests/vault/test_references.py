"""A secret that stays elsewhere: had from where it is, in bounded time, and quoted by nothing on the way."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.places import KV_TOKEN, OP_ITEM, OP_TOKEN, SOURCES, Places
from vault import REFERENCE_FIELD, REFERENCES, CannotResolve, Secret, show_reference, source_of, to_reference
from vault.hostfile import MAX_BYTES, read_file
from vault.references import FORMS, MAX_REFERENCE, MOST_HANGING

CANARY = "rk_live_canary_kept_elsewhere_7d20"
ROOT_KEY = "keyleash-root-key:v1:" + "A" * 43 + "="


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Places]:
    with Places(tmp_path, monkeypatch) as made:
        yield made


def failing(places: Places, reference: str, **changed: object) -> CannotResolve:
    """How resolving it fails; no part of what is secret, or of the reference, is in the message."""
    with pytest.raises(CannotResolve) as caught:
        places.resolver(**changed).resolve(to_reference(reference))
    said = str(caught.value)
    where = reference.split(":", 1)[1].strip("/")
    for hidden in (CANARY, ROOT_KEY, KV_TOKEN, OP_TOKEN, where, str(places.folder)):
        assert hidden not in said
    return caught.value


# -- every kind of place


@pytest.mark.parametrize("source", SOURCES)
def test_what_is_there_is_had_anew_each_time(places: Places, source: str):
    reference = to_reference(places.keep(source, f"{CANARY}\n"))
    resolver = places.resolver()
    assert source_of(reference) == source
    with resolver.resolve(reference) as found:
        assert found.reveal() == f"{CANARY}\n"
    places.keep(source, "another one")
    assert resolver.resolve(reference).reveal() == "another one"
    places.lose(source)
    with pytest.raises(CannotResolve):
        resolver.resolve(reference)


@pytest.mark.parametrize("source", SOURCES)
def test_what_is_not_there_is_an_error_with_a_mend_that_quotes_nothing(
    places: Places, source: str, locals_in: Callable[[BaseException], str]
):
    reference = places.keep(source, CANARY)
    places.lose(source)
    error = failing(places, reference)
    assert len(str(error).split(". ")) >= 2 or ":" in str(error), "it says what to do"
    assert reference.split(":", 1)[1] not in locals_in(error)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(
    ("value", "says"),
    [
        (b"x" * 65537, "longer than 65536 bytes"),
        (b"\xff\xfe canary", "not UTF-8"),
        (b" \n", "empty"),
        (ROOT_KEY.encode(), "a root key of Keyleash"),
        (f"[root]\nkey = {ROOT_KEY}\n".encode(), "a root key of Keyleash"),
    ],
    ids=["long", "binary", "empty", "root key", "root key inside"],
)
def test_what_cannot_be_a_secret_is_refused(places: Places, source: str, value: bytes, says: str):
    if (source, says) == ("vault_kv", "not UTF-8"):
        pytest.skip("JSON holds nothing else")
    assert says in str(failing(places, places.keep(source, value)))


@pytest.mark.parametrize("source", SOURCES)
def test_the_longest_that_is_taken_is_taken(places: Places, source: str):
    reference = to_reference(places.keep(source, "x" * 65536))
    assert len(places.resolver().resolve(reference).reveal()) == 65536


@pytest.mark.parametrize("source", SOURCES)
def test_a_place_that_does_not_answer_is_given_up_in_time(places: Places, source: str):
    places.keep(source, CANARY)
    reference = places.slow(source)
    if reference is None:
        pytest.skip("such a place answers at once")
    started = time.monotonic()
    assert "within 0.3 seconds" in str(failing(places, reference, seconds=0.3))
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("source", SOURCES)
def test_a_place_is_written_in_its_own_form_and_no_other(source: str):
    kind = REFERENCES[source]
    assert kind.form.startswith(kind.prefix)
    assert kind.form in FORMS
    for where in ("", "a\nb", "a\0b", "x" * (MAX_REFERENCE + 1)):
        with pytest.raises(CannotResolve):
            to_reference(kind.prefix + where)
    assert repr(kind("a/b#c" if source == "vault_kv" else "a/b/c" if source == "op" else "abc")) == f"<{kind.__name__}>"


@pytest.mark.parametrize(
    "text", ["just a secret", "", "env", "http://x", "ENV:X", "vault:x", "op:x", " env:X", "@env:X"]
)
def test_what_is_no_reference_is_not_quoted(text: str):
    with pytest.raises(CannotResolve, match="never is one") as caught:
        to_reference(text)
    assert not text or text not in str(caught.value).replace(FORMS, "")


def test_a_sealed_reference_says_what_it_is_and_a_secret_does_not_look_like_one():
    assert source_of(Secret({"secret": "env:HOME"})) == "vault"
    assert source_of(Secret({REFERENCE_FIELD: "env:HOME"})) == "env"
    assert source_of(Secret({REFERENCE_FIELD: "gopher:x"})) == ""
    assert source_of(Secret({REFERENCE_FIELD: "env:HOME", "secret": "x"})) == "env", "a token that was had with it"
    assert source_of(Secret({REFERENCE_FIELD: "env:HOME", "password": "x"})) == ""
    assert source_of(Secret({REFERENCE_FIELD: "env:HOME", "secret": "x", "password": "x"})) == ""


# -- time, threads and traces


def test_an_attempt_that_hangs_in_the_system_is_left_to_itself(places: Places, monkeypatch: pytest.MonkeyPatch):
    """A pipe stands for a disk that does not answer: reading it hangs, and no signal ends that."""
    gate = threading.Event()
    monkeypatch.setitem(REFERENCES, "hung", type("Hung", (REFERENCES["env"],), {}))  # a kind of place for this test
    hung = REFERENCES["hung"]
    hung.prefix, hung.read = "hung:", lambda self, resolver: str(gate.wait(60))  # type: ignore[misc,method-assign]
    resolver = places.resolver(seconds=0.01)
    reference = to_reference("hung:x")
    monkeypatch.setattr("vault.references.GRACE_S", 0.01)
    for _ in range(MOST_HANGING):
        with pytest.raises(CannotResolve, match="did not answer within"):
            resolver.resolve(reference)
    with pytest.raises(CannotResolve, match="no more are begun"):
        resolver.resolve(reference)
    object.__setattr__(resolver, "seconds", 10.0)  # from here on answers are to come, on a busy machine too
    assert resolver.resolve(to_reference(places.keep("env", CANARY))).reveal() == CANARY
    gate.set()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            assert resolver.resolve(reference).reveal() == "True"
            return
        except CannotResolve:
            continue
    raise AssertionError("what hung has ended, and its room was not given back")


def test_what_goes_wrong_in_a_way_nobody_thought_of_is_named_and_not_quoted(
    places: Places, monkeypatch: pytest.MonkeyPatch, locals_in: Callable[[BaseException], str]
):
    def fail(*_: object) -> str:
        raise ZeroDivisionError(CANARY)

    monkeypatch.setattr(REFERENCES["env"], "read", fail)
    started = time.monotonic()
    error = failing(places, "env:SOME_API_KEY")
    assert "ZeroDivisionError" in str(error)
    assert CANARY not in locals_in(error)
    assert time.monotonic() - started < 5, "nobody waited for an answer that does not come"


def test_many_threads_may_resolve_at_once(places: Places):
    reference = to_reference(places.keep("cmd", CANARY))
    resolver = places.resolver()
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(resolver.resolve(reference).reveal())) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [CANARY] * 16


@pytest.mark.parametrize("source", SOURCES)
def test_a_failure_carries_no_frame_that_held_what_was_found(
    places: Places, source: str, locals_in: Callable[[BaseException], str]
):
    """The value is had and then refused: the refusal is raised where it never was."""
    shown = locals_in(failing(places, places.keep(source, f"{CANARY}{ROOT_KEY}")))
    assert "vault.references" in shown or "Resolver" in shown
    for hidden in (CANARY, ROOT_KEY, OP_TOKEN, KV_TOKEN):
        assert hidden not in shown


# -- the environment


def test_a_variable_that_is_not_set_here_says_where_to_set_it(places: Places):
    assert "where this process is started" in str(failing(places, "env:KEYLEASH_TEST_UNSET"))


# -- files


def test_no_file_is_read_from_keyleashs_own_folder(places: Places, tmp_path: Path):
    home = places.home
    (home / "keys").mkdir()
    kept = home / "keys" / "some.key"
    kept.write_text(CANARY)
    other = tmp_path / "other"
    other.mkdir()
    (other / "link").symlink_to(kept)
    (other / "folder").symlink_to(home)
    (other / "hard").hardlink_to(kept)
    (home / "out").symlink_to(other)
    (other / "innocent").write_text(CANARY)
    for path in (
        kept,
        other / "link",
        other / "folder" / "keys" / "some.key",
        other / "hard",
        home / "keys" / ".." / "keys" / "some.key",
    ):
        assert "own folder" in str(failing(places, f"file:{path}")), path
    places.resolver().resolve(to_reference(f"file:{home / 'out' / 'innocent'}"))  # in fact it is outside


def test_a_folder_of_keyleashs_that_is_elsewhere_is_its_own_all_the_same(places: Places, tmp_path: Path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "keyleash.db").write_text(CANARY)
    (places.home / "data").symlink_to(tmp_path / "disk")
    assert "own folder" in str(failing(places, f"file:{tmp_path / 'disk' / 'keyleash.db'}"))


def test_only_a_regular_file_is_read(places: Places, tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "round").symlink_to(tmp_path / "round")
    for path, says in {
        tmp_path / "pipe": "not a regular file",
        tmp_path: "not a regular file",
        Path("/dev/zero"): "not a regular file",
        tmp_path / "nothing": "no such file",
        tmp_path / "round": "circle",
    }.items():
        before = len(list(Path("/proc/self/fd").iterdir()))
        assert says in str(failing(places, f"file:{path}")), path
        assert len(list(Path("/proc/self/fd").iterdir())) <= before, "a refused file is closed again"


def test_of_a_file_that_is_too_long_no_more_is_taken_in_than_shows_that(tmp_path: Path):
    (tmp_path / "large").write_bytes(b"x" * 10_000_000)
    assert len(read_file(tmp_path / "large", "It")) == MAX_BYTES + 1


def test_a_file_is_the_same_from_every_folder(places: Places, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "my.secret").write_text(CANARY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    there, at_home = to_reference("file:my.secret"), to_reference("file:~/my.secret")
    monkeypatch.chdir("/")
    monkeypatch.setenv("HOME", "/nowhere")
    assert places.resolver().resolve(there).reveal() == CANARY
    assert places.resolver().resolve(at_home).reveal() == CANARY
    with pytest.raises(CannotResolve, match="full path"):
        to_reference("file:~no-such-user-here/x")


def test_a_mounted_secret_behind_links_is_read(places: Places, tmp_path: Path):
    """As Kubernetes mounts one: a link to a file below a link to a folder of the day."""
    (tmp_path / "..day").mkdir()
    (tmp_path / "..day" / "key").write_text(CANARY)
    (tmp_path / "..data").symlink_to("..day")
    (tmp_path / "key").symlink_to("..data/key")
    assert places.resolver().resolve(to_reference(f"file:{tmp_path / 'key'}")).reveal() == CANARY


def test_a_file_that_everybody_can_read_is_pointed_out(places: Places, tmp_path: Path):
    reference = to_reference(places.keep("file", CANARY))
    op, kv = to_reference(OP_ITEM), to_reference(places.keep("vault_kv", CANARY))
    tokens = {"op_token_file": tmp_path / "op.token", "kv_token_file": tmp_path / "kv.token"}
    resolver = places.resolver(**tokens)
    for path in (tmp_path / "some.secret", *tokens.values()):
        path.chmod(0o644)
    # Below a folder that others cannot enter a mode opens nothing.
    closed = [folder for folder in tmp_path.parents if not folder.stat().st_mode & 0o001]
    assert all(resolver.open_to_all(one) == [] for one in (reference, op, kv)) == bool(closed)
    before = [(folder, folder.stat().st_mode) for folder in (tmp_path, *closed)]
    try:
        for folder, mode in before:
            folder.chmod(mode | 0o001)
        assert resolver.open_to_all(reference) == ["the file that it names"]
        assert "KEYLEASH_OP_TOKEN_FILE" in resolver.open_to_all(op)[0]
        assert "KEYLEASH_KV_TOKEN_FILE" in resolver.open_to_all(kv)[0]
        assert resolver.open_to_all(to_reference("cmd:true")) == []
        (tmp_path / "some.secret").chmod(0o640)
        assert resolver.open_to_all(reference) == []
        assert resolver.open_to_all(to_reference("file:/nowhere/at/all")) == []
    finally:
        for folder, mode in before:
            folder.chmod(mode)


# -- 1Password's program


def test_the_program_of_1password_gets_its_token_from_the_file_and_nothing_else(
    places: Places, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OP_SERVICE_ACCOUNT_TOKEN", "the server's own")
    monkeypatch.setenv("OP_ACCOUNT", "somebody")
    assert places.resolver().resolve(to_reference(places.keep("op", CANARY))).reveal() == CANARY
    assert (places.programs / "op.words").read_text().splitlines() == ["read", "--no-newline", OP_ITEM]
    given = (places.programs / "op.env").read_text()
    assert f"OP_SERVICE_ACCOUNT_TOKEN={OP_TOKEN}\n" in given
    assert "OP_ACCOUNT" not in given


def test_without_the_program_or_its_token_1password_says_so(places: Places, tmp_path: Path):
    places.keep("op", CANARY)
    assert "KEYLEASH_OP_TOKEN_FILE is not set" in str(failing(places, OP_ITEM, op_token_file=None))
    assert "cannot be read here" in str(failing(places, OP_ITEM, op_token_file=tmp_path / "none"))
    assert "`op` cannot be run" in str(failing(places, OP_ITEM, path="/nowhere"))
    (tmp_path / "op.token").write_text("wrong_token")
    assert "exit code 6" in str(failing(places, OP_ITEM))
    for text in ("two tokens", "", "x" * 8193, "caf\u00e9"):
        (tmp_path / "op.token").write_text(text)
        assert "one token" in str(failing(places, OP_ITEM))


@pytest.mark.parametrize(
    "where",
    ["Team", "Team/Item", "Team//field", "/Item/field", "Team/Item/a/b/c", "Team/Item/f?attribute=otp", "T/I/-\u00e9"],
)
def test_what_is_no_item_of_1password_is_refused_when_it_is_written(where: str):
    with pytest.raises(CannotResolve, match="op://VAULT/ITEM/FIELD"):
        to_reference(f"op://{where}")


# -- commands; how they are run is in test_command.py


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("'open", "quote"),
        (" ", "no program"),
        ("''", "no program"),
        ("./get it", "full path"),
        ("bin/get", "full path"),
    ],
)
def test_a_command_that_cannot_be_run_is_refused_when_it_is_written(command: str, says: str):
    with pytest.raises(CannotResolve, match=says):
        to_reference(f"cmd:{command}")


def test_an_admin_sees_where_a_secret_stays_and_of_a_command_its_program(places: Places):
    assert show_reference(to_reference("env:SOME_KEY")) == "env:SOME_KEY"
    assert show_reference(to_reference("file:/run/secrets/key")) == "file:/run/secrets/key"
    assert show_reference(to_reference(OP_ITEM)) == OP_ITEM
    assert show_reference(to_reference("vault://kv/a/b#c")) == "vault://kv/a/b#c"
    assert show_reference(to_reference("cmd:get")) == "cmd:get"
    shown = show_reference(to_reference(f"cmd:/usr/bin/get --token {CANARY}"))
    assert shown.startswith("cmd:/usr/bin/get ")
    assert "not shown" in shown
    assert CANARY not in shown
