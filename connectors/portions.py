"""Tell a long answer in portions that a model can take: together they hold all of it, each item once, and each says so.

A list is told by whole items, a text by its characters, and anything else by the characters of its JSON.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

MAX_TEXT = 60_000  # bytes of JSON that a model gets at once
_ROOM = 1_000  # of these, for what is said about the length
_LONGEST_NAME = 80

ASK_FOR_LESS = "Ask for less: a smaller limit, a shorter time range, or a more precise filter."


@dataclass(frozen=True, slots=True)
class Portion:
    """A part of an answer; `text` is `structured` as compact JSON. `next` is where the following part begins."""

    structured: dict[str, Any]
    text: str
    next: int | None = None


def portion(whole: dict[str, Any], start: int = 0, *, how: Callable[[int], str] | None = None) -> Portion:
    """The part of this answer that begins at `start`: all of it, where it is short. Raises IndexError past its end.

    `how` says, of the place where the next part begins, how it is had.
    """
    try:
        text = dumped(whole)
        size = len(text.encode())
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can name but no text can hold
        whole = json.loads(dumped(whole).encode("utf-8", "replace"))
        text = dumped(whole)
        size = len(text.encode())
    except ValueError:  # a number beyond what a float holds
        whole = {"note": "The answer holds a number that cannot be passed on, so it is withheld."}
        return Portion(whole, dumped(whole))
    if size <= MAX_TEXT and start == 0:
        return Portion(whole, text)
    name = max(whole, key=lambda each: len(dumped(whole[each])))
    longest = whole[name]
    beside = whole if start == 0 else {}  # what stands beside it is told once; whether there is room for it, decides
    if len(dumped(whole | {name: None}).encode()) < MAX_TEXT // 2 and len(name) <= _LONGEST_NAME:
        if isinstance(longest, list) and (found := _of_items(cast("list[Any]", longest), name, start, beside, how)):
            return found
        if isinstance(longest, str):
            return _of_text(longest, name, start, beside, how)
    return _of_text(text, "json", start, {}, how)


def _of_items(
    items: list[Any], name: str, start: int, beside: dict[str, Any], how: Callable[[int], str] | None
) -> Portion | None:
    """Items from `start` on; None where one of them is too long by itself."""
    sizes = [len(dumped(item).encode()) + 1 for item in items]
    if max(sizes) > MAX_TEXT // 2 - _ROOM:
        return None
    if start >= len(items):
        raise IndexError(start)
    room = MAX_TEXT - _ROOM - len(dumped(beside | {name: []}).encode())
    end = start
    while end < len(items) and room >= sizes[end]:
        room -= sizes[end]
        end += 1
    shown = f"{end - start} of {len(items)}" if start == 0 else f"{start + 1} to {end} of {len(items)}"
    said = f"Cut by Keyleash: {shown} in {name!a} are shown."
    return _told(beside | {name: items[start:end]}, said, end if end < len(items) else None, how, "the next page")


def _of_text(text: str, name: str, start: int, beside: dict[str, Any], how: Callable[[int], str] | None) -> Portion:
    if start >= len(text):
        raise IndexError(start)
    room = MAX_TEXT - _ROOM - len(dumped(beside | {name: ""}).encode())
    end = min(len(text), start + room)
    while len(dumped(text[start:end]).encode()) > room:  # some characters take six bytes in JSON
        end = start + (end - start) * 3 // 4
    said = f"Cut by Keyleash: characters {start + 1} to {end} of {len(text)} of {name!a} are shown."
    return _told(beside | {name: text[start:end]}, said, end if end < len(text) else None, how, "anything else")


def _told(
    part: dict[str, Any], said: str, following: int | None, how: Callable[[int], str] | None, instead: str
) -> Portion:
    if following is None:
        note = f"{said} This is the end of it."
    elif how is None:
        note = f"{said} {ASK_FOR_LESS}"
    else:
        note = f"{said} {how(following)} Do so before you ask for {instead}."
    whole = part | {"note_on_length": note}
    return Portion(whole, dumped(whole), following)


def dumped(value: Any) -> str:
    """As compact JSON; raises ValueError for a number that JSON has not."""
    return _ENCODER.encode(value)


_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)
