import sqlite3

import pytest

from tests.vault.service import KeyService, Unreachable
from vault import CannotOpen, LocalRootKey, RootKey, RootKeyProblem, Vault, VaultError, WrongRootKey
from vault.generations import Generations
from vault.orgkeys import OrgKeys, org_context

FIRST = LocalRootKey(b"1" * 32, provider="file", location="/one")
SECOND = LocalRootKey(b"2" * 32, provider="file", location="/two")


class Places:
    """Where root keys are found, and what was looked for."""

    def __init__(self, *roots: RootKey) -> None:
        self.at = {(root.provider, root.location): root for root in roots}
        self.looked: list[tuple[str, str]] = []

    def __call__(self, provider: str, location: str) -> RootKey:
        self.looked.append((provider, location))
        if (provider, location) not in self.at:
            raise RootKeyProblem(f"There is no root key at {location}.")
        return self.at[provider, location]


def add(db: sqlite3.Connection, generation: int, root: RootKey, *, ready: bool = True) -> None:
    check = root.wrap(b"c" * 32, context=("root-check",)) if ready else None
    key = root.wrap(b"i" * 32, context=("installation-key",)) if ready else None
    db.execute(
        "INSERT INTO vault_root VALUES (?, ?, ?, ?, ?, 0, NULL)", (generation, root.provider, root.location, check, key)
    )


def org_key(db: sqlite3.Connection, org: str, root: RootKey, generation: int) -> None:
    wrapped = root.wrap(org.encode().ljust(32, b"k"), context=org_context(org, 1))
    db.execute("INSERT INTO vault_org_key VALUES (?, 1, ?, 0, ?)", (org, wrapped, generation))


def test_the_newest_generation_that_is_ready_wraps_what_is_new(db: sqlite3.Connection):
    add(db, 1, FIRST)
    add(db, 2, SECOND, ready=False)
    generations = Generations(FIRST, Places())
    assert generations.newest(db) == (1, FIRST)
    db.execute("DELETE FROM vault_root WHERE id = 2")
    add(db, 7, SECOND)
    assert Generations(SECOND, Places()).newest(db) == (7, SECOND)
    assert Generations(FIRST, Places(SECOND)).newest(db) == (7, SECOND)


def test_a_database_without_a_root_key_says_to_init(db: sqlite3.Connection):
    with pytest.raises(VaultError, match="keyleash init"):
        Generations(FIRST).newest(db)
    add(db, 1, FIRST, ready=False)
    with pytest.raises(VaultError, match="keyleash init"):
        Generations(FIRST).newest(db)


def test_the_key_that_the_process_was_started_with_is_never_looked_for(db: sqlite3.Connection):
    add(db, 1, FIRST)
    places = Places()
    assert Generations(FIRST, places).of(db, 1) is FIRST
    assert places.looked == []


def test_one_that_was_moved_as_a_whole_fits_wherever_it_is_now(db: sqlite3.Connection):
    add(db, 1, FIRST)
    elsewhere = LocalRootKey(b"1" * 32, provider="keychain", location="mine")
    assert Generations(elsewhere, Places()).of(db, 1) is elsewhere


def test_another_generation_is_looked_for_once_where_its_row_says(db: sqlite3.Connection):
    add(db, 1, FIRST)
    add(db, 2, SECOND)
    places = Places(FIRST)
    generations = Generations(SECOND, places)
    assert [generations.of(db, number) for number in (1, 2, 1, 1)] == [FIRST, SECOND, FIRST, FIRST]
    assert places.looked == [("file", "/one")]
    generations.forget()
    assert generations.of(db, 1) is FIRST
    assert places.looked == [("file", "/one")] * 2


def test_rows_under_two_generations_open_in_one_process(db: sqlite3.Connection):
    add(db, 1, FIRST)
    add(db, 2, SECOND)
    org_key(db, "org_a", FIRST, 1)
    org_key(db, "org_b", SECOND, 2)
    vault = Vault(SECOND, find=Places(FIRST))
    vault.check_root(db)
    assert vault.derive(db, "org_a", "audit") != vault.derive(db, "org_b", "audit")
    assert vault.derive(db, "org_a", "audit") == Vault(FIRST, find=Places(SECOND)).derive(db, "org_a", "audit")


def test_a_generation_whose_key_is_not_where_it_says_is_refused_until_it_is_put_back(db: sqlite3.Connection):
    add(db, 1, FIRST)
    add(db, 2, SECOND)
    org_key(db, "org_a", FIRST, 1)
    places = Places()
    keys = OrgKeys(Generations(SECOND, places))
    with pytest.raises(RootKeyProblem, match=r"^There is no root key at /one\.$"):
        keys.newest(db, "org_a")
    places.at["file", "/one"] = FIRST
    keys.newest(db, "org_a")


def test_a_wrong_key_at_the_place_of_a_generation_is_refused_until_the_right_one_is_put_back(db: sqlite3.Connection):
    add(db, 1, FIRST)
    add(db, 2, SECOND)
    org_key(db, "org_a", FIRST, 1)
    places = Places(wrong := LocalRootKey(b"w" * 32, provider="file", location="/one"))
    keys = OrgKeys(Generations(SECOND, places))
    with pytest.raises(WrongRootKey, match=r"from file \(/one\) is not the one .* kept in file \(/one\).*Put that key"):
        keys.newest(db, "org_a")
    assert places.at["file", "/one"] is wrong
    places.at["file", "/one"] = FIRST
    keys.newest(db, "org_a")


def test_a_process_that_was_not_told_where_to_look_says_to_start_it_again(db: sqlite3.Connection):
    add(db, 1, FIRST)
    add(db, 2, SECOND)
    with pytest.raises(RootKeyProblem, match=r"file \(/two\).*Start it again"):
        Generations(FIRST).of(db, 2)


@pytest.mark.parametrize("generation", [2, 9], ids=["not ready", "not there"])
def test_a_row_that_says_it_is_under_a_generation_that_wraps_nothing_cannot_be_opened(
    db: sqlite3.Connection, generation: int
):
    add(db, 1, FIRST)
    add(db, 2, SECOND, ready=False)
    org_key(db, "org_a", SECOND, generation)
    places = Places(SECOND)
    for given in (FIRST, SECOND):
        with pytest.raises(CannotOpen):
            OrgKeys(Generations(given, places)).newest(db, "org_a")
    assert places.looked == []


def test_a_key_of_a_service_is_told_by_its_place_and_not_asked(db: sqlite3.Connection):
    """So that a service that does not answer is no wrong key, and nothing is asked inside a transaction."""
    service = KeyService(location="key/1")
    add(db, 1, service)
    service.asked.clear()
    service.down = Unreachable("The service does not answer.")
    assert Generations(service).of(db, 1) is service
    assert Generations(FIRST, Places(service)).of(db, 1) is service
    assert service.asked == []


def test_a_key_of_a_service_at_another_place_is_another_key(db: sqlite3.Connection):
    add(db, 1, KeyService(location="key/1"))
    other = KeyService(location="key/2")
    with pytest.raises(RootKeyProblem):
        Generations(other, Places(other)).of(db, 1)
    moved = Places()
    moved.at["service", "key/1"] = other
    with pytest.raises(WrongRootKey):
        Generations(FIRST, moved).of(db, 1)
    assert ("root-check",) not in other.asked


def test_a_key_of_a_service_that_did_not_wrap_an_org_key_does_not_unwrap_it(db: sqlite3.Connection):
    """Its place is all that tells it; what it answers is what counts."""
    first = KeyService(b"1" * 32)
    add(db, 1, first)
    org_key(db, "org_a", first, 1)
    with pytest.raises(CannotOpen):
        OrgKeys(Generations(KeyService(b"2" * 32))).newest(db, "org_a")


def test_a_row_that_was_replaced_and_put_back_is_looked_at_each_time(db: sqlite3.Connection):
    """What a process took for the key of a generation while its row was altered does not outlive that."""
    add(db, 1, FIRST)
    add(db, 2, SECOND)
    generations = Generations(SECOND, Places(FIRST))
    right, other = (db.execute("SELECT * FROM vault_root WHERE id = ?", (number,)).fetchone() for number in (1, 2))
    db.execute("UPDATE vault_root SET location = ?, check_blob = ? WHERE id = 1", other[2:4])
    assert generations.of(db, 1) is SECOND
    db.execute("UPDATE vault_root SET location = ?, check_blob = ? WHERE id = 1", right[2:4])
    assert generations.of(db, 1) is FIRST


def test_what_holds_the_keys_shows_none():
    assert repr(Generations(FIRST)) == "<Generations>"
    assert repr(OrgKeys(Generations(FIRST))) == "<OrgKeys>"
