import sqlite3
from collections.abc import Callable

import pytest

from tests.vault.service import Clock, KeyService, Unreachable
from vault import CannotOpen, LocalRootKey, RootKey, RootKeyProblem, Sealed, Vault, VaultError
from vault.generations import Generations
from vault.orgkeys import GRACE_SECONDS, MOST_MADE, Held, OrgKeys, org_context
from vault.seal import Key

KEEP = 300.0
LAST = KEEP + GRACE_SECONDS
SLOT = {"org": "org_a", "connection": "con_1", "origin": "https://a:443", "scheme": "bearer"}
ASKED = ("org-key", "org_a", "1")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def service() -> KeyService:
    return KeyService()


@pytest.fixture
def vault(db: sqlite3.Connection, service: KeyService, clock: Clock) -> Vault:
    """A vault of two orgs and a credential, with nothing in memory. The service was asked for nothing yet."""
    vault = Vault(service, keep_seconds=KEEP, clock=clock)
    vault.install(db)
    vault.create_org_key(db, "org_a")
    vault.create_org_key(db, "org_b")
    vault.put(db, fields={"secret": "x", "account": "y"}, **SLOT)
    vault.forget()
    service.asked.clear()
    return vault


def opened(vault: Vault, db: sqlite3.Connection) -> str:
    with vault.open(db, version=1, **SLOT) as secret:
        return secret.reveal() + secret.reveal("account")


def test_an_org_key_is_asked_for_again_when_its_time_and_the_grace_are_over(
    vault: Vault, db: sqlite3.Connection, service: KeyService, clock: Clock
):
    assert opened(vault, db) == "xy"
    clock.now += LAST
    assert opened(vault, db) == "xy"
    assert service.asked == [ASKED]
    clock.now += 0.001
    assert opened(vault, db) == "xy"
    assert service.asked == [ASKED, ASKED]


def test_the_time_of_a_key_begins_before_the_service_is_asked(db: sqlite3.Connection, vault: Vault, clock: Clock):
    def slow() -> None:
        clock.now += 50

    slowly = Vault(KeyService(meanwhile=slow), keep_seconds=KEEP, clock=clock)
    began = clock.now
    opened(slowly, db)
    assert slowly.keyring.of_row(db, "org_a", *row_of(db, "org_a")).since == began


def row_of(db: sqlite3.Connection, org: str) -> tuple[int, bytes, int]:
    return db.execute("SELECT version, wrapped, root FROM vault_org_key WHERE org = ?", (org,)).fetchone()


USES: dict[str, Callable[[Vault, sqlite3.Connection, bytes], object]] = {
    "a credential": lambda vault, db, text: opened(vault, db),
    "a text": lambda vault, db, text: vault.unseal_text(db, "org_a", "prompt", "apr_1", text),
    "sealing a text": lambda vault, db, text: vault.seal_text(db, "org_a", "prompt", "apr_1", "x"),
    "a derived key": lambda vault, db, text: vault.derive(db, "org_a", "audit"),
    "storing a credential": lambda vault, db, text: vault.put(db, fields={"secret": "x"}, **SLOT),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_with_the_service_down_whoever_has_the_key_goes_on_until_its_time_is_over_and_then_fails_closed(
    vault: Vault, db: sqlite3.Connection, service: KeyService, clock: Clock, use: Callable[..., object]
):
    """What was made with the key late in its time is over when the key is, not when it would be by itself."""
    text = vault.seal_text(db, "org_a", "prompt", "apr_1", "text")
    service.down = Unreachable("The service does not answer.")
    clock.now += LAST
    use(vault, db, text)
    clock.now += 0.001
    for _ in range(2):
        with pytest.raises(Unreachable) as caught:
            use(vault, db, text)
        assert caught.value is service.down
    service.down = None
    use(vault, db, text)
    assert set(service.asked) == {ASKED}


def test_with_the_service_down_no_local_key_is_used_instead(db: sqlite3.Connection, clock: Clock):
    """Not even by a process that was started with one, and has rows under it."""
    given, service = KeyService(b"g" * 32, remote=False), KeyService()
    vault = Vault(given, find=lambda _provider, _location: service, clock=clock)
    vault.install(db)
    for org in ("org_a", "org_b"):
        vault.create_org_key(db, org)
    vault.put(db, fields={"secret": "x"}, **SLOT)
    moved_to(db, service, given, "org_a")
    vault.forget()
    given.asked.clear()
    service.down = Unreachable("The service does not answer.")
    with pytest.raises(Unreachable):
        vault.open(db, version=1, **SLOT)
    with pytest.raises(Unreachable):
        vault.derive(db, "org_a", "audit")
    assert given.asked == [("root-check",)]
    assert len(vault.derive(db, "org_b", "audit")) == 32  # the other org is under the local one, and goes on


def moved_to(db: sqlite3.Connection, service: KeyService, before: RootKey, *orgs: str) -> None:
    db.execute(
        "INSERT INTO vault_root VALUES (2, ?, ?, ?, ?, 0, NULL)",
        (
            service.provider,
            service.location,
            service.wrap(b"c" * 32, context=("root-check",)),
            service.wrap(b"i" * 32, context=("installation-key",)),
        ),
    )
    for org in orgs:
        key = before.unwrap(row_of(db, org)[1], context=org_context(org, 1))
        db.execute(
            "UPDATE vault_org_key SET root = 2, wrapped = ? WHERE org = ?",
            (service.wrap(key, context=org_context(org, 1)), org),
        )
    service.asked.clear()


@pytest.mark.parametrize("problem", [Unreachable("down"), CannotOpen(), RootKeyProblem("no such key")], ids=repr)
def test_what_the_service_raises_comes_out_unchanged_when_it_is_opened_and_not_when_it_is_taken(
    vault: Vault, db: sqlite3.Connection, service: KeyService, problem: VaultError
):
    service.down = problem
    take = vault.take(db, version=1, **SLOT)
    service.down = None
    for _ in range(2):
        with pytest.raises(VaultError) as caught:
            take()
        assert caught.value is problem
        assert caught.value.__cause__ is None
        assert caught.value.__context__ is None
    assert opened(vault, db) == "xy"


def test_what_is_no_refusal_is_not_kept_for_later(vault: Vault, db: sqlite3.Connection, service: KeyService):
    service.down = RuntimeError("a mistake in a provider")
    with pytest.raises(RuntimeError, match="a mistake"):
        vault.take(db, version=1, **SLOT)


def test_a_credential_that_was_taken_opens_as_its_rows_were_then(
    vault: Vault, db: sqlite3.Connection, service: KeyService, clock: Clock
):
    take = vault.take(db, version=1, **SLOT)
    vault.remove(db, org="org_a", connection="con_1")
    service.down = Unreachable("The service does not answer.")
    clock.now += LAST + 1
    with take() as secret, take() as again:
        assert secret.reveal() == again.reveal() == "x"
    with pytest.raises(CannotOpen):
        opened(vault, db)


def test_keys_whose_time_is_over_are_let_go_of_with_all_that_was_made_with_them(
    vault: Vault, db: sqlite3.Connection, clock: Clock
):
    opened(vault, db)
    vault.derive(db, "org_a", "audit")
    held = vault.keyring.of_row(db, "org_a", *row_of(db, "org_a"))
    assert len(held.made) == 2
    clock.now += LAST + 1
    vault.derive(db, "org_b", "audit")
    assert [context for context, _ in vault.keyring._held] == [("org-key", "org_b", "1")]


def test_what_is_held_with_a_key_is_bounded():
    held = Held(Key(b"k" * 32), 0.0, {})
    for number in range(MOST_MADE + 1):
        held.keep(number, "made")
        assert len(held.made) <= MOST_MADE
    assert held.made[MOST_MADE] == "made"


def test_a_key_that_was_dropped_or_replaced_in_the_database_is_not_used(
    vault: Vault, db: sqlite3.Connection, service: KeyService
):
    opened(vault, db)
    db.execute("PRAGMA foreign_keys = OFF")
    row = db.execute("SELECT * FROM vault_org_key WHERE org = 'org_a'").fetchone()
    db.execute("DELETE FROM vault_org_key WHERE org = 'org_a'")
    with pytest.raises(CannotOpen):
        opened(vault, db)
    with pytest.raises(CannotOpen):
        vault.keyring.at(db, "org_a", 1)
    with pytest.raises(VaultError, match="has no key"):
        vault.keyring.newest(db, "org_a")
    another = service.wrap(b"n" * 32, context=ASKED)
    db.execute("INSERT INTO vault_org_key VALUES (?, ?, ?, ?, ?)", (*row[:2], another, *row[3:]))
    with pytest.raises(CannotOpen):
        opened(vault, db)


def test_whoever_finds_keys_that_are_over_lets_them_go_while_others_are_fetched(
    vault: Vault, db: sqlite3.Connection, service: KeyService
):
    """A fetch runs on any thread. Here another one ends while this one looks at what is held: when it asks the time."""
    late = Clock()
    keys = OrgKeys(Generations(service), seconds=KEEP, clock=late)
    wanted = [keys.wanted(db, org)[0] for org in ("org_a", "org_b")]
    keys.fetch(wanted[:1])

    class Meanwhile:
        asked = 0

        def __call__(self) -> float:
            self.asked += 1
            if self.asked == 2:  # the first is when it begins, the second when it looks at a key
                keys.fetch(wanted[1:])
            return late()

    keys._clock = Meanwhile()
    keys.fetch(wanted[:1])
    assert {context for context, _ in keys._held} == {("org-key", "org_a", "1"), ("org-key", "org_b", "1")}


# -- what is wanted before a call


def test_of_a_local_root_key_nothing_is_wanted(db: sqlite3.Connection, root: LocalRootKey):
    vault = Vault(root)
    vault.install(db)
    vault.create_org_key(db, "org_a")
    vault.forget()
    assert vault.wanted(db, "org_a") == []
    assert vault.wanted(db, "org_none") == []
    vault.fetch([])


def test_of_a_sealed_vault_nothing_is_wanted_and_nothing_is_fetched(vault: Vault, db: sqlite3.Connection):
    assert Vault(None, "why.").wanted(db, "org_a") == []
    with pytest.raises(Sealed):
        Vault(None, "why.").fetch([])


def test_keys_of_a_service_are_wanted_before_their_time_is_over_and_fetched_without_the_database(
    vault: Vault, db: sqlite3.Connection, service: KeyService, clock: Clock
):
    wanted = vault.wanted(db, "org_a")
    assert [one.context for one in wanted] == [ASKED]
    assert service.asked == []
    vault.fetch(wanted)
    assert service.asked == [ASKED]
    assert vault.wanted(db, "org_a") == []
    clock.now += KEEP
    assert vault.wanted(db, "org_a") == []
    clock.now += 0.001
    vault.fetch(vault.wanted(db, "org_a"))
    assert service.asked == [ASKED, ASKED]
    service.down = Unreachable("The service does not answer.")
    clock.now += LAST
    assert opened(vault, db) == "xy"  # counted from the second time


def test_every_version_that_is_there_is_wanted(vault: Vault, db: sqlite3.Connection, service: KeyService):
    wrapped = service.wrap(b"n" * 32, context=("org-key", "org_a", "2"))
    db.execute("INSERT INTO vault_org_key VALUES ('org_a', 2, ?, 0, 1)", (wrapped,))
    assert [one.context for one in vault.wanted(db, "org_a")] == [ASKED, ("org-key", "org_a", "2")]


def test_a_fetch_that_fails_says_what_the_service_says_and_takes_no_key_away(
    vault: Vault, db: sqlite3.Connection, service: KeyService, clock: Clock
):
    vault.fetch(vault.wanted(db, "org_a"))
    clock.now += KEEP + 1
    service.down = Unreachable("The service does not answer.")
    with pytest.raises(Unreachable) as caught:
        vault.fetch(vault.wanted(db, "org_a"))
    assert caught.value is service.down
    assert opened(vault, db) == "xy"


def test_a_process_started_with_a_local_key_wants_those_that_were_moved_to_a_service_meanwhile(
    db: sqlite3.Connection, root: LocalRootKey, service: KeyService
):
    """The first time too: otherwise the service would be asked inside a transaction."""
    vault = Vault(root, find=lambda _provider, _location: service)
    vault.install(db)
    vault.create_org_key(db, "org_a")
    moved_to(db, service, root, "org_a")
    assert [(one.context, one.root) for one in vault.wanted(db, "org_a")] == [(ASKED, service)]


def test_a_key_under_what_cannot_be_loaded_is_not_wanted_and_does_not_stand_in_the_way(
    vault: Vault, db: sqlite3.Connection
):
    db.execute("INSERT INTO vault_root VALUES (2, 'file', '/gone', ?, ?, 0, NULL)", (b"c", b"i"))
    db.execute("INSERT INTO vault_root VALUES (3, 'file', '/not/ready', NULL, NULL, 0, NULL)")
    for version, generation in ((2, 2), (3, 3), (4, 9)):
        db.execute("INSERT INTO vault_org_key VALUES ('org_a', ?, x'00', 0, ?)", (version, generation))
    assert [one.context for one in vault.wanted(db, "org_a")] == [ASKED]
