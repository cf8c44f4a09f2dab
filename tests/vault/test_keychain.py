import importlib.util
from pathlib import Path
from typing import Any

import pytest
from keyring.backends import SecretService, fail, null
from keyring.backends.chainer import ChainerBackend

from vault import RootKeyProblem, Secret
from vault.keychain import REAL_KEYCHAINS, KeychainRef


class MemoryKeychain:
    """A keychain that keeps what it is given, for as long as the test."""

    def __init__(self, **entries: str) -> None:
        self.entries = {("keyleash", name): text for name, text in entries.items()}

    def get_password(self, service: str, username: str, /) -> str | None:
        return self.entries.get((service, username))

    def set_password(self, service: str, username: str, password: str, /) -> None:
        self.entries[service, username] = password


class ForgetfulKeychain(MemoryKeychain):
    def set_password(self, service: str, username: str, password: str, /) -> None:
        pass


class LockedKeychain(MemoryKeychain):
    def get_password(self, service: str, username: str, /) -> str | None:
        raise RuntimeError("locked; the key was sk_live_canary")


class ReadOnlyKeychain(MemoryKeychain):
    def set_password(self, service: str, username: str, password: str, /) -> None:
        raise RuntimeError(f"may not keep {password}")


class Chain(MemoryKeychain):
    def __init__(self, *backends: Any) -> None:
        super().__init__()
        self.backends = list(backends)


def ref(keychain: Any, name: str = "home") -> KeychainRef:
    return KeychainRef(name, find=lambda: keychain, real=(MemoryKeychain.__module__,))


def test_a_created_key_loads_again_as_the_same_key():
    keychain = MemoryKeychain()
    blob = ref(keychain).create().wrap(b"o" * 32, context=("c",))
    loaded = ref(keychain).load()
    assert loaded.unwrap(blob, context=("c",)) == b"o" * 32
    assert (loaded.provider, loaded.location) == ("keychain", "home")
    assert keychain.entries["keyleash", "home"].startswith("keyleash-root-key:v1:")


def test_a_key_that_is_there_is_never_overwritten():
    keychain = MemoryKeychain(home="something")
    with pytest.raises(RootKeyProblem, match="already"):
        ref(keychain).create()
    assert keychain.entries == {("keyleash", "home"): "something"}


def test_two_homes_have_two_keys(tmp_path: Path):
    one, two = (KeychainRef.at("", tmp_path / name).location for name in ("one", "two"))
    assert one != two
    assert KeychainRef.at("mine", tmp_path).location == "mine"


@pytest.mark.parametrize("backend", [fail.Keyring, null.Keyring])
def test_what_is_no_real_keychain_is_refused_and_names_the_way_out(backend: type[Any]):
    stand_in = backend()
    for use in (KeychainRef("home", find=lambda: stand_in).create, KeychainRef("home", find=lambda: stand_in).load):
        with pytest.raises(RootKeyProblem, match=r"no OS keychain here .*--root file"):
            use()


def test_a_plugin_that_writes_plain_files_is_refused():
    plaintext = type("PlaintextKeyring", (MemoryKeychain,), {"__module__": "keyrings.alt.file"})()
    with pytest.raises(RootKeyProblem, match=r"found keyrings\.alt\.file.*--root file"):
        KeychainRef("home", find=lambda: plaintext).create()
    assert plaintext.entries == {}


def test_a_chain_with_none_that_is_real_is_refused():
    plaintext = type("PlaintextKeyring", (MemoryKeychain,), {"__module__": "keyrings.alt.file"})()
    with pytest.raises(RootKeyProblem, match="--root file"):
        ref(Chain(plaintext)).create()
    assert plaintext.entries == {}


def test_out_of_a_chain_only_the_real_one_is_used():
    plaintext = type("PlaintextKeyring", (MemoryKeychain,), {"__module__": "keyrings.alt.file"})()
    real = MemoryKeychain()
    ref(Chain(plaintext, real)).create()
    assert plaintext.entries == {}
    assert list(real.entries) == [("keyleash", "home")]


def test_the_empty_chain_of_keyring_itself_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("keyring.backend._limit", lambda backend: False)
    with pytest.raises(RootKeyProblem, match=r"found keyring\.backends\.chainer.*--root file"):
        KeychainRef("home", find=ChainerBackend).create()


def test_the_backend_that_the_environment_names_is_judged_too(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("keyring.core._keyring_backend", null.Keyring())
    with pytest.raises(RootKeyProblem, match=r"found keyring\.backends\.null"):
        KeychainRef("home").create()


def test_a_real_backend_without_its_service_is_a_problem_and_not_a_crash(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", "unix:path=/nowhere")
    for use in ("create", "load"):
        with pytest.raises(RootKeyProblem, match=r"locked or does not answer.*--root file"):
            getattr(KeychainRef("home", find=SecretService.Keyring), use)()


@pytest.mark.parametrize("module", REAL_KEYCHAINS)
def test_every_keychain_that_we_trust_is_one_of_keyrings(module: str):
    assert importlib.util.find_spec(module)


def test_a_keychain_that_does_not_keep_the_key_is_found_out():
    with pytest.raises(RootKeyProblem, match="did not keep"):
        ref(ForgetfulKeychain()).create()


def test_a_locked_keychain_is_said_without_its_own_words(locals_in):
    with pytest.raises(RootKeyProblem, match="locked or does not answer") as caught:
        ref(LockedKeychain()).load()
    assert "canary" not in locals_in(caught.value)
    assert caught.value.__context__ is None


def test_a_keychain_that_refuses_the_key_does_not_quote_it(locals_in):
    with pytest.raises(RootKeyProblem, match="does not answer") as caught:
        ref(ReadOnlyKeychain()).create()
    assert "keyleash-root-key" not in locals_in(caught.value)


def test_a_missing_entry_says_where_it_looked():
    with pytest.raises(RootKeyProblem, match=r"no root key named 'home'.*keyleash init"):
        ref(MemoryKeychain()).load()


def test_a_damaged_entry_is_refused_and_its_content_not_shown(locals_in):
    with pytest.raises(RootKeyProblem, match=r"whole root key.*backup") as caught:
        ref(MemoryKeychain(home="sk_live_canary")).load()
    assert "canary" not in locals_in(caught.value)


def test_an_exported_key_is_kept_elsewhere_as_the_same_key():
    here, there = MemoryKeychain(), MemoryKeychain()
    blob = ref(here).create().wrap(b"o" * 32, context=("c",))
    kept = ref(there, "other").keep(ref(here).export())
    assert kept.unwrap(blob, context=("c",)) == b"o" * 32
    assert there.entries["keyleash", "other"] == here.entries["keyleash", "home"]


def test_a_kept_key_is_never_written_over_another():
    here, there = MemoryKeychain(), MemoryKeychain(home="something")
    ref(here).create()
    with pytest.raises(RootKeyProblem, match="already"):
        ref(there).keep(ref(here).export())
    assert there.entries == {("keyleash", "home"): "something"}


def test_what_is_no_root_key_is_neither_kept_nor_exported(locals_in):
    keychain = MemoryKeychain()
    with pytest.raises(RootKeyProblem, match="not a whole root key") as kept:
        ref(keychain).keep(Secret({"secret": "sk_live_canary"}))
    assert keychain.entries == {}
    with pytest.raises(RootKeyProblem, match="whole root key") as exported:
        ref(MemoryKeychain(home="sk_live_canary")).export()
    assert "canary" not in locals_in(kept.value) + locals_in(exported.value)


def test_without_a_real_keychain_nothing_is_kept():
    key = MemoryKeychain()
    ref(key).create()
    with pytest.raises(RootKeyProblem, match=r"no OS keychain here .*--root file"):
        KeychainRef("home", find=null.Keyring).keep(ref(key).export())
