import base64

import pytest

from vault.errors import CannotOpen
from vault.root import LocalRootKey, RootKey, new_root_text, root_from_text

RAW = bytes(range(100, 132))
TEXT = "keyleash-root-key:v1:" + base64.urlsafe_b64encode(RAW).decode()


def read(text: str) -> LocalRootKey | None:
    return root_from_text(text, provider="file", location="/k")


def test_a_root_key_unwraps_what_it_wrapped_for_the_same_purpose_only():
    root: RootKey = LocalRootKey(RAW)
    assert root.remote is False
    blob = root.wrap(b"o" * 32, context=("org-key", "org_a", "1"))
    assert root.unwrap(blob, context=("org-key", "org_a", "1")) == b"o" * 32
    with pytest.raises(CannotOpen):
        root.unwrap(blob, context=("org-key", "org_b", "1"))
    with pytest.raises(CannotOpen):
        LocalRootKey(b"x" * 32).unwrap(blob, context=("org-key", "org_a", "1"))


@pytest.mark.parametrize("raw", [bytes(32), b"", b"k" * 31])
def test_a_short_or_zero_root_key_is_refused(raw: bytes):
    with pytest.raises(ValueError, match="32 bytes"):
        LocalRootKey(raw)


def test_the_written_form_is_read_back_as_the_same_key():
    root = read(TEXT + "\n")
    assert root is not None
    assert (root.provider, root.location) == ("file", "/k")
    assert root.unwrap(LocalRootKey(RAW).wrap(b"o" * 32, context=("c",)), context=("c",)) == b"o" * 32


def test_a_new_root_key_is_whole_and_never_the_same():
    texts = {new_root_text().reveal() for _ in range(4)}
    assert len(texts) == 4
    assert all(read(text) for text in texts)


@pytest.mark.parametrize(
    "text",
    [
        "",
        TEXT[:-1],
        TEXT[:-5],
        TEXT + "=",
        TEXT + "AAAA",
        TEXT.replace("v1", "v2"),
        TEXT.removeprefix("keyleash-root-key:v1:"),
        "keyleash-root-key:v1:" + base64.urlsafe_b64encode(bytes(32)).decode(),
        "keyleash-root-key:v1:" + base64.urlsafe_b64encode(RAW[:31]).decode(),
        "keyleash-root-key:v1:" + "+/" * 21 + "A=",
        TEXT[:-2] + "B=",
        TEXT + "\n" + TEXT,
    ],
)
def test_a_short_zero_or_garbled_text_is_no_root_key(text: str):
    assert read(text) is None
