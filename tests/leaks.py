"""Find a secret by undoing disguises rather than by making them: nothing here is shared with the scrubber it judges."""

import binascii
import html
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

WINDOW = 8
"""So many characters of a secret in a row are a leak; fewer are chance."""
PART, MANY = 5, 100
"""Where there are many windows, one is looked for only in what holds a part of one at a place divisible by four: every
window that stands anywhere has such a part."""

_EMPTY = re.compile(rb"\0{9,}")
"""Most of a small database. No window lies across a zero, and where utf-16 is undone every zero goes."""
_HEX = re.compile(r"[0-9A-Fa-f]{16,}")
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{11,}")
_JSON = re.compile(r"\\u([0-9A-Fa-f]{4})|\\x([0-9A-Fa-f]{2})|\\([\\/\"])")


def leak(data: str | bytes, *secrets: str, layers: int = 4) -> str | None:
    """What stands in `data` of a secret, and how; None where nothing does.

    Up to `layers` layers less one of escapes are undone, in every order; what then stands there in hex or base64 is
    decoded.
    """
    text = data.decode("latin-1") if isinstance(data, bytes) else data
    windows = dict.fromkeys(secret[at : at + WINDOW] for secret in secrets for at in range(len(secret) - WINDOW + 1))
    parts = {each[at : at + PART] for each in windows for at in range(WINDOW - PART + 1)}
    seen = {text}
    layer = [(text, "")]
    for _ in range(layers):
        for undone, how in layer:
            for shown, more in _readings(undone):
                if len(windows) > MANY and parts.isdisjoint(shown[at : at + PART] for at in range(0, len(shown), 4)):
                    continue
                # Each looked for by itself: a regular expression of all of them takes many times as long.
                if (found := next((each for each in windows if each in shown), None)) is not None:
                    return f"{found!r} of the secret, {how}{more}".rstrip(", ")
        fresh: list[tuple[str, str]] = []
        for undone, how in layer:
            for new, more in _undone(undone):
                if new not in seen:
                    seen.add(new)
                    fresh.append((new, f"{how}{more}, "))
        layer = fresh
    return None


def leaking_files(folder: Path, *secrets: str) -> list[str]:
    """Every file below `folder` that holds one of the secrets, and how."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    assert files, f"nothing was looked at: {folder} is empty"
    looked = ((path, _EMPTY.sub(b"\0", path.read_bytes())) for path in files)
    return [f"{path}: {found}" for path, data in looked if (found := leak(data, *secrets, layers=2))]


def _undone(text: str) -> Iterator[tuple[str, str]]:
    if "%" in text:
        yield unquote(text, encoding="latin-1"), "percent"
    if "&" in text:
        yield html.unescape(text), "html"
    if "\\" in text:
        yield _JSON.sub(lambda found: found[3] or chr(int(found[1] or found[2], 16)), text), "json"
    if "\0" in text:
        yield text.replace("\0", ""), "utf-16"


def _readings(text: str) -> Iterator[tuple[str, str]]:
    yield text, ""
    yield text[::-1], "reversed"
    hexadecimal = [run[at : len(run) - (len(run) - at) % 2] for run in set(_HEX.findall(text)) for at in (0, 1)]
    yield "\n".join(bytes.fromhex(run).decode("latin-1") for run in hexadecimal), "hex"
    yield "\n".join(_decoded(run) for run in set(_BASE64.findall(text))), "base64"


def _decoded(run: str) -> str:
    plain = run.replace("-", "+").replace("_", "/")
    parts = (plain[at : len(plain) - (len(plain) - at) % 4] for at in range(4))
    return "\n".join(binascii.a2b_base64(part).decode("latin-1") for part in parts)
