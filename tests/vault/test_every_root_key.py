"""The contract that every root key keeps, wherever it lives. A new provider is held to it by being listed."""

import base64
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.leaks import leak
from tests.vault.fake_kms import CANARY
from tests.vault.rigs import ADDRESS, REAL_TRANSIT, RIGS, TOKEN_FILE, NewRig, Rig, SetUp, moto_server
from vault import PROVIDERS, CannotOpen, KeysUnavailable, RootKey, RootKeyProblem, VaultError
from vault.errors import RecoveryProblem
from vault.recovery import Portable, exported, taking

KEY = bytes(range(200, 232))
ORG = ("org-key", "org_a", "1")
CONTEXTS: list[tuple[str, ...]] = [
    ORG,
    ("root-check",),
    ("installation-key",),
    ("org-key", "jürgen/☃ %41=+:@", "12"),
    ("text", "", "\ud800", "\n"),
]
OTHERS: list[tuple[str, ...]] = [
    ("org-key", "org_b", "1"),
    ("org-key", "org_a", "2"),
    ("org-keys", "org_a", "1"),
    ("ORG-KEY", "org_a", "1"),
    ("org-key", "org_a"),
    ("org-key", "1"),
    ("org_a", "1"),
    ("org-key",),
    ("org-key", "1", "org_a"),
    ("org_a", "org-key", "1"),
    ("org-key", "org_a1"),
    ("org-key", "org_", "a1"),
    ("org-keyorg_a1",),
    ("org-key", "org_a", "1", ""),
    ("org-key", "", "org_a", "1"),
    ("org-key", "org_a", ""),
    ("org-key", "org_a", "1\0"),
    ("root-check",),
]


def missing(set_up: SetUp) -> None:
    pytest.fail("This provider has no rig. Add one to RIGS in tests/vault/rigs.py: no root key goes untested.")


EVERY = [
    pytest.param(rig, id=f"{provider}-{name}")
    for provider in PROVIDERS
    for name, rig in RIGS.get(provider, {"no rig": missing}).items()
]


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    with moto_server() as url:
        yield url


@pytest.fixture(params=EVERY)
def rig(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    new: NewRig = request.param
    with new(SetUp(tmp_path, monkeypatch, lambda: request.getfixturevalue("moto"))) as rig:
        yield rig


@pytest.fixture
def root(rig: Rig) -> RootKey:
    return rig.ref().create()


def seen(root: RootKey, use: Callable[[], object], refusals: tuple[type[VaultError], ...]) -> VaultError:
    with pytest.raises(VaultError) as caught:
        use()
    assert type(caught.value) in refusals, repr(caught.value)
    assert caught.value.__context__ is None
    return caught.value


def test_every_rig_is_for_a_provider():
    assert set(RIGS) <= set(PROVIDERS)


@pytest.mark.skipif(
    "real" not in RIGS["transit"],
    reason=f"set {REAL_TRANSIT} to the spec of a key of an OpenBao or Vault that may be tested against, and "
    f"{TOKEN_FILE} and {ADDRESS}; the engine needs a second key, of that name with `-other` after it",
)
def test_a_real_transit_server_is_held_to_it_as_well():
    assert "transit-real" in {param.id for param in EVERY}


@pytest.mark.parametrize("context", CONTEXTS, ids=ascii)
def test_what_it_wraps_it_unwraps(root: RootKey, context: Sequence[str]):
    first, second = root.wrap(KEY, context=context), root.wrap(KEY, context=context)
    assert first != second
    assert KEY not in first
    assert root.unwrap(first, context=context) == root.unwrap(second, context=context) == KEY
    assert root.unwrap(first, context=list(context)) == KEY


def test_it_unwraps_for_no_other_context(root: RootKey):
    blob = root.wrap(KEY, context=ORG)
    for context in OTHERS:
        error = seen(root, lambda context=context: root.unwrap(blob, context=context), (CannotOpen,))
        assert str(error) == str(CannotOpen())
    assert root.unwrap(blob, context=ORG) == KEY


def test_no_two_contexts_stand_for_each_other(root: RootKey):
    blobs = {context: root.wrap(KEY, context=context) for context in OTHERS}
    for context, blob in blobs.items():
        assert root.unwrap(blob, context=context) == KEY
        seen(root, lambda blob=blob: root.unwrap(blob, context=ORG), (CannotOpen,))


@pytest.mark.parametrize("context", [(), "org-key"])
def test_what_is_no_context_is_refused(root: RootKey, context: Sequence[str]):
    blob = root.wrap(KEY, context=ORG)
    with pytest.raises(ValueError, match="at least one part"):
        root.wrap(KEY, context=context)
    with pytest.raises(ValueError, match="at least one part"):
        root.unwrap(blob, context=context)


def test_it_unwraps_nothing_that_another_key_wrapped(rig: Rig, root: RootKey):
    other = rig.other().create()
    assert other.location != root.location
    seen(root, lambda: root.unwrap(other.wrap(KEY, context=ORG), context=ORG), rig.refusals)
    seen(other, lambda: other.unwrap(root.wrap(KEY, context=ORG), context=ORG), rig.refusals)


def test_a_blob_with_a_bit_flipped_is_refused(rig: Rig, root: RootKey):
    blob = root.wrap(KEY, context=ORG)
    edges = {bit for bit in range(len(blob) * 8) if bit < 64 or bit >= (len(blob) - 2) * 8}
    for bit in sorted(edges | {at * 8 + at % 8 for at in range(len(blob))}):
        flipped = bytearray(blob)
        flipped[bit // 8] ^= 1 << bit % 8
        seen(root, lambda flipped=flipped: root.unwrap(bytes(flipped), context=ORG), rig.refusals)


def test_a_blob_cut_lengthened_or_made_up_is_refused(rig: Rig, root: RootKey):
    blob = root.wrap(KEY, context=ORG)
    for wrong in [b"", blob[:1], blob[:5], blob[:-1], blob[1:], blob + b"\0", b"\0" + blob, blob * 2, b"\1" * 100_000]:
        seen(root, lambda wrong=wrong: root.unwrap(wrong, context=ORG), rig.refusals)


def test_after_a_restart_it_unwraps_what_it_wrapped_before(rig: Rig, root: RootKey):
    blob = root.wrap(KEY, context=ORG)
    again = rig.ref().load()
    assert again is not root
    assert again.unwrap(blob, context=ORG) == KEY
    assert (again.provider, again.location, again.remote) == (root.provider, root.location, root.remote)


def test_it_is_known_by_the_place_that_it_was_named_by(rig: Rig, root: RootKey):
    assert rig.ref().describe() == {"provider": root.provider, "location": root.location}
    assert root.provider in PROVIDERS


def test_threads_share_one(root: RootKey):
    def round_trip(number: int) -> bool:
        context = ("org-key", f"org_{number}", "1")
        key = bytes([number + 1]) * 32
        return root.unwrap(root.wrap(key, context=context), context=context) == key

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(round_trip, range(32)))


def test_without_its_service_it_does_nothing_and_nothing_stands_in(rig: Rig, root: RootKey):
    blob = root.wrap(KEY, context=ORG)
    assert root.remote == (rig.away is not None)
    if rig.away is None:
        return
    ref = rig.away()
    away = ref.load()
    for use in (
        lambda: away.wrap(KEY, context=ORG),
        lambda: away.unwrap(blob, context=ORG),
        ref.create,
    ):
        began = time.monotonic()
        error = seen(away, use, (KeysUnavailable,))
        assert time.monotonic() - began < 8
        assert "does not answer" in str(error)


def test_nothing_secret_is_in_what_it_shows_says_logs_or_leaves_in_a_traceback(
    rig: Rig,
    root: RootKey,
    locals_in: Callable[[BaseException], str],
    caplog: pytest.LogCaptureFixture,
):
    caplog.set_level("DEBUG")
    blob = root.wrap(KEY, context=ORG)
    assert root.unwrap(blob, context=ORG) == KEY
    altered = blob[:-1] + bytes([blob[-1] ^ 1])
    uses = [lambda: root.unwrap(altered, context=ORG), lambda: root.unwrap(blob, context=("root-check",))]
    shown = ""
    if rig.away is not None:
        away = rig.away().load()
        uses += [lambda: away.wrap(KEY, context=ORG), lambda: away.unwrap(blob, context=ORG)]
        shown += repr(away)
    shown += "".join(locals_in(seen(root, use, (CannotOpen, KeysUnavailable))) for use in uses)
    shown += repr(root) + str(root) + repr(rig.ref()) + str(rig.ref().describe())
    shown += str([getattr(root, name) for name in dir(root)]) + caplog.text
    for secret in [KEY, blob] if root.remote else [KEY]:
        assert leak(shown, base64.b64encode(secret).decode()) is None
        assert repr(secret)[2:20] not in shown
    for secret in rig.secrets:
        assert leak(shown, secret) is None
    assert CANARY not in shown
    with pytest.raises(TypeError):
        pickle.dumps(root)


def test_a_key_is_exported_and_kept_elsewhere_or_says_that_it_never_leaves(rig: Rig) -> None:
    """Nothing in between: a place that gives its key away also takes one, and never over another."""
    blob = rig.ref().create().wrap(KEY, context=ORG)
    if not isinstance(rig.ref(), Portable):
        with pytest.raises(RecoveryProblem, match=r"never leaves it.*keyleash vault backup"):
            exported(rig.ref())
        with pytest.raises(RecoveryProblem, match="keychain or file"):
            taking(rig.ref())
        return
    with exported(rig.ref()) as text:
        kept = taking(rig.other()).keep(text)
        assert kept.unwrap(blob, context=ORG) == rig.other().load().unwrap(blob, context=ORG) == KEY
        for taken in (rig.ref(), rig.other()):
            with pytest.raises(RootKeyProblem, match="already"):
                taking(taken).keep(text)
