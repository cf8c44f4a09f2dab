"""Take a secret, and every listed disguise of it, out of what comes back.

Found: the secret itself; base64 and base64url at each offset; hex in both cases; reversed; and each of these URL-,
JSON- or HTML-escaped, whichever of its characters are escaped, up to four layers deep and mixed. Not found: what only
someone who knows the disguise could undo (encryption, hashes, a secret cut in pieces), and secrets of fewer than four
characters, which removing would reveal rather than hide.
"""

import base64
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from html.entities import html5
from typing import Any, cast

REMOVED = "[removed by Keyleash]"

_SHORTEST = 4
_LAYERS = 4
_LARGE = 256 * 1024  # characters, above which a text in which a disguise is found goes as a whole
_NAMED = {name.removesuffix(";"): text for name, text in html5.items() if len(text) == 1 and text.isascii()}
_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]*")
_HEX = "0123456789abcdefABCDEF"
_IN_ESCAPES = "%\\&#;"


def _escapes(percent: str, unicode: str, octet: str, short: str, named: Iterable[str]) -> re.Pattern[str]:
    return re.compile(
        rf"%(?:{percent})|\\u(?:{unicode})|\\x(?:{octet})|\\[{short}]"
        rf"|&#(?:[0-9]{{1,16}}|[xX][0-9A-Fa-f]{{1,16}});?|&(?:{'|'.join(named)});"
    )


# Every escape; and those alone that stand for a character of a token, of base64 or of another escape: a secret made of
# nothing else is looked for several times as fast.
_ESCAPE = _escapes("[0-9A-Fa-f]{2}", "[0-9A-Fa-f]{4}", "[0-9A-Fa-f]{2}", r'\\/"', _NAMED)
_TOKEN_NAMED = [name for name, text in _NAMED.items() if _TOKEN.fullmatch(text) or text in _IN_ESCAPES]
_TOKEN_ESCAPE = _escapes(
    "2[356BDEFbdef]|3[0-9BDbd]|[46][1-9A-Fa-f]|5[0-9ACFacf]|7[0-9AEae]",
    "00[2-7][0-9A-Fa-f]",
    "[2-7][0-9A-Fa-f]",
    r"\\/",
    _TOKEN_NAMED,
)
# How such an escape goes on after its first character: splitting at that and looking here is faster than the pattern.
_GOES_ON: tuple[tuple[str, int, frozenset[str]], ...] = (
    ("%", 2, frozenset(a + b for a in _HEX for b in _HEX if _TOKEN_ESCAPE.fullmatch(f"%{a}{b}"))),
    ("\\", 1, frozenset(("u", "x", "/"))),
    ("&", 2, frozenset(("#x", "#X", *(f"#{digit}" for digit in range(10)), *(name[:2] for name in _TOKEN_NAMED)))),
)
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]")


class Scrubber:
    """Removes these secrets from text and values. Made for one call and dropped with it."""

    __slots__ = ("_cores", "_escape", "_plain")

    def __init__(self, secrets: Sequence[str]) -> None:
        known = [secret for secret in secrets if len(secret) >= _SHORTEST]
        self._plain = tuple(needle for secret in known for needle in _forms(secret))
        self._cores = tuple(core for secret in known for core in _cores(secret))
        self._escape = _TOKEN_ESCAPE if all(map(_TOKEN.fullmatch, known)) else _ESCAPE

    def __repr__(self) -> str:
        return "Scrubber()"

    def finds(self, text: str) -> bool:
        """Whether a secret stands in the text, in the open or in disguise. Fast where none does."""
        for _ in range(_LAYERS):
            if self._stands_in(text):
                return True
            if not _may_be_escaped(text, tokens_only=self._escape is _TOKEN_ESCAPE):
                return False
            before, text = text, self._escape.sub(_unescaped, text)
            if before == text:
                return False
        return self._stands_in(text)

    def _stands_in(self, text: str) -> bool:
        for needle in self._plain:  # a loop: half the time of `any` with a generator
            if needle in text:
                return True
        return any(core in text for core in self._cores)

    def text(self, text: str) -> str:
        """The text with each secret replaced by `REMOVED`, and nothing else changed.

        What cannot be cut out cleanly goes as a whole.
        """
        if not self.finds(text):
            return text
        cut = self._cut(text) if len(text) <= _LARGE else self._cut_open(text)
        return REMOVED if self.finds(cut) else cut

    def value(self, value: Any) -> Any:
        """A copy of a JSON value, or of bytes of UTF-8 text, without secrets in its strings, keys included."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, bytes):
            return self.text(value.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")
        if isinstance(value, Mapping):
            return {self.value(key): self.value(item) for key, item in cast("Mapping[Any, Any]", value).items()}
        if isinstance(value, (list, tuple)):
            return [self.value(item) for item in cast("Sequence[Any]", value)]
        return value

    def _cut(self, text: str) -> str:
        """Undo one layer after another, keeping where each character came from, and cut what is found at the source."""
        plain, starts, ends = text, list(range(len(text))), list(range(1, len(text) + 1))
        spans: list[tuple[int, int]] = []
        for _ in range(_LAYERS + 1):
            spans += [(starts[first], ends[last - 1]) for first, last in self._found(plain)]
            plain, starts, ends = self._undone(plain, starts, ends)
        kept: list[str] = []
        at = 0
        for first, last in sorted(spans):
            if first >= at:
                kept += (text[at:first], REMOVED)
            at = max(at, last)
        return "".join((*kept, text[at:]))

    def _cut_open(self, text: str) -> str:
        for needle in self._plain:
            text = text.replace(needle, REMOVED)
        return text

    def _found(self, text: str) -> Iterator[tuple[int, int]]:
        for needle in self._plain:
            for first in _places(needle, text):
                yield first, first + len(needle)
        for core in self._cores:
            for first in _places(core, text):
                # The characters beside the core hold some of the secret's bits too.
                last = first + len(core)
                yield (
                    first - bool(first and _BASE64.match(text[first - 1])),
                    last + bool(_BASE64.match(text[last:][:1])),
                )

    def _undone(self, text: str, starts: list[int], ends: list[int]) -> tuple[str, list[int], list[int]]:
        """One layer undone; `starts` and `ends` say for each character which part of the source it came from."""
        plain: list[str] = []
        new_starts: list[int] = []
        new_ends: list[int] = []
        at = 0
        for found in self._escape.finditer(text):
            first, last = found.span()
            char = _unescaped(found)
            if len(char) > 1:
                continue
            plain += (text[at:first], char)
            new_starts += (*starts[at:first], starts[first])
            new_ends += (*ends[at:first], ends[last - 1])
            at = last
        plain.append(text[at:])
        return "".join(plain), new_starts + starts[at:], new_ends + ends[at:]


def scrub(value: Any, secrets: Sequence[str]) -> Any:
    """The value (text, bytes, or JSON) without these secrets; see `Scrubber`."""
    return Scrubber(secrets).value(value)


def contains_secret(text: str, secrets: Sequence[str]) -> bool:
    """Whether a secret stands in the text, in any of the listed disguises."""
    return Scrubber(secrets).finds(text)


def _forms(secret: str) -> Iterator[str]:
    hexadecimal = secret.encode("utf-8", "surrogatepass").hex()
    yield from (hexadecimal, hexadecimal.upper())
    for form in (secret, secret[::-1], secret.replace(" ", "+")) if " " in secret else (secret, secret[::-1]):
        yield form
        yield from _read_as_escaped(form)
        if not form.isascii():
            yield form.encode("utf-8", "surrogatepass").decode("latin-1")  # what undoing %C3%A9 byte by byte leaves


def _read_as_escaped(form: str) -> Iterator[str]:
    """What undoing layers leaves of a secret that itself holds what looks like an escape: `%41`, `\\/`, `&amp;`."""
    for _ in range(_LAYERS):
        before, form = form, _ESCAPE.sub(_unescaped, form)
        if form == before or len(form) < _SHORTEST:
            return
        yield form


def _cores(secret: str) -> Iterator[str]:
    """At each of the three offsets, the base64 characters that depend on nothing but the secret."""
    octets = secret.encode("utf-8", "surrogatepass")
    for offset, skipped in enumerate((0, 2, 3)):
        core = base64.b64encode(bytes(offset) + octets)[skipped : (offset + len(octets)) * 8 // 6].decode()
        yield core
        if "+" in core or "/" in core:
            yield core.translate(_URL_SAFE)


_URL_SAFE = str.maketrans("+/", "-_")


def _may_be_escaped(text: str, *, tokens_only: bool) -> bool:
    for first, length, follow in _GOES_ON:
        if first not in text:
            continue
        if not tokens_only or not follow.isdisjoint([part[:length] for part in text.split(first)[1:]]):
            return True
    return False


def _places(needle: str, text: str) -> Iterator[int]:
    first = text.find(needle)
    while first >= 0:
        yield first
        first = text.find(needle, first + 1)


def _unescaped(found: re.Match[str]) -> str:
    return _character(found[0])


@lru_cache(maxsize=1024)
def _character(escape: str) -> str:
    """The one character that an escape stands for; the escape itself where there is none."""
    if escape[0] == "%":
        return chr(int(escape[1:], 16))
    if escape[0] == "\\":
        return chr(int(escape[2:], 16)) if escape[1] in "ux" else escape[1]
    if escape[1] != "#":
        return _NAMED.get(escape[1:-1], escape)
    digits = escape[2:].rstrip(";")
    code = int(digits[1:], 16) if digits[0] in "xX" else int(digits)
    return chr(code) if code < 0x110000 else escape
