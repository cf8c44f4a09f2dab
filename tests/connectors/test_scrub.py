"""A secret does not come back, however an upstream dresses it up; and what is not a secret is not touched."""

import base64
import html
import json
import random
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.scrub import REMOVED, Scrubber, contains_secret, scrub

TOKEN = "sk_live_CANARY4f8a91+/Zz~.9"
PASSWORD = 'p@ss "word" & <more> 100% \\ é;\''


def some(secret: str, escape: Callable[[str], str], seed: int) -> str:
    """Some of the characters escaped, never none."""
    dice = random.Random(seed)
    chosen = {dice.randrange(len(secret)), *(at for at in range(len(secret)) if dice.random() < 0.5)}
    return "".join(escape(char) if at in chosen else char for at, char in enumerate(secret))


def percent(char: str) -> str:
    return "".join(f"%{octet:02X}" for octet in char.encode())


def mixed_case(char: str) -> str:
    return "".join(f"%{octet:02x}" if octet % 2 else f"%{octet:02X}" for octet in char.encode())


def json_escape(secret: str) -> str:
    return json.dumps(secret)[1:-1]


def at_offset(offset: int, coder: Callable[[bytes], bytes]) -> Callable[[str], str]:
    return lambda secret: coder(b"\xfb\xef\xbe"[:offset] + secret.encode() + b":\xff").decode()


DISGUISES: dict[str, Callable[[str], str]] = {
    "raw": str,
    "reversed": lambda secret: secret[::-1],
    "hex": lambda secret: secret.encode().hex(),
    "HEX": lambda secret: secret.encode().hex().upper(),
    "base64 alone": lambda secret: base64.b64encode(secret.encode()).decode(),
    "base64 without padding": lambda secret: base64.b64encode(secret.encode()).decode().rstrip("="),
    "base64url alone": lambda secret: base64.urlsafe_b64encode(secret.encode()).decode(),
    "base64url without padding": lambda secret: base64.urlsafe_b64encode(secret.encode()).decode().rstrip("="),
    **{f"base64 at {offset}": at_offset(offset, base64.b64encode) for offset in range(4)},
    **{f"base64url at {offset}": at_offset(offset, base64.urlsafe_b64encode) for offset in range(4)},
    "url": lambda secret: quote(secret, safe=""),
    "url, in lower case": lambda secret: (
        quote(secret, safe="").lower() if secret.islower() else some(secret, mixed_case, 1)
    ),
    "url, every character": lambda secret: "".join(map(percent, secret)),
    "url, some characters": lambda secret: some(secret, percent, 2),
    "url, mixed case": lambda secret: some(secret, mixed_case, 3),
    "url, twice": lambda secret: quote(quote(secret, safe=""), safe=""),
    "url, every character, twice": lambda secret: quote("".join(map(percent, secret)), safe=""),
    "url, every character, every character": lambda secret: "".join(map(percent, "".join(map(percent, secret)))),
    "url, with plus": lambda secret: quote(secret, safe=" ").replace(" ", "+"),
    "json": json_escape,
    "json, every character": lambda secret: "".join(f"\\u{ord(char):04x}" for char in secret),
    "json, some characters": lambda secret: some(secret, lambda char: f"\\u{ord(char):04X}", 4),
    "json, twice": lambda secret: json_escape("".join(f"\\u{ord(char):04x}" for char in secret)),
    "json, slashes": lambda secret: json_escape(secret).replace("/", "\\/"),
    "python": lambda secret: "".join(f"\\x{octet:02x}" for octet in secret.encode()),
    "html": html.escape,
    "html, decimal": lambda secret: "".join(f"&#{ord(char)};" for char in secret),
    "html, hexadecimal": lambda secret: "".join(f"&#x{ord(char):X};" for char in secret),
    "html, padded with zeros": lambda secret: "".join(f"&#{ord(char):012};" for char in secret),
    "html, some characters": lambda secret: some(secret, lambda char: f"&#X{ord(char):x};", 5),
    "html, named": lambda secret: some(secret, lambda char: NAMES.get(char, f"&#{ord(char)};"), 6),
    "html, twice": lambda secret: html.escape(html.escape(secret)),
    "base64 in url": lambda secret: quote(base64.b64encode(secret.encode()).decode(), safe=""),
    "base64 in json": lambda secret: base64.b64encode(secret.encode()).decode().replace("/", "\\/"),
    "url in json in html": lambda secret: html.escape(json_escape(quote(secret, safe=""))),
    "hex, escaped": lambda secret: "".join(map(percent, secret.encode().hex())),
    "reversed, escaped": lambda secret: "".join(map(percent, secret[::-1])),
}
NAMES = {"+": "&plus;", "/": "&sol;", "_": "&lowbar;", ".": "&period;", "&": "&amp;", "<": "&lt;", "%": "&percnt;"}
AROUND = [("", ""), ("Bearer ", " is wrong"), ("ab", "yz"), ('{"key": "', '"}'), ("100% of ", " & more \\ %zz &#;")]


@pytest.mark.parametrize("secret", [TOKEN, PASSWORD])
@pytest.mark.parametrize("name", DISGUISES)
def test_every_disguise_is_found_and_cut_out_with_nothing_around_it(name: str, secret: str) -> None:
    shown = DISGUISES[name](secret)
    for before, after in AROUND:
        if "base64" in name and before == "ab":
            continue  # letters beside base64 are base64
        text = before + shown + after
        assert contains_secret(text, [secret])
        left = scrub(text, [secret])
        assert REMOVED in left
        assert not contains_secret(left, [secret])
        if not any(word in name for word in (" at ", "padding", "alone", "base64 in")):
            assert left == before + REMOVED + after


@pytest.mark.parametrize("offset", range(3))
def test_no_base64_character_that_holds_bits_of_the_secret_is_left(offset: int) -> None:
    coded = base64.b64encode(b"\xfb\xef\xbe"[:offset] + TOKEN.encode() + b"tail").decode()
    left = scrub(coded, [TOKEN])
    before, _, after = left.partition(REMOVED)
    assert coded.startswith(before)
    assert coded.endswith(after)
    assert len(before) * 6 <= offset * 8
    assert (len(coded) - len(after)) * 6 >= (offset + len(TOKEN)) * 8


def test_it_is_found_in_keys_and_values_at_any_depth_and_the_rest_stays() -> None:
    value = {"a": [1, None, True, 2.5, {TOKEN: "x", "b": f"see {TOKEN}"}], "c": "plain", "d": TOKEN[::-1]}
    assert scrub(value, [TOKEN]) == {
        "a": [1, None, True, 2.5, {REMOVED: "x", "b": f"see {REMOVED}"}],
        "c": "plain",
        "d": REMOVED,
    }


def test_bytes_are_scrubbed_as_text_and_stay_bytes() -> None:
    assert scrub(b"\xff " + TOKEN.encode() + b" \xc3\xa9", [TOKEN]) == b"\xff " + REMOVED.encode() + b" \xc3\xa9"


def test_several_secrets_and_several_places() -> None:
    left = scrub(f"{TOKEN} and {quote(PASSWORD)} and {TOKEN}{TOKEN}", [PASSWORD, TOKEN])
    assert left == f"{REMOVED} and {REMOVED} and {REMOVED}{REMOVED}"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nothing here: 100% & %zz \\u12 &#; &unknown; &#99999999; &#x110000; %",
        TOKEN[:-1],
        TOKEN[1:],
        TOKEN.upper(),
        quote(TOKEN[:-1], safe=""),
    ],
)
def test_what_is_no_secret_is_returned_as_it_is(text: str) -> None:
    assert scrub(text, [TOKEN]) == text
    assert not contains_secret(text, [TOKEN])


def test_empty_and_tiny_secrets_do_not_shred_the_answer() -> None:
    assert scrub("an answer", ["", "a", "ans"]) == "an answer"
    assert scrub("an answer", []) == "an answer"


def test_a_secret_under_more_layers_than_are_undone_is_beyond_the_promise() -> None:
    text = TOKEN
    for _ in range(4):
        text = "".join(map(percent, text)) if len(text) < 200 else quote(text, safe="")
        assert contains_secret(text, [TOKEN])
    assert not contains_secret(quote(text, safe=""), [TOKEN])


def test_a_large_text_is_scrubbed_in_the_open_and_removed_whole_in_disguise() -> None:
    filler = "x" * 300_000
    assert scrub(f"{filler}{TOKEN}{filler}", [TOKEN]) == f"{filler}{REMOVED}{filler}"
    assert scrub(f"{filler}{DISGUISES['url, every character'](TOKEN)}", [TOKEN]) == REMOVED


def test_a_scrubber_shows_nothing_of_what_it_looks_for() -> None:
    scrubber = Scrubber([TOKEN])
    assert TOKEN not in repr(scrubber) + str(scrubber)
    assert not hasattr(scrubber, "__dict__")


ESCAPES: list[Callable[[str], str]] = [
    str,
    percent,
    mixed_case,
    lambda char: f"\\u{ord(char):04x}",
    lambda char: f"\\x{ord(char):02X}" if ord(char) < 128 else char,
    lambda char: f"&#{ord(char)};",
    lambda char: f"&#x{ord(char):x};",
    lambda char: NAMES.get(char, char),
    lambda char: "".join(map(percent, percent(char))),
    lambda char: "".join(f"&#{ord(part)};" for part in f"\\u{ord(char):04x}"),
]


@given(
    secret=st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=6, max_size=40),
    choices=st.lists(st.sampled_from(ESCAPES), min_size=40, max_size=40),
    before=st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=5),
)
def test_any_mixture_of_escapes_is_found(secret: str, choices: list[Callable[[str], str]], before: str) -> None:
    """Except where what stands before or within happens to read as another escape: only then may the cut be wider."""
    text = before.translate({ord(char): "." for char in "%\\&#"}) + "".join(
        escape(char) for escape, char in zip(choices, secret, strict=False)
    )
    if any(char in secret for char in "%\\&#;"):
        return
    assert contains_secret(text, [secret])
    assert not contains_secret(scrub(text, [secret]), [secret])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(JSON)
def test_an_answer_without_a_secret_is_unchanged(value: Any) -> None:
    assert scrub(value, [TOKEN]) == value


@pytest.mark.parametrize("secret", ["pa%41ss<word>&more12345", "Zt\\/+a1b2c3d4e5f6", 'a&amp;b"c1d2e3f4g5h6'])
def test_a_secret_that_itself_looks_escaped_is_found_in_every_form(secret: str) -> None:
    for form in (secret, html.escape(secret), json.dumps(secret)[1:-1], quote(secret, safe=""), unquote(secret)):
        assert REMOVED in scrub(f"before {form} after", [secret]), form
