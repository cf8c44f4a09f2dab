import hashlib
import hmac

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from vault.errors import CannotOpen
from vault.seal import Key, derive, seal, unseal

KEY = bytes(range(32))
OTHER = bytes(range(1, 33))
CONTEXT = ("field", "org_a", "con_1", "secret")

contexts = st.lists(st.text(max_size=8), min_size=1, max_size=5)


def hkdf(key: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    """RFC 5869 by hand, so that the documented format is held against something that is not our code."""
    prk = hmac.new(salt, key, hashlib.sha256).digest()
    out, block = b"", b""
    while len(out) < length:
        block = hmac.new(prk, block + info + bytes([len(out) // 32 + 1]), hashlib.sha256).digest()
        out += block
    return out[:length]


@given(st.binary(max_size=200), contexts)
def test_what_was_sealed_opens_under_the_same_key_and_context(plaintext: bytes, context: list[str]):
    assert unseal(KEY, seal(KEY, plaintext, context=context), context=context) == plaintext


def test_a_blob_is_laid_out_byte_by_byte_as_documented():
    blob = seal(KEY, b"plaintext", context=("org_a", "é"))

    expanded = hkdf(KEY, blob[1:33], b"keyleash/seal/v1", 76)
    head = blob[:65]
    associated = head + b"\x00\x00\x00\x05org_a" + b"\x00\x00\x00\x02\xc3\xa9"
    assert blob[:1] == b"\x01"
    assert blob[33:65] == expanded[44:]
    assert AESGCM(expanded[:32]).decrypt(expanded[32:44], blob[65:], associated) == b"plaintext"
    assert len(blob) == len(b"plaintext") + 81


def test_a_blob_changed_in_any_bit_does_not_open():
    blob = seal(KEY, b"sk_test", context=CONTEXT)
    for bit in range(len(blob) * 8):
        changed = bytearray(blob)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CannotOpen):
            unseal(KEY, bytes(changed), context=CONTEXT)


@pytest.mark.parametrize("cut", [0, 1, 33, 65, 80, 81, 87])
def test_a_blob_cut_short_does_not_open(cut: int):
    blob = seal(KEY, b"sk_test", context=CONTEXT)
    with pytest.raises(CannotOpen):
        unseal(KEY, blob[:cut], context=CONTEXT)


def test_a_blob_made_longer_does_not_open():
    with pytest.raises(CannotOpen):
        unseal(KEY, seal(KEY, b"sk_test", context=CONTEXT) + b"\x00", context=CONTEXT)


@given(contexts, contexts)
def test_a_blob_opens_for_its_own_context_only(sealed_for: list[str], asked_for: list[str]):
    blob = seal(KEY, b"x", context=sealed_for)
    if sealed_for == asked_for:
        assert unseal(KEY, blob, context=asked_for) == b"x"
        return
    with pytest.raises(CannotOpen):
        unseal(KEY, blob, context=asked_for)


@pytest.mark.parametrize("other", [("ab", "c"), ("a", "b", "c"), ("abc",), ("a", "bc", ""), ("", "a", "bc")])
def test_moving_the_border_between_parts_makes_another_context(other: tuple[str, ...]):
    with pytest.raises(CannotOpen):
        unseal(KEY, seal(KEY, b"x", context=("a", "bc")), context=other)


def test_another_key_does_not_open_it():
    with pytest.raises(CannotOpen):
        unseal(OTHER, seal(KEY, b"x", context=CONTEXT), context=CONTEXT)


def test_a_blob_that_decrypts_under_another_key_is_still_refused_for_its_commitment():
    """The blob's ciphertext and tag are valid under OTHER; only the commitment says that KEY made it."""
    blob = seal(KEY, b"x", context=("c",))
    salt, commitment = blob[1:33], blob[33:65]
    expanded = hkdf(OTHER, salt, b"keyleash/seal/v1", 76)
    head = b"\x01" + salt + commitment
    forged = head + AESGCM(expanded[:32]).encrypt(expanded[32:44], b"forged", head + b"\x00\x00\x00\x01c")
    with pytest.raises(CannotOpen):
        unseal(OTHER, forged, context=("c",))


def test_a_blob_of_a_version_that_is_not_ours_is_refused_though_all_else_fits():
    salt = b"s" * 32
    expanded = hkdf(KEY, salt, b"keyleash/seal/v1", 76)
    for version, opens in [(b"\x01", True), (b"\x02", False), (b"\x00", False)]:
        head = version + salt + expanded[44:]
        blob = head + AESGCM(expanded[:32]).encrypt(expanded[32:44], b"made", head + b"\x00\x00\x00\x01c")
        if opens:
            assert unseal(KEY, blob, context=("c",)) == b"made"
            continue
        with pytest.raises(CannotOpen):
            unseal(KEY, blob, context=("c",))


def test_the_same_text_sealed_twice_shares_no_salt_and_no_ciphertext():
    one, two = (seal(KEY, b"the same text", context=CONTEXT) for _ in range(2))
    assert one[1:33] != two[1:33]
    assert one[65:] != two[65:]


def test_every_failure_has_the_same_message():
    blob = seal(KEY, b"x", context=CONTEXT)
    messages: set[str] = set()
    for key, changed, context in [(OTHER, blob, CONTEXT), (KEY, b"", CONTEXT), (KEY, blob, ("other",))]:
        with pytest.raises(CannotOpen) as caught:
            unseal(key, changed, context=context)
        messages.add(str(caught.value))
        assert caught.value.__context__ is None
    assert len(messages) == 1


@pytest.mark.parametrize("key", [b"", bytes(32), b"k" * 31, b"k" * 33, b"k" * 16])
def test_what_is_no_key_is_refused_everywhere(key: bytes):
    for use in (
        lambda: seal(key, b"x", context=CONTEXT),
        lambda: unseal(key, seal(KEY, b"x", context=CONTEXT), context=CONTEXT),
        lambda: derive(key, context=CONTEXT),
        lambda: Key(key),
    ):
        with pytest.raises(ValueError, match="exactly 32 bytes"):
            use()


@pytest.mark.parametrize("context", [(), [], "org_a"])
def test_an_empty_context_and_a_bare_string_are_refused(context: str):
    with pytest.raises(ValueError, match="at least one part"):
        seal(KEY, b"x", context=context)
    with pytest.raises(ValueError, match="at least one part"):
        derive(KEY, context=context)


def test_derived_keys_differ_by_key_and_context_and_are_the_documented_hkdf():
    one = derive(KEY, context=("org_a", "audit"))
    assert one == hkdf(KEY, bytes(32), b"keyleash/derive/v1\x00\x00\x00\x05org_a\x00\x00\x00\x05audit", 32)
    others = [derive(KEY, context=("org_a", "other")), derive(OTHER, context=("org_a", "audit")), KEY]
    assert one not in others


def test_a_failed_unsealing_leaves_no_key_in_the_traceback(locals_in):
    blob = seal(KEY, b"x", context=CONTEXT)
    for open_it in (lambda: unseal(OTHER, blob, context=CONTEXT), lambda: Key(OTHER).unseal(blob, context=CONTEXT)):
        with pytest.raises(CannotOpen) as caught:
            open_it()
        shown = locals_in(caught.value)
        assert "'context'" in shown
        assert repr(OTHER)[2:-1] not in shown


def test_a_key_works_and_does_not_show():
    key = Key(KEY)
    assert key.unseal(seal(KEY, b"x", context=CONTEXT), context=CONTEXT) == b"x"
    assert unseal(KEY, key.seal(b"y", context=CONTEXT), context=CONTEXT) == b"y"
    assert key.derive(context=CONTEXT) == derive(KEY, context=CONTEXT)
    assert repr(key) == str(key) == f"{key:>9}" == "<Key>"
